"""The running mean and deviation of something whose units and size are not known beforehand.

Unlike batch norm it scales alike in every use: what is compared is measured with one ruler.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RunningScale(nn.Module):
    """Scales vectors (B, X) to mean 0 and deviation 1 of what `measure` has seen.

    Args:
        size: X.
        momentum: share of a batch, in the long run; at first all batches count alike.
        min_std: floor of the deviation, below which an entry is dead: its noise stays small.
    """

    mean: Tensor
    square: Tensor
    share: Tensor

    def __init__(self, size: int, momentum: float, min_std: float) -> None:
        super().__init__()
        self.momentum, self.min_std = momentum, min_std
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("square", torch.ones(size))  # mean of the squares
        self.register_buffer("share", torch.ones(()))  # of the next batch in both

    @property
    def std(self) -> Tensor:
        """Deviation (X,), no smaller than its floor; 1 before anything was measured."""
        return (self.square - self.mean.square()).clamp_min(self.min_std**2).sqrt()

    @torch.no_grad()
    def measure(self, x: Tensor) -> None:
        """Add a batch (B, X)."""
        self.mean = self.mean.lerp(x.mean(0), self.share)
        self.square = self.square.lerp(x.square().mean(0), self.share)
        self.share = (self.share / (1 + self.share)).clamp_min(self.momentum)

    def forward(self, x: Tensor) -> Tensor:
        """The scaled vectors (B, X)."""
        return (x - self.mean) / self.std
