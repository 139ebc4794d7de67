"""Distributions over vectors that a network puts out, and the heads that make them.

All share one small protocol, `Dist`. A quantity without a closed form is not approximated behind
the caller's back: it raises `UsageError` and says what there is instead. Noise is drawn from the
given generator, on its device, and never from the global one.

Shapes: B stands for any leading dimensions, X for the vector, C components, G groups of K classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from etude.agents.networks import check_sizes
from etude.errors import UsageError

HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)
EDGE = 1 - 2.0**-20
"""Largest |action| whose inverse tanh is taken; float32 tells 16 numbers between it and 1."""


class Dist(Protocol):
    """A distribution over vectors (B, X); all logarithms are natural."""

    @property
    def mode(self) -> Tensor:
        """The vector (B, X) to act on or to show, if one must stand for all."""

    def rsample(self, generator: torch.Generator | None = None) -> Tensor:
        """A sample (B, X) through which gradients reach the parameters."""

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-probability or log-density (B,) of `x` (B, X), in nats."""

    def entropy(self) -> Tensor:
        """Entropy (B,) in nats. Raises UsageError where there is no closed form."""

    def kl(self, other: Dist) -> Tensor:
        """KL(self || other) (B,) in nats. Raises UsageError where there is no closed form."""


class Head(Protocol):
    """Turns the `width` outputs of a network into a distribution."""

    width: int

    def __call__(self, raw: Tensor) -> Dist:
        """The distribution that the outputs (B, width) parametrise."""


def normal_like(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal noise of the shape of `like`, drawn on the generator's device."""
    device = generator.device if generator is not None else like.device
    noise = torch.randn(like.shape, generator=generator, dtype=like.dtype, device=device)
    return noise.to(like.device)


def exponential_like(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Exponential noise of the shape of `like`, drawn on the generator's device."""
    device = generator.device if generator is not None else like.device
    noise = torch.empty(like.shape, dtype=like.dtype, device=device)
    return noise.exponential_(generator=generator).to(like.device)


def _missing(dist: Dist, what: str, instead: str) -> UsageError:
    return UsageError(f"{type(dist).__name__} has no {what} in closed form: {instead}.")


def _other(dist: Dist, other: Dist) -> UsageError:
    name = type(dist).__name__
    return _missing(dist, f"kl to {type(other).__name__}", f"there is one to another {name}")


@dataclass(frozen=True)
class DiagGaussian:
    """Independent normal distributions in every dimension."""

    mean: Tensor  # (B, X)
    std: Tensor  # (B, X)

    @property
    def mode(self) -> Tensor:
        return self.mean

    def rsample(self, generator: torch.Generator | None = None) -> Tensor:
        return self.mean + self.std * normal_like(self.mean, generator)

    def log_prob(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """Log-density (B,); `weight` (B, X) multiplies the share of each dimension."""
        each = -0.5 * ((x - self.mean) / self.std).square() - self.std.log() - HALF_LOG_TWO_PI
        return (each if weight is None else each * weight).sum(-1)

    def entropy(self) -> Tensor:
        return (self.std.log() + 0.5 + HALF_LOG_TWO_PI).sum(-1)

    def kl(self, other: Dist) -> Tensor:
        if not isinstance(other, DiagGaussian):
            raise _other(self, other)
        ratio = (self.std / other.std).square()
        shift = ((self.mean - other.mean) / other.std).square()
        return 0.5 * (ratio + shift - 1 - ratio.log()).sum(-1)


@dataclass(frozen=True)
class Mixture:
    """Normal distributions of one fixed standard deviation, mixed (DADS, Sharma et al. 2020)."""

    logits: Tensor  # (B, C), of the components
    means: Tensor  # (B, C, X)
    std: float

    @property
    def mode(self) -> Tensor:
        """The mean of the likeliest component: the mode where the components lie far apart."""
        return self._component(self.logits.argmax(-1))

    def rsample(self, generator: torch.Generator | None = None) -> Tensor:
        """A sample (B, X); its gradient reaches the means, not the choice among them."""
        race = self.logits - exponential_like(self.logits, generator).log()
        mean = self._component(race.argmax(-1))
        return mean + self.std * normal_like(mean, generator)

    def log_prob(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """Log-density (B,); `weight` (B, X) multiplies each dimension within a component."""
        each = -0.5 * ((x.unsqueeze(-2) - self.means) / self.std).square()
        each = each - math.log(self.std) - HALF_LOG_TWO_PI  # (B, C, X)
        inside = each if weight is None else each * weight.unsqueeze(-2)
        return (F.log_softmax(self.logits, -1) + inside.sum(-1)).logsumexp(-1)

    def entropy(self) -> Tensor:
        raise _missing(self, "entropy", "average -log_prob over samples")

    def kl(self, other: Dist) -> Tensor:
        raise _missing(self, "kl", "average the difference of log_prob over samples")

    def _component(self, index: Tensor) -> Tensor:
        """Means (B, X) of the components `index` (B,)."""
        size = self.means.shape[-1]
        where = index[..., None, None].expand(*index.shape, 1, size)
        return self.means.gather(-2, where).squeeze(-2)


@dataclass(frozen=True)
class OneHot:
    """G independent choices among K classes, as G one-hot vectors in a row (X = G K)."""

    logits: Tensor  # (B, G K)
    groups: int = 1

    @property
    def mode(self) -> Tensor:
        return self._hot(self.split(self.logits))

    def rsample(self, generator: torch.Generator | None = None) -> Tensor:
        """One-hot samples (B, X) with the gradient of the probabilities (straight through)."""
        logits = self.split(self.logits)
        hot = self._hot(logits - exponential_like(logits, generator).log())
        soft = logits.softmax(-1).flatten(-2)
        return hot + (soft - soft.detach())  # the difference is exactly zero

    def log_prob(self, x: Tensor) -> Tensor:
        return (self.log_probs() * self.split(x)).sum((-2, -1))

    def entropy(self) -> Tensor:
        log_p = self.log_probs()
        return -(log_p.exp() * log_p).sum((-2, -1))

    def kl(self, other: Dist) -> Tensor:
        if not isinstance(other, OneHot):
            raise _other(self, other)
        log_p = self.log_probs()
        return (log_p.exp() * (log_p - other.log_probs())).sum((-2, -1))

    def log_probs(self) -> Tensor:
        """Log-probability (B, G, K) of every class."""
        return F.log_softmax(self.split(self.logits), -1)

    def split(self, x: Tensor) -> Tensor:
        """(B, G K) as (B, G, K)."""
        groups: Tensor = x.unflatten(-1, (self.groups, -1))
        return groups

    def _hot(self, scores: Tensor) -> Tensor:
        """One-hot vectors (B, G K) of the largest among `scores` (B, G, K)."""
        return F.one_hot(scores.argmax(-1), scores.shape[-1]).to(scores.dtype).flatten(-2)


@dataclass(frozen=True)
class TanhNormal:
    """tanh(u) of u ~ N(mean, std^2): bounded actions."""

    mean: Tensor  # (B, X) of u
    std: Tensor  # (B, X) of u

    @property
    def mode(self) -> Tensor:
        """tanh(mean), the median: with a wide std the density is largest at the bounds."""
        return self.mean.tanh()

    def rsample(self, generator: torch.Generator | None = None) -> Tensor:
        return (self.mean + self.std * normal_like(self.mean, generator)).tanh()

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density (B,) of `x`, which is taken to be at most `EDGE` in size."""
        u = x.clamp(-EDGE, EDGE).atanh()
        log_slope = 2 * (math.log(2) - u - F.softplus(-2 * u))  # log(1 - tanh(u)^2), exactly
        return DiagGaussian(self.mean, self.std).log_prob(u) - log_slope.sum(-1)

    def entropy(self) -> Tensor:
        raise _missing(self, "entropy", "average -log_prob over samples")

    def kl(self, other: Dist) -> Tensor:
        if not isinstance(other, TanhNormal):
            raise _other(self, other)
        # the same invertible map on both sides leaves the divergence as it was
        return DiagGaussian(self.mean, self.std).kl(DiagGaussian(other.mean, other.std))


class GaussianHead:
    """Outputs -> `DiagGaussian` over vectors of `size`; std = min_std + softplus(output).

    The lower bound `min_std` (in units of x) keeps the log-density bounded above.
    """

    def __init__(self, size: int, min_std: float = 0.05) -> None:
        check_sizes(size=size)
        _check_positive("min_std", min_std)
        self.width, self.min_std = 2 * size, min_std

    def __call__(self, raw: Tensor) -> DiagGaussian:
        mean, spread = raw.chunk(2, -1)
        return DiagGaussian(mean, self.min_std + F.softplus(spread))


class MixtureHead:
    """Outputs -> `Mixture` of `components` over vectors of `size`, each of the given `std`.

    DADS (Sharma et al. 2020, arXiv:1907.01657): 4 components of std 1 over normalised targets.
    """

    def __init__(self, size: int, components: int = 4, std: float = 1.0) -> None:
        check_sizes(size=size, components=components)
        _check_positive("std", std)
        self.width, self.components, self.std = components * (1 + size), components, std

    def __call__(self, raw: Tensor) -> Mixture:
        logits, means = raw[..., : self.components], raw[..., self.components :]
        return Mixture(logits, means.unflatten(-1, (self.components, -1)), self.std)


class OneHotHead:
    """Outputs -> `OneHot` of `groups` choices among `classes`."""

    def __init__(self, classes: int, groups: int = 1) -> None:
        check_sizes(classes=classes, groups=groups)
        self.width, self.groups = groups * classes, groups

    def __call__(self, raw: Tensor) -> OneHot:
        return OneHot(raw, self.groups)


def _check_positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise UsageError(f"{name} = {value} must be positive and finite: give a deviation above 0.")
