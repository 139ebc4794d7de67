"""The benchmark of fine-tuning: its weak bodies and its arithmetic; nothing here is trained."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from etude.envs import registry
from etude.skills.library import SkillLibrary
from etude.skills.vec_env import LibraryLevel

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "bench")
    found = importlib.import_module("finetune")
    for name, make in found.TASKS.items():
        monkeypatch.setitem(registry.TASKS, name, make)
    return found


def test_the_weak_bodies_are_weak_where_they_say_so(bench: ModuleType) -> None:
    whole, weak = (bench.NearGoal(percent).spec for percent in (100, 60))
    gears = np.array(weak.constants["gear"]) / np.array(whole.constants["gear"])
    np.testing.assert_allclose(gears, [1, 1, 1, 0.6, 0.6, 0.6])
    action = np.array([[0.5, -0.5]])
    np.testing.assert_allclose(bench.SlowPoint(30).control(action), [[0.15, -0.5]])
    goals = registry.make_vec("half-cheetah-near-60", 32, seed=0).reset()[0][:, -1]
    assert 20 < np.abs(goals).max() <= 30
    goals = registry.make_vec("half-cheetah-own-reach-60", 64, seed=0).reset()[0][:, -1]
    assert -50 <= goals.min() < -40
    assert 5 < goals.max() <= 13


def test_every_library_may_act_on_the_weak_body(bench: ModuleType) -> None:
    for case in bench.CASES.values():
        library = SkillLibrary.load(case.library)
        for task in (case.whole, case.weak):
            LibraryLevel.for_spec(library, registry.spec(task))


def test_a_row_says_what_share_of_the_loss_was_made_good(bench: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "arms.csv"
    for arm, score in (("whole", 0.8), ("frozen", 0.4), ("joint", 0.7)):
        bench.Table(path).add({"case": "ant-60", "seed": 0, "arm": arm, "score": score})
    table = bench.Table(path)
    assert table.has("ant-60", 0, "joint")
    assert not table.has("ant-60", 1, "joint")
    assert [row["recovered"] for row in table.rows] == ["", "", "0.750"]
