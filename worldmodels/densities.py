"""Conditional densities q(x | context), fitted by maximum likelihood.

`Categorical` is over one-hot vectors, `Gaussian` over real vectors with a diagonal covariance.
`CondDensity` has any head of `distributions` and a second input: q(x | context, condition).
Shapes: B batch, C context, Z condition, X modelled variable.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from etude.agents.networks import mlp
from etude.errors import UsageError
from etude.worldmodels.distributions import DiagGaussian, GaussianHead, Mixture, MixtureHead


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
        return -torch.as_tensor((0.5 * square + std.log() + 0.5 * math.log(2 * math.pi)).sum(-1))

    def mode(self, context: Tensor) -> Tensor:
        """The likeliest vector (B, X)."""
        return torch.as_tensor(self(context)[0])


class CondDensity(nn.Module):
    """q(x | c, z), z being a skill, an action sequence or nothing (`cond_dim` = 0).

    With the change of the state as x it is the skill dynamics of DADS (Sharma et al. 2020,
    arXiv:1907.01657), whose inputs and targets are normalised; here the caller does that, with
    constants that are the same for every z that is compared.
    """

    def __init__(
        self,
        ctx_dim: int,
        cond_dim: int,
        head: GaussianHead | MixtureHead,
        hidden: Sequence[int] = (256, 256),
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.net = mlp((ctx_dim + cond_dim, *hidden, head.width), generator=generator)
        self.head = head

    def forward(self, ctx: Tensor, cond: Tensor | None = None) -> DiagGaussian | Mixture:
        """The distribution of x (B, X) for contexts (B, C) and conditions (B, Z)."""
        raw: Tensor = self.net(ctx if cond is None else torch.cat((ctx, cond), -1))
        dist: DiagGaussian | Mixture = self.head(raw)
        return dist

    def nll(
        self, ctx: Tensor, cond: Tensor | None, target: Tensor, weight: Tensor | None = None
    ) -> Tensor:
        """Mean over the batch of -log q(target), in nats; weights multiply, and do not normalise.

        `weight` is (B,), one per sample (importance ratios, masks), or (B, X), one per dimension
        (value-aware losses, Voelcker et al. 2022).
        """
        dist = self(ctx, cond)
        if weight is None:
            return torch.as_tensor(-dist.log_prob(target).mean())
        if weight.shape == target.shape:
            return torch.as_tensor(-dist.log_prob(target, weight).mean())
        if weight.shape == target.shape[:-1]:
            return torch.as_tensor(-(weight * dist.log_prob(target)).mean())
        raise UsageError(
            f"weight of shape {tuple(weight.shape)} fits no target of shape {tuple(target.shape)}: "
            "give one number per sample or one per dimension."
        )


def categorical_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) (...) in nats of categorical distributions given as log-probabilities (..., X)."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def categorical_information(log_p: Tensor) -> Tensor:
    """I(cause; x) (...) in nats of M equally likely causes with log p(x | cause), (..., M, X)."""
    p = log_p.exp()
    mean = p.mean(-2)
    entropy = -(mean * mean.clamp_min(1e-20).log()).sum(-1)
    return entropy + (p * log_p).sum(-1).mean(-1)
