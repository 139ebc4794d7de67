"""Gymnasium's Ant-v5, HalfCheetah-v5 and Walker2d-v5 as batched bodies, bit for bit.

Models come from the installed Gymnasium package; start noise, rewards and integrator are its own
(see `gymnasium/envs/mujoco/{ant,half_cheetah,walker2d}_v5.py`). The options are those under which
skill discovery uses them: the position is part of the observation (without x and y no learner can
represent displacement), contact forces are neither observed nor charged, and falling over does not
end an episode.

Observation normalisers of ant and half-cheetah are the constants of METRA (Park et al., ICLR 2024),
measured there once on random rollouts of 50 steps: mean and standard deviation of qpos followed by
qvel. That of the walker was measured here in the same way, on 1024 rollouts.
"""

from __future__ import annotations

import warnings
from importlib.resources import files
from typing import Any, ClassVar

import mujoco
import numpy as np

from etude.envs.body import Body, View
from etude.envs.changes import ABOVE, NONE, Change
from etude.envs.spec import EnvSpec, Field

PLANAR = (
    Field("x", 1),
    Field("z", 1),
    Field("pitch", 1),
    Field("joints", 6),
    Field("x_velocity", 1),
    Field("z_velocity", 1),
    Field("pitch_velocity", 1),
    Field("joint_velocities", 6),
)
"""What is observed of a body with six joints that moves in a plane: qpos, then qvel."""


class Locomotion(Body):
    """A robot of Gymnasium's MuJoCo suite, observed as qpos followed by qvel."""

    gymnasium_id: ClassVar[str]
    xml: ClassVar[str]
    fields: ClassVar[tuple[Field, ...]]
    coordinates: ClassVar[tuple[str, ...]]
    forward_weight: ClassVar[float] = 1.0
    control_weight: ClassVar[float]
    normaliser: ClassVar[tuple[tuple[float, ...], tuple[float, ...]]]
    reset_noise: ClassVar[float] = 0.1
    """Half-width of the uniform noise on qpos, standard deviation of that on qvel."""
    cell: ClassVar[float] = 1.0
    """Edge of a coverage cell, m."""
    max_steps: ClassVar[int] = 200
    """Default time limit, steps."""
    frame_skip = 5
    camera = "track"

    def __init__(self, name: str, change: Change = NONE, env_id: str = "") -> None:
        """Describe the body.

        Args:
            name: of the body as it is.
            change: what is changed about it.
            env_id: name of the changed body, if it is one to practise in.
        """
        self._change = change
        if change.above:
            self.camera = ABOVE
        self._path = files("gymnasium") / "envs" / "mujoco" / "assets" / self.xml
        model = self.model()
        self._home = model.qpos0.copy()
        self._nv = model.nv
        self._dt = model.opt.timestep * self.frame_skip
        mean, std = self.normaliser
        self.spec = EnvSpec(
            id=env_id or name,
            body=name,
            fields=self.fields,
            task_fields=(),
            action_dim=model.nu,
            descriptor=self.coordinates,
            descriptor_unit="m",
            cell=self.cell,
            dt=self._dt,
            max_steps=self.max_steps,
            constants=self._constants(model),
            changes=change.declared,
            xml_sha256=change.fingerprint(self._path.read_bytes()),
            obs_mean=mean,
            obs_std=std,
        )

    def _constants(self, model: mujoco.MjModel) -> dict[str, Any]:
        return {
            "gymnasium_id": self.gymnasium_id,
            "frame_skip": self.frame_skip,
            "timestep": model.opt.timestep,
            "gear": model.actuator_gear[:, 0].tolist(),
            "gravity": -float(model.opt.gravity[2]),
            "reset_noise_scale": self.reset_noise,
            "forward_reward_weight": self.forward_weight,
            "ctrl_cost_weight": self.control_weight,
        }

    def model(self) -> mujoco.MjModel:
        # the cheetah's XML asks for `settotalmass`, about which MuJoCo 4 warns; from_xml_path would
        # write that to stderr and to a log file in the working directory, a spec warns in Python
        description = mujoco.MjSpec.from_file(str(self._path))
        self._change.apply(description)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*settotalmass.*", category=UserWarning)
            return description.compile()

    def reset(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        noise = self.reset_noise
        qpos = self._home + rng.uniform(-noise, noise, size=len(self._home))
        return qpos, noise * rng.standard_normal(self._nv)

    def observe(self, view: View) -> np.ndarray:
        return np.concatenate((view.qpos, view.qvel), axis=1)

    def _control_cost(self, action: np.ndarray) -> np.ndarray:
        cost: np.ndarray = self.control_weight * np.square(action).sum(axis=1)
        return cost


class HalfCheetah(Locomotion):
    """A planar runner with six joints; it can only go along x."""

    gymnasium_id = "HalfCheetah-v5"
    xml = "half_cheetah.xml"
    fields = PLANAR
    coordinates = ("x",)
    control_weight = 0.1
    persistent_from = 32
    normaliser = (
        (-0.07861924, -0.08627162, 0.08968642, 0.00960849, 0.02950368, -0.00948337)
        + (0.01661406, -0.05476654, -0.04932635, -0.08061652, -0.05205841, 0.04500197)
        + (0.02638421, -0.04570961, 0.03183838, 0.01736591, 0.0091929, -0.0115027),
        (0.4039283, 0.07610687, 0.23817, 0.2515473, 0.2698137, 0.26374814)
        + (0.32229397, 0.2896734, 0.2774097, 0.73060024, 0.77360505, 1.5871304)
        + (5.5405455, 6.7097645, 6.8253727, 6.3142195, 6.417641, 5.9759197),
    )

    def __init__(self, change: Change = NONE) -> None:
        super().__init__("half-cheetah", change)

    def reward(self, before: View, after: View, action: np.ndarray) -> np.ndarray:
        velocity = (after.qpos[:, 0] - before.qpos[:, 0]) / self._dt
        reward: np.ndarray = self.forward_weight * velocity - self._control_cost(action)
        return reward


class Ant(Locomotion):
    """A four-legged robot with eight joints on an open plane.

    The forward velocity is that of the torso's `xpos`, which `mj_step` leaves at the last stage of
    the integrator and not at the new qpos: Gymnasium computes it so, and so do we.
    """

    gymnasium_id = "Ant-v5"
    xml = "ant.xml"
    fields = (
        Field("x", 1),
        Field("y", 1),
        Field("z", 1),
        Field("quaternion", 4),
        Field("joints", 8),
        Field("velocity", 3),
        Field("angular_velocity", 3),
        Field("joint_velocities", 8),
    )
    coordinates = ("x", "y")
    control_weight = 0.5
    healthy_reward: ClassVar[float] = 1.0
    healthy_z: ClassVar[tuple[float, float]] = (0.2, 1.0)
    torso: ClassVar[int] = 1
    outputs = ("xpos",)
    normaliser = (
        (0.00486117, 0.011312, 0.7022248, 0.8454677, -0.00102548, -0.00300276, 0.00311523)
        + (-0.00139029, 0.8607109, -0.00185301, -0.8556998, 0.00343217, -0.8585605)
        + (-0.00109082, 0.8558013, 0.00278213, 0.00618173, -0.02584622, -0.00599026)
        + (-0.00379596, 0.00526138, -0.0059213, 0.27686235, 0.00512205, -0.27617684)
        + (-0.0033233, -0.2766923, 0.00268359, 0.27756855),
        (0.62473416, 0.61958003, 0.1717569, 0.28629342, 0.20020866, 0.20572574, 0.34922406)
        + (0.40098143, 0.3114514, 0.4024826, 0.31057045, 0.40343934, 0.3110796)
        + (0.40245822, 0.31100526, 0.81786263, 0.8166509, 0.9870919, 1.7525449)
        + (1.7468817, 1.8596431, 4.502961, 4.4070187, 4.522444, 4.3518476)
        + (4.5105968, 4.3704205, 4.5175962, 4.3704395),
    )

    gear: ClassVar[int] = 150
    """Torque of every joint under a full control, N m."""
    joints: ClassVar[tuple[str, ...]] = tuple(
        f"{joint}_{leg}" for leg in (1, 2, 3, 4) for joint in ("hip", "ankle")
    )

    def __init__(self, change: Change = NONE, env_id: str = "") -> None:
        super().__init__("ant", change, env_id)

    @classmethod
    def torque(cls, gear: int) -> tuple[tuple[str, float], ...]:
        """The factor on every joint's torque that makes its gear `gear`; none where it is so."""
        return () if gear == cls.gear else tuple((joint, gear / cls.gear) for joint in cls.joints)

    def _constants(self, model: mujoco.MjModel) -> dict[str, Any]:
        own = {"healthy_reward": self.healthy_reward, "healthy_z_range": self.healthy_z}
        return {**super()._constants(model), **own}

    def reward(self, before: View, after: View, action: np.ndarray) -> np.ndarray:
        moved = after.extra["xpos"][:, self.torso, 0] - before.extra["xpos"][:, self.torso, 0]
        low, high = self.healthy_z
        healthy = (low <= after.qpos[:, 2]) & (after.qpos[:, 2] <= high)
        forward = self.forward_weight * (moved / self._dt)
        reward: np.ndarray = (forward + self.healthy_reward * healthy) - self._control_cost(action)
        return reward


def ant_with_gear(gear: int) -> Ant:
    """The ant to practise in with other joints; Eysenbach et al. 2019 give it a gear of 30."""
    return Ant(Change(torque=Ant.torque(gear)), f"ant-gear-{gear}")


class Walker2d(Locomotion):
    """A planar biped with six joints; falling over is easy and getting up is not.

    Velocities are observed up to 10 in either direction, as in Gymnasium. A step lasts 8 ms, so
    episodes have more of them.
    """

    gymnasium_id = "Walker2d-v5"
    xml = "walker2d_v5.xml"
    fields = PLANAR
    coordinates = ("x",)
    control_weight = 1e-3
    healthy_reward: ClassVar[float] = 1.0
    healthy_z: ClassVar[tuple[float, float]] = (0.8, 2.0)
    healthy_pitch: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    fastest: ClassVar[float] = 10.0
    reset_noise = 5e-3
    cell = 0.5
    max_steps = 500
    frame_skip = 4
    normaliser = (
        (-0.1029, 0.9191, -1.5491, -0.9976, -1.0107, 0.2444, -1.0118, -0.9987, 0.2534)
        + (-0.3135, -1.9479, -4.8835, -2.3328, -4.2682, 0.3059, -2.3506, -4.2099, 0.3146),
        (0.086, 0.3087, 1.2378, 0.9151, 0.9338, 0.5104, 0.9244, 0.9321, 0.502)
        + (1.1747, 1.6075, 5.6532, 6.8987, 5.3153, 7.4781, 6.8998, 5.3179, 7.4448),
    )

    def __init__(self, change: Change = NONE) -> None:
        super().__init__("walker2d", change)

    def _constants(self, model: mujoco.MjModel) -> dict[str, Any]:
        own = {
            "healthy_reward": self.healthy_reward,
            "healthy_z_range": self.healthy_z,
            "healthy_pitch_range": self.healthy_pitch,
            "velocity_clip": self.fastest,
        }
        return {**super()._constants(model), **own}

    def reset(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        noise = self.reset_noise
        qpos = self._home + rng.uniform(-noise, noise, size=len(self._home))
        return qpos, rng.uniform(-noise, noise, size=self._nv)

    def observe(self, view: View) -> np.ndarray:
        velocity = view.qvel.clip(-self.fastest, self.fastest)
        return np.concatenate((view.qpos, velocity), axis=1)

    def reward(self, before: View, after: View, action: np.ndarray) -> np.ndarray:
        velocity = (after.qpos[:, 0] - before.qpos[:, 0]) / self._dt
        z, pitch = after.qpos[:, 1], after.qpos[:, 2]
        upright = (self.healthy_z[0] < z) & (z < self.healthy_z[1])
        upright &= (self.healthy_pitch[0] < pitch) & (pitch < self.healthy_pitch[1])
        forward = self.forward_weight * velocity
        reward: np.ndarray = (forward + self.healthy_reward * upright) - self._control_cost(action)
        return reward
