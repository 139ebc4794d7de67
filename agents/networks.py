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

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.nn import functional as F

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
    activate_last: bool = False,
    generator: torch.Generator | None = None,
) -> nn.Sequential:
    """Linear layers of `sizes` = (inputs, hidden..., outputs), activated in between.

    `layer_norm` normalises before each activation; `activate_last` treats the last layer as hidden.
    """
    if activation not in ACTIVATIONS:
        raise unknown("activation", activation, ACTIVATIONS)
    layers: list[nn.Module] = []
    for i, (inputs, outputs) in enumerate(zip(sizes, sizes[1:], strict=False)):
        layers.append(linear(inputs, outputs, generator))
        if activate_last or i < len(sizes) - 2:
            layers += [nn.LayerNorm(outputs)] if layer_norm else []
            layers.append(ACTIVATIONS[activation]())
    return nn.Sequential(*layers)


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
        sizes = (inputs, *hidden)
        self.trunk = mlp(sizes, activation, activate_last=True, generator=generator)
        self.head = linear(sizes[-1], 2 * action_dim, generator, HEAD_GAIN)

    def forward(self, obs: Tensor, skill: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-std of the Gaussian before the squashing, each (B, A)."""
        features = self.trunk(torch.cat((obs, skill), -1))
        mean, log_std = self.head(features).chunk(2, -1)
        return mean, log_std.clamp(LOG_STD_MIN, LOG_STD_MAX)

    def sample(self, obs: Tensor, skill: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Action (B, A) and its log-density (B,) for standard normal `noise` (B, A)."""
        mean, log_std = self(obs, skill)
        pre_tanh = mean + log_std.exp() * noise
        return pre_tanh.tanh(), squashed_log_prob(noise, log_std, pre_tanh)

    def mean_layers(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """The deterministic policy's layers as (W (in, out), b (out,)): trunk, then the mean."""
        layers = [m for m in self.trunk if isinstance(m, nn.Linear)] + [self.head]
        arrays = [_arrays(layer) for layer in layers]
        action_dim = self.head.out_features // 2
        weight, bias = arrays[-1]
        arrays[-1] = (weight[:, :action_dim].copy(), bias[:action_dim].copy())
        return arrays


def squashed_log_prob(noise: Tensor, log_std: Tensor, pre_tanh: Tensor) -> Tensor:
    """Log-density (B,) of tanh(u) for u = mean + std * noise.

    log(1 - tanh(u)^2) is written 2 (log 2 - u - softplus(-2u)), which is exact where the usual
    log(1 - a^2 + 1e-6) is wrong: for saturated actions.
    """
    gaussian = -0.5 * noise.square() - log_std - _HALF_LOG_TWO_PI
    jacobian = 2.0 * (math.log(2.0) - pre_tanh - F.softplus(-2.0 * pre_tanh))
    return (gaussian - jacobian).sum(-1)


def _arrays(layer: nn.Linear) -> tuple[np.ndarray, np.ndarray]:
    weight, bias = (p.detach().cpu().numpy() for p in (layer.weight, layer.bias))
    return weight.T.copy(), bias.copy()


class Critics(nn.Module):
    """E independent ReLU MLPs evaluated together: x (B, I) -> (E, B, K).

    `layer_norm` normalises each hidden layer before its ReLU, with a gain and a shift per unit.
    """

    def __init__(
        self,
        inputs: int,
        hidden: Sequence[int] = (256, 256),
        outputs: int = 1,
        members: int = 2,
        layer_norm: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_sizes(members=members)
        sizes = (inputs, *hidden, outputs)
        self.members = members
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        self.gains, self.shifts = nn.ParameterList(), nn.ParameterList()
        for fan_in, fan_out in zip(sizes, sizes[1:], strict=False):
            drawn = [linear(fan_in, fan_out, generator).weight.detach().T for _ in range(members)]
            self.weights.append(nn.Parameter(torch.stack(drawn)))  # (E, in, out)
            self.biases.append(nn.Parameter(torch.zeros(members, 1, fan_out)))
        for width in hidden if layer_norm else ():
            self.gains.append(nn.Parameter(torch.ones(members, 1, width)))
            self.shifts.append(nn.Parameter(torch.zeros(members, 1, width)))

    def forward(self, x: Tensor) -> Tensor:
        h = x.expand(self.members, *x.shape)
        last = len(self.weights) - 1
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            h = torch.baddbmm(bias, h, weight)
            if i < last:
                if len(self.gains):
                    h = F.layer_norm(h, h.shape[-1:]) * self.gains[i] + self.shifts[i]
                h = F.relu(h, inplace=True)
        return h  # (E, B, K)
