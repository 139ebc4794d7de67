"""The benchmark of goals without training: its goals, and its arithmetic."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from etude.envs import registry
from etude.skills.library import SkillLibrary

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "bench")
    found = importlib.import_module("zero_shot")
    monkeypatch.setitem(registry.TASKS, "half-cheetah-goal-20", found.Near)
    monkeypatch.setattr(found, "EPISODES", 24)
    return found


def test_goals_lie_within_twenty_metres_and_a_library_reaches_them(bench: ModuleType) -> None:
    goals, success = bench.reached(SkillLibrary.load("half-cheetah-metra"), 1)
    assert 15 < np.abs(goals).max() <= 20
    assert (goals < 0).any()
    assert success[(goals < 0) & (goals > -15)].mean() >= 0.6


def test_bands_are_five_metres_wide(bench: ModuleType) -> None:
    goals = np.array([-20.0, -16, -1, 1, 2, 19])
    success = np.array([True, False, True, True, False, False])
    assert bench.bands(goals, success) == [
        ("all", 6, 0.5),
        ("-20 to -15 m", 2, 0.5),
        ("-5 to 0 m", 1, 1.0),
        ("0 to 5 m", 2, 0.5),
        ("15 to 20 m", 1, 0.0),
    ]
