"""The hand-written backward pass against autograd, for every kind of stack."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from etude.agents.kernels import NARROW, FlatAdam, Stack
from etude.agents.networks import SquashedGaussian, draw
from etude.agents.sac import SAC, SACConfig
from etude.errors import UsageError

B, I = 11, 6


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make(sizes: tuple[int, ...], **kwargs: Any) -> Stack:
    """A stack in float64 with random parameters, biases and gains included."""
    stack = Stack(sizes, **kwargs).double()
    with torch.no_grad():
        stack.flat.copy_(torch.randn(stack.flat.shape, generator=seeded(1)))
    return stack


KINDS: list[tuple[tuple[int, ...], dict[str, Any]]] = [
    ((I, 3), {}),
    ((I, 9, 1), {}),
    ((I, 9, NARROW + 1), {}),
    ((I, 9, 5, 2), {"members": 2}),
    ((I, 9, 5, 1), {"members": 3, "activation": "tanh"}),
    ((I, 9, 5, 4), {"members": 2, "layer_norm": True}),
    ((I, 9, 5, 1), {"members": 1, "layer_norm": True, "activation": "tanh"}),
]


@pytest.mark.parametrize(("sizes", "kwargs"), KINDS, ids=str)
def test_gradients_are_those_of_autograd(sizes: tuple[int, ...], kwargs: dict[str, Any]) -> None:
    stack = make(sizes, **kwargs)
    x = torch.randn(B, I, generator=seeded(2), dtype=torch.float64)
    out = stack(x)
    assert out.shape == (stack.members, B, sizes[-1])
    along = torch.randn(out.shape, generator=seeded(3), dtype=torch.float64)
    [for_flat] = torch.autograd.grad(out, [stack.flat], along)

    with torch.no_grad():
        traced, trace = stack.trace(x)
        torch.testing.assert_close(traced, out, rtol=1e-12, atol=1e-12)
        stack.backward(trace, along.clone())
    assert stack.flat.grad is not None
    torch.testing.assert_close(stack.flat.grad, for_flat, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("sizes", "kwargs"), KINDS, ids=str)
@pytest.mark.parametrize("width", [1, I])
def test_input_gradients_go_through_one_network_per_row(
    sizes: tuple[int, ...], kwargs: dict[str, Any], width: int
) -> None:
    stack = make(sizes, **kwargs)
    x = torch.randn(B, I, generator=seeded(2), dtype=torch.float64, requires_grad=True)
    member = torch.randint(stack.members, (B,), generator=seeded(3))
    along = torch.randn(B, sizes[-1], generator=seeded(4), dtype=torch.float64)
    [expected] = torch.autograd.grad(stack(x)[member, torch.arange(B)], x, along)
    with torch.no_grad():
        got = stack.input_gradient(stack.trace(x)[1], along, member, width)
    torch.testing.assert_close(got, expected[:, -width:], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("outputs", [1, NARROW - 1, NARROW, NARROW + 1])
def test_narrow_and_wide_outputs_agree_with_numpy(outputs: int) -> None:
    stack = make((I, outputs), members=2)
    x = torch.randn(B, I, generator=seeded(), dtype=torch.float64)
    [(weight, bias, gain, shift)] = stack.layers()
    assert gain is None and shift is None
    expected = x.numpy() @ weight.detach().numpy().swapaxes(1, 2) + bias.detach().numpy()
    np.testing.assert_allclose(stack(x).detach().numpy(), expected, rtol=1e-9, atol=1e-12)


def test_views_follow_the_parameters_wherever_they_go() -> None:
    """Copies, another dtype and loading: no view may point at what the stack has left."""
    x = torch.randn(B, I, generator=seeded())
    stack = Stack((I, 9, 2), members=2)
    with torch.no_grad():
        stack.flat.copy_(torch.randn(stack.flat.shape, generator=seeded(1)))
        first = stack(x)
        twin = copy.deepcopy(stack)
        twin.flat.mul_(2.0)
        assert torch.equal(stack(x), first)
        assert not torch.equal(twin(x), first)
        stack.load_state_dict(twin.state_dict())
        assert torch.equal(stack(x), twin(x))
        wide = twin.double()
        torch.testing.assert_close(wide(x.double()).float(), stack(x), rtol=1e-5, atol=1e-5)


def test_gains_start_at_one_and_the_rest_at_zero() -> None:
    first, last = Stack((I, 4, 2), members=2, layer_norm=True).layers()
    assert first.gain is not None and first.shift is not None and last.gain is None
    assert (first.gain == 1).all()
    assert not any(p.any() for p in (first.weight, first.bias, first.shift, *last[:2]))


def test_only_the_last_layer_draws_a_smaller_gain() -> None:
    stack = Stack((100, 100, 100, 100))
    draw(stack, seeded(), 0.1)
    spread = [layer.weight.std().item() for layer in stack.layers()]
    assert spread[0] == pytest.approx(spread[1], rel=0.05)
    assert spread[2] == pytest.approx(0.1 * spread[1], rel=0.05)


def test_adam_is_that_of_torch_also_after_a_restart() -> None:
    ours, theirs = (nn.Parameter(torch.ones(7)) for _ in range(2))
    optimisers = FlatAdam(ours, 0.1), torch.optim.Adam([theirs], 0.1, fused=True)
    for step in range(6):
        if step == 3:
            tree = optimisers[0].moments()
            optimisers[0].step()  # what was copied must not change with it
            ours.data.copy_(theirs)
            optimisers = FlatAdam(ours, 0.1), optimisers[1]
            optimisers[0].restore({k: np.asarray(v) for k, v in tree.items()})
        ours.grad = theirs.grad = torch.randn(7, generator=seeded(step))
        for optimiser in optimisers:
            optimiser.step()
        assert torch.equal(ours, theirs)
        assert ours.requires_grad


def test_adam_follows_a_parameter_to_another_dtype() -> None:
    stack = Stack((2, 2))
    optimiser = FlatAdam(stack.flat, 0.1)
    stack.double()
    stack.flat.grad = torch.ones_like(stack.flat)
    optimiser.step()
    torch.testing.assert_close(stack.flat.data, torch.full_like(stack.flat, -0.1))


def test_unknown_activation_names_the_nearest() -> None:
    with pytest.raises(UsageError, match='did you mean "tanh"'):
        Stack((2, 2), activation="tanhh")


@pytest.mark.parametrize("shift", [0.0, 4.0, -9.0])
def test_gradient_of_a_sample_is_that_of_autograd(shift: float) -> None:
    """Also where the log-std is clamped, above and below."""
    actor = SquashedGaussian(4 + 2, 3, (8, 7), generator=seeded()).double()
    with torch.no_grad():
        actor.net.layers()[-1].bias[..., 3:] += torch.tensor([0.0, shift, -shift])
    obs, skill, noise, for_action = (
        torch.randn(B, d, generator=seeded(d), dtype=torch.float64) for d in (4, 2, 3, 3)
    )
    slope = torch.tensor(0.3, dtype=torch.float64)

    sample = actor.sample(obs, skill, noise)
    loss = (sample.action * for_action).sum() + slope * sample.log_prob.sum()
    [expected] = torch.autograd.grad(loss, [actor.net.flat])
    with torch.no_grad():
        actor.backward(actor.sample(obs, skill, noise), for_action, slope)
    assert actor.net.flat.grad is not None
    torch.testing.assert_close(actor.net.flat.grad, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("settings", [{}, {"layer_norm": True}, {"critics": 3}], ids=str)
def test_single_precision_is_good_to_a_millionth(settings: dict[str, Any]) -> None:
    """The sizes and the dtype of real runs: gradients against autograd, relative to their size."""
    sac = SAC(29, 8, 2, SACConfig(hidden=(64, 64), **settings), generator=seeded())
    x = torch.randn(256, 39, generator=seeded(1))
    target = torch.randn(len(sac.critics(x)), 256, 1, generator=seeded(2))

    def loss(psi: Tensor) -> Tensor:
        return 0.5 * (psi - target).square().sum((0, 2)).mean()

    [expected] = torch.autograd.grad(loss(sac.critics(x)), [sac.critics.flat])
    with torch.no_grad():
        psi, trace = sac.critics.trace(x)
        sac.critics.backward(trace, (psi - target) / 256)
    assert sac.critics.flat.grad is not None
    error = (sac.critics.flat.grad - expected).abs().max() / expected.abs().max()
    assert error.item() < 1e-6
