"""OGBench: mazes for a point, an ant, a humanoid and an ant with a ball; cubes, a scene, puzzles.

The observations of its mazes do not show the goal; here they end in its place, and in a puzzle or
with cubes in the whole observation at the goal. Its ant is not ours: a fifth of the torque,
steps of 0.1 s, softer contacts. Skills must be made on it. Park et al. 2025, "OGBench: Benchmarking
Offline Goal-Conditioned RL" (arXiv:2410.20092).
"""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium
import numpy as np
import ogbench  # noqa: F401  registers its tasks

from etude.envs.bodies.locomotion import Ant
from etude.envs.spec import EnvSpec, Field
from etude.envs.suites.adapter import Read, map_constants, mechanics, xml_sha256

PLACE = (Field("x", 1), Field("y", 1))
BALL = tuple(Field(f"ball_{axis}", 1) for axis in "xyz") + (Field("ball_quaternion", 4),)
BODIES = {
    "pointmaze": PLACE,
    "antmaze": Ant.fields,
    "humanoidmaze": (*PLACE, Field("observation", 67)),
    "antsoccer": (*Ant.fields[:5], *BALL, *Ant.fields[5:], Field("ball_velocity", 6)),
}
"""Family of mazes -> the fields of an observation; the soccer's goal is the ball's."""
NEAR = 0.04
"""Cubes, drawers and windows: no further than this from where they belong, m; a bare number there.
Buttons are right or wrong."""


def make(env_id: str, **options: Any) -> Any:
    """The suite's environment without wrappers, with an action space that can be seeded."""
    options.pop("render_mode", None)  # all of them draw, and arms warn when they are asked to
    with warnings.catch_warnings():  # its boxes are cast to float32
        warnings.filterwarnings("ignore", message=".*precision lowered by casting.*")
        env: Any = gymnasium.make(env_id, disable_env_checker=True, **options).unwrapped
        space, again = env.action_space, env.action_space
    if space is not again:
        # arms make a new one at every look, which no seed reaches, and draw from it at every reset
        kind = type(env)
        env.__class__ = type(kind.__name__, (kind,), {"action_space": space})
    return env


def describe(env: Any, env_id: str, max_steps: int) -> tuple[EnvSpec, Read]:
    """The spec of an environment, and how its observations become flat."""
    env.reset()  # the goal's width is known only now
    family = env_id.split("-")[0]
    in_maze = family in BODIES
    goal = Field("goal", len(_goal(env)))
    width = env.observation_space.shape[0]
    skip = int(env.frame_skip if in_maze else env._n_steps)
    place = ("ball_x", "ball_y") if family == "antsoccer" else ("x", "y")
    spec = EnvSpec(
        id=env_id,
        body=f"ogbench/{family.removesuffix('maze')}",
        fields=(*BODIES.get(family, (Field("observation", width),)), goal),
        task_fields=("goal",),
        action_dim=env.action_space.shape[0],
        descriptor=place if in_maze else (),
        descriptor_unit="m",
        cell=1.0,
        dt=env.model.opt.timestep * skip,
        max_steps=max_steps,
        constants={**mechanics(env.model, skip), **_task_constants(env, env_id)},
        changes=("goal region",),
        xml_sha256=xml_sha256(env),
    )
    assert spec.obs_dim == width + goal.dim, f"{env_id}: {spec.fields} are not {width} values"

    def read(obs: Any) -> np.ndarray:
        return np.concatenate((obs, _goal(env)))

    return spec, read


def _goal(env: Any) -> np.ndarray:
    return np.asarray(env.cur_goal_xy if hasattr(env, "cur_goal_xy") else env._cur_goal_ob)


def _task_constants(env: Any, env_id: str) -> dict[str, Any]:
    own = {"tasks": env.num_tasks, "success_timing": env._success_timing}
    if env_id.split("-")[0] not in BODIES:
        return own if env_id.startswith("puzzle-") else {"goal_radius": NEAR, **own}
    unit = env._maze_unit
    goals = [info["goal_xy"] for info in env.task_infos]
    height, noise = env._maze_height * unit, env._noise * unit / 4
    layout = map_constants(env.maze_map.tolist(), unit, height, noise, goals)
    return {"goal_radius": env._goal_tol, "goal_noise": env._add_noise_to_goal, **layout, **own}
