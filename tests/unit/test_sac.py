"""SAC: learns bandits, resumes bit for bit, exports its policy, and refuses what cannot work."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from etude import checkpoint
from etude.agents.replay import Batch
from etude.agents.sac import SAC, SACConfig
from etude.errors import CheckpointError, UsageError

O, A, Z, B = 4, 2, 3, 6
SMALL = SACConfig(hidden=(7, 5), lr=3e-3, alpha_lr=2e-3)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make(config: SACConfig = SMALL, seed: int = 0, **kwargs: Any) -> SAC:
    return SAC(O, A, Z, config, generator=seeded(seed), **kwargs)


def transitions(seed: int = 0) -> Batch:
    g = seeded(seed)
    obs, next_obs = torch.randn(2, B, O, generator=g)
    action, skill = torch.rand(B, A, generator=g) * 2 - 1, torch.randn(B, Z, generator=g)
    return Batch(obs, action, next_obs, skill, (torch.arange(B) % 3 == 0).float(), torch.zeros(B))


def test_a_zero_task_vector_stays_finite() -> None:
    sac = make(signal_dim=2)
    metrics = sac.update(transitions(), torch.ones(B, 2), torch.zeros(B, 2))
    assert all(v.isfinite() for v in metrics.values())
    assert all(p.isfinite().all() for p in sac.parameters())


def test_the_actor_step_leaves_no_gradient_elsewhere() -> None:
    """Targets are plain tensors without a history; critics keep the gradient of their own loss."""
    sac = make()
    sac.update(transitions(), torch.ones(B, 1), torch.ones(B, 1))
    kept = [p.grad.clone() for p in sac.critics.parameters() if p.grad is not None]
    _, now = sac._sample(transitions(1), both=True)
    assert now is not None
    sac._update_actor(now, transitions(1), torch.ones(B, 1), torch.tensor([0.1]))
    for p, gradient in zip(sac.critics.parameters(), kept, strict=True):
        assert p.grad is not None and torch.equal(p.grad, gradient)
    assert all(p.is_leaf and not p.requires_grad for p in sac.targets.parameters())


def test_policy_layers_are_the_deterministic_policy() -> None:
    sac = make(dataclasses.replace(SMALL, activation="tanh"))
    obs, skill = torch.randn(5, O, generator=seeded(1)), torch.randn(5, Z, generator=seeded(2))
    h = torch.cat((obs, skill), 1).numpy()
    *hidden, (weight, bias) = sac.policy_layers()
    for w, b in hidden:
        h = np.tanh(h @ w + b)
    action = np.tanh(h @ weight + bias)
    np.testing.assert_allclose(sac.act(obs, skill, deterministic=True), action, atol=1e-6)


def test_act_is_stochastic_unless_asked_and_bounded() -> None:
    sac = make()
    obs, skill = torch.zeros(1000, O), torch.zeros(1000, Z)
    actions, mode = sac.act(obs, skill), sac.act(obs, skill, deterministic=True)
    assert actions.shape == mode.shape == (1000, A)
    assert actions.abs().max() <= 1
    assert actions.std() > 0.3
    assert mode.std(0).max() == 0
    assert not actions.requires_grad


def bandit(sac: SAC, signal: Any, w: Any, updates: int) -> None:
    """Episodes of one step: observation nothing, a skill in [-1, 1]^Z, any action."""
    rng = np.random.default_rng(0)
    for _ in range(updates):
        skill = torch.from_numpy(rng.uniform(-1, 1, (128, Z)).astype(np.float32))
        action = torch.from_numpy(rng.uniform(-1, 1, (128, A)).astype(np.float32))
        obs, ends = torch.zeros(128, O), torch.ones(128)
        batch = Batch(obs, action, obs, skill, ends, torch.zeros(128))
        sac.update(batch, signal(skill, action), w(skill))


LEARN = SACConfig(hidden=(64, 64), lr=2e-3, alpha0=0.01, auto_alpha=False)
SKILLS = torch.tensor([[-0.8, 0.3, 0.0], [0.0, -0.6, 0.5], [0.9, 0.8, -0.9]])


def test_learns_the_best_action_of_every_skill() -> None:
    """Reward -|a - (z_0, z_1)|^2 has its optimum at the first two entries of the skill."""
    sac = make(LEARN)
    bandit(
        sac,
        lambda z, a: -(a - z[:, :A]).square().sum(1, keepdim=True),
        lambda z: torch.ones(len(z), 1),
        700,
    )
    torch.testing.assert_close(
        sac.act(torch.zeros(3, O), SKILLS, deterministic=True), SKILLS[:, :A], atol=0.15, rtol=0
    )


def test_learns_with_successor_features() -> None:
    """Features (a_0, a_1, -|a|^2) and w = (z_0, z_1, 1): the optimum is (z_0, z_1) / 2."""
    sac = make(LEARN, signal_dim=3, entropy_in_target=False)
    bandit(
        sac,
        lambda z, a: torch.cat((a, -a.square().sum(1, keepdim=True)), 1),
        lambda z: torch.cat((z[:, :A], torch.ones(len(z), 1)), 1),
        700,
    )
    torch.testing.assert_close(
        sac.act(torch.zeros(3, O), SKILLS, deterministic=True), SKILLS[:, :A] / 2, atol=0.15, rtol=0
    )


def test_temperature_finds_the_target_entropy() -> None:
    """Without any reward to follow, alpha falls or rises until the entropy is -scale |A|."""
    config = SACConfig(hidden=(32,), lr=3e-3, alpha_lr=2e-2, target_entropy_scale=0.25)
    sac = make(config)
    bandit(
        sac,
        lambda z, a: -2 * a.square().sum(1, keepdim=True),
        lambda z: torch.ones(len(z), 1),
        600,
    )
    zeros = torch.zeros(2000, O), torch.zeros(2000, Z)
    noise = torch.randn(2000, A, generator=seeded(5))
    entropy = -sac.actor.sample(*zeros, noise)[1].mean().item()
    assert entropy == pytest.approx(-0.25 * A, abs=0.3)
    assert sac.log_alpha.item() != pytest.approx(math.log(0.1), abs=0.1)


def test_the_target_entropy_changes_after_so_many_updates() -> None:
    sac = make(dataclasses.replace(SMALL, calm_after=2, calm_entropy_scale=10.0))
    plain = make()
    for _ in range(2):
        assert sac.target_entropy == plain.target_entropy == -0.5 * A
        for agent in (sac, plain):
            agent.update(transitions(), torch.ones(B, 1), torch.ones(B, 1))
        assert torch.equal(sac.log_alpha, plain.log_alpha), "as if it were not to come"
    assert (sac.target_entropy, plain.target_entropy) == (-10.0 * A, -0.5 * A)
    for agent in (sac, plain):
        agent.update(transitions(), torch.ones(B, 1), torch.ones(B, 1))
    assert sac.log_alpha.grad is not None and plain.log_alpha.grad is not None
    more = sac.log_alpha.grad.item() - plain.log_alpha.grad.item()  # of pull on alpha
    assert more == pytest.approx(9.5 * A, rel=1e-4)


@pytest.mark.parametrize("changes", [{}, {"actor_every": 2, "layer_norm": True}], ids=str)
def test_checkpoint_continues_bit_for_bit(changes: dict[str, Any], tmp_path: Path) -> None:
    """Through the disk into an agent that started elsewhere: weights, moments, noise, metrics."""
    config = dataclasses.replace(SMALL, **changes)
    sac, other = make(config), make(config, seed=7)

    def go(agent: SAC, seeds: range) -> list[dict[str, torch.Tensor]]:
        ones = torch.ones(B, 1)
        return [agent.update(transitions(s), s * ones, ones) for s in seeds]

    go(sac, range(3))
    tree = sac.checkpoint()
    first = go(sac, range(3, 8))
    other.restore(checkpoint.load(checkpoint.save(tmp_path, "a", tree)))
    second = go(other, range(3, 8))
    for a, b in zip(first, second, strict=True):
        assert all(torch.equal(a[k], b[k]) for k in a)
    for name, value in sac.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    zeros = torch.zeros(3, O), torch.zeros(3, Z)
    assert torch.equal(sac.act(*zeros), other.act(*zeros))
    third = make(config, seed=8)
    third.restore(tree)
    go(third, range(3, 8))
    assert torch.equal(third.log_alpha, sac.log_alpha), "the tree is a copy, not the live state"


def test_a_fresh_agent_can_be_restored() -> None:
    sac, other = make(), make(seed=1)
    other.restore(sac.checkpoint())
    zeros = torch.zeros(3, O), torch.zeros(3, Z)
    assert torch.equal(sac.act(*zeros), other.act(*zeros))


def test_a_checkpoint_of_other_sizes_is_refused() -> None:
    with pytest.raises(CheckpointError, match="other layers"):
        make(dataclasses.replace(SMALL, hidden=(8, 8))).restore(make().checkpoint())


def test_agents_depend_on_their_generator_alone() -> None:
    before = torch.get_rng_state()
    first, again, other = (make(seed=s) for s in (1, 1, 2))
    zeros = torch.zeros(3, O), torch.zeros(3, Z)
    assert torch.equal(first.act(*zeros), again.act(*zeros))
    assert not torch.equal(first.actor.net.flat, other.actor.net.flat)
    assert torch.equal(before, torch.get_rng_state())


def test_optimisers_cover_every_parameter_that_learns() -> None:
    sac = make()
    covered = {id(o.flat) for o in sac.optimisers().values()}
    assert covered == {id(p) for p in sac.parameters() if p.requires_grad}
    assert sac.Config is SACConfig


@pytest.mark.parametrize("name", ["obs_dim", "action_dim", "skill_dim", "signal_dim"])
def test_sizes_below_one_are_refused(name: str) -> None:
    sizes = {"obs_dim": 2, "action_dim": 1, "skill_dim": 1} | {name: 0}
    with pytest.raises(UsageError, match=f"{name} = 0"):
        SAC(**sizes)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hidden", (0,)),
        ("lr", 0.0),
        ("gamma", 1.01),
        ("tau", 0.0),
        ("critics", 0),
        ("alpha0", 0.0),
        ("alpha_lr", -1.0),
        ("target_entropy_scale", -0.5),
        ("actor_every", 0),
    ],
)
def test_settings_out_of_range_are_refused(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=name):
        SACConfig(**{name: value})


def test_unknown_activation_is_refused() -> None:
    with pytest.raises(UsageError, match="activation"):
        make(SACConfig(activation="gelu"))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["signal", "task_vector"])
@pytest.mark.parametrize("shape", [(B,), (B, 2), (1, 1)])
def test_signals_that_would_broadcast_are_refused(name: str, shape: tuple[int, ...]) -> None:
    given = {"signal": torch.ones(B, 1), "task_vector": torch.ones(B, 1)} | {
        name: torch.ones(shape)
    }
    with pytest.raises(UsageError, match=name):
        make().update(transitions(), **given)
