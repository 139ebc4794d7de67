"""The task of a runner on a line: Park et al. 2024, "METRA: Scalable Unsupervised RL with
Metric-Aware Abstraction" (arXiv:2310.08887).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from etude.envs.bodies.locomotion import HalfCheetah
from etude.envs.body import Task, View
from etude.envs.spec import Field
from etude.envs.tasks.base import extend


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
        self.spec = extend(
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
