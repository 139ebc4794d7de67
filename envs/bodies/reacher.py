"""The arm of Gymnasium's Reacher-v5, alone on its table: two links whose fingertip is to be moved.

The model comes from the installed Gymnasium package; its target is taken out, unless a task asks
for it. Skills see where the fingertip is, from the arm's chain, as well as the joints. Start noise
and integrator are Gymnasium's (`gymnasium/envs/mujoco/reacher_v5.py`).
"""

from __future__ import annotations

from importlib.resources import files

import mujoco
import numpy as np

from etude.envs.body import Body, View
from etude.envs.changes import ABOVE, Change
from etude.envs.spec import EnvSpec, Field

LINKS = (0.1, 0.11)
"""From joint to joint and from there to the fingertip, m."""
NOISE, SPEED_NOISE = 0.1, 0.005
"""Half-widths of the uniform start noise on angles (rad) and their velocities (rad/s)."""
TARGET = "target"
MEAN = (0.0528, 0.001, 0.2776, 0.1387, -0.0083, 0.0097, -0.1528, -0.0582)
STD = (0.1153, 0.0952, 0.7153, 0.7832, 0.6413, 0.606, 8.5356, 6.4596)
"""Of the fields, measured once on 1024 random rollouts of 50 steps."""


class Reacher(Body):
    """A planar arm with two joints, driven by torque."""

    frame_skip = 2
    outputs = ("xpos",)
    camera = ABOVE

    def __init__(self, *, target: bool = False) -> None:
        """Describe the arm; `target` keeps the XML's movable target, the last two of qpos."""
        self._target = target
        self._source = (
            files("gymnasium") / "envs" / "mujoco" / "assets" / "reacher.xml"
        ).read_bytes()
        model = self.model()
        self._home = model.qpos0.copy()
        self.spec = EnvSpec(
            id="reacher",
            body="reacher",
            fields=(
                Field("x", 1),
                Field("y", 1),
                Field("joint_cosines", 2),
                Field("joint_sines", 2),
                Field("joint_velocities", 2),
            ),
            task_fields=(),
            action_dim=model.nu,
            descriptor=("x", "y"),
            descriptor_unit="m",
            cell=0.02,
            dt=model.opt.timestep * self.frame_skip,
            max_steps=50,
            constants={
                "gymnasium_id": "Reacher-v5",
                "frame_skip": self.frame_skip,
                "timestep": model.opt.timestep,
                "gear": model.actuator_gear[:, 0].tolist(),
                "links": LINKS,
                "start_noise": NOISE,
                "start_velocity_noise": SPEED_NOISE,
            },
            changes=("geoms: a target",) if target else (),
            xml_sha256=Change().fingerprint(self._source + (b"+target" if target else b"")),
            obs_mean=MEAN,
            obs_std=STD,
        )

    def model(self) -> mujoco.MjModel:
        """A new model of the arm."""
        description = mujoco.MjSpec.from_string(self._source.decode())
        if not self._target:
            description.delete(description.body(TARGET))
        Change(above=0.75).apply(description)
        return description.compile()

    def reset(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Stretched out along x, but for the noise; a target rests where the model has it."""
        qpos, qvel = self._home.copy(), np.zeros(len(self._home))
        qpos[:2] += rng.uniform(-NOISE, NOISE, 2)
        qvel[:2] = rng.uniform(-SPEED_NOISE, SPEED_NOISE, 2)
        return qpos, qvel

    def observe(self, view: View) -> np.ndarray:
        """Fingertip, cosines and sines of the joints, their velocities, (n, 8)."""
        angle = view.qpos[:, :2]
        parts = [self.descriptor(view), np.cos(angle), np.sin(angle), view.qvel[:, :2]]
        return np.concatenate(parts, axis=1)

    def descriptor(self, view: View) -> np.ndarray:
        """The fingertip, (n, 2) m."""
        total = np.cumsum(view.qpos[:, :2], axis=1)  # angles of the links against x
        return np.stack([np.cos(total) @ LINKS, np.sin(total) @ LINKS], axis=1)
