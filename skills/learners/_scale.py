"""Signals in units of their own running mean, so that they stay of order one while they fade."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Usual(nn.Module):
    """Divides by the mean of what was measured so far, newer batches counting more.

    Dividing by a mean keeps the unit out of it whatever it is; the published scalers divide by a
    mean, a deviation or a variance over all history, which in time no longer changes.
    """

    mean: Tensor

    def __init__(self, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum  # share of a batch
        self.register_buffer("mean", torch.zeros(()))  # 0: nothing was measured yet

    def measure(self, values: Tensor) -> Tensor:
        """Take positive values (B,) in; returns their mean."""
        found = values.detach().mean()
        self.mean.lerp_(found, torch.where(self.mean > 0, self.momentum, 1.0))
        return found

    def forward(self, values: Tensor) -> Tensor:
        """Values (B,) in units of the usual one."""
        usual = torch.where(self.mean > 0, self.mean, values.mean())
        return values / usual.clamp_min(1e-8)
