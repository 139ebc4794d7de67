"""A body that is not what it was: another gravity, or a leg with less torque.

Skills are chosen, not learnt: with a library of diverse ways to run, one of them should still run
when the body has changed. The task is that of the adaptation tests of Chalumeau et al. 2023,
"Neuroevolution is a Competitive Alternative to Reinforcement Learning for Skill Discovery"
(arXiv:2210.03516): the reward is the body's own, for running along x. Deviations: the changes are a
few fixed percentages, and of an ant always the first leg is weak, of a half-cheetah the hind leg.
"""

from __future__ import annotations

from etude.envs.bodies.locomotion import Ant, HalfCheetah
from etude.envs.changes import Change
from etude.envs.tasks.dense import OwnReward

BODIES = {
    "ant": (Ant, ("hip_1", "ankle_1")),
    "half-cheetah": (HalfCheetah, ("bthigh", "bshin", "bfoot")),
}
"""Each body with the joints of the leg that may be weak."""


class Changed(OwnReward):
    """Run on, changed as the body is; returns are compared with those of the whole body."""

    def __init__(self, name: str, what: str, percent: int) -> None:
        """Describe the task.

        Args:
            name: of the body.
            what: "gravity", or "actuator" for the torque of one leg.
            percent: what is left of it.
        """
        make, leg = BODIES[name]
        left = percent / 100
        weak = tuple((joint, left) for joint in leg)
        body = make(Change(gravity=left) if what == "gravity" else Change(torque=weak))
        super().__init__(f"{name}-{what}-{percent}", body, body.spec.max_steps)
