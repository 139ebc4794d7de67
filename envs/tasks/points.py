"""Places for points: in the unit box, in the open arena, at the far end of a maze.

The box is the point task of Eysenbach et al. 2019, "Diversity is All You Need" (arXiv:1802.06070),
where one skill, held, is enough.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from etude.envs.bodies.box import PointBox
from etude.envs.bodies.points import Point, PointMazeLarge, PointMazeU, PointOpen
from etude.envs.body import Mark, Task, View
from etude.envs.spec import Field
from etude.envs.tasks.base import GROUND, FixedGoal, Outcome, arrival, extend

_MAZES = {"point-maze-u": PointMazeU, "point-maze-large": PointMazeLarge}


class PointMazeGoal(FixedGoal):
    """Walk from the map's start to its goal, far away: reward 1 on arrival, which ends the episode.

    Field: goal (x, y), always the same.
    """

    half_width = 0.25
    """Arrival: no further than this from the goal's centre in x and in y, m."""

    def __init__(self, body_id: str) -> None:
        self.body: Point = _MAZES[body_id]()
        self._goal = np.asarray(self.body.maze.goal)
        constants = {"goal": self.body.maze.goal, "goal_half_width": self.half_width}
        name = f"{body_id}-goal"
        limit = self.body.spec.max_steps
        self.spec = extend(self.body, name, [Field("goal", 2)], constants, limit)

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


class PointNav(Task):
    """Be near one of 25 places in the unit box: at every step reward -(distance squared).

    The one task with a dense reward that skills are expected to help with. Success is to be as near
    as half the distance between neighbouring goals; nothing ends the episode before its limit.
    Field: goal (x, y), drawn from a grid.
    """

    grid = (0.1, 0.3, 0.5, 0.7, 0.9)
    """Coordinates of the goals along each axis."""
    radius = 0.1
    """Success: no further than this from the goal."""
    state_dim = 2

    def __init__(self) -> None:
        self.body = PointBox()
        constants = {"goal_grid": self.grid, "goal_radius": self.radius}
        limit = self.body.spec.max_steps
        self.spec = extend(self.body, "point-nav", [Field("goal", 2)], constants, limit)

    def reset(
        self, rng: np.random.Generator, qpos: np.ndarray, qvel: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Draw the goal."""
        return qpos, qvel, rng.choice(self.grid, 2)

    def observe(self, state: np.ndarray, view: View) -> np.ndarray:
        """The goal, (n, 2)."""
        return state

    def step(self, state: np.ndarray, view: View, rngs: Sequence[np.random.Generator]) -> Outcome:
        """Pay by the square of the distance."""
        square = np.square(self.body.descriptor(view) - state).sum(axis=1)
        return -square, np.zeros(len(state), dtype=bool), square <= self.radius**2

    def marks(self, state: np.ndarray) -> list[Mark]:
        """The goal."""
        return [Mark((state[0], state[1], 0.0), self.radius / 2)]
