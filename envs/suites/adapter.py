"""A task of another suite with the face of our own: named fields, a sparse reward, one seed.

Whatever the suite pays, arrival pays 1 and ends the episode, and every other step pays 0; what a
suite calls success is in `EnvSpec.constants` as far as it is a number. Episodes do not end
otherwise, but for the time limit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import mujoco
import numpy as np
from gymnasium import spaces

from etude.envs.bodies.locomotion import Ant
from etude.envs.external import suite_of
from etude.envs.spec import EnvSpec
from etude.envs.suites.compat import PrivateRandom, passing_files
from etude.errors import UsageError

ROBOT = (
    *("body_mass", "body_inertia", "body_pos", "jnt_type", "jnt_axis", "jnt_range", "qpos0"),
    *("dof_damping", "dof_armature", "dof_frictionloss", "actuator_trnid"),
)
"""What makes a robot in a model of MuJoCo, whatever stands around it."""
SHAPES = ("geom_type", "geom_size", "geom_friction", "geom_solref", "geom_solimp")
"""The same for its geoms."""
Read = Callable[[Any], np.ndarray]
"""The flat observation (O,) of what a suite's environment returned."""


class ExternalEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """One task of another suite.

    Infos are the suite's own, and `is_success`. `inner` is the suite's environment, which `make`
    stripped of its wrappers. Options of `reset` are passed on: `goal_cell` and `reset_cell` in
    mazes of gymnasium-robotics, `task_id` in OGBench.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}

    def __init__(self, env_id: str, render_mode: str | None = None, **options: Any) -> None:
        """Build the suite's environment.

        Args:
            env_id: the suite's own name of the task.
            render_mode: "rgb_array" lets `render` draw; None: it draws nothing.
            options: what the suite's environment takes.

        Raises:
            UsageError: the suite is not installed, has no such task, or does not take an option.
        """
        suite = suite_of(env_id)
        suite.check(env_id)
        adapter = suite.load()
        if render_mode:
            options["render_mode"] = render_mode
        meanwhile = PrivateRandom()  # describing may need an episode, which draws
        meanwhile.seed(0)
        with passing_files(), meanwhile():
            try:
                self.inner = adapter.make(env_id, **options)
            except TypeError as error:
                raise UsageError(f'"{env_id}" does not take these options: {error}.') from error
            limit = int(gymnasium.spec(env_id).max_episode_steps or 0)
            spec, read = adapter.describe(self.inner, env_id, limit)
        self._random = PrivateRandom()
        self.env_spec: EnvSpec = spec
        """Fields, units and constants of this environment."""
        self._read: Read = read
        self.render_mode = render_mode
        self.metadata = {**self.metadata, "render_fps": round(1 / spec.dt)}
        self.observation_space = spaces.Box(-np.inf, np.inf, (spec.obs_dim,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (spec.action_dim,), np.float32)
        theirs = self.inner.action_space
        assert theirs == spaces.Box(-1, 1, theirs.shape, theirs.dtype), f"{env_id}: {theirs}"

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode; the seed fixes all that the suite draws, now and later."""
        super().reset(seed=seed)
        if seed is not None or not self._random.seeded:
            words = self.np_random.integers(2**32, size=2)
            self._random.seed(int(words[0]))
            self.inner.action_space.seed(int(words[1]))
        with self._random():
            obs, info = self.inner.reset(seed=seed, options=options)
        return self._flat(obs), info

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Advance by one step."""
        with self._random():
            obs, _, terminated, truncated, info = self.inner.step(action)
        success = bool(info.get("is_success", info.get("success", terminated)))
        info = {**info, "is_success": success}
        return self._flat(obs), float(success), success or bool(terminated), bool(truncated), info

    def render(self) -> Any:
        """A picture (height, width, 3) uint8, when the render mode is "rgb_array"."""
        return self.inner.render() if self.render_mode else None

    def close(self) -> None:
        """Free the simulation and the renderer."""
        self.inner.close()

    def _flat(self, obs: Any) -> np.ndarray:
        return self._read(obs).astype(np.float32)


def mechanics(model: mujoco.MjModel, frame_skip: int) -> dict[str, Any]:
    """The constants of a simulation that a skill depends on, under the names of our own bodies."""
    return {
        "frame_skip": frame_skip,
        "timestep": model.opt.timestep,
        "gear": model.actuator_gear[:, 0].tolist(),
        "gravity": 0.0 - float(model.opt.gravity[2]),
    }


def xml_sha256(env: Any) -> str:
    """SHA-256 of the XML that a suite's environment was built from; empty where it is no file."""
    path = getattr(env, "fullpath", None)
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if path else ""


def is_our_ant(model: mujoco.MjModel) -> bool:
    """Whether the robot of a model is that of Ant-v5, but for gear, gravity and time step.

    Those are constants, which a library compares by itself; the world around the robot may differ.
    """
    ours = Ant().model()
    here, there = model.geom_bodyid > 0, ours.geom_bodyid > 0
    return all(_same(getattr(model, name), getattr(ours, name)) for name in ROBOT) and all(
        _same(getattr(model, name)[here], getattr(ours, name)[there]) for name in SHAPES
    )


def map_constants(
    rows: Sequence[Sequence[Any]], cell: float, height: float, noise: float, goals: Any
) -> dict[str, Any]:
    """The constants of a maze.

    Args:
        rows: the map, walls as 1.
        cell: edge of a cell, m.
        height: of the walls, m.
        noise: half-width of the uniform noise on starts and goals, in x and in y, m.
        goals: places (n, 2) where goals can lie without noise, m.
    """
    return {
        "map": ["".join("#" if item == 1 else "." for item in row) for row in rows],
        "map_cell": cell,
        "wall_height": height,
        "place_noise": noise,
        "goal_reach": float(np.abs(np.asarray(goals)).max()) + noise,
    }


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and bool(np.allclose(one, other))
