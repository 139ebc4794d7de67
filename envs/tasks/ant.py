"""Places for the ant: the task of Park et al. 2024, "METRA: Scalable Unsupervised RL with
Metric-Aware Abstraction" (arXiv:2310.08887).

The bonus of 2.5 per goal is inferred from published code of that line of work.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from etude.envs.bodies.locomotion import Ant
from etude.envs.body import Task, View
from etude.envs.spec import Field
from etude.envs.tasks.base import extend


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
        self.spec = extend(self.body, "ant-multi-goal", fields, constants, limit)

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
