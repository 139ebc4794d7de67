"""Downstream tasks: sparse goals that a body alone reaches seldom, and that skills should reach.

Reward is paid once per goal. Goals are part of the task state, so that they travel with saved
states, and are drawn anew in every episode by the environment's own generator.

`half-cheetah-goal` and `ant-multi-goal` are the tasks of Park et al. 2024, "METRA: Scalable
Unsupervised RL with Metric-Aware Abstraction" (arXiv:2310.08887); the bonus of 2.5 per goal is
inferred from published code of that line of work.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from etude.envs.body import Body, Task, View
from etude.envs.locomotion import Ant, HalfCheetah
from etude.envs.points import Point, PointMazeLarge, PointMazeU, PointOpen
from etude.envs.spec import EnvSpec, Field

_MAZES = {"point-maze-u": PointMazeU, "point-maze-large": PointMazeLarge}


def _on(
    body: Body,
    name: str,
    fields: Sequence[Field],
    constants: Mapping[str, Any],
    max_steps: int,
) -> EnvSpec:
    """The spec of a task on `body`: fields and constants are added to the body's own."""
    return dataclasses.replace(
        body.spec,
        id=name,
        fields=(*body.spec.fields, *fields),
        task_fields=tuple(field.name for field in fields),
        constants={**body.spec.constants, **constants},
        changes=("goal region",),
        max_steps=max_steps,
    )


class PointMazeGoal(Task):
    """Walk from the map's start to its goal, far away: reward 1 on arrival, which ends the episode.

    Field: goal (x, y), always the same.
    """

    half_width = 0.25
    """Arrival: no further than this from the goal's centre in x and in y, m."""
    state_dim = 0

    def __init__(self, body_id: str) -> None:
        self.body: Point = _MAZES[body_id]()
        self._goal = np.asarray(self.body.maze.goal)
        constants = {"goal": self.body.maze.goal, "goal_half_width": self.half_width}
        name = f"{body_id}-goal"
        limit = self.body.spec.max_steps
        self.spec = _on(self.body, name, [Field("goal", 2)], constants, limit)

    def reset(
        self, rng: np.random.Generator, qpos: np.ndarray, qvel: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The body already stands at the map's start."""
        return qpos, qvel, np.zeros(0)

    def observe(self, state: np.ndarray, view: View) -> np.ndarray:
        """The goal's centre, (n, 2)."""
        return np.broadcast_to(self._goal, (len(state), 2))

    def step(
        self, state: np.ndarray, view: View, rngs: Sequence[np.random.Generator]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Reward 1 and the end on arrival."""
        there = (np.abs(self.body.descriptor(view) - self._goal) <= self.half_width).all(axis=1)
        return there.astype(float), there, there.copy()


class PointOpenGoal(Task):
    """Go to a place in the open arena: reward 1 on arrival, which ends the episode.

    Field: goal (x, y), uniform in a square.
    """

    reach = 4.5
    """Goals lie within this distance of the centre in x and in y, m; the disc gets to 4.7 m."""
    radius = 0.5
    """Arrival: no further than this from the goal, m."""
    state_dim = 2

    def __init__(self) -> None:
        self.body = PointOpen()
        constants = {"goal_reach": self.reach, "goal_radius": self.radius}
        limit = self.body.spec.max_steps
        self.spec = _on(self.body, "point-open-goal", [Field("goal", 2)], constants, limit)

    def reset(
        self, rng: np.random.Generator, qpos: np.ndarray, qvel: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Draw the goal."""
        return qpos, qvel, rng.uniform(-self.reach, self.reach, 2)

    def observe(self, state: np.ndarray, view: View) -> np.ndarray:
        """The goal, (n, 2)."""
        return state

    def step(
        self, state: np.ndarray, view: View, rngs: Sequence[np.random.Generator]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Reward 1 and the end on arrival."""
        there = np.linalg.norm(self.body.descriptor(view) - state, axis=1) <= self.radius
        return there.astype(float), there, there.copy()


class HalfCheetahGoal(Task):
    """Run to a place on the line: reward 1 on arrival, which ends the episode.

    Field: goal (x), uniform in [-100, 100] m. Many goals lie further than 200 steps can carry the
    body, so success cannot come near 1.
    """

    reach = 100.0
    """Goals lie within this distance of the origin, m."""
    radius = 3.0
    """Arrival: no further than this from the goal, m."""
    max_steps = 200
    """Time limit of an episode, steps."""
    state_dim = 1

    def __init__(self) -> None:
        self.body = HalfCheetah()
        constants = {"goal_reach": self.reach, "goal_radius": self.radius}
        self.spec = _on(
            self.body, "half-cheetah-goal", [Field("goal", 1)], constants, self.max_steps
        )

    def reset(
        self, rng: np.random.Generator, qpos: np.ndarray, qvel: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Draw the goal."""
        return qpos, qvel, rng.uniform(-self.reach, self.reach, 1)

    def observe(self, state: np.ndarray, view: View) -> np.ndarray:
        """The goal, (n, 1)."""
        return state

    def step(
        self, state: np.ndarray, view: View, rngs: Sequence[np.random.Generator]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Reward 1 and the end on arrival."""
        there = np.abs(self.body.descriptor(view)[:, 0] - state[:, 0]) <= self.radius
        return there.astype(float), there, there.copy()


class AntMultiGoal(Task):
    """Reach four goals, one after the other: reward 2.5 for each, paid once.

    Each goal has 50 steps and is drawn near the place where the body stands when the goal before
    it is reached or given up. On arrival the clock jumps to the next goal, so that time saved is
    not given to it; after the fourth there is nothing more to earn. The episode never ends before
    its time limit. Success is all four.

    Fields: goal (x, y), and the share of the goal's 50 steps that is left (0 after the last).
    Task state: goal x, goal y, clock in steps, goals reached.
    """

    goals = 4
    """Goals per episode."""
    steps_per_goal = 50
    """Clock per goal, steps."""
    spread = 7.5
    """A goal lies within this distance of the body in x and in y when it is drawn, m."""
    radius = 3.0
    """Arrival: no further than this from the goal, m."""
    bonus = 2.5
    """Reward per goal: 10 for all four."""
    state_dim = 4

    def __init__(self) -> None:
        self.body = Ant()
        constants = {
            "goals": self.goals,
            "steps_per_goal": self.steps_per_goal,
            "goal_spread": self.spread,
            "goal_radius": self.radius,
            "goal_bonus": self.bonus,
        }
        fields = [Field("goal", 2), Field("goal_time_left", 1)]
        limit = self.goals * self.steps_per_goal
        self.spec = _on(self.body, "ant-multi-goal", fields, constants, limit)

    def reset(
        self, rng: np.random.Generator, qpos: np.ndarray, qvel: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Draw the first goal."""
        return qpos, qvel, np.array([*self._near(qpos[:2], rng), 0.0, 0.0])

    def observe(self, state: np.ndarray, view: View) -> np.ndarray:
        """Goal and time left, (n, 3)."""
        clock = state[:, 2]
        left = 1 - clock % self.steps_per_goal / self.steps_per_goal
        left[clock >= self.goals * self.steps_per_goal] = 0
        return np.concatenate([state[:, :2], left[:, None]], axis=1)

    def step(
        self, state: np.ndarray, view: View, rngs: Sequence[np.random.Generator]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pay for an arrival, move the clock, and draw the next goal when this one is over."""
        end = self.goals * self.steps_per_goal
        place = self.body.descriptor(view)
        active = state[:, 2] < end
        there = active & (np.linalg.norm(place - state[:, :2], axis=1) <= self.radius)
        clock = state[:, 2] + active
        jumped = np.ceil(clock / self.steps_per_goal) * self.steps_per_goal
        state[:, 2] = np.where(there, jumped, clock)
        state[:, 3] += there
        over = active & (state[:, 2] % self.steps_per_goal == 0) & (state[:, 2] < end)
        for i in np.flatnonzero(over).tolist():
            state[i, :2] = self._near(place[i], rngs[i])
        never = np.zeros(len(state), dtype=bool)
        return self.bonus * there, never, state[:, 3] == self.goals

    def _near(self, place: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return place + rng.uniform(-self.spread, self.spread, 2)
