"""Any learner takes any bonus that fits, and what the agent is then paid is their sum."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stopped import stopped
from torch import Tensor

from etude import cli
from etude.agents.replay import Batch
from etude.config import load, replace
from etude.errors import NotFiniteError, UsageError
from etude.evaluate.metrics import RunningCoverage
from etude.skills import learners
from etude.skills.discovery import DiscoverConfig, Discovery, preset, read_config
from etude.skills.export import export
from etude.skills.learners.base import Learner
from etude.skills.library import SkillLibrary

LOOP = {"num_envs": 4, "episode_steps": 20, "updates_per_epoch": 3, "batch_size": 32}
LOOP |= {"warmup_steps": 80, "replay_capacity": 320}
SMALL: dict[str, Any] = {"steps": 320, "agent": {"hidden": [16, 16]}, "loop": LOOP}
EXPLORERS = ("apt", "disagreement", "rnd")


def paid(name: str) -> bool:
    agent = learners.get(name).agent
    return agent is not None and agent.rewarded


HOSTS = [name for name in learners.ids() if paid(name)]
FEATURES = [n for n in HOSTS if learners.get(n).task_vector is not Learner.task_vector]


def small(host: str, bonus: str, weight: float = 0.5, **settings: Any) -> DiscoverConfig:
    config = replace(preset(host, "point-open", bonus=bonus), SMALL)
    return replace(config, {"bonus_weight": weight if bonus else 0.1, **settings})


def watched(run: Discovery, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Batch, Tensor, Tensor]]:
    """What the agent is told in each update from now on."""
    seen: list[tuple[Batch, Tensor, Tensor]] = []
    update = run.agent.update  # type: ignore[union-attr]

    def watch(batch: Batch, signal: Tensor, weights: Tensor) -> dict[str, Tensor]:
        seen.append((batch, signal, weights))
        return update(batch, signal, weights)

    monkeypatch.setattr(run.agent, "update", watch)
    return seen


def test_the_hosts_are_of_both_kinds() -> None:
    assert {"metra", "diayn", "dads", "hilp"} <= set(HOSTS) - set(FEATURES)
    assert set(FEATURES) == {"aps", "csf", "visr"}
    assert set(learners.ids()) - set(HOSTS) == {"choreographer", "crl", "lpe"}


@pytest.mark.parametrize("bonus", EXPLORERS)
@pytest.mark.parametrize("host", HOSTS)
def test_the_agent_is_paid_the_sum(
    host: str, bonus: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In every update of a run, to 1e-6; its library acts as it does."""
    run = Discovery(small(host, bonus, 0.7))
    assert run.agent is not None and run.bonus is not None
    seen = watched(run, monkeypatch)
    run.collect()
    while run.updates < 3:
        run.learn(stop=lambda: len(seen) == run.updates + 1)
        batch, signal, weights = seen[-1]  # nobody has moved since
        r = (run.learner.signal(batch) * run.learner.task_vector(batch.skill)).sum(-1)
        b = run.bonus.learner.signal(batch)[:, 0]
        np.testing.assert_allclose((signal * weights).sum(-1), r + 0.7 * b, rtol=1e-6, atol=1e-6)
        assert signal.shape[1] == run.agent.signal_dim
        assert b.std() > 1e-4, "a bonus that is everywhere the same would show nothing"
    if host in FEATURES:  # the task's own value stays a product
        assert signal.shape[1] == run.learner.signal_dim + 1
        torch.testing.assert_close(signal[:, :-1], run.learner.signal(batch))
        assert (weights[:, -1] == 0.7).all()
    else:
        assert (weights == 1).all()
    sums = {k: float(v) for k, v in run._sums.items()}
    paid_mean = np.mean([float((s * w).sum(-1).mean()) for _, s, w in seen])
    assert (sums["skill/reward"] + sums["bonus/reward"]) / 3 == pytest.approx(paid_mean, abs=1e-5)
    assert len([k for k in sums if k.startswith("bonus/")]) >= 2
    run._begin_epoch()
    library = SkillLibrary.load(export(run, tmp_path / "library", {}, {}))
    obs, _ = run.venv.reset()
    z = run.space.sample(np.random.default_rng(0), len(obs))
    np.testing.assert_allclose(library.plan(obs, z), run.snapshot().plan(obs, z), atol=1e-5)
    assert library.learner == host


def test_a_bonus_may_reward_the_same_skills(monkeypatch: pytest.MonkeyPatch) -> None:
    """Being told apart, beside going far."""
    same = {"method": {"skills": "discrete", "dim": 4}, "bonus_method": {"dim": 4}}
    run = Discovery(small("metra", "diayn", **same))
    assert run.bonus is not None
    seen = watched(run, monkeypatch)
    run.run()
    batch, signal, _ = seen[-1]
    expected = run.learner.signal(batch) + 0.5 * run.bonus.learner.signal(batch)
    torch.testing.assert_close(signal, expected)
    assert {"bonus/q_loss", "bonus/accuracy", "bonus/reward"} <= run.metrics.keys()


def test_a_bonus_draws_what_it_needs() -> None:
    """HILP's goals lie in the future of its transitions, which METRA's lack."""
    run = Discovery(small("metra", "hilp", method={"dim": 3}, bonus_method={"dim": 3}))
    run.run()
    assert run.metrics["bonus/phi_loss"] > 0


@pytest.mark.parametrize(
    ("host", "bonus", "said"),
    [
        ("metra", "goal-box", "bonus = goal-box rewards skills of"),
        ("lpe", "rnd", "lpe has no agent, so nothing can be added to it: leave --bonus out"),
        ("choreographer", "apt", "choreographer has no agent"),
        ("crl", "rnd", "crl has an agent that needs no reward"),
        ("metra", "lpe", "bonus = lpe learns from what its own policy does: choose .* such as apt"),
        ("metra", "csf", "bonus = csf is features and no reward"),
        (
            "metra",
            "diayn",
            r"bonus = diayn rewards skills of Discrete\(dim=8\), .* Sphere\(dim=2\)",
        ),
        ("metra", "rdn", 'unknown learner "rdn": did you mean "rnd"'),
    ],
)
def test_what_cannot_be_is_refused(
    host: str, bonus: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError, match=said):
        Discovery(small(host, bonus))
    out = tmp_path / "run"
    command = ["discover", host, "--env", "point-open", "--bonus", bonus, "--out", str(out)]
    assert cli.main(command) == 2
    assert said[:12] in capsys.readouterr().err and not out.exists()


def test_a_weight_without_a_bonus_is_refused() -> None:
    with pytest.raises(UsageError, match=r"bonus_weight = 0.3 weighs no bonus: name one"):
        replace(preset("metra", "point-open"), {"bonus_weight": 0.3})
    with pytest.raises(UsageError, match=r"settings of bonus_method are for a bonus: name one"):
        replace(preset("metra", "point-open"), {"bonus_method": {"skill_obs": ["x"]}})
    with pytest.raises(UsageError, match=r"bonus_weight = 0.0 is out of range"):
        small("metra", "rnd", 0)


def test_learner_and_agent_start_as_without_it() -> None:
    alone, beside = Discovery(small("metra", "")), Discovery(small("metra", "rnd"))
    for part in ("learner", "agent"):
        own, other = (getattr(run, part).state_dict() for run in (alone, beside))
        assert all(torch.equal(own[k], other[k]) for k in own) and own.keys() == other.keys()
    assert "bonus" not in alone.checkpoint()


@pytest.mark.parametrize(
    ("host", "bonus"), [("metra", "apt"), ("csf", "rnd"), ("diayn", "disagreement")]
)
@pytest.mark.parametrize("asked", [7, 22, 44, 46], ids=["episode", "first", "updates", "between"])
def test_resume_is_bit_equal(host: str, bonus: str, asked: int, tmp_path: Path) -> None:
    whole = Discovery(small(host, bonus))
    whole.run()
    second = stopped(Discovery(small(host, bonus)), asked, tmp_path)
    second.run()
    assert list(leaves(second.checkpoint())) == list(leaves(whole.checkpoint()))
    assert any(name.startswith("/bonus/weights") for name, _ in leaves(whole.checkpoint()))


def leaves(tree: Any, path: str = "") -> Any:
    """Every leaf of a checkpoint but the clock and the replay's rows."""
    if isinstance(tree, dict):
        for name in sorted(tree):
            if name not in ("seconds", "rows"):
                yield from leaves(tree[name], f"{path}/{name}")
    else:
        yield path, np.asarray(tree).tobytes() if hasattr(tree, "__array__") else tree


def test_nan_in_a_bonus_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Discovery(small("metra", "rnd"))
    assert run.bonus is not None
    update = run.bonus.learner.update
    bad = {"skill/prediction_error": torch.tensor(torch.nan)}
    monkeypatch.setattr(run.bonus.learner, "update", lambda b: update(b) | bad)
    with pytest.raises(NotFiniteError, match="bonus/prediction_error"):
        run.run()


def test_the_command_line_takes_a_bonus_with_its_own_preset(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By name or from a file; a run that goes on keeps it."""
    with pytest.raises(SystemExit):
        cli.main(["discover", "metra", "--env", "point-open", "--bonus", "rnd", "--help"])
    text = capsys.readouterr().out
    assert "--bonus " in text and "--bonus-weight" in text and "--bonus-method.momentum" in text
    file = tmp_path / "settings.toml"
    file.write_text('bonus = "apt"\n[bonus_method]\nneighbours = 3\n')
    quick = ["--steps", "160", "--agent.hidden", "8", "--eval-every", "0", "--mi-episodes", "0"]
    quick += ["--loop.num-envs", "4", "--loop.episode-steps", "20", "--loop.warmup-steps", "80"]
    out = tmp_path / "run"
    command = ["discover", "metra", "--env", "point-open", "--config", str(file), *quick]
    assert cli.main([*command, "--out", str(out), "--bonus-method.neighbours", "4"]) == 0
    stored = read_config(load(out / "config.json")["discover"])
    assert stored.bonus == "apt" and stored.bonus_method.neighbours == 4  # type: ignore[attr-defined]
    assert "bonus/distance" in (out / "metrics.csv").read_text()
    assert cli.main(["discover", "--resume", str(out), "--bonus", "rnd"]) == 2
    assert "--bonus cannot change a run that goes on" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("bonus", ["apt", "rnd"])
@pytest.mark.parametrize("seed", range(5))
def test_training_sees_more_with_a_bonus(
    seed: int, bonus: str, record_property: Callable[[str, object], None]
) -> None:
    """Two skills are soon told apart, and then DIAYN alone has no reason to look elsewhere."""
    seen = {}
    for name in ("", bonus):
        settings: dict[str, Any] = {"seed": seed, "steps": 24_000, "method": {"dim": 2}}
        settings |= {"bonus_weight": 1.0} if name else {}
        run = Discovery(replace(preset("diayn", "point-open", bonus=name), settings))
        counted = RunningCoverage(run.env_spec.cell)
        while not run.done:
            run.epoch()
            counted.add(run.collected)
        seen[name] = counted.total
    assert seen[bonus] > 1.1 * seen[""], seen
    record_property("count", 1)
