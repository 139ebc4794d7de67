"""The benchmark of the oracle: its geometry, its speed, and the goals of a point."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from etude.envs import registry
from etude.envs.tasks.ant import AntMultiGoal
from etude.skills.library import SkillLibrary, write
from etude.skills.library_data import SetData
from etude.skills.mlp import MLP
from etude.skills.spaces import Sphere

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "bench")
    return importlib.import_module("oracle")


def compass(folder: Path, pace: float) -> SkillLibrary:
    """A point's library: skill z pushes along z with `pace` of the full control."""
    env = registry.spec("point-open")
    push = np.vstack([np.zeros((env.body_dim, 2)), np.arctanh(pace) * np.eye(2)])
    place = MLP([(np.eye(env.body_dim, 2), np.zeros(2))], inputs=("obs",))
    rest, ones = np.zeros(env.body_dim), np.ones(env.body_dim)
    policy = MLP([(push, np.zeros(2))], output="tanh")
    data = SetData("compass", "compass", {}, Sphere(2), policy, {"phi": place}, rest, ones, [])
    written = write(folder, sets=[data], env=env.to_json(), provenance={}, name="compass")
    return SkillLibrary.load(written)


def test_the_share_of_a_square_within_a_circle(bench: ModuleType) -> None:
    places = np.random.default_rng(0).uniform(-7.5, 7.5, (200_000, 2))
    for radius in (0.0, 3.0, 7.5, 9.0, 10.0, 10.7, 50.0):
        inside = (np.linalg.norm(places, axis=1) <= radius).mean()
        assert bench.near(radius, 7.5) == pytest.approx(inside, abs=0.004)


def test_a_point_reaches_as_many_goals_as_in_the_task_itself(bench: ModuleType) -> None:
    pace, episodes = 0.06, 2000
    rng = np.random.default_rng(1)
    reached = 0
    for _ in range(episodes):
        place = np.zeros(2)
        for _ in range(AntMultiGoal.goals):
            goal = place + rng.uniform(-AntMultiGoal.spread, AntMultiGoal.spread, 2)
            for _ in range(AntMultiGoal.steps_per_goal):
                way = goal - place
                place = place + way / np.linalg.norm(way) * pace
                if np.linalg.norm(goal - place) <= AntMultiGoal.radius:
                    reached += 1
                    break
    assert bench.goals_of_a_point(pace) == pytest.approx(reached / episodes, abs=0.08)
    assert bench.goals_of_a_point(1.0) == AntMultiGoal.goals


def test_faster_skills_have_more_speed(bench: ModuleType, tmp_path: Path) -> None:
    slow, fast = (bench.speed(compass(tmp_path / str(p), p)) for p in (0.03, 0.06))
    assert 0 < slow < fast < 0.2


def test_the_early_speed_is_that_of_a_body_that_starts(bench: ModuleType, tmp_path: Path) -> None:
    library = compass(tmp_path / "compass", 0.06)
    assert 0 < bench.speed(library, 3) < 0.9 * bench.speed(library)


def test_goals_of_the_ant_stand_beside_those_of_a_point_of_its_speed(bench: ModuleType) -> None:
    row = bench.control(SkillLibrary.load("ant-oracle"), "ant-multi-goal", 10)
    assert row["early_speed"] != row["speed"]
    for name in ("", "early_"):
        point = bench.goals_of_a_point(row[f"{name}speed"])
        assert row[f"{name}point"] == pytest.approx(point, abs=0.01)
        assert row[f"{name}share"] == pytest.approx(row["pieces"] / point, abs=0.01)


def test_a_row_has_what_was_earned(bench: ModuleType, tmp_path: Path) -> None:
    row = bench.control(compass(tmp_path / "compass", 0.9), "point-open-goal", 1)
    assert (row["task"], row["hold"], row["of"]) == ("point-open-goal", 1, 1)
    assert row["pieces"] == row["success"] > 0.9 and row["share"] is None
