"""What controllers of stable-baselines3 expect, and which algorithms can begin with a skill."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import Env, spaces
from stable_baselines3 import DQN, PPO, SAC

from etude.agents.skill_critic import actor_model, values
from etude.errors import UsageError

O, Z = 3, 2


class Choice(Env[Any, Any]):
    observation_space = spaces.Box(-1, 1, (O,), np.float32)
    action_space = spaces.Discrete(3)


class Plane(Env[Any, Any]):
    observation_space = spaces.Box(-1, 1, (O,), np.float32)
    action_space = spaces.Box(-1, 1, (Z,), np.float32)


def test_values_of_sac_are_those_of_its_targets_and_pay_for_entropy() -> None:
    model = SAC("MlpPolicy", Plane(), ent_coef="auto_0.3", seed=0, buffer_size=1, device="cpu")
    with torch.no_grad():
        for p in model.critic_target.parameters():
            p.mul_(1.5)
    obs = torch.randn(4, O)
    state = torch.get_rng_state()
    action, log_prob = model.actor.action_log_prob(obs)
    torch.set_rng_state(state)
    q = np.min([x.detach().numpy()[:, 0] for x in model.critic_target(obs, action)], 0)
    expected = q - 0.3 * log_prob.detach().numpy()
    np.testing.assert_allclose(values(model, obs), expected, atol=1e-6)


def test_values_of_ppo_are_those_of_its_critic() -> None:
    model = PPO("MlpPolicy", Plane(), n_steps=2, batch_size=2, seed=0, device="cpu")
    obs = torch.randn(4, O)
    expected = model.policy.predict_values(obs).detach().numpy()[:, 0]
    np.testing.assert_allclose(values(model, obs), expected)


def test_values_of_dqn_are_those_of_the_best_skill_under_its_target() -> None:
    model = DQN("MlpPolicy", Choice(), seed=0, buffer_size=1, device="cpu")
    with torch.no_grad():
        for p in model.q_net_target.parameters():
            p.mul_(2.0)
    obs = torch.randn(4, O)
    expected = model.q_net_target(obs).detach().numpy().max(1)
    np.testing.assert_allclose(values(model, obs), expected)


def test_only_what_squashes_alike_can_begin_with_a_skill() -> None:
    with pytest.raises(UsageError, match='"DDPG".*choose one of SAC, TD3'):
        actor_model("DDPG", Plane(), [(np.zeros((O, Z)), np.zeros(Z))], "relu", -2.0)
