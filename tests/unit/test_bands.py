"""Success by distance: goals, the reach of a library, and the arithmetic of bands."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from etude.envs import registry
from etude.errors import UsageError
from etude.evaluate.trials import bands
from etude.skills.library import SkillLibrary, write
from etude.skills.library_data import SetData
from etude.skills.mlp import MLP
from etude.skills.spaces import Sphere


def lopsided(folder: Path) -> SkillLibrary:
    """A point's library that goes along x at full speed and along y at a tenth of it."""
    env = registry.spec("point-open")
    push = np.vstack([np.zeros((4, 2)), np.diag([20.0, np.arctanh(0.1)])])
    policy = MLP([(push, np.zeros(2))], output="tanh")
    data = SetData("two", "two", {}, Sphere(2), policy, {}, np.zeros(4), np.ones(4), [])
    return SkillLibrary.load(write(folder, sets=[data], env=env.to_json(), provenance={}, name="a"))


def test_goals_are_those_of_the_episodes_that_judge() -> None:
    start, goal = bands.goals("half-cheetah-goal", 50)
    assert start.shape == goal.shape == (50, 1)
    assert np.abs(start).max() < 0.2 and 50 < np.abs(goal).max() <= 100
    more = bands.goals("half-cheetah-goal", 60)[1]
    np.testing.assert_array_equal(more[:50], goal)
    with pytest.raises(UsageError, match='needs a field "goal"'):
        bands.goals("half-cheetah-run", 2)


def test_the_reach_is_another_in_each_direction_and_grows_with_time(tmp_path: Path) -> None:
    library = lopsided(tmp_path / "two")
    ways = np.array([[5.0, 0.0], [-0.1, 0.0], [0.0, 3.0]])
    short, long = (bands.reach(library, steps, ways) for steps in (20, 40))
    assert short[0] == pytest.approx(short[1], rel=0.1)  # how far the goal lies is no matter
    assert short[2] < 0.3 * short[0]
    assert (long > 1.5 * short).all()
    share = bands.shares("point-open-goal", library, 30)
    start, goal = bands.goals("point-open-goal", 30)
    far = np.linalg.norm(goal - start, axis=1)
    np.testing.assert_allclose(share * bands.reach(library, 200, goal - start), far, rtol=1e-6)


def test_success_is_counted_in_its_band_and_summarised_over_seeds() -> None:
    share = np.array([0.1, 0.5, 0.79, 0.8, 3.0])
    rows = [
        {"trial": "a", "arm": "skills", "solved": "11010"},
        {"trial": "b", "arm": "skills", "solved": "10000"},
        {"trial": "c", "arm": "flat", "solved": "00001"},
    ]
    heads, goals, skills, flat = bands.table(rows, share)
    assert heads == ("arm", "within 0.8", "0 to 0.4", "0.4 to 0.8", "0.8 to 1.2", "beyond 1.2")
    assert goals == ("goals", "3", "1", "2", "1", "1")
    within = bands.success(rows[:2], share, 0.0, 0.8)
    assert (within.n, within.iqm) == (2, pytest.approx(0.5))  # 2/3 and 1/3
    assert skills[1].startswith("0.5 [") and skills[2:4] == ("1 [1, 1]", "0.25 [0, 0.5]")
    assert flat[1:] == ("0 [0, 0]", "0 [0, 0]", "0 [0, 0]", "0 [0, 0]", "1 [1, 1]")
    assert bands.table(rows, np.full(5, 0.1))[2][3] == "–", "a band without goals"
    for told in ("", "1111"):
        with pytest.raises(UsageError, match="which of 5 episodes it solved"):
            bands.table([{"trial": "d", "arm": "old", "solved": told}], share)
