"""NaN and infinity at each border stop a run in the same step, and say where they came from."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from etude import checkpoint
from etude.agents.finite import check_observations, check_tensors
from etude.agents.replay import Batch
from etude.cli import discover
from etude.config import replace
from etude.envs.registry import make_vec
from etude.errors import NotFiniteError
from etude.skills.discovery import Discovery, preset
from etude.skills.vec_env import PrimitiveLevel, SkillVecEnv

SMALL: dict[str, Any] = {
    "steps": 480,
    "agent": {"hidden": [16, 16]},
    "loop": {"num_envs": 4, "episode_steps": 20, "updates_per_epoch": 3, "warmup_steps": 80},
}
BAD = pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])


def run() -> Discovery:
    return Discovery(replace(preset("metra", "point-open"), SMALL))


@BAD
def test_a_bad_observation_stops_in_its_step(bad: float) -> None:
    one = run()
    step = one.venv.step

    def broken(actions: np.ndarray, active: np.ndarray | None = None) -> Any:
        obs, reward, terminated, truncated, infos = step(actions, active)
        if one.steps == 4 * 7:
            infos["final_obs_array"][2, 1] = bad
        return obs, reward, terminated, truncated, infos

    one.venv.step = broken  # type: ignore[method-assign]
    with pytest.raises(NotFiniteError, match=r"entry 1 \(y\).* environment 2 is .* at step 7:"):
        one.epoch()
    assert one.steps == 4 * 7 and len(one.replay) == 4 * 7, "nothing of that step was stored"


@BAD
@pytest.mark.parametrize(
    ("spoilt", "said"),
    [
        ("reward", r"the reward of environment 1 is .* at step 5:"),
        ("observation", r"entry 2 \(x_velocity\).* environment 1 is .* at step 5:"),
    ],
)
def test_a_bad_task_stops_a_controller_in_its_step(spoilt: str, said: str, bad: float) -> None:
    """In the third step of the second decision, of three steps each."""
    venv = SkillVecEnv(make_vec("point-maze-u-goal", 2, seed=0), PrimitiveLevel(2), 3, 0.99)
    venv.reset()
    inner, steps = venv.venv.step, 0

    def broken(actions: np.ndarray, active: np.ndarray | None = None) -> Any:
        nonlocal steps
        found = inner(actions, active)
        if steps == 5:
            (found[1] if spoilt == "reward" else found[4]["final_obs_array"][:, 2])[1] = bad
        steps += 1
        return found

    venv.venv.step = broken  # type: ignore[method-assign]
    venv.step(np.zeros((2, 2), np.float32))
    with pytest.raises(NotFiniteError, match=said):
        venv.step(np.zeros((2, 2), np.float32))
    assert steps == 6


@BAD
@pytest.mark.parametrize(
    ("border", "where"),
    [
        ("learner's loss", "learner"),
        ("signal to the agent", "signal"),
        ("agent's loss", "agent"),
    ],
)
def test_a_bad_update_stops_at_once(
    border: str, where: str, bad: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = run()
    one.epoch()
    done = one.updates
    if where == "signal":
        signal = one.learner.signal
        monkeypatch.setattr(one.learner, "signal", lambda b: signal(b).index_fill(0, ROW, bad))
    else:
        part = getattr(one, where)
        update = part.update
        name = "skill/phi_loss" if where == "learner" else "train/critic_loss"
        monkeypatch.setattr(part, "update", lambda *a: update(*a) | {name: torch.tensor(bad)})
    with pytest.raises(NotFiniteError, match=f"{border}.* in update {done}:") as caught:
        one.epoch()
    assert one.updates == done
    assert caught.value.evidence is not None


ROW = torch.tensor([3])


@pytest.mark.parametrize("part", ["actor", "critics"])
def test_a_bad_gradient_is_named(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one = run()
    one.epoch()
    gradients = {"actor": torch.zeros(5), "critics": torch.zeros(5)}
    gradients[part][2] = torch.nan
    monkeypatch.setattr(one.agent, "gradients", lambda: gradients)
    with pytest.raises(NotFiniteError, match=rf"agent's gradient of {part} is nan at \(2,\)"):
        one.epoch()


def test_a_bad_gradient_of_the_learner_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its loss is finite, and what it did to the weights would show in the next update only."""
    one = run()
    one.epoch()
    done, update = one.updates, one.learner.update

    def broken(batch: Batch) -> dict[str, torch.Tensor]:
        learned = update(batch)
        one.learner.phi[0].weight.grad[5, 1] = torch.inf
        return learned

    monkeypatch.setattr(one.learner, "update", broken)
    text = rf"learner's gradient of phi.0.weight is inf at \(5, 1\) in update {done}:"
    with pytest.raises(NotFiniteError, match=text):
        one.epoch()
    assert one.updates == done


def test_the_evidence_replays_the_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command leaves crash/, from which the same learner and batch give the same NaN."""
    one = run()
    one.epoch()
    with torch.no_grad():
        one.learner.phi[0].weight[0, 0] = torch.nan
    with pytest.raises(NotFiniteError, match="crash/"):
        discover.train(one, tmp_path, discover.Running(eval_every=10_000))
    tree = checkpoint.load_newest(tmp_path / "crash")
    batch = Batch(**{k: torch.from_numpy(v) for k, v in tree["batch"].items()})
    again = run()
    again.learner.restore(tree["learner"])
    assert not again.learner.signal(batch).isfinite().all()


def test_large_but_finite_numbers_pass() -> None:
    """Their sum overflows, which alone is no fault."""
    check_tensors(0, {"the loss": {"large": torch.full((8,), 3e38)}})
    check_observations(np.full((2, 2), 3e38, np.float32), 0, {"x": slice(0, 2)})


def test_a_resumed_log_has_each_row_once(tmp_path: Path) -> None:
    from etude.logger import Logger

    first = Logger(tmp_path)
    for step in (10, 20, 30):
        first.scalars(step, {"a": step / 10})
    first.close()
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("40,0.1,a")  # cut off by a kill
    second = Logger(tmp_path, begin=20)
    second.scalars(30, {"a": 9.0})
    second.close()
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = [(r["step"], r["value"]) for r in csv.DictReader(file)]
    assert rows == [("10", "1"), ("20", "2"), ("30", "9")]
