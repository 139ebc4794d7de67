"""A body that is not what it was: another gravity, or a leg with less torque.

Skills are chosen, not learnt: with a library of diverse ways to run, one of them should still run
when the body has changed. The task is that of the adaptation tests of Chalumeau et al. 2023,
"Neuroevolution is a Competitive Alternative to Reinforcement Learning for Skill Discovery"
(arXiv:2210.03516): the reward is the body's own, for running along x. Deviations: the changes are a
few fixed percentages, and of an ant always the first leg is weak, of a half-cheetah the hind leg.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from etude.envs.bodies.locomotion import Ant, HalfCheetah
from etude.envs.body import Task, View
from etude.envs.changes import Change
from etude.envs.tasks.base import Outcome, extend

BODIES = {
    "ant": (Ant, ("hip_1", "ankle_1")),
    "half-cheetah": (HalfCheetah, ("bthigh", "bshin", "bfoot")),
}
"""Each body with the joints of the leg that may be weak."""


class Changed(Task):
    """Run on, changed as the body is: the reward is the body's, at every step.

    No fields, no ending, and no success: returns are compared.
    """

    state_dim = 0

    def __init__(self, body: str, what: str, percent: int) -> None:
        """Describe the task.

        Args:
            body: its id.
            what: "gravity", or "actuator" for the torque of one leg.
            percent: what is left of it.
        """
        make, leg = BODIES[body]
        left = percent / 100
        weak = tuple((joint, left) for joint in leg)
        change = Change(gravity=left) if what == "gravity" else Change(torque=weak)
        self.body = make(change)
        name, limit = f"{body}-{what}-{percent}", self.body.spec.max_steps
        self.spec = extend(self.body, name, [], {}, limit, "reward: the body's own")

    def reset(
        self, rng: np.random.Generator, qpos: np.ndarray, qvel: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The body starts as it does without a task."""
        return qpos, qvel, np.zeros(0)

    def observe(self, state: np.ndarray, view: View) -> np.ndarray:
        """Nothing, (n, 0)."""
        return np.zeros((len(state), 0))

    def step(self, state: np.ndarray, view: View, rngs: Sequence[np.random.Generator]) -> Outcome:
        """Nothing is paid here, nothing ends and nothing succeeds."""
        never = np.zeros(len(state), dtype=bool)
        return np.zeros(len(state)), never, never.copy()

    def dense(self, before: View, after: View, action: np.ndarray) -> np.ndarray:
        """The body's own reward, (n,)."""
        return self.body.reward(before, after, action)
