"""Conditional densities q(x | context), fitted by maximum likelihood.

`Categorical` is over one-hot vectors, `Gaussian` over real vectors with a diagonal covariance.
Shapes: B batch, C context, X modelled variable.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from etude.agents.networks import mlp


class Categorical(nn.Module):
    """q(x | c) = softmax(f(c)) over the `size` one-hot vectors x."""

    def __init__(self, context: int, size: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.net = mlp((context, *hidden, size))

    def forward(self, context: Tensor) -> Tensor:
        """Logits (B, X)."""
        return torch.as_tensor(self.net(context))

    def log_prob(self, context: Tensor, x: Tensor) -> Tensor:
        """Log-probability (B,) in nats of the one-hot `x` (B, X)."""
        return (F.log_softmax(self(context), dim=-1) * x).sum(-1)

    def mode(self, context: Tensor) -> Tensor:
        """The likeliest one-hot vector (B, X)."""
        logits = self(context)
        return F.one_hot(logits.argmax(-1), logits.shape[-1]).to(logits.dtype)


class Gaussian(nn.Module):
    """q(x | c) = N(mean(c), std(c)^2 I) with std bounded below by `min_std`.

    The bound keeps the density bounded above: with std -> 0 a reward log q grows without limit
    and the policy only sharpens the density instead of spreading the skills.
    """

    def __init__(self, context: int, size: int, hidden: Sequence[int], min_std: float) -> None:
        super().__init__()
        self.net = mlp((context, *hidden, 2 * size))
        self.min_std = min_std

    def forward(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, each (B, X)."""
        mean, raw = self.net(context).chunk(2, dim=-1)
        return mean, self.min_std + F.softplus(raw)

    def log_prob(self, context: Tensor, x: Tensor) -> Tensor:
        """Log-density (B,) in nats of `x` (B, X)."""
        mean, std = self(context)
        square = ((x - mean) / std).square()
        return -(0.5 * square + std.log() + 0.5 * math.log(2 * math.pi)).sum(-1)

    def mode(self, context: Tensor) -> Tensor:
        """The likeliest vector (B, X)."""
        return torch.as_tensor(self(context)[0])
