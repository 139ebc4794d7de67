"""Places for the disc: somewhere in the open arena, or at the far end of a maze."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from etude.envs.bodies.points import Point, PointMazeLarge, PointMazeU, PointOpen
from etude.envs.body import Mark, Task, View
from etude.envs.spec import Field
from etude.envs.tasks.base import GROUND, Outcome, arrival, extend

_MAZES = {"point-maze-u": PointMazeU, "point-maze-large": PointMazeLarge}


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
        self.spec = extend(self.body, name, [Field("goal", 2)], constants, limit)

    def reset(
        self, rng: np.random.Generator, qpos: np.ndarray, qvel: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The body already stands at the map's start."""
        return qpos, qvel, np.zeros(0)

    def observe(self, state: np.ndarray, view: View) -> np.ndarray:
        """The goal's centre, (n, 2)."""
        return np.broadcast_to(self._goal, (len(state), 2))

    def step(self, state: np.ndarray, view: View, rngs: Sequence[np.random.Generator]) -> Outcome:
        """Reward 1 and the end on arrival."""
        there = (np.abs(self.body.descriptor(view) - self._goal) <= self.half_width).all(axis=1)
        return arrival(there)

    def marks(self, state: np.ndarray) -> list[Mark]:
        """The goal."""
        return [Mark((*self._goal, GROUND), self.half_width)]


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
        self.spec = extend(self.body, "point-open-goal", [Field("goal", 2)], constants, limit)

    def reset(
        self, rng: np.random.Generator, qpos: np.ndarray, qvel: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Draw the goal."""
        return qpos, qvel, rng.uniform(-self.reach, self.reach, 2)

    def observe(self, state: np.ndarray, view: View) -> np.ndarray:
        """The goal, (n, 2)."""
        return state

    def step(self, state: np.ndarray, view: View, rngs: Sequence[np.random.Generator]) -> Outcome:
        """Reward 1 and the end on arrival."""
        there = np.linalg.norm(self.body.descriptor(view) - state, axis=1) <= self.radius
        return arrival(there)

    def marks(self, state: np.ndarray) -> list[Mark]:
        """The goal."""
        return [Mark((state[0], state[1], GROUND), self.radius)]
