"""gymnasium-robotics: mazes, Fetch, the Shadow Hand, Adroit, the Franka Kitchen.

The ant of the mazes is that of Ant-v5, among walls and without noise on its start: skills of our
ant act there. Success is what the suite's own `info` calls so; the Kitchen's is all of its tasks.
"""

from __future__ import annotations

import contextlib
import io
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from etude.envs.bodies.locomotion import Ant
from etude.envs.spec import EnvSpec, Field
from etude.envs.suites.adapter import Read, is_our_ant, map_constants, mechanics, xml_sha256
from etude.envs.suites.compat import give_plain_enums

with contextlib.redirect_stderr(io.StringIO()):  # a notice about versions of Adroit's dense rewards
    import gymnasium_robotics

    gymnasium.register_envs(gymnasium_robotics)
from gymnasium_robotics.envs.franka_kitchen import kitchen_env
from gymnasium_robotics.utils import mujoco_utils

give_plain_enums(mujoco_utils)

POINT = (Field("x", 1), Field("y", 1), Field("x_velocity", 1), Field("y_velocity", 1))
RADIUS = 0.45
"""Arrival in a maze: no further than this from the goal, m. The suite has it as a bare number."""
ADROIT = {  # bare numbers too
    "AdroitHandDoor": {"door_angle": 1.35},
    "AdroitHandHammer": {"goal_radius": 0.01},
    "AdroitHandPen": {"goal_radius": 0.075, "goal_similarity": 0.95},
    "AdroitHandRelocate": {"goal_radius": 0.1},
}
"""What success is: at least an angle (rad) or a cosine, at most a distance (m)."""


def make(env_id: str, **options: Any) -> Any:
    """The suite's environment without wrappers."""
    return gymnasium.make(env_id, disable_env_checker=True, **options).unwrapped


def describe(env: Any, env_id: str, max_steps: int) -> tuple[EnvSpec, Read]:
    """The spec of an environment, and how its observations become flat."""
    fields, read = _fields(env, env_id)
    model, skip = env.model, _frame_skip(env)
    has_goal = fields[-1].name == "goal"
    ant = env_id.startswith("AntMaze_") and is_our_ant(model)
    changes = ["goal region"] if has_goal else []
    if ant:
        walls = int((model.geom_bodyid == 0).sum()) - 1
        changes = [f"geoms: {walls} walls", "reset_noise_scale 0.1 -> 0", *changes]
    spec = EnvSpec(
        id=env_id,
        body="ant" if ant else f"robotics/{env_id.split('_')[0].split('-')[0]}",
        fields=fields,
        task_fields=("goal",) if has_goal else (),
        action_dim=env.action_space.shape[0],
        descriptor=("x", "y") if "Maze_" in env_id else (),
        descriptor_unit="m",
        cell=1.0,
        dt=model.opt.timestep * skip,
        max_steps=max_steps,
        constants={**mechanics(model, skip), **_task_constants(env, env_id)},
        changes=tuple(changes),
        xml_sha256=xml_sha256(getattr(env, "ant_env", env)),
    )
    return spec, read


def _fields(env: Any, env_id: str) -> tuple[tuple[Field, ...], Read]:
    """Names and widths of the flat observation's fields, and how it is read."""
    space = env.observation_space
    if isinstance(space, spaces.Box):
        return (Field("observation", space.shape[0]),), np.asarray
    width = space["observation"].shape[0]
    goal = Field("goal", spaces.flatdim(space["desired_goal"]))
    parts = ["observation", "achieved_goal", "desired_goal"]
    body: tuple[Field, ...]
    if env_id.startswith("AntMaze_"):  # the place is only in what is achieved
        parts = ["achieved_goal", "observation", "desired_goal"]
        rest = width + goal.dim - sum(field.dim for field in Ant.fields)
        body = (*Ant.fields, *((Field("contact_forces", rest),) if rest else ()))
    elif env_id.startswith("PointMaze_"):
        parts, body = ["observation", "desired_goal"], POINT
    else:
        body = (Field("observation", width), Field("achieved_goal", goal.dim))

    def read(obs: Any) -> np.ndarray:
        return np.concatenate([spaces.flatten(space[part], obs[part]) for part in parts])

    return (*body, goal), read


def _frame_skip(env: Any) -> int:
    """Simulator steps per environment step; mazes and the Kitchen keep them in what they wrap."""
    for name in ("ant_env", "point_env", "robot_env"):
        env = getattr(env, name, env)
    return int(getattr(env, "n_substeps", 0) or env.frame_skip)


def _task_constants(env: Any, env_id: str) -> dict[str, Any]:
    if "Maze_" in env_id:
        maze, scale = env.maze, env.maze.maze_size_scaling
        noise = env.position_noise_range * scale
        height, goals = maze.maze_height * scale, maze.unique_goal_locations
        layout = map_constants(maze.maze_map, scale, height, noise, goals)
        still = {"reset_noise_scale": 0.0} if "Ant" in env_id else {}
        return {"goal_radius": RADIUS, **layout, **still}
    if env_id.startswith("FrankaKitchen"):
        return {"goal_radius": kitchen_env.BONUS_THRESH, "tasks": sorted(env.goal)}
    names = {
        "goal_radius": "distance_threshold",
        "goal_angle": "rotation_threshold",
        "goal_spread": "target_range",
        "object_spread": "obj_range",
    }
    own = {ours: getattr(env, theirs, None) for ours, theirs in names.items()}
    fixed = next((value for name, value in ADROIT.items() if env_id.startswith(name)), {})
    return {**{name: value for name, value in own.items() if value is not None}, **fixed}
