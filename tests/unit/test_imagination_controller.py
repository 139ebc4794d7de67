"""Composing in imagination: exact values on a grid, the reward's place, and a real maze."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from etude.envs.registry import spec
from etude.errors import UsageError
from etude.evaluate.rollouts import rollout_task
from etude.skills.controllers.imagination import ImaginationConfig, ImaginationController, adapt
from etude.skills.library import MLP, SetData, SkillLibrary
from etude.skills.library_data import Contents
from etude.skills.spaces import Discrete
from etude.skills.vec_env import LibraryLevel

TASK = "point-maze-u-goal"


def compass(skills: int, k: int, reach: float, outcome: bool = True) -> SkillLibrary:
    """Skills that walk in as many directions; each is said to lead `reach` metres in k steps."""
    angle = 2 * np.pi * np.arange(skills) / skills
    towards = np.stack([np.cos(angle), np.sin(angle)], 1)
    policy = MLP([(np.concatenate([np.zeros((4, 2)), 3 * towards]), np.zeros(2))], output="tanh")
    change = np.zeros((4 + skills, 4))
    change[4:, :2] = reach * towards
    nets = {"outcome": MLP([(change, np.zeros(4))])} if outcome else {}
    config = {"method": {"imagination": {"horizon": k}, "skill_obs": ["x", "y"]}}
    data = SetData(
        "main", "none", config, Discrete(skills), policy, nets, np.zeros(4), np.ones(4), []
    )
    return SkillLibrary(Contents("compass", spec("point-maze-u").to_json(), [data]))


def controller(library: SkillLibrary, **settings: Any) -> ImaginationController:
    return ImaginationController(library, spec(TASK), 0, ImaginationConfig(**settings))


def observations(places: np.ndarray) -> np.ndarray:
    """At places (n, 2), with speeds and goals that must not matter."""
    rest = np.random.default_rng(0).normal(size=(len(places), 4))
    return np.concatenate((places, rest), 1).astype(np.float32)


GRID = np.stack(np.meshgrid(np.arange(6.0), np.arange(5.0), indexing="ij"), -1).reshape(-1, 2)


def taught(**settings: Any) -> ImaginationController:
    """A grid of places a metre apart, and a reward that ends the episode in its far corner."""
    made = controller(compass(4, 10, 1.0), **settings)
    obs, there = observations(GRID), (GRID == (5, 4)).all(1)
    made.remember(obs, there.astype(float), there)
    made.imagine()
    return made


def test_values_are_those_of_the_shortest_way() -> None:
    made = taught(gamma=0.95)
    steps = np.abs(GRID - (5, 4)).sum(1)  # decisions to the corner
    best = made.returns(observations(GRID)[:, :4]).max(1)
    expected = 0.95 ** (10 * (np.maximum(steps, 1) - 1))
    np.testing.assert_allclose(best, expected, rtol=1e-5)


def test_the_best_skill_leads_nearer_and_is_always_taken_when_the_task_is_known() -> None:
    made = taught()
    obs = observations(GRID[:-1])
    made.reset(obs)
    z = made.act(obs)
    towards = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]])[z.argmax(1)]
    before, after = (np.abs(GRID[:-1] + d - (5, 4)).sum(1) for d in (0, towards))
    assert (after == before - 1).all()
    made.exploring = True
    tried = np.mean([(made.act(obs) != z).any(1).mean() for _ in range(50)])
    assert tried == pytest.approx(0.1 * 0.6, abs=0.03)  # of random ones some are as good


def test_until_a_reward_skills_are_random_and_held_for_long() -> None:
    made = controller(compass(4, 10, 1.0), hold=40)
    obs = observations(np.zeros((200, 2)))
    made.remember(obs, np.zeros(200), np.zeros(200))
    made.imagine()
    made.reset(obs)
    z = np.stack([made.act(obs) for _ in range(8)])
    assert (z[:4] == z[0]).all() and (z[4:] == z[4]).all()
    assert 0.1 < (z[4] == z[0]).all(-1).mean() < 0.4
    assert z.mean((0, 1)) == pytest.approx([0.25] * 4, abs=0.08)


def test_places_are_as_far_apart_as_asked_and_keep_the_mean_of_what_was_met() -> None:
    made = controller(compass(4, 10, 1.0), spacing=0.5, places=3)
    places = np.array([[0, 0], [0.4, 0], [1, 0], [3, 0], [9, 0]])
    made.remember(observations(places[:1]), np.ones(1), np.zeros(1))
    for place in places[1:]:
        made.remember(observations(place[None]), np.zeros(1), np.ones(1))
    np.testing.assert_allclose(made._obs[:, 0], [0, 1, 3])  # and no fourth
    np.testing.assert_allclose(made._sums, [[2, 1, 1], [1, 0, 1], [2, 0, 2]])


def test_without_ends_the_reward_is_paid_again_and_again() -> None:
    made = controller(compass(4, 10, 1.0), gamma=0.9)
    obs = observations(np.array([[0.0, 0.0]]))
    made.remember(obs, np.ones(1), np.zeros(1))
    made.imagine()
    expected = 1 / (1 - 0.9**10)
    np.testing.assert_allclose(made.returns(obs[:, :4]), np.full((1, 4), expected), rtol=1e-5)


def test_what_was_tried_counts_more_than_what_is_imagined() -> None:
    """Along the lower edge everything is blocked but up."""
    made = taught(gamma=0.95)
    edge = observations(GRID[GRID[:, 1] == 0])
    for skill in (0, 2, 3):
        made.correct(edge, np.tile(np.eye(4)[skill], (6, 1)), edge)
    made.correct(edge[:0], np.zeros((0, 4)), edge[:0])  # all episodes were cut off
    made.imagine()
    assert (made.returns(edge[:, :4]).argmax(1) == 1).all()
    behind = observations(np.array([[0.0, 1.0]]))[:, :4]
    assert made.returns(behind).max() == pytest.approx(0.95 ** (10 * 7))
    assert made.returns(edge[:1, :4]).max() == pytest.approx(0.95 ** (10 * 8))
    assert made.returns(edge[:1, :4])[0, 0] == pytest.approx(0.95 ** (10 * 9))  # stays there


def test_a_library_without_outcomes_is_refused() -> None:
    with pytest.raises(UsageError, match='needs the encoder "outcome" and discrete skills'):
        controller(compass(4, 10, 1.0, outcome=False))


def test_a_real_maze_is_solved_soon_after_its_first_reward() -> None:
    library = compass(8, 5, 0.6)
    made = controller(library, hold=10, every=1000)
    level, seen = LibraryLevel.for_spec(library, spec(TASK)), []

    def watch(steps: int) -> bool:
        judged = rollout_task(TASK, level, made.judged(), made.k, episodes=10)
        seen.append((steps, judged.success_rate))
        return seen[-1][1] == 1.0

    first = adapt(made, library, TASK, 12_000, num_envs=8, seed=1, watch=watch)
    assert first is not None and first <= seen[-1][0] <= first + 8000
    assert seen[0][1] < 1.0 and seen[-1][1] == 1.0 and not made.exploring
