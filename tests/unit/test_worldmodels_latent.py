"""The latent model: its loss by hand, its alarm against collapse, a linear system it must find."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from etude.agents.replay import Sequences
from etude.errors import UsageError
from etude.worldmodels.latent import Latent, LatentConfig, effective_rank

B, O, A, H, D = 12, 4, 2, 5, 16


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small(**settings: object) -> Latent:
    config = LatentConfig(**{"width": D, "hidden": (16,), **settings})  # type: ignore[arg-type]
    return Latent(O, A, config, seeded())


def sequences(obs: Tensor, action: Tensor, valid: Tensor | None = None) -> Sequences:
    n, steps = action.shape[:2]
    flags = torch.zeros(n, steps + 1, dtype=torch.bool)
    valid = torch.ones(n, steps, dtype=torch.bool) if valid is None else valid
    return Sequences(obs, action, torch.zeros(n, steps, 1), valid, flags, flags, flags)


def random_sequences(valid: Tensor | None = None) -> Sequences:
    obs = torch.randn(B, H + 1, O, generator=seeded(1))
    return sequences(obs, torch.randn(B, H, A, generator=seeded(2)), valid)


@pytest.mark.parametrize("norm", ["simnorm", "layer_norm"])
def test_the_loss_is_the_sum_of_its_terms(norm: str) -> None:
    model = small(norm=norm, inverse=0.3, variance=2.0, floor=0.9, decode=0.5)
    for parameter in model.target.parameters():
        parameter.data.mul_(1.1)  # the target is another network than the encoder
    batch = random_sequences()
    state, consistency = model.initial(batch.obs[:, 0]), 0.0
    missed = (model.decode(state["latent"]) - batch.obs[:, 0]).square().mean()
    for h in range(H):
        state = model.step(state, batch.action[:, h])
        missed += (model.decode(state["latent"]) - batch.obs[:, h + 1]).square().mean()
        consistency += (state["latent"] - model.target(batch.obs[:, h + 1])).square().sum(-1).mean()
    seen = model.encoder(batch.obs)
    guess = model.inverse(torch.cat((seen[:, :-1], seen[:, 1:]), -1))
    inverse = (guess - batch.action).square().mean()
    largest = math.sqrt(1 / 8 * 7 / 8) if norm == "simnorm" else 1.0
    variance = (0.9 - seen[:, 0].std(0) / largest).clamp_min(0).mean()
    loss, metrics = model.loss(batch)
    wanted = consistency / (H * D * largest**2) + 0.3 * inverse + 2 * variance
    wanted += 0.5 * missed / (H + 1)
    torch.testing.assert_close(loss, wanted)
    assert float(variance.detach()) > 0
    assert float(metrics["model/std"]) == pytest.approx(float(seen[:, 0].std(0).mean().detach()))


def test_nothing_after_the_end_of_an_episode_counts() -> None:
    valid = torch.ones(B, H, dtype=torch.bool)
    valid[::2, 2:] = False
    batch = random_sequences(valid)
    other = batch.replace(obs=batch.obs.clone(), action=batch.action.clone())
    other.obs[::2, 3:] += 5
    other.action[::2, 2:] -= 5
    losses = [small().loss(b)[0] for b in (batch, other)]
    torch.testing.assert_close(*losses)
    all_count = [small().loss(b.replace(valid=torch.ones_like(valid)))[0] for b in (batch, other)]
    assert not torch.allclose(*all_count)


def test_an_update_moves_the_target_a_little_and_clips_the_gradient() -> None:
    model = small(ema=0.75, clip=1e-3)
    old = [p.clone() for p in model.target.parameters()]
    optimiser = model.optimiser()
    metrics = model.update(random_sequences(), optimiser)
    for before, slow, fast in zip(
        old, model.target.parameters(), model.encoder.parameters(), strict=True
    ):
        torch.testing.assert_close(slow, 0.75 * before + 0.25 * fast)
        assert slow.grad is None
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert float(torch.stack([g.square().sum() for g in grads]).sum().sqrt()) <= 1e-3 * 1.001
    assert float(metrics["model/gradient"]) > 1e-3
    assert all(not value.requires_grad and value.ndim == 0 for value in metrics.values())


def test_the_first_step_is_that_of_adam_and_a_share_of_the_weights() -> None:
    model = small(lr=0.125, decay=0.5)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model.update(random_sequences(), model.optimiser())
    for name, p in model.named_parameters():
        if p.grad is not None:
            told = p.grad.abs() > 1e-5  # elsewhere Adam's epsilon counts
            wanted = before[name] * (1 - 0.125 * 0.5) - 0.125 * p.grad.sign()
            torch.testing.assert_close(p.detach()[told], wanted[told], atol=1e-3, rtol=0)
            assert told.any()


def test_sequences_shorter_than_the_horizon_are_refused() -> None:
    with pytest.raises(UsageError, match="5 steps are too short: the horizon needs 6"):
        small(horizon=6).loss(random_sequences())


def test_effective_rank_of_known_matrices() -> None:
    axes = torch.linalg.qr(torch.randn(64, 8, generator=seeded())).Q
    axes = torch.linalg.qr(axes - axes.mean(0)).Q  # orthonormal and centred
    assert float(effective_rank(axes)) == pytest.approx(8, rel=1e-4)
    assert float(effective_rank(axes[:, :3] + 5)) == pytest.approx(3, rel=1e-4)
    share = np.array([0.75, 0.25])
    wanted = math.exp(-(share * np.log(share)).sum())
    scaled = axes[:, :2] * torch.tensor([3.0, 1.0])
    assert float(effective_rank(scaled)) == pytest.approx(wanted, rel=1e-4)
    noise = 1e-6 * torch.randn(64, 8, generator=seeded())
    assert float(effective_rank(1 + noise)) == 1, "a constant and its rounding"


@pytest.mark.parametrize("norm", ["simnorm", "layer_norm"])
def test_collapse_is_seen_and_the_two_terms_prevent_it(norm: str) -> None:
    """From an encoder that is nearly constant, self-prediction alone stays there."""
    found = {}
    for terms in (0.0, 1.0):
        model = small(norm=norm, inverse=0.1 * terms, variance=terms, lr=3e-3)
        for net in (model.encoder.net, model.target.net):
            net[-1].weight.data.mul_(1e-3)
            net[-1].bias.data.copy_(torch.randn(D, generator=seeded(7)))
        optimiser, generator = model.optimiser(), seeded(3)
        for _ in range(200):
            obs, action = linear_system(64, generator)
            metrics = model.update(sequences(obs, action), optimiser)
        found[terms] = {n.removeprefix("model/"): float(v) for n, v in metrics.items()}
    without, both = found[0.0], found[1.0]
    assert without["consistency"] < 0.01, "the loss alone looks fine"
    assert without["std"] < 0.1 * both["std"], found
    assert without["rank"] < D / 4 < both["rank"], found
    assert both["std_smallest"] > 0.1 * model.largest, found


def linear_system(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Observations (n, H + 1, 4) and actions (n, H, 2) of x' = 0.9 R x + B u."""
    turn = torch.linalg.qr(torch.randn(4, 4, generator=seeded(11))).Q
    push = 0.5 * torch.randn(2, 4, generator=seeded(12))
    action = torch.rand(n, H, A, generator=generator) * 2 - 1
    x = [torch.randn(n, 4, generator=generator)]
    for h in range(H):
        x.append(0.9 * x[-1] @ turn.T + action[:, h] @ push)
    return torch.stack(x, 1), action


def hidden(x: Tensor, distractor: bool, generator: torch.Generator) -> Tensor:
    """20 numbers that show the state x, and one that walks at random."""
    seen = torch.tanh(x @ (0.5 * torch.randn(4, 20, generator=seeded(13)))) / 0.6
    if not distractor:
        return seen
    walk = torch.randn(*x.shape[:2], 1, generator=generator)
    walk[:, 1:] *= 0.3
    return torch.cat((seen, walk.cumsum(1)), -1)


def probe(latent: Tensor, x: Tensor) -> Tensor:
    """Ridge regression of x (B, 4) on latents, as weights (D + 1, 4)."""
    inputs = torch.cat((latent, torch.ones(len(latent), 1)), 1).double()
    ridge = 1e-4 * len(x) * torch.eye(inputs.shape[1], dtype=torch.float64)
    return torch.linalg.solve(inputs.T @ inputs + ridge, inputs.T @ x.double()).float()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("norm", "distractor"), [("simnorm", False), ("simnorm", True), ("layer_norm", False)]
)
def test_it_finds_the_state_of_a_linear_system_and_where_it_goes(
    norm: str, distractor: bool
) -> None:
    generator = seeded()
    config = LatentConfig(norm=norm, hidden=(64, 64), lr=1e-3)  # type: ignore[arg-type]
    model = Latent(20 + distractor, A, config, generator)
    optimiser = model.optimiser()
    for _ in range(1500):
        x, action = linear_system(128, generator)
        metrics = model.update(sequences(hidden(x, distractor, generator), action), optimiser)
    x, action = linear_system(4000, generator)
    obs = hidden(x, distractor, generator)
    with torch.no_grad():
        state = model.initial(obs[:, 0])
        weights = probe(state["latent"][:2000], x[:2000, 0])

        def read(latent: Tensor) -> Tensor:
            return torch.cat((latent, torch.ones(len(latent), 1)), 1)[2000:] @ weights

        missed = (read(state["latent"]) - x[2000:, 0]).square().mean(0)
        r2 = 1 - missed / x[2000:, 0].var(0)
        for h in range(H):
            state = model.step(state, action[:, h])
        error = (read(state["latent"]) - x[2000:, H]).square().mean() / x[2000:, H].var(0).mean()
    assert r2.min() > 0.95, (r2, metrics)
    assert error < 0.05, (error, metrics)
    assert float(metrics["model/rank"]) > 8, metrics  # of 64; the state itself has 4
