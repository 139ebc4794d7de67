"""The low level of a hierarchy as an environment of its own, and skills as SB3 policies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.env_checker import check_env

from etude.envs import registry
from etude.errors import LibraryError, UsageError
from etude.skills.library import SkillLibrary, write
from etude.skills.library_data import SetData
from etude.skills.low_level_env import LowLevelEnv, to_sb3
from etude.skills.mlp import MLP
from etude.skills.spaces import Sphere

BODY, TASK = "point-maze-u", "etude/PointMazeUGoal-v0"
K = 4


def random_library(folder: Path, activation: str = "tanh", fields: Any = None) -> SkillLibrary:
    """Skills with random weights and a normaliser that is not the identity."""
    rng = np.random.default_rng(0)
    sizes = [(2 if fields else 4) + 2, 8, 8, 2]
    layers = [
        (0.8 * rng.standard_normal((a, b)), rng.standard_normal(b))
        for a, b in zip(sizes, sizes[1:], strict=False)
    ]
    policy = MLP(layers, activation, output="tanh", input_fields=fields)
    mean, std = rng.standard_normal(4), rng.uniform(0.5, 2, 4)
    data = SetData("main", "none", {}, Sphere(2), policy, {}, mean, std, [])
    env = registry.spec(BODY).to_json()
    write(folder, sets=[data], env=env, provenance={}, name="random")
    return SkillLibrary.load(folder)


class Turning:
    """Names a new skill at every call, and remembers where it was asked."""

    def __init__(self) -> None:
        self.asked: list[np.ndarray] = []

    def reset(self, obs: np.ndarray) -> None:
        self.asked.clear()

    def act(self, obs: np.ndarray) -> np.ndarray:
        self.asked.append(obs[0].copy())
        angle = float(len(self.asked))
        return np.array([[np.cos(angle), np.sin(angle)]], np.float32)


@pytest.fixture
def library(tmp_path: Path) -> SkillLibrary:
    return random_library(tmp_path / "random")


@pytest.fixture
def env(library: SkillLibrary) -> LowLevelEnv:
    return LowLevelEnv(gymnasium.make(TASK), library, Turning(), K)


def test_sb3_accepts_it(env: LowLevelEnv) -> None:
    check_env(env)


def test_the_observation_shows_the_skill_and_how_long_it_is_held(env: LowLevelEnv) -> None:
    obs, info = env.reset(seed=0)
    plain, controller = gymnasium.make(TASK), env.controller
    raw, _ = plain.reset(seed=0)
    assert isinstance(controller, Turning)
    for t in range(3 * K):
        decisions = t // K + 1
        assert len(controller.asked) == decisions
        skill = np.cos(float(decisions)), np.sin(float(decisions))
        np.testing.assert_allclose(obs, [*raw, *skill, t % K / K], atol=1e-6)
        assert info["skill"]["step"] == t % K
        action = np.array([0.3, -0.2], np.float32)
        obs, reward, *_, info = env.step(action)
        raw, expected, *_ = plain.step(action)
        assert reward == expected
    np.testing.assert_allclose(controller.asked[-1], raw)  # the controller sees all of it


@pytest.mark.parametrize("algo", ["SAC", "TD3"])
@pytest.mark.parametrize(("activation", "fields"), [("tanh", None), ("relu", ("y", "x"))])
def test_a_skill_becomes_an_sb3_policy_that_acts_alike(
    algo: str, activation: str, fields: Any, tmp_path: Path
) -> None:
    library = random_library(tmp_path / "random", activation, fields)
    env = gymnasium.make(TASK)
    [z] = library.sample(np.random.default_rng(1), 1)
    model = to_sb3(library, env, z, algo)
    obs = np.random.default_rng(2).normal(0, 3, (64, 6)).astype(np.float32)
    found, _ = model.predict(obs, deterministic=True)
    np.testing.assert_allclose(found, library.act(obs[:, :4], z), atol=1e-5)


def test_all_skills_become_the_policy_of_a_low_level_env(
    env: LowLevelEnv, library: SkillLibrary
) -> None:
    model = to_sb3(library, env, learning_starts=8, batch_size=8, log_std=-1.0)
    rng = np.random.default_rng(2)
    obs, z = rng.normal(0, 3, (64, 6)).astype(np.float32), library.sample(rng, 64)
    shown = np.hstack((obs, z, rng.random((64, 1)))).astype(np.float32)
    found, _ = model.predict(shown, deterministic=True)
    np.testing.assert_allclose(found, library.act(obs[:, :4], z), atol=1e-5)
    model.learn(24)  # an algorithm like any other
    assert not np.allclose(model.predict(shown, deterministic=True)[0], found, atol=1e-6)


def test_the_noise_of_the_start_is_what_was_asked_for(library: SkillLibrary) -> None:
    z = library.sample(np.random.default_rng(1), 1)[0]
    model: Any = to_sb3(library, gymnasium.make(TASK), z, log_std=-3.0)
    _, log_std, _ = model.actor.get_action_dist_params(model.policy.obs_to_tensor(np.ones(6))[0])
    np.testing.assert_allclose(log_std.detach(), -3.0)


def test_what_does_not_fit_is_refused(library: SkillLibrary, env: LowLevelEnv) -> None:
    plain, z = gymnasium.make(TASK), np.array([1.0, 0.0])
    with pytest.raises(UsageError, match="k = 0"):
        LowLevelEnv(plain, library, Turning(), 0)
    with pytest.raises(LibraryError, match="cannot act"):
        LowLevelEnv(gymnasium.make("etude/PointMazeLargeGoal-v0"), library, Turning())
    with pytest.raises(UsageError, match="give z"):
        to_sb3(library, plain)
    with pytest.raises(UsageError, match="give z"):
        to_sb3(library, env, z)
    with pytest.raises(UsageError, match="no skill"):
        to_sb3(library, plain, 2 * z)
    with pytest.raises(UsageError, match='"PPO".*SAC, TD3'):
        to_sb3(library, plain, z, "PPO")


def test_an_observation_that_is_no_vector_is_refused(library: SkillLibrary) -> None:
    class Pictures(gymnasium.Env[Any, Any]):
        observation_space = spaces.Box(0, 1, (8, 8), np.float32)
        action_space = spaces.Box(-1, 1, (2,), np.float32)

    with pytest.raises(UsageError, match="vectors"):
        LowLevelEnv(Pictures(), library, Turning())
