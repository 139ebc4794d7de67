"""A disc among walls: the smallest body in which a skill can be worth having.

The disc slides on two joints and follows a velocity command with a time constant of 0.05 s. Walls
are rough: whoever presses against one at less than about 45 degrees from its normal sticks
(friction coefficient 1), so that a command held for long gets stuck in the next corner instead of
sliding round it, and a maze is passed by turning in time, not by luck. A sphere collides in place
of the drawn cylinder: in the plane it is the same shape, and the engine has a closed form for it.
"""

from __future__ import annotations

import hashlib
from functools import partial

import mujoco
import numpy as np

from etude.envs.body import Body, View
from etude.envs.maps import MAZE_LARGE, MAZE_U, OPEN, Map
from etude.envs.spec import EnvSpec, Field

RADIUS = 0.3
"""Radius of the disc, m."""
TOP_SPEED = 1.2
"""Speed under a full command, m/s: about 2.9 m in 25 steps."""
LAG = 0.05
"""Time constant of the velocity command, s; the mass is 1 kg, so the damping is 1 / LAG."""
FRICTION = 1.0
"""Coulomb friction between disc and wall."""
START_NOISE = 0.1
"""Half-width of the uniform start position, m."""
TIMESTEP, FRAME_SKIP = 0.025, 4
"""Simulator step in s, and simulator steps per environment step."""

_XML = """\
<mujoco model="point-{name}">
  <option timestep="{timestep}" integrator="Euler" cone="elliptic" impratio="10" gravity="0 0 0"/>
  <visual>
    <headlight ambient=".6 .6 .6" diffuse=".4 .4 .4" specular="0 0 0"/>
    <global offwidth="1024" offheight="1024"/>
  </visual>
  <default>
    <geom condim="3" friction="{friction} 0 0" solref="{solref} 1" solimp=".99 .99 .001"/>
    <default class="wall">
      <geom type="box" contype="0" conaffinity="1" rgba=".25 .28 .33 1"/>
    </default>
  </default>
  <worldbody>
    <camera name="top" pos="0 0 {height}" fovy="45"/>
    <geom type="plane" size="{half_x} {half_y} 1" contype="0" conaffinity="0" rgba=".95 .94 .9 1"/>
{walls}
    <body name="disc" pos="0 0 {radius}">
      <joint name="x" type="slide" axis="1 0 0" damping="{gain}"/>
      <joint name="y" type="slide" axis="0 1 0" damping="{gain}"/>
      <geom type="sphere" size="{radius}" mass="1" contype="1" conaffinity="0" group="3"/>
      <geom type="cylinder" size="{radius} {radius}" mass="0" contype="0" conaffinity="0"
            rgba=".85 .33 .2 1"/>
    </body>
  </worldbody>
  <actuator>
    <motor joint="x" gear="{force}"/>
    <motor joint="y" gear="{force}"/>
  </actuator>
</mujoco>
"""


def _xml(maze: Map) -> str:
    """The model of one map; a motor against damping is a velocity servo, integrated implicitly."""
    wall = '    <geom class="wall" pos="{:g} {:g} .15" size="{:g} {:g} .15"/>'
    boxes = [
        wall.format((x0 + x1) / 2, (y0 + y1) / 2, (x1 - x0) / 2, (y1 - y0) / 2)
        for x0, y0, x1, y1 in maze.walls()
    ]
    width, height = maze.size
    return _XML.format(
        name=maze.name,
        timestep=TIMESTEP,
        friction=FRICTION,
        solref=2 * TIMESTEP,
        radius=RADIUS,
        gain=1 / LAG,
        force=TOP_SPEED / LAG,
        half_x=width / 2,
        half_y=height / 2,
        height=1.25 * max(width, height),
        walls="\n".join(boxes),
    )


class Point(Body):
    """A velocity-controlled disc in one map; observes x, y (m) and their velocities (m/s)."""

    camera = "top"
    frame_skip = FRAME_SKIP

    def __init__(self, maze: Map, *, cell: float, max_steps: int) -> None:
        self.maze = maze
        self._source = _xml(maze)
        half_x, half_y = ((side - 2) / 2 for side in maze.size)
        name = f"point-{maze.name}"
        self.spec = EnvSpec(
            id=name,
            body=name,
            fields=(Field("x", 1), Field("y", 1), Field("x_velocity", 1), Field("y_velocity", 1)),
            task_fields=(),
            action_dim=2,
            descriptor=("x", "y"),
            descriptor_unit="m",
            cell=cell,
            dt=TIMESTEP * FRAME_SKIP,
            max_steps=max_steps,
            constants={
                "map": maze.name,
                "map_version": maze.version,
                "map_sha256": maze.sha256,
                "start": maze.start,
                "start_noise": START_NOISE,
                "radius": RADIUS,
                "top_speed": TOP_SPEED,
                "lag": LAG,
                "friction": FRICTION,
                "timestep": TIMESTEP,
                "frame_skip": FRAME_SKIP,
            },
            xml_sha256=hashlib.sha256(self._source.encode()).hexdigest(),
            # Deviations of a uniform place in the map and of a uniform velocity in the disc.
            obs_mean=(0.0, 0.0, 0.0, 0.0),
            obs_std=(half_x / 3**0.5, half_y / 3**0.5, TOP_SPEED / 2, TOP_SPEED / 2),
        )

    def model(self) -> mujoco.MjModel:
        """A new model of disc and walls."""
        return mujoco.MjModel.from_xml_string(self._source)

    def reset(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """At rest near the map's start."""
        return self.maze.start + rng.uniform(-START_NOISE, START_NOISE, 2), np.zeros(2)

    def control(self, action: np.ndarray) -> np.ndarray:
        """The commanded velocity as a fraction of the top speed, its norm clipped to 1."""
        return within_disc(action)

    def observe(self, view: View) -> np.ndarray:
        """Position and velocity as they are, (n, 4)."""
        return np.concatenate([view.qpos, view.qvel], axis=1)


def within_disc(action: np.ndarray) -> np.ndarray:
    """Actions (n, 2) with their norm clipped to 1, so that no direction is faster than another."""
    norm = np.linalg.norm(action, axis=1, keepdims=True)
    clipped: np.ndarray = action / np.maximum(norm, 1.0)
    return clipped


PointOpen = partial(Point, OPEN, cell=0.5, max_steps=200)
"""`point-open`: the empty arena."""
PointMazeU = partial(Point, MAZE_U, cell=0.25, max_steps=300)
"""`point-maze-u`: one U-turn."""
PointMazeLarge = partial(Point, MAZE_LARGE, cell=0.25, max_steps=600)
"""`point-maze-large`: many turns."""
