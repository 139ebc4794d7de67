"""Networks: shapes, initial weights, and values against NumPy and numerical integration."""

import math

import numpy as np
import pytest
import torch

from etude.agents.networks import (
    Critics,
    Normaliser,
    SquashedGaussian,
    linear,
    mlp,
    squashed_log_prob,
)
from etude.errors import UsageError


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_mlp_agrees_with_numpy(activation: str) -> None:
    net = mlp((3, 5, 4, 2), activation, generator=seeded())
    x = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
    act = {"relu": lambda v: np.maximum(v, 0), "tanh": np.tanh}[activation]
    layers = [m for m in net if isinstance(m, torch.nn.Linear)]
    h = x
    for i, layer in enumerate(layers):
        h = h @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
        h = act(h) if i < 2 else h
    np.testing.assert_allclose(net(torch.from_numpy(x)).detach(), h, atol=1e-6)
    assert (net(torch.from_numpy(10 * x)) < 0).any(), "the output layer is linear"


def test_mlp_layer_norm_makes_hidden_layers_blind_to_scale() -> None:
    x = torch.randn(6, 3, generator=seeded())
    plain, normed = (mlp((3, 8, 2), layer_norm=ln, generator=seeded()) for ln in (False, True))
    torch.testing.assert_close(normed(x), normed(100 * x), atol=1e-2, rtol=1e-2)
    assert not torch.allclose(plain(x), plain(100 * x), atol=1e-1)


def test_unknown_activation_names_the_nearest() -> None:
    with pytest.raises(UsageError, match='did you mean "relu"'):
        mlp((2, 2), "rellu")


@pytest.mark.parametrize("sizes", [(0, 4), (3, 0), (3, -1, 2)])
def test_layers_without_units_are_refused(sizes: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="too small"):
        mlp(sizes)


def test_initial_weights_are_xavier_uniform_and_biases_zero() -> None:
    layer = linear(100, 300, seeded(), gain=0.5)
    bound = 0.5 * math.sqrt(6 / 400)
    assert 0.99 * bound < layer.weight.abs().max() <= bound
    assert layer.weight.var().item() == pytest.approx(bound**2 / 3, rel=0.02)
    assert not layer.bias.any()


def test_initial_weights_come_from_the_given_generator_alone() -> None:
    before = torch.get_rng_state()
    nets = [
        (SquashedGaussian(4, 2, generator=seeded(s)), Critics(6, generator=seeded(s)))
        for s in (1, 1, 2)
    ]
    assert torch.equal(before, torch.get_rng_state())
    for i in range(2):
        first, again, other = (torch.nn.utils.parameters_to_vector(n[i].parameters()) for n in nets)
        assert torch.equal(first, again)
        assert not torch.equal(first, other)


def test_normaliser_is_the_affine_map_and_is_saved() -> None:
    normaliser = Normaliser([1.0, -2.0], [2.0, 0.5])
    assert normaliser(torch.tensor([[3.0, -2.0]])).tolist() == [[1.0, 0.0]]
    assert set(normaliser.state_dict()) == {"mean", "std"}


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ([0.0], [0.0]),
        ([0.0], [-1.0]),
        ([np.nan], [1.0]),
        ([0.0], [np.inf]),
        ([0.0, 0.0], [1.0]),
        (0.0, 1.0),
    ],
)
def test_normaliser_refuses_bad_constants(mean: object, std: object) -> None:
    with pytest.raises(UsageError, match="normaliser"):
        Normaliser(mean, std)  # type: ignore[arg-type]


def test_policy_starts_near_a_standard_normal_before_the_squashing() -> None:
    actor = SquashedGaussian(31, 8, generator=seeded())
    mean, log_std = actor(torch.randn(512, 29, generator=seeded(1)), torch.zeros(512, 2))
    assert mean.shape == log_std.shape == (512, 8)
    assert mean.abs().mean() < 0.1
    assert log_std.abs().mean() < 0.1


def test_policy_clamps_its_log_std() -> None:
    actor = SquashedGaussian(2, 1, (), generator=seeded())
    with torch.no_grad():
        [head] = actor.net.layers()
        for bias, expected in ((-9.0, -5.0), (0.3, 0.3), (7.0, 2.0)):
            head.weight.zero_()
            head.bias[..., 1] = bias
            assert actor(torch.zeros(1, 1), torch.zeros(1, 1))[1].item() == pytest.approx(expected)


def test_policy_sample_is_tanh_of_mean_plus_scaled_noise() -> None:
    actor = SquashedGaussian(5, 2, (6,), generator=seeded())
    obs, skill, noise = (torch.randn(4, d, generator=seeded(d)) for d in (3, 2, 2))
    mean, log_std = actor(obs, skill)
    action, log_prob, *_ = actor.sample(obs, skill, noise)
    torch.testing.assert_close(action, torch.tanh(mean + log_std.exp() * noise))
    assert log_prob.shape == (4,)


@pytest.mark.parametrize(("mean", "log_std"), [(0.0, 0.0), (0.7, -1.5), (-2.0, 0.5)])
def test_log_prob_is_a_density_over_actions(mean: float, log_std: float) -> None:
    """It integrates to one over (-1, 1), and so do the moments of the samples."""
    edges = torch.linspace(-9, 9, 200_001, dtype=torch.float64)
    action, middle = edges.tanh(), (edges[1:] + edges[:-1]) / 2
    noise = (middle - mean) / math.exp(log_std)
    density = squashed_log_prob(
        noise[:, None], torch.full_like(noise, log_std)[:, None], middle[:, None]
    ).exp()
    widths = action.diff()
    assert (density * widths).sum().item() == pytest.approx(1.0, abs=1e-4)
    samples = torch.randn(200_000, generator=seeded(), dtype=torch.float64)
    drawn = (mean + math.exp(log_std) * samples).tanh().mean().item()
    assert (density * widths * middle.tanh()).sum().item() == pytest.approx(drawn, abs=5e-3)


def test_log_prob_agrees_with_the_change_of_variables() -> None:
    noise, log_std, mean = (torch.randn(50, 3, generator=seeded(i)).double() for i in range(3))
    u = mean + log_std.exp() * noise
    u = u.clamp(-4, 4)
    noise = (u - mean) / log_std.exp()
    n, s, m, v = (t.numpy() for t in (noise, log_std, mean, u))
    gaussian = -0.5 * ((v - m) / np.exp(s)) ** 2 - s - 0.5 * np.log(2 * np.pi)
    expected = (gaussian - np.log(1 - np.tanh(v) ** 2)).sum(1)
    assert n.shape == (50, 3)
    np.testing.assert_allclose(squashed_log_prob(noise, log_std, u), expected, rtol=1e-9)


def test_log_prob_is_right_for_saturated_actions() -> None:
    u = torch.tensor([[40.0]])
    log_prob = squashed_log_prob(torch.zeros(1, 1), torch.zeros(1, 1), u).item()
    exact = -0.5 * math.log(2 * math.pi) - (math.log(4.0) - 80.0)
    assert log_prob == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("hidden", [(), (6,), (6, 5)])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_mean_layers_reproduce_the_mode(hidden: tuple[int, ...], activation: str) -> None:
    actor = SquashedGaussian(5, 2, hidden, activation, seeded())
    layers = actor.mean_layers()
    assert [w.shape for w, _ in layers] == list(
        zip((5, *hidden), (*hidden, 2), strict=True),
    )
    h = np.random.default_rng(0).normal(size=(9, 5)).astype(np.float32)
    mean, _ = actor(torch.from_numpy(h[:, :3]), torch.from_numpy(h[:, 3:]))
    act = np.tanh if activation == "tanh" else lambda v: np.maximum(v, 0)
    for weight, bias in layers[:-1]:
        h = act(h @ weight + bias)
    np.testing.assert_allclose(h @ layers[-1][0] + layers[-1][1], mean.detach(), atol=1e-6)


def test_mean_layers_are_copies() -> None:
    actor = SquashedGaussian(3, 1, (4,), generator=seeded())
    for weight, bias in actor.mean_layers():
        weight[:], bias[:] = np.nan, np.nan
    assert all(p.isfinite().all() for p in actor.parameters())


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("hidden", [(), (6,), (6, 5)])
def test_stacked_critics_equal_separate_networks(hidden: tuple[int, ...], layer_norm: bool) -> None:
    critics = Critics(4, hidden, 3, members=3, layer_norm=layer_norm, generator=seeded())
    with torch.no_grad():
        for p in critics.parameters():
            p += 0.1 * torch.randn(p.shape, generator=seeded(p.numel()))
    x = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    out = critics(torch.from_numpy(x)).detach().numpy()
    assert out.shape == (3, 8, 3)
    for e in range(3):
        h = x
        for i, layer in enumerate(critics.layers()):
            weight, bias, *norm = (p[e].detach().numpy() for p in layer if p is not None)
            h = h @ weight.T + bias
            if i < len(hidden):
                if layer_norm:
                    h = (h - h.mean(1, keepdims=True)) / np.sqrt(h.var(1, keepdims=True) + 1e-5)
                    gain, shift = norm
                    h = h * gain + shift
                h = np.maximum(h, 0)
        np.testing.assert_allclose(out[e], h, atol=1e-5)
    assert np.abs(out[0] - out[1]).max() > 1e-2, "members start apart"


def test_critics_need_a_member() -> None:
    with pytest.raises(UsageError, match="members = 0"):
        Critics(3, members=0)
