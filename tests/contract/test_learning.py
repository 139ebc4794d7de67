"""Every learner learns: on the point, a minute of one core gives skills that lead apart.

The runs are those of `bench/arena.py`, whose rows stand in results/arena; the bars lie some way
below the worst of five seeds. Skills that all do the same end in four cells at most
(`tests/unit/test_bench_arena.py`), however many they cover on their way.

Methods without an agent, whose plans lead apart before they have learned anything, are measured
where the answer is known (`bench/empowerment.py`).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest

from etude.skills import learners

pytestmark = pytest.mark.slow
EXPLORERS = ("apt", "disagreement", "rnd")
SKILLED = [n for n in learners.ids() if learners.get(n).agent and n not in EXPLORERS]
SECONDS = 60  # of a processor, whoever else is using it


class Bar(NamedTuple):
    """What a learner of skills has to reach; uniform actions cover about 100 cells in training."""

    coverage: int
    """cells of 0.5 m"""
    ends: int
    """cells in which the 48 episodes of its skills end"""
    goals: float = 0.0
    """share of 50 goals; 0 for learners that answer none"""
    accuracy: float = 0.0
    """of its discriminator; chance is 1/8"""


BARS = {
    "aps": Bar(100, 25, 0.1),
    "becl": Bar(80, 8),
    "cic": Bar(60, 9),
    "crl": Bar(130, 30, 0.9),
    "csd": Bar(160, 12, 0.8),
    "csf": Bar(130, 8, 0.6),
    "dads": Bar(140, 13),
    "diayn": Bar(65, 7, 0.2, 0.3),
    "goal-box": Bar(90, 30, 0.5),
    "hilp": Bar(170, 25, 0.4),
    "lsd": Bar(160, 15, 0.6),
    "metra": Bar(150, 13, 0.8),
    "oracle": Bar(170, 18, 0.9),
    "qrl": Bar(120, 30, 0.9),
    "visr": Bar(140, 22, 0.15),
}


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[2] / "bench")
    return importlib.import_module("arena")


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("learner", SKILLED)
def test_skills_of_the_point_lead_apart(
    learner: str, seed: int, bench: ModuleType, record_property: Callable[[str, object], None]
) -> None:
    bar = BARS.get(learner, Bar(60, 7))
    row = bench.practise(learner, seed)
    assert row["coverage"] > max(bar.coverage, 3 * row["untrained"]), row
    assert row["ends"] > bar.ends, row
    assert row["goals"] is None or row["goals"] > bar.goals, row
    assert row["accuracy"] is None or row["accuracy"] > bar.accuracy, row
    assert row["cpu_seconds"] < SECONDS, row
    record_property("count", 1)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("learner", EXPLORERS)
def test_an_explorer_sees_twice_as_much_as_uniform_actions(
    learner: str, seed: int, bench: ModuleType, record_property: Callable[[str, object], None]
) -> None:
    row = bench.explore(learner, seed)
    assert row["coverage"] > 2 * row["untrained"], row
    assert row["cpu_seconds"] < SECONDS, row
    record_property("count", 1)
