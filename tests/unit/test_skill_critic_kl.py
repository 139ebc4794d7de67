"""How far skills go from their parent: not at all at first, then as far as they may."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from etude.agents.skill_critic import SkillCritic, SkillCriticConfig, Steps

O, I, Z, A, K, GAMMA = 3, 2, 2, 2, 4, 0.9


def test_it_begins_as_its_parent() -> None:
    rng = np.random.default_rng(3)
    sizes = (I + Z, 5, A)
    shapes = zip(sizes, sizes[1:], strict=False)
    parent = [(rng.standard_normal(s), rng.standard_normal(s[1])) for s in shapes]
    made = SkillCritic(parent, "tanh", O, Z, K, GAMMA, SkillCriticConfig(hidden=(6,), log_std=-2.0))
    body, skill = rng.standard_normal((7, I)), rng.standard_normal((7, Z))
    h = np.tanh(np.hstack((body, skill)) @ parent[0][0] + parent[0][1])
    expected = np.tanh(h @ parent[1][0] + parent[1][1])
    seen = torch.as_tensor(body).float(), torch.as_tensor(skill).float()
    np.testing.assert_allclose(made.act(*seen, deterministic=True), expected, atol=1e-5)
    drawn = made.propose(*seen)
    np.testing.assert_array_equal(drawn.kl.detach(), 0)
    many = torch.stack([made.propose(*seen).deviation for _ in range(300)])
    assert float(many.detach().std()) == pytest.approx(math.exp(-2.0), rel=0.05)
    for (weight, bias), (was, before) in zip(made.policy_layers(), parent, strict=True):
        np.testing.assert_array_equal(weight, was.astype(np.float32))
        np.testing.assert_array_equal(bias, before.astype(np.float32))


def gamble(made: SkillCritic, seed: int = 0, batch: int = 64) -> Steps:
    """One-step episodes that pay -10 |a - 0.9|^2: far from the parent, and ever dearer."""
    rng = torch.Generator().manual_seed(seed)
    action = made.propose(torch.zeros(batch, I), torch.zeros(batch, Z)).action
    action = (action + 0.5 * torch.randn(action.shape, generator=rng)).clamp(-1, 1)
    zeros = torch.zeros(batch, O)
    return Steps(
        obs=zeros,
        next_obs=zeros,
        body=torch.zeros(batch, I),
        next_body=torch.zeros(batch, I),
        skill=torch.zeros(batch, Z),
        step=torch.zeros(batch),
        action=action,
        reward=-10 * (action - 0.9).square().sum(1),
        terminated=torch.ones(batch),
    )


def test_the_kl_settles_at_its_target_and_stays_within_twice_of_it() -> None:
    config = SkillCriticConfig(
        hidden=(16,),
        lr=3e-3,
        actor_lr=1e-3,
        log_std=-1.0,
        kl_target=2.0,
        layer_norm=False,
        tau=0.05,
    )
    parent = [(np.zeros((I + Z, A)), np.zeros(A))]
    rng = torch.Generator().manual_seed(0)
    made = SkillCritic(parent, "relu", O, Z, K, GAMMA, config, rng)
    kls = []
    for i in range(1200):
        kls.append(float(made.update(gamble(made, i), lambda obs: obs[:, 0])["finetune/kl"]))
    assert max(kls) < 2 * config.kl_target
    assert np.mean(kls[-200:]) == pytest.approx(config.kl_target, rel=0.1)
    action = made.act(torch.zeros(1, I), torch.zeros(1, Z), deterministic=True)
    assert (action > 0.3).all()  # it went towards the reward as far as it may
