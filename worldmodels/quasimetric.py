"""Quasimetrics: distances that differ by direction, as the time from one place to another does.

Wang, Isola, "Improved Representation of Asymmetrical Distances with Interval Quasimetric
Embeddings", 2022 (arXiv:2211.15120). Latents u and v are cut into C components of k numbers.
Component c measures the union of k intervals on the line,

    d_c(u, v) = | union_j [ u_cj, max(u_cj, v_cj) ] |,

and a learned w in (0, 1) mixes their mean and their maximum, d = (1 - w) mean_c d_c + w max_c d_c.
Whatever the latents are, d(u, u) = 0, d >= 0 and d(u, w) <= d(u, v) + d(v, w); d(u, v) and d(v, u)
are free of each other.

A union is measured from left to right: of the interval j with the j-th smallest beginning counts
what lies right of all ends before it, max(0, end_j - max(begin_j, end_1, ..., end_{j-1})).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from etude.agents.networks import check_sizes, mlp
from etude.errors import UsageError


class IQE(nn.Module):
    """The interval quasimetric of latents of `components` * `size` numbers."""

    def __init__(self, components: int = 64, size: int = 8) -> None:
        super().__init__()
        check_sizes(components=components, size=size)
        self.components, self.size = components, size
        self.raw = nn.Parameter(torch.zeros(()))  # w = sigmoid(raw)

    @property
    def width(self) -> int:
        """Numbers in a latent."""
        return self.components * self.size

    def forward(self, u: Tensor, v: Tensor) -> Tensor:
        """Distances (...) from latents u (..., D) to latents v (..., D); leading sizes broadcast.

        Raises:
            UsageError: latents of another width.
        """
        if u.shape[-1] != self.width or v.shape[-1] != self.width:
            raise UsageError(
                f"latents of {u.shape[-1]} and {v.shape[-1]} numbers: this quasimetric takes "
                f"{self.components} components of {self.size}, {self.width} in all."
            )
        u, v = torch.broadcast_tensors(u, v)
        parts = lengths(*(x.unflatten(-1, (self.components, self.size)) for x in (u, v)))
        return torch.lerp(parts.mean(-1), parts.amax(-1), self.raw.sigmoid())


class Quasimetric(nn.Module):
    """The time from observation to observation (B, O): an encoder under an `IQE`."""

    def __init__(
        self, inputs: int, hidden: Sequence[int] = (256, 256), components: int = 32, size: int = 8
    ) -> None:
        super().__init__()
        self.head = IQE(components, size)
        self.encoder = mlp((inputs, *hidden, self.head.width))

    def forward(self, start: Tensor, end: Tensor) -> Tensor:
        """Distances (B,) from `start` (B, O) to `end` (B, O)."""
        return torch.as_tensor(self.head(self.encoder(start), self.encoder(end)))


def lengths(begin: Tensor, end: Tensor) -> Tensor:
    """How much of the line (...) the k intervals [begin, max(begin, end)] (..., k) cover."""
    order = begin.argsort(-1)
    begin = begin.gather(-1, order)
    end = torch.maximum(begin, end.gather(-1, order))
    reached = end.cummax(-1).values  # by this interval and those before it
    before = torch.cat((begin[..., :1], reached[..., :-1]), -1)
    return (end - torch.maximum(begin, before)).clamp_min(0).sum(-1)


def spread_loss(
    step: Tensor, apart: Tensor, multiplier: Tensor, *, slack: float, offset: float, beta: float
) -> tuple[Tensor, Tensor]:
    """The loss of distances that are as long as single steps allow, and how far steps violate it.

    Quasimetric RL (Wang, Torralba, Isola, Zhang 2023, arXiv:2304.01203): of random pairs the
    distance grows, of a step it is at most 1, up to `slack`,

        mean softplus_beta(offset - apart) + multiplier (mean max(0, step - 1)^2 - slack^2).

    In a deterministic world the optimum is the least number of steps. Distances beyond `offset`
    gain nothing more, so it must lie above the longest one.

    Args:
        step: d(s, s') of adjacent observations, (B,), in steps.
        apart: d(s, g) of random pairs, (B,), in steps.
        multiplier: lambda >= 0, which ascends by the second value returned.
        slack: epsilon, steps.
        offset: where distances stop to grow, steps.
        beta: how sharply they do, 1 / steps.
    """
    violation = (step - 1).clamp_min(0).square().mean() - slack**2
    push = nn.functional.softplus(offset - apart, beta=beta).mean()
    return push + multiplier.detach() * violation, violation
