"""Distributions against SciPy, Monte Carlo and quadrature, and the conditional density on them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import special, stats
from torch import Tensor

from etude.errors import UsageError
from etude.worldmodels.densities import CondDensity
from etude.worldmodels.distributions import (
    DiagGaussian,
    Dist,
    GaussianHead,
    Mixture,
    MixtureHead,
    OneHot,
    OneHotHead,
    TanhNormal,
)
from etude.worldmodels.encoders import Encoder, SimNorm, UnitNorm, layers

B, X, G, K, C = 6, 3, 2, 4, 5


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def gaussian(seed: int = 0) -> DiagGaussian:
    return DiagGaussian(normal(B, X, seed=seed), 0.3 + normal(B, X, seed=seed + 1).abs())


def mixture() -> Mixture:
    return Mixture(normal(B, C), 2 * normal(B, C, X, seed=1), 0.7)


def one_hot(seed: int = 0) -> OneHot:
    return OneHot(normal(B, G * K, seed=seed), G)


def tanh_normal(seed: int = 0) -> TanhNormal:
    dist = gaussian(seed)
    return TanhNormal(dist.mean, 0.5 * dist.std)  # |u| stays below 7, where float32 still tells


DISTS = {"gaussian": gaussian, "mixture": mixture, "one-hot": one_hot, "tanh": tanh_normal}


def many(dist: Dist, n: int, seed: int = 0) -> Tensor:
    """n samples (n, B, X)."""
    generator = seeded(seed)
    return torch.stack([dist.rsample(generator) for _ in range(n)])


def test_gaussian_agrees_with_scipy() -> None:
    dist, other, x = gaussian(), gaussian(5), normal(B, X, seed=9)
    frozen = stats.norm(dist.mean, dist.std)
    np.testing.assert_allclose(dist.log_prob(x), frozen.logpdf(x).sum(1))
    np.testing.assert_allclose(dist.entropy(), frozen.entropy().sum(1))
    grid = np.linspace(-25, 25, 40_001)[:, None, None]
    log_ratio = frozen.logpdf(grid) - stats.norm.logpdf(grid, other.mean, other.std)
    kl = np.trapezoid(frozen.pdf(grid) * log_ratio, grid, axis=0).sum(1)
    np.testing.assert_allclose(dist.kl(other), kl, rtol=1e-6)


def test_mixture_agrees_with_scipy() -> None:
    dist, x = mixture(), normal(B, X, seed=9)
    inside = stats.norm.logpdf(x[:, None], dist.means, dist.std).sum(-1)
    wanted = special.logsumexp(inside + special.log_softmax(dist.logits, 1), axis=1)
    np.testing.assert_allclose(dist.log_prob(x), wanted)
    best = dist.logits.argmax(1)
    np.testing.assert_array_equal(dist.mode, dist.means[torch.arange(B), best])


def test_one_hot_agrees_with_numpy() -> None:
    dist, other = one_hot(), one_hot(5)
    p, q = (special.softmax(d.logits.reshape(B, G, K).numpy(), -1) for d in (dist, other))
    np.testing.assert_allclose(dist.entropy(), -(p * np.log(p)).sum((1, 2)))
    np.testing.assert_allclose(dist.kl(other), (p * np.log(p / q)).sum((1, 2)))
    x = many(dist, 1)[0]
    np.testing.assert_allclose(
        dist.log_prob(x), np.log((p * x.reshape(B, G, K).numpy()).sum(-1)).sum(-1)
    )
    assert torch.equal(dist.mode.reshape(B, G, K).argmax(-1), torch.from_numpy(p.argmax(-1)))
    assert (dist.mode.reshape(B, G, K).sum(-1) == 1).all()


def test_tanh_normal_agrees_with_the_change_of_variables() -> None:
    dist, other = tanh_normal(), tanh_normal(5)
    a = 0.999 * normal(B, X, seed=9).tanh()
    u = np.arctanh(a.numpy())
    wanted = stats.norm.logpdf(u, dist.mean, dist.std) - np.log(1 - a.numpy() ** 2)
    np.testing.assert_allclose(dist.log_prob(a), wanted.sum(1), rtol=1e-9)
    samples = many(dist, 20_000)
    estimate = torch.stack([dist.log_prob(s) - other.log_prob(s) for s in samples])
    error = 4 * estimate.std(0) / math.sqrt(len(estimate))
    assert ((estimate.mean(0) - dist.kl(other)).abs() < error).all()
    assert torch.isfinite(dist.log_prob(torch.ones(B, X, dtype=torch.float64))).all()
    assert torch.equal(dist.mode, dist.mean.tanh())


@pytest.mark.parametrize("name", ["gaussian", "mixture", "tanh"])
def test_samples_have_the_density_that_log_prob_says(name: str) -> None:
    dist = DISTS[name]()
    samples = many(dist, 20_000)[..., :1]  # the first dimension of each row
    if isinstance(dist, Mixture):
        one: Dist = Mixture(dist.logits, dist.means[..., :1], dist.std)
    else:
        one = type(dist)(dist.mean[:, :1], dist.std[:, :1])
    grid = torch.linspace(-12, 12, 120_001, dtype=torch.float64)
    if name == "tanh":
        grid = (0.6 * grid).tanh()
    for row in range(B):
        density = _row(one, row, grid)
        cdf = torch.cumulative_trapezoid(density, grid)
        assert float(cdf[-1]) == pytest.approx(1, abs=2e-3)
        mine = np.interp(np.sort(samples[:, row, 0]), grid[1:], cdf)
        distance = np.abs(mine - np.arange(1, 20_001) / 20_000).max()
        assert distance < 1.95 / math.sqrt(20_000)  # Kolmogorov-Smirnov at 0.1 %


def _row(dist: Dist, row: int, grid: Tensor) -> Tensor:
    """Density of one row at the points of a grid."""
    parts = {k: v[row : row + 1] for k, v in vars(dist).items() if isinstance(v, Tensor)}
    rest = {k: v for k, v in vars(dist).items() if not isinstance(v, Tensor)}
    return type(dist)(**parts, **rest).log_prob(grid[:, None]).exp()


def test_one_hot_samples_have_the_probabilities_and_their_gradient() -> None:
    logits = normal(B, G * K).requires_grad_()
    dist = OneHot(logits, G)
    p = dist.log_probs().exp().detach().flatten(1)
    frequency = many(OneHot(logits.detach(), G), 5000).mean(0)
    assert ((frequency - p).abs() < 4.5 * (p * (1 - p) / 5000).sqrt()).all()
    sample, weight = dist.rsample(seeded()), normal(B, G * K, seed=3)
    assert set(sample.unique().tolist()) == {0.0, 1.0}
    (mine,) = torch.autograd.grad((sample * weight).sum(), logits)
    soft = logits.reshape(B, G, K).softmax(-1).flatten(1)
    (wanted,) = torch.autograd.grad((soft * weight).sum(), logits)
    torch.testing.assert_close(mine, wanted)


@pytest.mark.parametrize("name", DISTS)
def test_noise_comes_from_the_given_generator_alone(name: str) -> None:
    dist, state = DISTS[name](), torch.get_rng_state()
    first, again, other = (dist.rsample(seeded(s)) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_gradients_reach_means_and_deviations() -> None:
    mean, std = torch.zeros(B, X, requires_grad=True), torch.ones(B, X, requires_grad=True)
    sample = DiagGaussian(mean, std).rsample(seeded())
    sample.sum().backward()
    assert (mean.grad == 1).all()
    torch.testing.assert_close(std.grad, sample.detach())


@pytest.mark.parametrize(
    ("ask", "instead"),
    [
        (lambda: mixture().entropy(), "Mixture has no entropy in closed form: average"),
        (lambda: mixture().kl(mixture()), "Mixture has no kl in closed form: average"),
        (lambda: tanh_normal().entropy(), "TanhNormal has no entropy in closed form: average"),
        (lambda: gaussian().kl(one_hot()), "kl to OneHot .* there is one to another DiagGaussian"),
        (lambda: one_hot().kl(gaussian()), "kl to DiagGaussian .* to another OneHot"),
        (lambda: tanh_normal().kl(gaussian()), "kl to DiagGaussian .* to another TanhNormal"),
    ],
)
def test_what_has_no_closed_form_says_what_there_is(ask: object, instead: str) -> None:
    with pytest.raises(UsageError, match=instead):
        ask()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("head", "value"), [(GaussianHead, 0.0), (GaussianHead, math.nan), (MixtureHead, -1.0)]
)
def test_deviations_must_be_positive(head: type, value: float) -> None:
    with pytest.raises(UsageError, match="must be positive"):
        head(2, **{"min_std" if head is GaussianHead else "std": value})


def test_heads_read_their_outputs_in_order() -> None:
    raw = normal(B, 8)
    dist = GaussianHead(4, min_std=0.5)(raw)
    np.testing.assert_allclose(dist.mean, raw[:, :4])
    np.testing.assert_allclose(dist.std, 0.5 + np.log1p(np.exp(raw[:, 4:].numpy())))
    mixed = MixtureHead(3, components=2, std=0.1)(raw)
    assert mixed.means.shape == (B, 2, 3) and mixed.std == 0.1
    assert torch.equal(mixed.means[:, 1], raw[:, 5:])
    assert OneHotHead(4, groups=2)(raw).log_probs().shape == (B, 2, 4)


@pytest.mark.parametrize("head", [GaussianHead(X), MixtureHead(X)], ids=["gaussian", "mixture"])
def test_weights_of_the_loss(head: GaussianHead | MixtureHead) -> None:
    model = CondDensity(2, 1, head, (8,), seeded())
    ctx, cond, x = (normal(B, w, seed=w).float() for w in (2, 1, X))
    each = -model(ctx, cond).log_prob(x)
    torch.testing.assert_close(model.nll(ctx, cond, x), each.mean())
    w = torch.rand(B, generator=seeded())
    torch.testing.assert_close(model.nll(ctx, cond, x, w), (w * each).mean())
    torch.testing.assert_close(model.nll(ctx, cond, x, torch.ones(B, X)), each.mean())
    only = torch.tensor([1.0, 0, 0]).expand(B, X)  # the other dimensions must not count
    moved = x + torch.tensor([0.0, 3, -3])
    torch.testing.assert_close(model.nll(ctx, cond, x, only), model.nll(ctx, cond, moved, only))
    assert not torch.allclose(model.nll(ctx, cond, x), model.nll(ctx, cond, moved))
    with pytest.raises(UsageError, match="fits no target"):
        model.nll(ctx, cond, x, torch.ones(B + 1))


def test_without_a_condition_the_context_is_all() -> None:
    model = CondDensity(2, 0, GaussianHead(1), (8,), seeded())
    assert model(normal(B, 2).float()).mean.shape == (B, 1)


@pytest.mark.parametrize(("noise", "truth"), [(1.0, 0.139), (0.25, 0.878)])
def test_skill_dynamics_tell_the_information_that_is_there(noise: float, truth: float) -> None:
    """x = z + noise, z ~ U[-1, 1]: DADS' reward with 100 alternatives has a known mean."""
    generator = seeded()
    # inputs and targets in units of the noise, as the mixture's fixed deviation wants them
    model = CondDensity(1, 1, MixtureHead(1, components=4, std=1.0), (32, 32), generator)
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    none = torch.zeros(512, 1)
    for _ in range(500):
        z = torch.rand(512, 1, generator=generator) * 2 - 1
        x = z / noise + torch.randn(512, 1, generator=generator)
        optimiser.zero_grad()
        model.nll(none, z, x).backward()
        optimiser.step()
    n, alternatives = 4096, 100
    z = torch.rand(n, 1, generator=generator) * 2 - 1
    x = z / noise + torch.randn(n, 1, generator=generator)
    with torch.no_grad():
        own = model(torch.zeros(n, 1), z).log_prob(x)
        others = torch.rand(alternatives, 1, generator=generator) * 2 - 1
        dist = model(torch.zeros(alternatives, 1), others)
        each = dist.log_prob(x.unsqueeze(1).expand(n, alternatives, 1))  # (n, L)
    ratio = (each - own.unsqueeze(1)).exp().sum(1)
    reward = float((math.log(alternatives + 1) - torch.log1p(ratio)).mean())
    assert reward == pytest.approx(truth, abs=0.05)


def test_a_mixture_finds_two_outcomes_where_a_gaussian_finds_their_mean() -> None:
    generator = seeded()
    heads = GaussianHead(1, 0.1), MixtureHead(1, components=2, std=0.1)
    models = [CondDensity(1, 0, head, (16,), generator) for head in heads]
    losses = []
    for model in models:
        optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(300):
            side = torch.randint(2, (256, 1), generator=generator) * 2.0 - 1
            optimiser.zero_grad()
            x = side + 0.1 * torch.randn(256, 1, generator=generator)
            loss = model.nll(torch.ones(256, 1), None, x)
            loss.backward()
            optimiser.step()
        losses.append(float(loss.detach()))
    entropy = math.log(2) + math.log(0.1) + 0.5 * math.log(2 * math.pi * math.e)
    assert losses[1] == pytest.approx(entropy, abs=0.1)
    assert losses[0] > entropy + 1


def test_encoders_end_in_features_or_in_a_distribution() -> None:
    obs = normal(5, B, 4).float()
    simplex = Encoder(4, SimNorm(16, 8), (8,), seeded())(obs)
    assert simplex.shape == (5, B, 16) and (simplex > 0).all()
    torch.testing.assert_close(simplex.unflatten(-1, (2, 8)).sum(-1), torch.ones(5, B, 2))
    unit = Encoder(4, UnitNorm(16), (8,), seeded())(obs)
    torch.testing.assert_close(unit.mean(-1), torch.zeros(5, B), atol=1e-5, rtol=0)
    torch.testing.assert_close(unit.square().mean(-1), torch.ones(5, B), atol=1e-2, rtol=0)
    dist = Encoder(4, GaussianHead(3), (8,), seeded())(obs)
    assert isinstance(dist, DiagGaussian) and dist.mean.shape == (5, B, 3)
    with pytest.raises(UsageError, match="groups of 8"):
        SimNorm(12, 8)


def test_layers_are_linear_norm_silu_and_drawn_from_the_generator() -> None:
    net, x = layers((4, 6, 2), seeded()), normal(B, 4).float().numpy()
    first, last = net[0], net[3]
    h = x @ first.weight.detach().numpy().T
    h = (h - h.mean(1, keepdims=True)) / np.sqrt(h.var(1, keepdims=True) + 1e-5)
    wanted = (h * special.expit(h)) @ last.weight.detach().numpy().T
    np.testing.assert_allclose(net(torch.from_numpy(x)).detach(), wanted, atol=1e-5)
    assert torch.equal(layers((4, 6, 2), seeded())[0].weight, first.weight)
