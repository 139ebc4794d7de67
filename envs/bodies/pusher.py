"""A paddle and a puck on a table: the smallest body in which there is something else to move.

The paddle is a disc that follows a velocity command with a time constant of 0.05 s, as the disc of
the point bodies does. The puck slides when it is pushed and stops soon after, with a time constant
of 0.1 s; neither turns. Start places follow FetchPush of Plappert et al. 2018, "Multi-Goal
Reinforcement Learning" (arXiv:1802.09464): the puck lies up to 0.15 m from the paddle in x and in
y, and at least 0.1 m away. Everything in the plane is a sphere, as for the points.
"""

from __future__ import annotations

import hashlib

import mujoco
import numpy as np

from etude.envs.bodies.points import within_disc
from etude.envs.body import Body, View
from etude.envs.spec import EnvSpec, Field

SIDE = 0.6
"""Edge of the table between its walls, m."""
RADIUS = 0.03
"""Radius of paddle and puck, m."""
TOP_SPEED = 0.5
"""Speed of the paddle under a full command, m/s."""
LAG, SLIDE = 0.05, 0.1
"""Time constants of the paddle's command and of the puck's sliding, s."""
PADDLE_MASS, PUCK_MASS = 1.0, 0.2
"""kg."""
FRICTION = 0.5
"""Coulomb friction between paddle, puck and walls."""
SPREAD, APART = 0.15, 0.1
"""The puck starts within the first from the centre in x and y, outside the second's disc, m."""
NOISE = 0.02
"""Half-width of the uniform start of the paddle, m."""
TIMESTEP, FRAME_SKIP = 0.01, 5
"""Simulator step in s, and simulator steps per environment step."""

_XML = f"""\
<mujoco model="pusher">
  <option timestep="{TIMESTEP}" integrator="Euler" cone="elliptic" impratio="10" gravity="0 0 0"/>
  <visual>
    <headlight ambient=".6 .6 .6" diffuse=".4 .4 .4" specular="0 0 0"/>
    <global offwidth="1024" offheight="1024"/>
    <map znear="0.01"/>
  </visual>
  <statistic extent="0.6"/>
  <default>
    <geom condim="3" friction="{FRICTION} 0 0" solref="{2 * TIMESTEP} 1" solimp=".99 .99 .001"/>
    <default class="wall">
      <geom type="box" contype="0" conaffinity="1" rgba=".25 .28 .33 1"/>
    </default>
    <default class="disc">
      <geom type="cylinder" size="{RADIUS} {RADIUS}" mass="0" contype="0" conaffinity="0"/>
    </default>
  </default>
  <worldbody>
    <camera name="top" pos="0 0 {1.45 * SIDE}" fovy="45"/>
    <geom type="plane" size="{SIDE / 2} {SIDE / 2} 1" contype="0" conaffinity="0"
          rgba=".95 .94 .9 1"/>
    <geom class="wall" pos="{SIDE / 2 + 0.02} 0 .03" size=".02 {SIDE / 2 + 0.04} .03"/>
    <geom class="wall" pos="{-SIDE / 2 - 0.02} 0 .03" size=".02 {SIDE / 2 + 0.04} .03"/>
    <geom class="wall" pos="0 {SIDE / 2 + 0.02} .03" size="{SIDE / 2} .02 .03"/>
    <geom class="wall" pos="0 {-SIDE / 2 - 0.02} .03" size="{SIDE / 2} .02 .03"/>
    <body name="paddle" pos="0 0 {RADIUS}">
      <joint name="paddle_x" type="slide" axis="1 0 0" damping="{PADDLE_MASS / LAG}"/>
      <joint name="paddle_y" type="slide" axis="0 1 0" damping="{PADDLE_MASS / LAG}"/>
      <geom type="sphere" size="{RADIUS}" mass="{PADDLE_MASS}" conaffinity="0" group="3"/>
      <geom class="disc" rgba=".85 .33 .2 1"/>
    </body>
    <body name="puck" pos="0 0 {RADIUS}">
      <joint name="puck_x" type="slide" axis="1 0 0" damping="{PUCK_MASS / SLIDE}"/>
      <joint name="puck_y" type="slide" axis="0 1 0" damping="{PUCK_MASS / SLIDE}"/>
      <geom type="sphere" size="{RADIUS}" mass="{PUCK_MASS}" group="3"/>
      <geom class="disc" rgba="0 .45 .7 1"/>
    </body>
  </worldbody>
  <actuator>
    <motor joint="paddle_x" gear="{TOP_SPEED * PADDLE_MASS / LAG}"/>
    <motor joint="paddle_y" gear="{TOP_SPEED * PADDLE_MASS / LAG}"/>
  </actuator>
</mujoco>
"""


class Pusher(Body):
    """Skills are measured by where the puck gets to, which the paddle alone cannot fake."""

    camera = "top"
    frame_skip = FRAME_SKIP

    def __init__(self) -> None:
        self.spec = EnvSpec(
            id="pusher",
            body="pusher",
            fields=(
                Field("x", 1),
                Field("y", 1),
                Field("puck_x", 1),
                Field("puck_y", 1),
                Field("velocity", 2),
                Field("puck_velocity", 2),
            ),
            task_fields=(),
            action_dim=2,
            descriptor=("puck_x", "puck_y"),
            descriptor_unit="m",
            cell=0.05,
            dt=TIMESTEP * FRAME_SKIP,
            max_steps=50,
            constants={
                "side": SIDE,
                "radius": RADIUS,
                "top_speed": TOP_SPEED,
                "lag": LAG,
                "puck_slide": SLIDE,
                "paddle_mass": PADDLE_MASS,
                "puck_mass": PUCK_MASS,
                "friction": FRICTION,
                "puck_spread": SPREAD,
                "puck_apart": APART,
                "start_noise": NOISE,
                "timestep": TIMESTEP,
                "frame_skip": FRAME_SKIP,
            },
            xml_sha256=hashlib.sha256(_XML.encode()).hexdigest(),
            # Deviations of uniform places on the table and of a uniform velocity in the disc.
            obs_mean=(0.0,) * 8,
            obs_std=((SIDE / 2 - RADIUS) / 3**0.5,) * 4 + (TOP_SPEED / 2,) * 4,
        )

    def model(self) -> mujoco.MjModel:
        """A new model of table, paddle and puck."""
        return mujoco.MjModel.from_xml_string(_XML)

    def reset(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """At rest: the paddle near the centre, the puck around it."""
        paddle = rng.uniform(-NOISE, NOISE, 2)
        puck = rng.uniform(-SPREAD, SPREAD, 2)
        while np.linalg.norm(puck - paddle) < APART:
            puck = rng.uniform(-SPREAD, SPREAD, 2)
        return np.concatenate([paddle, puck]), np.zeros(4)

    def control(self, action: np.ndarray) -> np.ndarray:
        """The commanded velocity as a fraction of the top speed, its norm clipped to 1."""
        return within_disc(action)

    def observe(self, view: View) -> np.ndarray:
        """Places of paddle and puck, then their velocities, (n, 8)."""
        return np.concatenate([view.qpos, view.qvel], axis=1)

    def descriptor(self, view: View) -> np.ndarray:
        """Where the puck is, (n, 2) m."""
        return view.qpos[:, 2:]
