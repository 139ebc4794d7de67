"""Effects that are measured: in the open arena, where they can be computed for skills that walk."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from etude.envs.registry import spec
from etude.errors import UsageError
from etude.evaluate.rollouts import rollout_task
from etude.skills.controllers.automaton import AutomatonController, Effect, TaskAutomaton
from etude.skills.controllers.effects import Measuring, measure
from etude.skills.controllers.goal_direction import Heading
from etude.skills.controllers.practice import practise
from etude.skills.library import MLP, SetData, SkillLibrary
from etude.skills.library_data import Contents
from etude.skills.spaces import Discrete, Sphere
from etude.skills.vec_env import LibraryLevel

TASK, EAST = "point-open-goal", np.array([1, 0], np.float32)
PLACES = {"east": (2, 0), "north": (0, 2), "south": (0, -2), "corner": (2, 2)}
LABELS: dict[str, Any] = {
    name: {"near": dict(zip("xy", place, strict=True)), "within": 0.5}
    for name, place in PLACES.items()
}


def walkers(space: Any = None, features: bool = True) -> SkillLibrary:
    """Skills that walk along z; phi is the place."""
    space = space or Sphere(2)
    ways = np.eye(2) if space.dim == 2 else np.array([[1, 0], [0, 1], [-1, 0], [0, -1]])
    policy = MLP([(np.concatenate([np.zeros((4, 2)), 3 * ways]), np.zeros(2))], output="tanh")
    phi = MLP([(np.eye(2), np.zeros(2))], inputs=("obs",), input_fields=("x", "y"))
    encoders = {"phi": phi} if features else {}
    data = SetData("main", "none", {}, space, policy, encoders, np.zeros(4), np.ones(4), [])
    return SkillLibrary(Contents("walkers", spec("point-open").to_json(), [data]))


def known(effects: list[Effect], begins: str) -> dict[tuple[int, ...], Effect]:
    """Effects of skills that are held, after some events, by their direction."""
    return {
        tuple(np.round(e.skill).astype(int).tolist()): e
        for e in effects
        if e.begins == begins and not isinstance(e.skill, Heading)
    }


def test_effects_of_walking_are_what_geometry_says() -> None:
    library = walkers(Discrete(4), features=False)
    found = measure(library, TASK, LABELS, Measuring(held=8, tries=3, steps=60))
    assert len(found.ways) == 4  # each skill once
    start = known(found.effects, "")
    east, north, west, south = (tuple(z) for z in np.eye(4, dtype=int).tolist())
    assert {z: e.events for z, e in start.items()} == {
        east: ("east",),
        north: ("north",),
        south: ("south",),
    }
    assert west not in start
    after = known(found.effects, " east")
    assert after[north].events == ("corner",)
    assert after[north].share == 1.0 and after[north].within >= after[north].steps
    assert {e.begins for e in found.effects} >= {"", " east", "east corner", " north"}
    assert 1.5 / 0.1 / 4 < start[east].steps < 60
    again = measure(library, TASK, LABELS, Measuring(held=8, tries=3, steps=60))
    assert again.env_steps == found.env_steps


def test_each_setting_of_the_measurement_counts() -> None:
    library, given = walkers(), {"held": 4, "places": 4, "tries": 2, "steps": 60, "memory": 1}
    first = measure(library, TASK, LABELS, Measuring(**given))
    assert {e.begins for e in first.effects} <= {"", *PLACES}
    assert len(first.ways) == 8 and sum(isinstance(way, Heading) for way in first.ways) == 4
    for change in ({"held": 5}, {"places": 9}, {"tries": 3}, {"steps": 20}, {"memory": 2}):
        other = measure(library, TASK, LABELS, Measuring(**(given | change)))
        assert other.env_steps != first.env_steps, change
    for bad in ({"held": 0}, {"tries": 0}, {"steps": 0}, {"memory": 0}, {"places": -1}):
        with pytest.raises(UsageError, match=next(iter(bad))):
            Measuring(**(given | bad))


def test_a_heading_leads_to_its_place_whatever_the_goal() -> None:
    heading = Heading(walkers(), spec(TASK), (1.0, 2.0))
    obs = np.array([[1, 0, 0, 0, 4, 4], [4, 6, 0, 0, -4, 4]], np.float32)
    np.testing.assert_allclose(heading(obs), [[0, 1], [-0.6, -0.8]], atol=1e-6)
    assert obs[0].tolist() == [1, 0, 0, 0, 4, 4]


def unsure(share: float, steps: float = 1.0, skill: int = 0, **more: Any) -> Effect:
    return Effect(np.eye(3, dtype=np.float32)[skill], ("east",), steps, "", share, **more)


def controller(*effects: Effect) -> AutomatonController:
    return AutomatonController(TaskAutomaton.sequence(["east"]), effects, LABELS, spec(TASK))


def test_a_sure_way_is_worth_a_detour() -> None:
    """T = 200 steps: a way of 100 steps is worth exp(-1/2), one of a step that share of it."""
    obs = np.zeros((1, 6), np.float32)
    for share, chosen in ((0.55, 0), (0.65, 1)):
        made = controller(unsure(1.0, 100.0), unsure(share, 1.0, 1))
        made.reset(obs)
        assert made.act(obs).argmax() == chosen
    assert controller(unsure(0.5)).values[0, 0] == pytest.approx(1 + 200 * np.log(2))
    for shares in ((0.6, 0.6), (0.0, 1.0), (-0.1, 1.0)):
        with pytest.raises(UsageError, match="shares above 0 that add up to 1"):
            controller(*(unsure(share) for share in shares))


def test_what_does_not_come_about_in_time_is_given_up_for_the_next_best() -> None:
    obs = np.zeros((1, 6), np.float32)
    made = controller(unsure(1.0, 1, 0, within=2), unsure(1.0, 2, 1, within=3), unsure(0.5, 3, 2))
    made.reset(obs)
    assert [int(made.act(obs).argmax()) for _ in range(8)] == [0] * 3 + [1] * 4 + [2]
    made = controller(unsure(1.0, 1, 0, within=2), unsure(1.0, 2, 1, within=2))
    made.reset(obs)
    chosen = [int(made.act(obs).argmax()) for _ in range(9)]
    assert chosen == [0] * 3 + [1] * 3 + [0] * 3  # when none is left, all may be tried again


def test_effects_may_depend_on_the_two_latest_events() -> None:
    task = TaskAutomaton.sequence(["east", "north"])
    z = np.eye(3, dtype=np.float32)
    effects = [
        Effect(z[0], ("east",), 1, ""),
        Effect(z[1], ("north",), 1, " east"),
        Effect(z[2], ("south",), 1, " east"),
        Effect(z[2], ("north",), 1, "east south"),
    ]
    made = AutomatonController(task, effects, LABELS, spec(TASK))
    obs = np.zeros((1, 6), np.float32)
    made.reset(obs)
    chosen = [int(made.act(obs).argmax())]
    for place in ("east", "south"):
        obs[0, :2] = PLACES[place]
        chosen.append(int(made.act(obs).argmax()))
    assert chosen == [0, 1, 2] and made.begins == ["east south"]
    obs[0, :2] = PLACES["north"]
    assert made.ends(obs).tolist() == [True] and not made.done.any()
    made.act(obs)
    assert made.done.all()


def test_practice_does_a_task_that_forbids_the_straight_way() -> None:
    """From the east to the south and to the north, and never the corner between two of them."""
    library, task = walkers(), TaskAutomaton.sequence(["east", "south", "north"], ["corner"])
    how = Measuring(held=8, places=4, tries=2, steps=60)
    made = practise(library, TASK, task, LABELS, rounds=2, episodes=16, how=how)
    assert made.share >= 0.75
    assert made.env_steps > measure(library, TASK, LABELS, how).env_steps
    level = LibraryLevel.for_spec(library, spec(TASK))
    done = rollout_task(TASK, level, made.controller, 1, episodes=16)
    assert done.lengths.max() <= 200
    for bad in ({"rounds": 0}, {"episodes": 0}):
        with pytest.raises(UsageError, match="give 1 or more of each"):
            practise(library, TASK, task, LABELS, **bad)
    far = {**LABELS, "corner": {"near": {"x": 40, "y": 0}, "within": 1}}
    with pytest.raises(UsageError, match="no sequence of known effects"):
        practise(library, TASK, TaskAutomaton.sequence(["corner"]), far, how=how)
