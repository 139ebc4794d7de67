"""Tasks of a runner on a line: a place to go to, and hurdles in the way.

The place and one set of hurdles are those of Park et al. 2024, "METRA: Scalable Unsupervised RL
with Metric-Aware Abstraction" (arXiv:2310.08887).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from etude.envs.bodies.locomotion import HalfCheetah
from etude.envs.body import Mark, Task, View
from etude.envs.changes import Change, Geom
from etude.envs.spec import Field
from etude.envs.tasks.base import GROUND, Outcome, arrival, extend


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

    def step(self, state: np.ndarray, view: View, rngs: Sequence[np.random.Generator]) -> Outcome:
        """Reward 1 and the end on arrival."""
        there = np.abs(self.body.descriptor(view)[:, 0] - state[:, 0]) <= self.radius
        return arrival(there)

    def marks(self, state: np.ndarray) -> list[Mark]:
        """The goal."""
        return [Mark((state[0], 0.0, GROUND), self.radius)]


@dataclass(frozen=True)
class Hurdles:
    """One set of hurdles: they are different tasks, whose results must not be mixed."""

    places: tuple[float, ...]
    """x of the boxes; those at x >= 0 count, m."""
    centre: float
    """Height of a box's centre, m."""
    half_height: float
    """Half of a box's height, m."""
    half_depth: float
    """Half of a box's extent along y, m."""
    max_steps: int
    """Time limit of an episode, steps."""
    half_width: float = 0.05
    """Half of a box's extent along x, m."""

    def change(self) -> Change:
        """The boxes as solid geoms."""
        half = self.half_width, self.half_depth, self.half_height
        boxes = (Geom("box", (x, 0.0, self.centre), half, BAR) for x in self.places)
        return Change(tuple(boxes), "hurdles")


HIND_LEG = ((-0.5, 0.0), (0.16, -0.25), (-0.28, -0.14))
"""From the torso to the thigh, to the shin and to the foot: x and z in the frame before, m."""
BAR = (0.85, 0.33, 0.2, 1.0)
"""Colour of a hurdle."""
HURDLES = {
    "metra": Hurdles(
        (-15.0, -13.0, -9.0, -5.0, -1.0, 3.0, 7.0, 11.0, 15.0, 19.0, 23.0, 27.0),
        centre=0.2,
        half_height=0.03,
        half_depth=1.0,
        max_steps=200,
    ),
    "psd": Hurdles(
        (2.5, 4.0, 7.0, 10.0, 15.0, 22.0, 30.0),
        centre=0.13,
        half_height=0.13,
        half_depth=1.0,
        max_steps=300,
    ),
    "diayn": Hurdles(
        tuple(-1.0 + 3.0 * i for i in range(21)),
        centre=0.125,
        half_height=0.125,
        half_depth=0.5,
        max_steps=1000,
    ),
}
"""Floating bars (METRA), low walls at uneven distances (PSD, arXiv:2511.03187) and low walls every
3 m (DIAYN, arXiv:1802.06070)."""


class HalfCheetahHurdle(Task):
    """Get over hurdles: reward 1 when the hind foot passes one, -1 when it goes back over it.

    The hind foot is the origin of its link, the ankle. Success is to have all counted hurdles
    behind. The sources leave open how deep PSD's walls are (as METRA's here) and how DIAYN's task
    pays (as METRA's here) and where its row of hurdles ends (at 59 m here).

    Fields: goal (x), a metre beyond the next hurdle, counted or not, that is ahead of the hind
    foot (or the last of all), and the distance of that hurdle from the foot, m.
    Task state: counted hurdles that are behind.
    """

    beyond = 1.0
    """From a hurdle to the place shown as goal, where the hind foot is over it too, m."""
    state_dim = 1

    def __init__(self, kind: str) -> None:
        hurdles = HURDLES[kind]
        self.body = HalfCheetah(hurdles.change())
        self._all = np.array(hurdles.places)
        self._counted = self._all[self._all >= 0]
        constants = {
            "hurdles": hurdles.places,
            "hurdles_counted": len(self._counted),
            "hurdle_centre": hurdles.centre,
            "hurdle_half_size": (hurdles.half_width, hurdles.half_depth, hurdles.half_height),
            "goal_beyond": self.beyond,
            "goal_reach": max(hurdles.places),
        }
        fields = [Field("goal", 1), Field("hurdle_distance", 1)]
        name = f"half-cheetah-hurdle-{kind}"
        limit = hurdles.max_steps
        self.spec = extend(self.body, name, fields, constants, limit, "reward: hurdles passed")

    def reset(
        self, rng: np.random.Generator, qpos: np.ndarray, qvel: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The runner stands before the first hurdle that counts."""
        return qpos, qvel, self._passed(hind_foot(qpos[None])).astype(float)

    def observe(self, state: np.ndarray, view: View) -> np.ndarray:
        """Goal and distance, (n, 2)."""
        foot = hind_foot(view.qpos)
        ahead = np.searchsorted(self._all, foot)  # the first hurdle with x >= foot
        hurdle = self._all[np.minimum(ahead, len(self._all) - 1)]
        return np.stack([hurdle + self.beyond, hurdle - foot], axis=1)

    def step(self, state: np.ndarray, view: View, rngs: Sequence[np.random.Generator]) -> Outcome:
        """Pay for the change in the number of hurdles that are behind."""
        passed = self._passed(hind_foot(view.qpos)).astype(float)
        reward = passed - state[:, 0]
        state[:, 0] = passed
        return reward, np.zeros(len(state), dtype=bool), passed == len(self._counted)

    def _passed(self, foot: np.ndarray) -> np.ndarray:
        count: np.ndarray = np.searchsorted(self._counted, foot)
        return count


def hind_foot(qpos: np.ndarray) -> np.ndarray:
    """x of the hind foot's link, (n,) m, from the chain of the model's hind leg."""
    angle, x = qpos[:, 2].copy(), qpos[:, 0].copy()
    for joint, (along, up) in zip((3, 4, None), HIND_LEG, strict=True):
        x += along * np.cos(angle) + up * np.sin(angle)
        if joint is not None:
            angle += qpos[:, joint]
    return x
