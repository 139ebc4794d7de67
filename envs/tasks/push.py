"""Push the puck to a place on the table.

A planar relative of FetchPush (Plappert et al. 2018, "Multi-Goal Reinforcement Learning",
arXiv:1802.09464) with its zone, its spread of goals and its 50 steps. Deviations: a goal never lies
where the puck already is; reward 1 on arrival, which ends the episode, in place of -1 until then.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from etude.envs.bodies.pusher import Pusher
from etude.envs.body import Mark, Task, View
from etude.envs.spec import Field
from etude.envs.tasks.base import Outcome, arrival, extend


class PushSparse(Task):
    """Bring the puck to the goal: reward 1 on arrival, which ends the episode.

    Field: goal (x, y) of the puck.
    """

    spread = 0.15
    """Goals lie within this distance of the table's centre in x and in y, m."""
    radius = 0.05
    """Arrival: the puck's centre is no further than this from the goal, m."""
    apart = 0.1
    """Goals lie further than this from the puck's start, m."""
    state_dim = 2

    def __init__(self) -> None:
        self.body = Pusher()
        constants = {
            "goal_spread": self.spread,
            "goal_radius": self.radius,
            "goal_apart": self.apart,
        }
        limit = self.body.spec.max_steps
        self.spec = extend(self.body, "push-sparse", [Field("goal", 2)], constants, limit)

    def reset(
        self, rng: np.random.Generator, qpos: np.ndarray, qvel: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Draw the goal."""
        goal = rng.uniform(-self.spread, self.spread, 2)
        while np.linalg.norm(goal - qpos[2:]) <= self.apart:
            goal = rng.uniform(-self.spread, self.spread, 2)
        return qpos, qvel, goal

    def observe(self, state: np.ndarray, view: View) -> np.ndarray:
        """The goal, (n, 2)."""
        return state

    def step(self, state: np.ndarray, view: View, rngs: Sequence[np.random.Generator]) -> Outcome:
        """Reward 1 and the end on arrival."""
        distance = np.linalg.norm(self.body.descriptor(view) - state, axis=1)
        return arrival(distance <= self.radius)

    def marks(self, state: np.ndarray) -> list[Mark]:
        """The goal."""
        return [Mark((state[0], state[1], 0.003), self.radius)]
