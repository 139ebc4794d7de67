"""Places for the ant: goals near by, the corners of a square, the far end of a maze.

Goals near by are the task of Park et al. 2024, "METRA: Scalable Unsupervised RL with Metric-Aware
Abstraction" (arXiv:2310.08887); the bonus of 2.5 per goal is inferred from published code of that
line of work. The square is the navigation task of Eysenbach et al. 2019, "Diversity is All You
Need" (arXiv:1802.06070), who weaken the ant's joints to a gear of 30.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from etude.envs.bodies.locomotion import Ant
from etude.envs.body import Mark, Task, View
from etude.envs.changes import Change, walls
from etude.envs.maps import ANT_MAZE_LARGE, ANT_MAZE_U
from etude.envs.spec import Field
from etude.envs.tasks.base import GROUND, FixedGoal, Outcome, arrival, extend

SQUARE = ((2.0, 2.0), (2.0, -2.0), (-2.0, -2.0), (-2.0, 2.0), (2.0, 2.0))
"""The corners in order, m."""
PASSED = (0.3, 0.33, 0.4, 0.5)
"""Colour of corners that are not next."""
MAZES = {"ant-maze-u": (ANT_MAZE_U, 700), "ant-maze-large": (ANT_MAZE_LARGE, 1000)}
"""Map and time limit in steps."""


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

    def __init__(self, leg: int = 100) -> None:
        """Describe the task with the first leg's torque at `leg` percent."""
        name = "ant-multi-goal" + ("" if leg == 100 else f"-leg-{leg}")
        weak = () if leg == 100 else tuple((joint, leg / 100) for joint in Ant.joints[:2])
        self.body = Ant(Change(torque=weak))
        constants = {
            "goals": self.goals,
            "steps_per_goal": self.steps_per_goal,
            "goal_spread": self.spread,
            "goal_radius": self.radius,
            "goal_bonus": self.bonus,
        }
        fields = [Field("goal", 2), Field("goal_time_left", 1)]
        limit = self.goals * self.steps_per_goal
        self.spec = extend(self.body, name, fields, constants, limit)

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

    def marks(self, state: np.ndarray) -> list[Mark]:
        """The goal."""
        return [Mark((state[0], state[1], GROUND), self.radius)]

    def _near(self, place: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return place + rng.uniform(-self.spread, self.spread, 2)


class AntWaypoints(Task):
    """Pass the corners of a square in order: reward 1 for each, paid once; the fifth ends it.

    Fields: goal (x, y) of the next corner, and the share of the corners that is left.
    Task state: corners passed.
    """

    radius = 0.5
    """Arrival: no further than this from the corner, m."""
    max_steps = 1000
    """Time limit of an episode, steps."""
    state_dim = 1

    def __init__(self, gear: int = Ant.gear) -> None:
        """Describe the task with joints of that gear."""
        name = "ant-waypoints" + ("" if gear == Ant.gear else f"-gear-{gear}")
        self._corners = np.array(SQUARE)
        self.body = Ant(Change(torque=Ant.torque(gear), above=9.0))
        constants = {"waypoints": SQUARE, "goal_radius": self.radius, "goal_reach": 2.0}
        fields = [Field("goal", 2), Field("waypoints_left", 1)]
        self.spec = extend(self.body, name, fields, constants, self.max_steps)

    def reset(
        self, rng: np.random.Generator, qpos: np.ndarray, qvel: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """No corner is passed; they are always the same."""
        return qpos, qvel, np.zeros(1)

    def observe(self, state: np.ndarray, view: View) -> np.ndarray:
        """Next corner and share left, (n, 3)."""
        left = 1 - state / len(SQUARE)
        return np.concatenate([self._next(state), left], axis=1)

    def step(self, state: np.ndarray, view: View, rngs: Sequence[np.random.Generator]) -> Outcome:
        """Pay for the next corner, if this is it."""
        distance = np.linalg.norm(self.body.descriptor(view) - self._next(state), axis=1)
        there = (distance <= self.radius) & (state[:, 0] < len(SQUARE))
        state[:, 0] += there
        done = state[:, 0] == len(SQUARE)
        return there.astype(float), done, done.copy()

    def marks(self, state: np.ndarray) -> list[Mark]:
        """The corners, the next one in colour."""
        corners = {corner: Mark((*corner, GROUND), self.radius, PASSED) for corner in SQUARE}
        x, y = self._next(state[None])[0]
        return [*corners.values(), Mark((x, y, 2 * GROUND), self.radius)]

    def _next(self, state: np.ndarray) -> np.ndarray:
        corner: np.ndarray = self._corners[np.minimum(state[:, 0], len(SQUARE) - 1).astype(int)]
        return corner


class AntMaze(FixedGoal):
    """Walk from the map's start to its goal, far away: reward 1 on arrival, which ends the episode.

    The maps are those of the point mazes with cells of 4 m. Field: goal (x, y), always the same.
    """

    radius = 0.5
    """Arrival: no further than this from the goal's centre, m."""
    height = 2.0
    """Height of the walls, m: skills at this gear can jump on those of one metre."""

    def __init__(self, name: str) -> None:
        maze, limit = MAZES[name]
        self.body = Ant(walls(maze, self.height))
        self._start, self._goal = np.array(maze.start), np.array(maze.goal)
        constants = {
            "map": maze.name,
            "map_version": maze.version,
            "map_sha256": maze.sha256,
            "map_cell": maze.cell,
            "wall_height": self.height,
            "start": maze.start,
            "goal": maze.goal,
            "goal_radius": self.radius,
            "goal_reach": max(maze.size) / 2 - maze.cell,
        }
        self.spec = extend(self.body, name, [Field("goal", 2)], constants, limit)

    def reset(
        self, rng: np.random.Generator, qpos: np.ndarray, qvel: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Move the body to the map's start."""
        return np.concatenate([self._start + qpos[:2], qpos[2:]]), qvel, np.zeros(0)

    def step(self, state: np.ndarray, view: View, rngs: Sequence[np.random.Generator]) -> Outcome:
        """Reward 1 and the end on arrival."""
        distance = np.linalg.norm(self.body.descriptor(view) - self._goal, axis=1)
        return arrival(distance <= self.radius)

    def marks(self, state: np.ndarray) -> list[Mark]:
        """The goal."""
        return [Mark((*self._goal, GROUND), self.radius)]
