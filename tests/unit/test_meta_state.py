"""A controller's training that was stopped or killed equals one that was not, bit for bit."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback

from etude import checkpoint
from etude.agents import meta, meta_state
from etude.agents.meta_config import MetaConfig
from etude.agents.meta_state import Keeper
from etude.envs.registry import make_vec, spec
from etude.errors import CheckpointError, LibraryError, Stopped
from etude.logger import Logger
from etude.skills.compose import ComposeConfig, compose
from etude.skills.durations import Duration
from etude.skills.library import MLP, SetData, SkillLibrary
from etude.skills.library_data import Contents
from etude.skills.predicates import annotate
from etude.skills.spaces import Discrete, SkillSpace, Sphere
from etude.skills.vec_env import LibraryLevel, SkillVecEnv

TASK, BUDGET, K = "point-maze-u-goal", 6000, 10
SMALL = {"hidden": (8,), "batch_size": 16}
REPLAY = {"learning_starts": 40, "buffer_size": 120, "updates_per_decision": 0.5}
HYPER = {
    "ppo": MetaConfig(**SMALL, rollout=100, epochs=2),
    "sac": MetaConfig(**SMALL, **REPLAY),  # the ring of 120 decisions goes round several times
    "dqn": MetaConfig(**SMALL, **REPLAY, target_period=20, exploration=0.9),
}
SPACES = {"ppo": Discrete(4), "sac": Sphere(2), "dqn": Discrete(4)}
OPTIONS = {  # algorithm, durations, whether every step is learnt from
    "random": ("ppo", "random", False),
    "every step": ("sac", "random", True),
    "masks": ("maskable-ppo", "chosen", False),
}
SPACES["maskable-ppo"] = Discrete(4)


def compass(space: SkillSpace) -> SkillLibrary:
    """A library whose skills walk into the directions of the plane."""
    angle = 2 * np.pi * np.arange(space.dim) / space.dim
    towards = np.stack([np.cos(angle), np.sin(angle)], 1) if space.dim > 2 else np.eye(2)
    drag = -0.5 * np.eye(4, 2, -2)  # actions depend on observations: against the velocity
    policy = MLP([(np.concatenate([drag, 3 * towards]), np.zeros(2))], output="tanh")
    data = SetData("main", "none", {}, space, policy, {}, np.zeros(4), np.ones(4), [])
    return SkillLibrary(Contents("compass", spec("point-maze-u").to_json(), [data]))


def model_of(algo: str, hyper: MetaConfig | None = None) -> BaseAlgorithm:
    """An untrained model over four environments, whose episodes of 130 steps end unalike."""
    level = LibraryLevel.for_spec(compass(SPACES[algo]), spec(TASK))
    venv = SkillVecEnv(make_vec(TASK, 4, threads=1, max_steps=130), level, K, 0.99)
    return meta.make_model(algo, venv, gamma=0.99, k=K, seed=1, hyper=hyper or HYPER[algo])


def leaves(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Every leaf of a tree but the clocks, arrays and rows as bytes."""
    if isinstance(tree, dict):
        return {k: v for n, t in tree.items() for k, v in leaves(t, f"{prefix}/{n}").items()}
    if prefix.endswith("seconds"):
        return {}
    if isinstance(tree, checkpoint.Rows):
        tree = tree.read(tree.begin, tree.end)
    return {prefix: np.asarray(tree).tobytes() if hasattr(tree, "__array__") else tree}


def with_options(name: str) -> BaseAlgorithm:
    """An untrained model whose decisions last unalike."""
    algo, mode, every_step = OPTIONS[name]
    library = compass(SPACES[algo])
    if name == "masks":
        rows = [{"id": i, "z": np.eye(4)[i]} for i in range(4)]
        data = dataclasses.replace(library.data, skills=rows)
        library = SkillLibrary(Contents("compass", library.env, [data]))
        rule = {
            "initiation": {"field": "x", "below": 0.3},
            "termination": {"field": "x", "above": 0.2},
        }
        library = annotate(library, {0: rule})
    level = LibraryLevel.for_spec(library, spec(TASK))
    venv = SkillVecEnv(
        make_vec(TASK, 4, threads=1, max_steps=130),
        level,
        Duration(K, mode),
        0.99,
        every_step=every_step,
    )
    hyper = HYPER[algo]
    return meta.make_model(algo, venv, gamma=0.99, k=K, seed=1, hyper=hyper, every_step=every_step)


def train(
    algo: str,
    folder: Path,
    keeper: Keeper,
    die_at: int = 10**9,
    make: Callable[[str], BaseAlgorithm] = model_of,
    budget: int = BUDGET,
) -> dict[str, Any]:
    """Train a new model to the end, or to `Stopped` or `Killed`; what there is at the end."""
    model, log = make(algo), Logger(folder, keeper.env_steps or 0)
    try:
        stats = meta.train(
            model, budget, log=log, points=20, keeper=keeper, callbacks=[Deadly(die_at)]
        )
    finally:
        log.close()
        model.env.close()
    with (folder / "metrics.csv").open() as file:
        rows = [(r["step"], r["key"], r["value"]) for r in csv.DictReader(file)]
    found = leaves(meta_state.state_dict(model)) | leaves(stats.to_json(), "stats")
    return found | {"rows": [row for row in rows if row[1] != "time/fps"]}


class Killed(BaseException):
    """The process ends here."""


class Deadly(BaseCallback):
    """Kills the run at one of its decisions."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.left = at

    def _on_step(self) -> bool:
        self.left -= 1
        if not self.left:
            raise Killed
        return True


def at(call: int) -> Callable[[], bool]:
    """A `stop` that says so at one of its calls."""
    calls = itertools.count(1)
    return lambda: next(calls) == call


def differing(found: dict[str, Any], expected: dict[str, Any]) -> set[str]:
    return {key for key in found.keys() | expected if found.get(key) != expected.get(key)}


@pytest.fixture(scope="module", params=HYPER)
def whole(request, tmp_path_factory) -> tuple[str, dict[str, Any]]:
    """An algorithm, and what an undisturbed run of it, of which nothing is saved, ends with."""
    algo = request.param
    found = train(algo, tmp_path_factory.mktemp(algo), Keeper(tmp_path_factory.mktemp("none"), 0))
    assert len(found["rows"]) > 100
    return algo, found


def test_a_run_that_is_stopped_goes_on_exactly(whole, tmp_path):
    """Stopped in the warm-up, after going on, within rollouts and always within episodes."""
    algo, expected = whole
    inside = []
    for call in (5, 17, 41, 30):
        keeper = Keeper(tmp_path / "checkpoints", 0, at(call))
        with pytest.raises(Stopped):
            train(algo, tmp_path, keeper)
        tree = checkpoint.load_newest(keeper.folder)
        inside.append(tree["model"]["env"]["lengths"].max() > 0)
        assert keeper.env_steps == tree["counter"]["env_steps"]
    assert sum(inside) >= 2
    assert differing(train(algo, tmp_path, Keeper(tmp_path / "checkpoints", 0)), expected) == set()


@pytest.mark.parametrize("name", OPTIONS)
def test_decisions_of_unlike_lengths_go_on_exactly(name, tmp_path, monkeypatch):
    monkeypatch.setitem(HYPER, "maskable-ppo", HYPER["ppo"])
    run = {"make": with_options, "budget": 1500}
    expected = train(name, tmp_path / "whole", Keeper(tmp_path / "none", 0), **run)
    lengths = {value for _, key, value in expected["rows"] if key == "meta/decision_steps"}
    assert len(lengths) > 3
    for call in (5, 17):
        keeper = Keeper(tmp_path / "checkpoints", 0, at(call))
        with pytest.raises(Stopped):
            train(name, tmp_path / "run", keeper, **run)
    found = train(name, tmp_path / "run", Keeper(tmp_path / "checkpoints", 0), **run)
    assert differing(found, expected) == set()


def test_a_run_that_is_killed_goes_on_exactly(whole, tmp_path, monkeypatch):
    """Killed twice, with rows logged since the last checkpoint but one, and that one missing."""
    algo, expected = whole
    for decision in (60, 37):
        keeper, calls = Keeper(tmp_path / "checkpoints"), itertools.count(1)
        monkeypatch.setattr(keeper, "due", lambda c=calls: algo == "ppo" or not next(c) % 9)
        with pytest.raises(Killed):
            train(algo, tmp_path, keeper, decision)
    names = sorted(path.name for path in checkpoint.whole(tmp_path / "checkpoints"))
    assert len(names) == 2
    checkpoint.disk.remove(tmp_path / "checkpoints" / names[1])  # the last save never happened
    assert differing(train(algo, tmp_path, Keeper(tmp_path / "checkpoints", 0)), expected) == set()


def test_rows_of_the_replay_are_written_once(tmp_path):
    before: dict[Path, int] = {}
    for call in (20, 10, 60):
        keeper = Keeper(tmp_path, 0, at(call))
        with pytest.raises(Stopped):
            train("sac", tmp_path / "log", keeper)
        files = {path: path.stat().st_mtime_ns for path in (tmp_path / "rows").iterdir()}
        assert files.items() >= {k: v for k, v in before.items() if k in files}.items()
        before = files
    replay = checkpoint.load_newest(tmp_path)["model"]["replay"]
    assert replay["total"] == 19 + 9 + 59
    assert {(rows.begin, rows.end) for rows in replay["rows"].values()} == {(87 - 30, 87)}
    # of this checkpoint the ring that was left, of the one before it what was written bit by bit
    assert {int(path.name[:12]) for path in files} == {0, 19, 87 - 30}


def test_a_full_disk_is_a_warning(whole, tmp_path, monkeypatch, caplog):
    class Full(checkpoint.Disk):
        def write(self, path: Path, data: bytes) -> None:
            if "checkpoints" in path.parts:
                raise OSError(28, "No space left on device")
            super().write(path, data)

    algo, expected = whole
    monkeypatch.setattr(checkpoint, "disk", Full())
    keeper = Keeper(tmp_path / "checkpoints", 1e-9)
    with caplog.at_level(logging.WARNING):
        assert differing(train(algo, tmp_path, keeper), expected) == set()
    assert "No space left on device" in caplog.text
    assert keeper.env_steps is None


def test_a_checkpoint_is_due_after_its_minutes(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(meta_state.time, "monotonic", lambda: now[0])
    keeper, never = Keeper(tmp_path, 2), Keeper(tmp_path, 0)
    for passed, due in ((119, False), (2, True), (500, True)):
        now[0] += passed
        assert (keeper.due(), never.due()) == (due, False)
    keeper.save({"counter": {"env_steps": 7}})
    assert not keeper.due() and keeper.env_steps == 7


# ---- what is refused


def stopped(folder: Path, algo: str = "sac") -> Keeper:
    """A run that was stopped, to go on with."""
    with pytest.raises(Stopped):
        train(algo, folder / "log", Keeper(folder, 0, at(1)))
    return Keeper(folder, 0)


def test_other_sizes_are_refused(tmp_path):
    keeper = stopped(tmp_path)
    for change, words in (({"hidden": (9,)}, "other observations"), ({"buffer_size": 80}, "30")):
        model = model_of("sac", dataclasses.replace(HYPER["sac"], **change))
        with pytest.raises(CheckpointError, match=words):
            meta.train(model, BUDGET, keeper=keeper)
        model.env.close()


def test_another_library_task_or_setting_is_refused(tmp_path):
    library = compass(Sphere(2))
    config = ComposeConfig(env_steps=BUDGET, num_envs=2, hyper=HYPER["ppo"])
    with pytest.raises(Stopped):
        compose(library, TASK, config, keeper=Keeper(tmp_path, 0, at(3)))
    with pytest.raises(
        LibraryError, match=r"began with set \"main\" of library compass .*not with"
    ):
        compose(library.untrained(0), TASK, config, keeper=Keeper(tmp_path, 0))
    other = dataclasses.replace(config, k=7)
    with pytest.raises(CheckpointError, match="other settings than are asked for"):
        compose(library, TASK, other, keeper=Keeper(tmp_path, 0))


def test_a_run_from_before_a_setting_existed_goes_on(tmp_path):
    """What its checkpoint does not name has the default."""
    library = compass(Sphere(2))
    config = ComposeConfig(env_steps=2000, num_envs=2, hyper=HYPER["ppo"])
    keeper = Keeper(tmp_path, 0, at(3))
    with pytest.raises(Stopped):
        compose(library, TASK, config, keeper=keeper)
    again = Keeper(tmp_path, 0)
    for name in ("duration", "menu", "every_step", "fallback"):
        del again.tree["about"]["config"][name]
    assert compose(library, TASK, config, keeper=again).stats.env_steps >= 2000
