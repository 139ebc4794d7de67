"""Negative controls: dense rewards, where composed skills should win nothing over a plain agent.

Both rewards are Gymnasium's own, step by step (`gymnasium/envs/mujoco/{half_cheetah,reacher}_v5.py`
with their time limits).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from etude.envs.bodies.locomotion import HalfCheetah, Locomotion
from etude.envs.bodies.reacher import Reacher
from etude.envs.body import Task, View
from etude.envs.spec import Field
from etude.envs.tasks.base import Outcome, extend

LIMIT = 1000
"""Steps that Gymnasium gives a half-cheetah."""


def nothing(state: np.ndarray) -> Outcome:
    """No reward, no ending and no success: where returns are compared."""
    never = np.zeros(len(state), dtype=bool)
    return np.zeros(len(state)), never, never.copy()


class OwnReward(Task):
    """The body's own reward at every step: no fields, no ending, no success."""

    state_dim = 0
    has_success = False

    def __init__(self, name: str, body: Locomotion, max_steps: int) -> None:
        self.body = body
        self.spec = extend(body, name, [], {}, max_steps, "reward: the body's own")

    def reset(
        self, rng: np.random.Generator, qpos: np.ndarray, qvel: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The body starts as it does without a task."""
        return qpos, qvel, np.zeros(0)

    def observe(self, state: np.ndarray, view: View) -> np.ndarray:
        """Nothing, (n, 0)."""
        return np.zeros((len(state), 0))

    def step(self, state: np.ndarray, view: View, rngs: Sequence[np.random.Generator]) -> Outcome:
        """Everything is paid by `dense`."""
        return nothing(state)

    def dense(self, before: View, after: View, action: np.ndarray) -> np.ndarray:
        """The body's own reward, (n,)."""
        return self.body.reward(before, after, action)


class HalfCheetahRun(OwnReward):
    """Run along x, as fast as can be: HalfCheetah-v5."""

    def __init__(self) -> None:
        super().__init__("half-cheetah-run", HalfCheetah(), LIMIT)


class ReacherDense(Task):
    """Hold the fingertip at a target, at every step -distance - |action|^2: Reacher-v5.

    Field: goal (x, y), uniform in a disc. The target is part of the model, as in Gymnasium; both
    places are taken where the integrator leaves them, a stage behind the joints.
    """

    reach = 0.2
    """Goals lie within this distance of the base, m."""
    state_dim = 2
    has_success = False

    def __init__(self) -> None:
        self.body = Reacher(target=True)
        model = self.body.model()
        self._bodies = [model.body(name).id for name in ("fingertip", "target")]
        limit, constants = self.body.spec.max_steps, {"goal_reach": self.reach}
        fields = [Field("goal", 2)]
        self.spec = extend(self.body, "reacher-dense", fields, constants, limit)

    def reset(
        self, rng: np.random.Generator, qpos: np.ndarray, qvel: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Draw the goal and put the target there."""
        goal = rng.uniform(-self.reach, self.reach, 2)
        while np.linalg.norm(goal) >= self.reach:
            goal = rng.uniform(-self.reach, self.reach, 2)
        return np.concatenate([qpos[:2], goal]), qvel, goal

    def observe(self, state: np.ndarray, view: View) -> np.ndarray:
        """The goal, (n, 2)."""
        return state

    def step(self, state: np.ndarray, view: View, rngs: Sequence[np.random.Generator]) -> Outcome:
        """Everything is paid by `dense`."""
        return nothing(state)

    def dense(self, before: View, after: View, action: np.ndarray) -> np.ndarray:
        """Gymnasium's reward, (n,)."""
        tip, target = (after.extra["xpos"][:, body] for body in self._bodies)
        reward: np.ndarray = -np.linalg.norm(tip - target, axis=1) - np.square(action).sum(axis=1)
        return reward
