"""The networks every agent is made of: MLP, normaliser, squashed Gaussian policy, stacked critics.

Weights start Xavier-uniform with zero biases, the policy's head a tenth of that, so that the first
actions are tanh(N(0, 1)) whatever the observation (as METRA's code, Park et al. 2024,
arXiv:2310.08887). Every initial weight is drawn from the given generator, none from the global one.

Critics are stacked: E networks share one batched multiplication per layer, which on a CPU is
about a quarter faster than E separate modules.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.nn import functional as F

from etude.agents.kernels import Stack, Step, Trace
from etude.errors import UsageError, unknown

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh}

LOG_STD_MIN, LOG_STD_MAX = -5.0, 2.0
HEAD_GAIN = 0.1
_HALF_LOG_TWO_PI = 0.5 * math.log(2.0 * math.pi)


def check_sizes(**sizes: int) -> None:
    """Raise UsageError for the first size that is not a positive integer."""
    for name, size in sizes.items():
        if size < 1:
            raise UsageError(f"{name} = {size} is too small: give at least 1.")


def available(device: str) -> torch.device:
    """The device of that name: `cpu`, `cuda`, or `cuda:1` for the second GPU.

    Raises:
        UsageError: this machine or this torch has none.
    """
    gpus = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    found = ["cpu", "cuda", *gpus] if gpus else ["cpu"]
    if device not in found:
        raise UsageError(f'device "{device}" is not there: this machine has {", ".join(found)}.')
    return torch.device(device)


def linear(
    inputs: int, outputs: int, generator: torch.Generator | None = None, gain: float = 1.0
) -> nn.Linear:
    """A linear layer, Xavier-uniform times `gain`, with zero bias."""
    check_sizes(inputs=inputs, outputs=outputs)
    layer = nn.Linear(inputs, outputs, device="meta").to_empty(device="cpu")
    nn.init.xavier_uniform_(layer.weight, gain, generator)
    nn.init.zeros_(layer.bias)
    return layer


def mlp(
    sizes: Sequence[int],
    activation: str = "relu",
    *,
    layer_norm: bool = False,
    generator: torch.Generator | None = None,
) -> nn.Sequential:
    """Linear layers of `sizes` = (inputs, hidden..., outputs), activated in between.

    `layer_norm` normalises before each activation.
    """
    if activation not in ACTIVATIONS:
        raise unknown("activation", activation, ACTIVATIONS)
    layers: list[nn.Module] = []
    for i, (inputs, outputs) in enumerate(zip(sizes, sizes[1:], strict=False)):
        layers.append(linear(inputs, outputs, generator))
        if i < len(sizes) - 2:
            layers += [nn.LayerNorm(outputs)] if layer_norm else []
            layers.append(ACTIVATIONS[activation]())
    return nn.Sequential(*layers)


def linear_layers(net: nn.Sequential) -> list[tuple[np.ndarray, np.ndarray]]:
    """The linear layers of a network as copied arrays (W (in, out), b (out,))."""
    linear = [layer for layer in net if isinstance(layer, nn.Linear)]
    pairs = [(m.weight.detach().cpu(), m.bias.detach().cpu()) for m in linear]
    return [(weight.numpy().T.copy(), bias.numpy().copy()) for weight, bias in pairs]


def draw(stack: Stack, generator: torch.Generator | None = None, head_gain: float = 1.0) -> None:
    """Xavier-uniform weights, times `head_gain` in the last layer."""
    weights = [layer.weight for layer in stack.layers(stack.flat.data)]
    for weight in weights:
        for member in weight:
            gain = head_gain if weight is weights[-1] else 1.0
            nn.init.xavier_uniform_(member, gain, generator)


class Normaliser(nn.Module):
    """The fixed affine map (obs - mean) / std; its constants are part of the saved state."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: ArrayLike, std: ArrayLike) -> None:
        super().__init__()
        centre, scale = np.asarray(mean, np.float32), np.asarray(std, np.float32)
        if centre.ndim != 1 or centre.shape != scale.shape:
            raise UsageError(
                f"normaliser mean {centre.shape} and std {scale.shape} differ in shape: "
                "give two vectors of one length."
            )
        if not (np.isfinite(centre).all() and np.isfinite(scale).all() and (scale > 0).all()):
            raise UsageError("normaliser constants must be finite with std > 0: measure them anew.")
        self.register_buffer("mean", torch.tensor(centre))
        self.register_buffer("std", torch.tensor(scale))

    def forward(self, obs: Tensor) -> Tensor:
        return (obs - self.mean) / self.std


class Sample(NamedTuple):
    """Sampled actions, and what their backward pass needs."""

    action: Tensor  # (B, A) in (-1, 1)
    log_prob: Tensor  # (B,)
    deviation: Tensor  # (B, A) std * noise
    free: Tensor  # (B, A) bool: the log-std was not clamped
    trace: Trace

    def rows(self, which: slice) -> Sample:
        """Some rows of the batch."""
        trace = [Step(inputs[:, which]) for inputs, *_ in self.trace]  # policies have no norm
        return Sample(
            self.action[which],
            self.log_prob[which],
            self.deviation[which],
            self.free[which],
            trace,
        )


class SquashedGaussian(nn.Module):
    """Policy a = tanh(u), u ~ N(mean(s, z), std(s, z)^2): one trunk, one head for mean and log-std.

    The log-std is *clamped* to [-5, 2], so it starts at 0 (std 1) as in METRA, not mid-range.
    """

    def __init__(
        self,
        inputs: int,
        action_dim: int,
        hidden: Sequence[int] = (256, 256),
        activation: str = "relu",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.net = Stack((inputs, *hidden, 2 * action_dim), activation=activation)
        draw(self.net, generator, HEAD_GAIN)

    def forward(self, obs: Tensor, skill: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-std of the Gaussian before the squashing, each (B, A)."""
        mean, log_std = self.net(torch.cat((obs, skill), -1))[0].chunk(2, -1)
        return mean, log_std.clamp(LOG_STD_MIN, LOG_STD_MAX)

    def sample(self, obs: Tensor, skill: Tensor, noise: Tensor) -> Sample:
        """Actions for standard normal `noise` (B, A)."""
        outputs, trace = self.net.trace(torch.cat((obs, skill), -1))
        mean, raw = outputs[0].chunk(2, -1)
        log_std = raw.clamp(LOG_STD_MIN, LOG_STD_MAX)
        deviation = log_std.exp() * noise
        pre_tanh = mean + deviation
        action = pre_tanh.tanh()
        log_prob = squashed_log_prob(noise, log_std, pre_tanh)
        return Sample(action, log_prob, deviation, raw == log_std, trace)

    @torch.no_grad()
    def backward(self, sample: Sample, for_action: Tensor, for_log_prob: Tensor) -> None:
        """Set `net.flat.grad` from the gradients of action (B, A) and log-density (scalar).

        Of u: d action = 1 - action^2 and d log-density = 2 action; of the log-std, the log-density
        has -1 of its own. A clamped log-std takes none.
        """
        action, _, deviation, free, trace = sample
        grad = for_action * (1 - action * action) + 2 * for_log_prob * action  # (B, A)
        grad = torch.cat((grad, (grad * deviation - for_log_prob) * free), -1)
        self.net.backward(trace, grad.unsqueeze(0))

    def mean_layers(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """The deterministic policy's layers as (W (in, out), b (out,)): trunk, then the mean."""
        layers = self.net.layers(self.net.flat.detach().cpu())
        arrays = [(w[0].numpy().T.copy(), b[0, 0].numpy().copy()) for w, b, *_ in layers]
        weight, bias = arrays[-1]
        action_dim = len(bias) // 2
        arrays[-1] = (weight[:, :action_dim].copy(), bias[:action_dim].copy())
        return arrays


def squashed_log_prob(noise: Tensor, log_std: Tensor, pre_tanh: Tensor) -> Tensor:
    """Log-density (B,) of tanh(u) for u = mean + std * noise.

    log(1 - tanh(u)^2) is written 2 (log 2 - u - softplus(-2u)), which is exact where the usual
    log(1 - a^2 + 1e-6) is wrong: for saturated actions.
    """
    log_slope = F.softplus(-2.0 * pre_tanh) + pre_tanh  # log 2 - log(1 - tanh(u)^2) / 2
    each = torch.sub(2.0 * log_slope - log_std, noise * noise, alpha=0.5)
    return each.sum(-1) - noise.shape[-1] * (2.0 * math.log(2.0) + _HALF_LOG_TWO_PI)


class Critics(Stack):
    """E independent ReLU MLPs evaluated together: x (B, I) -> (E, B, K)."""

    def __init__(
        self,
        inputs: int,
        hidden: Sequence[int] = (256, 256),
        outputs: int = 1,
        members: int = 2,
        layer_norm: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        check_sizes(members=members)
        super().__init__((inputs, *hidden, outputs), members, layer_norm=layer_norm)
        draw(self, generator)
