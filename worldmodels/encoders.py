"""Encoders of observations, and the layers that all world models are made of.

Observations come normalised once, by the loop; an encoder does not normalise them again.
Shapes: B stands for any leading dimensions, O observation, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from etude.agents.networks import check_sizes, linear
from etude.errors import UsageError

Out_co = TypeVar("Out_co", covariant=True)


def layers(sizes: Sequence[int], generator: torch.Generator | None = None) -> nn.Sequential:
    """Linear layers of `sizes` = (inputs, hidden..., outputs), with LayerNorm and SiLU in between.

    Dynamics are smooth and are differentiated with respect to their inputs, which the kinks of ReLU
    would spoil (TD-MPC2, Hansen et al. 2024, arXiv:2310.16828, has Mish for the same reason).
    """
    parts: list[nn.Module] = []
    for i, (inputs, outputs) in enumerate(zip(sizes, sizes[1:], strict=False)):
        parts.append(linear(inputs, outputs, generator))
        if i < len(sizes) - 2:
            parts += [nn.LayerNorm(outputs), nn.SiLU()]
    return nn.Sequential(*parts)


class SimNorm(nn.Module):
    """Softmax within groups of `size` features: a product of simplices (TD-MPC2).

    It bounds the latent, so that long rollouts cannot run away; a constant remains possible.
    """

    def __init__(self, width: int, size: int = 8) -> None:
        super().__init__()
        check_sizes(width=width, size=size)
        if width % size:
            raise UsageError(f"width = {width} does not split into groups of {size}: round it.")
        self.width, self.size = width, size

    def forward(self, x: Tensor) -> Tensor:
        groups: Tensor = x.unflatten(-1, (-1, self.size))
        return groups.softmax(-1).flatten(-2)


class UnitNorm(nn.Module):
    """Features of mean 0 and variance 1 in every vector, without a gain (layer norm)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        check_sizes(width=width)
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.layer_norm(x, x.shape[-1:])


class Finish(Protocol[Out_co]):
    """What an encoder ends in: `SimNorm`, `UnitNorm` or a head of `distributions`."""

    width: int

    def __call__(self, raw: Tensor) -> Out_co:
        """Features (B, D) or a distribution, of outputs (B, width)."""


class Encoder(nn.Module, Generic[Out_co]):
    """obs (B, O) -> what `finish` makes of the network's outputs: features (B, D), or a `Dist`."""

    def __init__(
        self,
        obs_dim: int,
        finish: Finish[Out_co],
        hidden: Sequence[int] = (256, 256),
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.net = layers((obs_dim, *hidden, finish.width), generator)
        self.finish = finish

    def forward(self, obs: Tensor) -> Out_co:
        return self.finish(self.net(obs))
