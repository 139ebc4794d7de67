"""How long decisions hold: fixed, random, chosen."""

from __future__ import annotations

import numpy as np
import pytest
from gymnasium import spaces

from etude.errors import UsageError
from etude.skills.decision import ENDED_BY, Decision
from etude.skills.durations import Duration, generator
from etude.skills.spaces import Discrete, Sphere


@pytest.mark.parametrize(("k", "low", "high"), [(1, 1, 1), (2, 1, 3), (10, 5, 15), (25, 13, 37)])
def test_random_durations_are_uniform_around_k(k, low, high):
    hold = Duration(k, "random")
    assert (hold.shortest, hold.longest) == (low, high)
    drawn = np.array([hold.draw([rng])[0] for rng in [generator(0)] for _ in range(4000)])
    assert {*drawn} == {*range(low, high + 1)}
    assert drawn.mean() == pytest.approx(k, abs=4 * (high - low + 1) / 12**0.5 / 4000**0.5 + 1e-9)


def test_random_durations_repeat_with_their_seed_and_are_not_the_environments():
    hold = Duration(25, "random")
    one, again, other = (
        [hold.draw([rng])[0] for rng in [generator(seed)] for _ in range(20)] for seed in (3, 3, 4)
    )
    assert one == again != other
    assert one != [int(x) for x in np.random.default_rng(3).integers(13, 38, 20)]


def test_a_menu_becomes_part_of_the_action():
    hold = Duration(10, "chosen", (2, 10, 30))
    assert (hold.shortest, hold.longest) == (2, 30)
    pair = hold.action_space(Discrete(4).action_space())
    assert pair == spaces.MultiDiscrete([4, 3])
    skill, steps = hold.split(np.array([[3, 0], [1, 2], [0, 1]]))
    assert (skill.tolist(), steps.tolist()) == ([3, 1, 0], [2, 30, 10])
    box = hold.action_space(Sphere(2).action_space())
    assert box == spaces.Box(-1, 1, (3,), np.float32)
    ends = [-1, -0.34, -0.33, 0.33, 0.34, 1]
    skill, steps = hold.split(np.array([[0.5, 0.25, end] for end in ends], np.float32))
    assert steps.tolist() == [2, 2, 10, 10, 30, 30]
    assert skill.tolist() == [[0.5, 0.25]] * 6
    one, steps = hold.split(np.array([3, 2]))  # of a single environment
    assert (int(one), int(steps)) == (3, 30)


def test_menus_by_default():
    assert Duration(10, "chosen").menu == (5, 10, 20)
    assert Duration(1, "chosen").menu == (1, 2)
    assert Duration(10).menu == ()


def test_masks_leave_durations_free():
    masks = np.array([[True, False], [False, True]])
    assert Duration(3).masks(masks) is masks
    found = Duration(3, "chosen", (1, 2)).masks(masks)
    assert found.tolist() == [[True, False, True, True], [False, True, True, True]]


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"k": 0}, "k = 0"),
        ({"k": 2.5}, "k = 2.5"),
        ({"k": 5, "mode": "randm"}, 'did you mean "random"'),
        ({"k": 5, "menu": (1, 2)}, 'take "chosen"'),
        ({"k": 5, "mode": "chosen", "menu": (0, 2)}, "distinct whole numbers"),
        ({"k": 5, "mode": "chosen", "menu": (2, 2)}, "distinct whole numbers"),
    ],
)
def test_what_is_refused(settings, match):
    with pytest.raises(UsageError, match=match):
        Duration(**settings)


def test_a_decision_stays_as_it_ended():
    """Ended by the task, by its time, and by the skill, which says so of all from then on."""
    made = Decision(np.zeros((4, 1)), np.array([9, 1, 9, 9]))
    nothing = np.zeros(4, bool)
    infos = {"final_obs_array": np.ones((4, 1))}
    made.add(1.0, np.ones(4), np.array([True, False, False, False]), nothing, infos)
    assert made.active.tolist() == [False, False, True, True]
    made.stop(np.array([True, True, True, False]))
    assert [ENDED_BY[end] for end in made.end] == ["terminated", "k", "skill", "k"]
    assert made.active.tolist() == [False, False, False, True]
    made.add(0.5, made.active * 1.0, nothing, made.active.copy(), infos)
    assert made.duration.tolist() == [1, 1, 1, 2] and made.value.tolist() == [1, 1, 1, 1.5]
    assert made.done.tolist() == [True, False, False, True]
    assert made.final.flatten().tolist() == [1, 0, 0, 1]
