"""One environment with Gymnasium's ordinary face, for agents that know nothing of batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np

from etude.envs.engine import BatchedEnv
from etude.envs.registry import build, make_vec
from etude.envs.spec import EnvSpec
from etude.errors import UsageError


class SingleEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """A batch of one, without autoreset; the time limit is Gymnasium's `TimeLimit` wrapper's.

    Infos hold `descriptor` (D,) and, for tasks with a success, `is_success`. `batched` is the
    engine beneath, with its `get_state` and `set_state`.
    """

    metadata = {"render_modes": ["rgb_array"]}

    def __init__(
        self, env_id: str, render_mode: str | None = None, width: int = 480, height: int = 480
    ) -> None:
        """Build the simulation.

        Args:
            env_id: our id, such as "half-cheetah-goal".
            render_mode: "rgb_array" lets `render` draw; None: it draws nothing.
            width: of the pictures, pixels.
            height: of the pictures, pixels.

        Raises:
            UsageError: the id or the render mode is unknown.
        """
        if render_mode not in (None, "rgb_array"):
            raise UsageError(f'render_mode is {render_mode!r}: choose "rgb_array" or None.')
        body, task = build(env_id)
        self.batched = BatchedEnv(body, task, threads=1, max_steps=0, autoreset=False)
        self.metadata = {**self.metadata, "render_fps": self.batched.metadata["render_fps"]}
        self.observation_space = self.batched.single_observation_space
        self.action_space = self.batched.single_action_space
        self.render_mode = render_mode
        self._size = width, height

    @property
    def env_spec(self) -> EnvSpec:
        """Fields, units and constants of this environment."""
        return self.batched.env_spec

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode; option `state` (S,) starts in the physics of such a state."""
        super().reset(seed=seed)
        self.batched.rngs[0] = self.np_random
        rows = {key: np.asarray(value)[None] for key, value in (options or {}).items()}
        obs, infos = self.batched.reset(options=rows)
        return obs[0], _first(infos)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Advance by one step; an episode that has ended goes on until `reset`."""
        actions = np.asarray(action)[None]
        obs, reward, terminated, truncated, infos = self.batched.step(actions)
        return obs[0], float(reward[0]), bool(terminated[0]), bool(truncated[0]), _first(infos)

    def render(self) -> np.ndarray | None:
        """A picture (height, width, 3) uint8, when the render mode is "rgb_array"."""
        return self.batched.render(0, *self._size) if self.render_mode else None

    def close(self) -> None:
        """Free the renderer."""
        self.batched.close()


def make_batched(
    num_envs: int, env_id: str, max_episode_steps: int | None = None, **options: Any
) -> BatchedEnv:
    """`gymnasium.make_vec`'s way to the native batch; options are those of `make_vec`."""
    return make_vec(env_id, num_envs, max_steps=max_episode_steps, **options)


def _first(infos: Mapping[str, Any]) -> dict[str, Any]:
    """The infos of a batch of one."""
    info: dict[str, Any] = {"descriptor": infos["descriptor"][0]}
    if "is_success" in infos:
        info["is_success"] = bool(infos["is_success"][0])
    return info
