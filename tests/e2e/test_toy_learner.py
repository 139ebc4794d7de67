"""One new file in the folder of learners is all that a method needs: nothing else is edited.

The file is written by this test and lies beside the package's own, on the same search path.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from etude import checkpoint, cli
from etude.config import replace
from etude.envs import registry
from etude.errors import UsageError
from etude.skills import learners
from etude.skills.discovery import Discovery, preset
from etude.skills.library import SkillLibrary

NAME, MODULE = "toy-compass", "toy_compass"
SOURCE = '''"""Toy compass: two skills, one for each end of a line that is learnt (nobody, 2026).

Deviations: none, as there is no paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from etude.agents.networks import mlp
from etude.agents.replay import Batch
from etude.config import Range
from etude.skills.learners.base import Learner, LearnerConfig, Spec
from etude.skills.spaces import Discrete


class ToyCompass(Learner):
    """Rewards moving along a line, forwards or backwards."""

    @dataclass(frozen=True)
    class Config(LearnerConfig):
        """Settings of the compass."""

        needle: Annotated[float, Range(0, open_low=True)] = 1.0
        """factor on the reward"""

    def __init__(self, spec: Spec, config: Config) -> None:
        super().__init__(spec, config)
        self.space, self.needle = Discrete(2), config.needle
        self.phi = mlp((self.seen_dim, 1))
        self.optimiser = torch.optim.Adam(self.phi.parameters(), lr=1e-2)

    def update(self, batch: Batch) -> dict[str, Tensor]:
        loss = -self.way(batch).abs().mean() + self.phi[0].weight.square().sum()
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        return {"skill/needle_loss": loss.detach()}

    @torch.no_grad()
    def signal(self, batch: Batch) -> Tensor:
        return self.needle * self.way(batch) * (batch.skill[:, :1] - batch.skill[:, 1:])  # (B, 1)

    def way(self, batch: Batch) -> Tensor:
        step = (batch.next_obs - batch.obs)[:, self.columns]
        return step @ self.phi[0].weight.T  # (B, 1)

    def export(self) -> dict[str, torch.nn.Sequential]:
        return {"compass": self.phi}
'''
QUICK = ["--agent.hidden", "16", "--loop.num-envs", "4", "--loop.episode-steps", "20"]
QUICK += ["--loop.updates-per-epoch", "3", "--loop.warmup-steps", "80", "--mi-episodes", "0"]


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    folder = tmp_path / "learners"
    folder.mkdir()
    (folder / f"{MODULE}.py").write_text(SOURCE)
    with monkeypatch.context() as patch:
        patch.setattr(learners, "__path__", [*learners.__path__, str(folder)])
        yield
    sys.modules.pop(f"{learners.__name__}.{MODULE}", None)
    vars(learners).pop(MODULE, None)


@pytest.mark.usefixtures("toy")
def test_it_is_listed_and_explains_its_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    assert NAME in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main(["discover", "--help"])
    assert NAME in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main(["discover", NAME, "--env", "point-open", "--help"])
    text = capsys.readouterr().out
    assert "--method.needle" in text and "factor on the reward" in text
    assert cli.main(["discover", "toy-compas", "--env", "point-open"]) == 2
    assert f'did you mean "{NAME}"' in capsys.readouterr().err
    assert cli.main(["discover", NAME, "--env", "point-open", "--method.needle", "0"]) == 2


@pytest.mark.usefixtures("toy")
def test_it_trains_saves_loads_and_is_evaluated(tmp_path: Path) -> None:
    out, report = tmp_path / "run", tmp_path / "report"
    command = ["discover", NAME, "--env", "point-open", "--steps", "400", "--out", str(out)]
    assert cli.main([*command, *QUICK, "--method.needle", "3", "--eval-every", "200"]) == 0
    stored = json.loads((out / "config.json").read_text())["discover"]
    assert stored["learner"] == NAME and stored["method"]["needle"] == 3
    assert "skill/needle_loss" in (out / "metrics.csv").read_text()
    assert checkpoint.latest(out / "checkpoints") is not None
    with pytest.MonkeyPatch.context() as patch:  # a library carries no code, and needs none
        patch.setattr(learners, "__path__", learners.__path__[:-1])
        assert NAME not in learners.ids()
        library = SkillLibrary.load(out)
        assert library.learner == NAME and len(library.skills) == 2
        obs = np.zeros(registry.spec("point-open").obs_dim, np.float32)
        assert library.act(obs, [0.0, 1.0]).shape == (2,)
        few = ["--episodes", "8", "--mi-episodes", "60"]
        assert cli.main(["evaluate", str(out), "--out", str(report), *few]) == 0
    assert json.loads((report / "report.json").read_text())["metrics"]["policy_coverage"] > 0


@pytest.mark.usefixtures("toy")
def test_it_resumes_exactly_and_is_a_bonus(tmp_path: Path) -> None:
    loop = {"num_envs": 4, "episode_steps": 20, "updates_per_epoch": 3, "warmup_steps": 80}
    config = replace(preset(NAME, "point-open"), {"steps": 320, "loop": loop})
    whole, first, second = (Discovery(config) for _ in range(3))
    whole.run()
    times = iter(range(44))
    while first.epoch(stop=lambda: next(times, None) is None):
        pass
    second.restore(checkpoint.load(checkpoint.save(tmp_path, "stopped", first.checkpoint())))
    second.run()
    for part in ("learner", "agent"):
        one, other = (getattr(run, part).state_dict() for run in (whole, second))
        assert all((one[k] == other[k]).all() for k in one)
    beside = preset("diayn", "point-open", bonus=NAME)
    same = {"steps": 320, "loop": loop, "method": {"dim": 2}}
    run = Discovery(replace(beside, same))
    run.run()
    assert "bonus/needle_loss" in run.metrics


def test_without_the_file_there_is_no_such_learner() -> None:
    assert NAME not in learners.ids()
    with pytest.raises(UsageError, match=f'unknown learner "{NAME}"'):
        learners.get(NAME)
