"""One environment through Gymnasium's ordinary face."""

from __future__ import annotations

import subprocess
import sys
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import TimeLimit
from stable_baselines3.common.env_checker import check_env as check_env_for_sb3

from etude.envs import GYMNASIUM_IDS, registry
from etude.envs.engine import BatchedEnv
from etude.envs.single import SingleEnv
from etude.errors import UsageError

NAMES = tuple(GYMNASIUM_IDS)


def test_every_environment_has_a_name_and_its_own_time_limit() -> None:
    assert {env_id for env_id, _ in GYMNASIUM_IDS.values()} == set(registry.ids())
    for env_id, limit in GYMNASIUM_IDS.values():
        assert registry.spec(env_id).max_steps == limit


@pytest.mark.parametrize("name", NAMES)
def test_gymnasium_check_env(name: str) -> None:
    """Gymnasium's checker; positions know no bounds, which is all that it may remark."""
    env = gymnasium.make(name)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*A Box observation space m.* is .?infinity")
        check_env(env.unwrapped, skip_render_check=True)
    env.close()


@pytest.mark.parametrize("name", NAMES)
def test_sb3_check_env(name: str) -> None:
    check_env_for_sb3(gymnasium.make(name))


def test_same_episode_as_in_a_batch() -> None:
    """The single face adds nothing: observations, rewards and the second start agree."""
    single = gymnasium.make("etude/AntMultiGoal-v0", max_episode_steps=10)
    batch = registry.make_vec("ant-multi-goal", 2, max_steps=10)
    obs, info = single.reset(seed=4)
    starts, infos = batch.reset(seed=3)
    np.testing.assert_array_equal(obs, starts[1])
    np.testing.assert_array_equal(info["descriptor"], infos["descriptor"][1])
    rng = np.random.default_rng(0)
    for step in range(20):
        action = rng.uniform(-1, 1, 8).astype(np.float32)
        obs, reward, terminated, truncated, info = single.step(action)
        rows = batch.step(np.stack([action, action]))
        np.testing.assert_array_equal(obs, rows[4]["final_obs_array"][1])
        assert reward == rows[1][1]
        assert (terminated, truncated) == (rows[2][1], rows[3][1]) == (False, step % 10 == 9)
        assert info["is_success"] is bool(rows[4]["is_success"][1])
        if truncated:
            obs, _ = single.reset()
            np.testing.assert_array_equal(obs, rows[0][1])


def test_success_ends_the_episode_and_is_in_the_infos() -> None:
    env = gymnasium.make("etude/HalfCheetahGoal-v0")
    env.reset(seed=0)
    env.unwrapped.batched._task_state[0, 0] = 2.0  # a goal that the start is in reach of
    _, reward, terminated, truncated, info = env.step(np.zeros(6, np.float32))
    assert (reward, terminated, truncated, info["is_success"]) == (1.0, True, False, True)


def test_starts_from_a_state() -> None:
    env = SingleEnv("half-cheetah")
    env.reset(seed=0)
    for _ in range(5):
        obs, *_ = env.step(np.ones(6, np.float32))
    state = env.batched.get_state()[0]
    env.reset()
    np.testing.assert_array_equal(env.reset(options={"state": state})[0], obs)


def test_time_limit_is_gymnasiums() -> None:
    env = gymnasium.make("etude/HalfCheetah-v0", max_episode_steps=3)
    assert isinstance(env, TimeLimit)
    env.reset(seed=0)
    flags = [env.step(np.zeros(6, np.float32))[3] for _ in range(3)]
    assert flags == [False, False, True]


def test_render_modes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        BatchedEnv, "render", lambda _, i, width, height: np.zeros((height, width, 3), np.uint8)
    )
    env = gymnasium.make("etude/PointOpen-v0", render_mode="rgb_array", width=32, height=24)
    env.reset(seed=0)
    assert env.render().shape == (24, 32, 3)
    assert env.metadata["render_fps"] == 10
    assert SingleEnv("point-open").render() is None
    with pytest.raises(UsageError, match="render_mode is 'human'"):
        SingleEnv("point-open", render_mode="human")


def test_make_vec_is_the_native_batch() -> None:
    env = gymnasium.make_vec("etude/HalfCheetah-v0", num_envs=3, vectorization_mode=None)
    assert isinstance(env, BatchedEnv)
    assert (env.num_envs, env.max_steps) == (3, 200)
    env.close()


def test_importing_the_names_does_not_import_mujoco() -> None:
    code = "import etude.envs, gymnasium, sys; gymnasium.spec('etude/Ant-v0'); "
    code += "sys.exit('mujoco' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
