"""What the tests of other suites' tasks share."""

from __future__ import annotations

import sys
from typing import Any

import gymnasium
import numpy as np
import pytest

from etude.envs.spec import EnvSpec

needs_ogbench = pytest.mark.skipif(
    sys.version_info >= (3, 13), reason="OGBench cannot be installed for this Python"
)


def inner(env: gymnasium.Env[Any, Any]) -> Any:
    """The suite's own environment."""
    return env.unwrapped.inner


def spec_of(env: gymnasium.Env[Any, Any]) -> EnvSpec:
    return env.unwrapped.env_spec


def put_ant(env: gymnasium.Env[Any, Any], place: np.ndarray) -> None:
    """Move an ant of gymnasium-robotics."""
    ant = inner(env).ant_env
    ant.set_state(np.concatenate([place, ant.data.qpos[2:]]), ant.data.qvel)


def still(env: gymnasium.Env[Any, Any]) -> Any:
    """What a step without an action returns."""
    return env.step(np.zeros(env.action_space.shape, np.float32))
