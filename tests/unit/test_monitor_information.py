"""What a monitor says of information: when, in which columns, and what it makes of claims."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from etude import cli
from etude.config import replace
from etude.envs.testbeds.worlds import COMPASS
from etude.errors import ImpossibleError, UsageError
from etude.evaluate import monitor
from etude.evaluate.monitor import CLAIM, CLAIMS, COLUMNS, INFORMATION, Monitor, read_history
from etude.evaluate.skillset_mi import FOLDS, SkillsetMI, rollout_mi
from etude.logger import Logger
from etude.skills import learners
from etude.skills.discovery import Discovery, preset
from etude.skills.learners.lpe import Lpe
from etude.skills.spaces import Discrete

CENTRE, CORNER = "grid-5-slip-bits-centre", "grid-5-slip-bits-corner"
OLD = "steps,updates,seconds,policy_coverage,queue_coverage,total_coverage,displacement,x_range\n"


@dataclass
class Moves:
    """Skills of a grid: z is the move to repeat, `period` times in a plan."""

    space: Discrete = field(default_factory=lambda: Discrete(5))
    period: int = 1

    def plan(self, obs: np.ndarray, z: np.ndarray) -> np.ndarray:
        return np.repeat(COMPASS[z.argmax(-1)][:, None], self.period, axis=1)


@dataclass
class FakeRun:
    """A run of 100 steps an epoch, whose learner claims so many nats."""

    claims: Iterator[float] | None = None
    skills: Moves = field(default_factory=Moves)
    total: int = 10**6
    steps: int = 0
    updates: int = 0
    seconds: float = 0.0
    length: int = 9
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def collected(self) -> np.ndarray:
        return np.zeros((2, self.length + 1, 2))

    @property
    def done(self) -> bool:
        return self.steps >= self.total

    def snapshot(self) -> Moves:
        return self.skills

    def epoch(self) -> FakeRun:
        self.steps += 100
        if self.claims:
            self.metrics = {CLAIM: next(self.claims)}
        return self


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Episodes of one step, and fewer of them to check claims with."""
    monkeypatch.setattr(monitor, "STEPS", 1)
    monkeypatch.setattr(monitor, "CHECKED", 1000)


def watch(watcher: Monitor, run: FakeRun, epochs: int) -> Monitor:
    for _ in range(epochs):
        watcher.on_epoch(run.epoch())
    return watcher


def told(nats: float, error: float = 0.05) -> SkillsetMI:
    half = 1.96 * error
    return SkillsetMI(nats, nats - half, nats + half, math.log(5), math.log(5) - nats, 100)


Row = dict[str, float]


@pytest.fixture
def claiming(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Row]:
    """The last row of a learner that claims this, epoch by epoch, where so much is measured."""

    def row(
        *claims: float,
        measured: SkillsetMI | None = None,
        skills: Moves | None = None,
        env: str = CENTRE,
        length: int = 9,
    ) -> Row:
        if measured:
            monkeypatch.setattr(monitor, "rollout_mi", lambda *_, **__: measured)
        total = max(5000, 100 * len(claims))
        begin = total - 100 * len(claims)
        run = FakeRun(iter(claims), skills or Moves(), total, begin, length=length)
        watcher = Monitor(env, 10**6, episodes=2, mi_episodes=1000)
        return watch(watcher, run, len(claims)).history[-1]

    return row


def test_when_information_is_measured_and_where_it_goes(tmp_path: Path) -> None:
    """In every evaluation that is far enough from the one before, and in the last."""
    log = Logger(tmp_path)
    watcher = Monitor(CENTRE, 100, log, tmp_path, episodes=2, mi_episodes=50)
    run = FakeRun(total=600)
    watch(watcher, run, 6)
    measured = [row["steps"] for row in watcher.history if "mi_nats" in row]
    assert measured == [300, 500, 600]  # 50 episodes of a step cost 250 steps of practice
    row = watcher.history[-1]
    again = rollout_mi(run.skills, CENTRE, episodes=50, steps=1, folds=FOLDS)
    assert row["mi_nats"] == pytest.approx(again.nats)
    assert (row["mi_low"], row["mi_high"]) == pytest.approx((again.low, again.high))
    assert (row["mi_entropy"], row["mi_episodes"]) == (pytest.approx(math.log(5)), 50)
    assert watcher.last()["mi_nats"] == row["mi_nats"]
    assert f"{row['mi_nats']:.2f} nats" in watcher.summary()
    assert "alarm" not in row, "nothing was claimed"
    log.close()
    text = (tmp_path / "metrics.csv").read_text()
    for tag in ("skill/mi_nats", "skill/mi_low", "skill/mi_high"):
        assert text.count(f",{tag},") == 3
    found = read_history(tmp_path / monitor.FILE)
    assert found == [{k: pytest.approx(v) for k, v in r.items()} for r in watcher.history]
    with (tmp_path / monitor.FILE).open(newline="") as file:
        assert tuple(next(csv.reader(file))) == COLUMNS + INFORMATION


def test_fewer_episodes_in_a_short_run_and_none_in_a_shorter() -> None:
    for steps, episodes in ((200, None), (300, 60), (5000, 100)):
        run = FakeRun(total=steps, steps=steps - 100)
        row = watch(Monitor(CENTRE, 10**6, episodes=2, mi_episodes=100), run, 1).history[-1]
        assert row.get("mi_episodes") == episodes
    off = watch(Monitor(CENTRE, 10**6, episodes=2), FakeRun(total=9000, steps=8900), 1)
    assert set(off.history[-1]) == set(COLUMNS)
    with pytest.raises(UsageError, match="mi_episodes = 49: choose 50 or more, or 0"):
        Monitor(CENTRE, 10, mi_episodes=49)


def test_tables_of_before_go_on(tmp_path: Path) -> None:
    (tmp_path / monitor.FILE).write_text(OLD + "5000,1,2.5,3,4,5,0.5,0.25\n")
    watcher = Monitor(CENTRE, 100, None, tmp_path, episodes=2, mi_episodes=50)
    old = dict(zip(COLUMNS, (5000, 1, 2.5, 3, 4, 5, 0.5, 0.25), strict=True))
    assert watcher.history == [old]
    watch(watcher, FakeRun(steps=5100, total=5200), 1)
    first, second = read_history(tmp_path / monitor.FILE)
    assert first == old and second["mi_episodes"] == 50
    (tmp_path / monitor.FILE).write_text(OLD.replace("x_range", "y_range") + "1,1,2,3,4,5,0,0\n")
    with pytest.raises(UsageError, match="no table of evaluations"):
        Monitor(CENTRE, 100, None, tmp_path)
    (tmp_path / monitor.FILE).write_text(OLD + "1,,2,3,4,5,0,0\n")  # only new cells may be empty
    with pytest.raises(ValueError, match="invalid literal"):
        read_history(tmp_path / monitor.FILE)


# ---- claims


def test_a_claim_beyond_the_measurement_raises_the_alarm(claiming: Callable[..., Row]) -> None:
    """By three standard errors: 0.95 is enough, and 1.609 would be possible."""
    for claim, alarm in ((0.5, 0), (0.8, 0), (0.94, 0), (0.96, 1), (1.5, 1)):
        row = claiming(claim, claim, measured=told(0.8))
        assert (row["claimed"], row["confirmed"], row["alarm"]) == (claim, 0.8, alarm)
    assert (row["confirmed_low"], row["confirmed_high"]) == pytest.approx((0.702, 0.898))


def test_claims_are_averaged_and_may_waver(claiming: Callable[..., Row]) -> None:
    old = claiming(*[5.0] * 3, *[0.5] * CLAIMS, measured=told(0.8))
    assert old["claimed"] == 0.5, "what was claimed long ago is forgotten"
    row = claiming(0.2, 2.6)
    assert (row["claimed"], row["alarm"]) == (pytest.approx(1.4), 0)


def test_a_claim_is_about_what_the_learner_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of random bits nothing can be confirmed; of all that there is, as much as of the cell."""
    rows = {}
    for seen in (("bits",), ("cell",), ()):
        run = FakeRun(iter([0.5]), Moves(period=2), total=5000, steps=4900)
        watcher = Monitor(CORNER, 10**6, episodes=50, mi_episodes=50, skill_obs=seen)
        rows[seen] = watch(watcher, run, 1).history[-1]
    assert [row["alarm"] for row in rows.values()] == [1, 0, 0]
    assert rows["bits",]["confirmed"] < 0.1 < 0.4 < rows["cell",]["confirmed"]
    assert rows[()]["confirmed"] > rows["cell",]["confirmed"] - 0.1
    seen_by = []
    monkeypatch.setattr(
        monitor, "rollout_mi", lambda *args, **_: seen_by.append(args[2:]) or told(len(seen_by))
    )
    watcher._claims.append(0.5)
    found = watcher._confirmed(Moves(period=2), 50, lambda: False)
    assert seen_by == [(None,), (["cell", "bits"],)] and found.nats == 2, "the larger of both"


def test_a_claim_is_measured_at_its_own_horizon(claiming: Callable[..., Row]) -> None:
    """Skills that see every step: at the end of the episode; plans: where one of them ends."""
    row = claiming(0.1, skills=Moves(period=2), env=CORNER, length=2)
    assert row["alarm"] == 0 and row["mi_nats"] != row["confirmed"]
    monitor_steps, plan = (
        rollout_mi(Moves(period=2), CORNER, episodes=1000, steps=n).nats for n in (1, 2)
    )
    assert row["confirmed"] == pytest.approx(plan, abs=0.2)
    assert row["mi_nats"] == pytest.approx(monitor_steps, abs=0.2)


def test_what_is_impossible_stops_the_run(claiming: Callable[..., Row], tmp_path: Path) -> None:
    with pytest.raises(
        ImpossibleError, match=r"claims .* 1.7 nats at step 5,000, .* 1.61 \(the log"
    ):
        claiming(1.7, 1.7, measured=told(0.5))
    assert claiming(0.0, 3.4)["claimed"] == 1.7, "not beyond its error"
    plan = Moves(period=2)
    with pytest.raises(ImpossibleError, match=r"more than 0.955 \(the capacity of plans of 2 st"):
        claiming(1.2, skills=plan, env=CORNER, length=2)
    assert claiming(1.2, skills=plan, env=CORNER, length=4)["alarm"] == 1, "from elsewhere 1.40"
    watcher = Monitor(CENTRE, 100, None, tmp_path, episodes=2, mi_episodes=50)
    with pytest.raises(ImpossibleError):
        watch(watcher, FakeRun(iter([9.0]), total=5000, steps=4900), 1)
    assert read_history(tmp_path / monitor.FILE)[-1]["claimed"] == 9, "the row is written"


def test_measurements_are_held_to_the_limits_too(claiming: Callable[..., Row]) -> None:
    assert claiming(0.1, measured=told(1.7))["mi_nats"] == 1.7, "not beyond its error"
    with pytest.raises(ImpossibleError, match=r"skill/mi_nats\) is 2.5 nats"):
        claiming(0.1, measured=told(2.5))
    with pytest.raises(ImpossibleError, match=r"skill/confirmed\) is 1.3 nats .* than 0.955"):
        claiming(0.1, measured=told(1.3), skills=Moves(period=2), env=CORNER)


def test_claims_survive_a_checkpoint() -> None:
    run = FakeRun(iter([0.2, 0.4, 0.6]), total=5000, steps=4700)
    first = watch(Monitor(CENTRE, 10**6, episodes=2, mi_episodes=50), run, 2)
    again = Monitor(CENTRE, 10**6, episodes=2, mi_episodes=50)
    again.restore(first.checkpoint())
    other = FakeRun(iter([0.6]), total=5000, steps=4900)
    assert watch(again, other, 1).history == watch(first, run, 1).history
    assert again.history[-1]["claimed"] == pytest.approx(0.4)
    tree = {k: v for k, v in first.checkpoint().items() if k != "claims"}
    again.restore(tree)  # of a run before there were claims
    assert again.checkpoint()["claims"] == []


# ---- real runs

SMALL: dict[str, Any] = {
    "steps": 320,
    "agent": {"hidden": [16, 16]},
    "loop": {
        "num_envs": 4,
        "episode_steps": 20,
        "updates_per_epoch": 2,
        "batch_size": 32,
        "warmup_steps": 80,
        "replay_capacity": 400,
    },
}


def leaves(tree: Any, path: str = "") -> dict[str, Any]:
    """Every leaf of a checkpoint but the clocks, as bytes."""
    if isinstance(tree, dict):
        return {k: v for n, t in tree.items() for k, v in leaves(t, f"{path}/{n}").items()}
    if path.endswith("seconds"):
        return {}
    if hasattr(tree, "read"):
        tree = tree.read(tree.begin, tree.end)
    return {path: np.asarray(tree).tobytes() if hasattr(tree, "__array__") else tree}


@pytest.mark.parametrize("learner", learners.ids())
def test_every_learner_has_the_number_and_learns_the_same(learner: str) -> None:
    ended, rows = [], []
    for episodes in (0, 50):
        run = Discovery(replace(preset(learner, "point-open"), SMALL))
        watcher = Monitor("point-open", 160, episodes=2, mi_episodes=episodes)
        run.run([watcher])
        ended.append((leaves(run.checkpoint()), torch.get_rng_state().tolist()))
        rows.append(watcher.last())
    assert ended[0] == ended[1]
    assert "mi_nats" not in rows[0]
    assert math.isfinite(rows[1]["mi_nats"]) and rows[1]["mi_low"] <= rows[1]["mi_high"]


def test_an_impossible_claim_ends_the_command_with_the_run_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    honest = Lpe.update
    claim = {CLAIM: torch.tensor(9.0)}
    monkeypatch.setattr(Lpe, "update", lambda self, batch: {**honest(self, batch), **claim})
    out = tmp_path / "run"
    args = ["--steps", "400", "--eval-every", "320", "--method.hidden", "16", "--method.knots", "2"]
    args += ["--method.hold", "1", "--loop.num-envs", "8", "--loop.episode-steps", "10"]
    args += ["--loop.updates-per-epoch", "2", "--loop.warmup-steps", "80", "--out", str(out)]
    assert cli.main(["discover", "lpe", "--env", CORNER, *args]) == 2
    error = capsys.readouterr().err
    line = error.strip().splitlines()[-1]
    assert line.startswith("etude: what the learner claims of its skills (skill/bound) is 9 nats")
    assert "(the capacity of plans of 2 steps)" in line
    assert f"discover --resume {out} --mi-episodes 0" in line
    assert not (out / "library").exists() and any((out / "checkpoints").iterdir())
    assert read_history(out / monitor.FILE)[-1]["claimed"] == 9
    assert cli.main(["discover", "--resume", str(out), "--mi-episodes", "0"]) == 0
    assert (out / "library").is_dir()
