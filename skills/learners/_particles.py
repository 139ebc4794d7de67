"""Entropy by nearest neighbours: how far a batch of points lies apart, in units that stay usual.

For points x_i the k-nearest-neighbour estimate of the entropy grows with the mean of the logarithms
of their distances (Singh et al. 2003); what rewards a single point is, after Liu & Abbeel 2021
("Behavior From the Void", arXiv:2103.04551),

    e_i = log(1 + mean distance of x_i to its k nearest others / the usual one).

Against the published code a point is no neighbour of its own, and the usual distance is a running
mean (theirs weighs all history alike, or divides by a variance, whose unit does not cancel); no
clip is taken off the distances.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from etude.skills.learners._scale import Usual


class Particles(nn.Module):
    """The entropy of each point of a batch, with its running scale."""

    def __init__(self, neighbours: int, momentum: float) -> None:
        super().__init__()
        self.neighbours, self.usual = neighbours, Usual(momentum)

    def measure(self, points: Tensor) -> Tensor:
        """Take the distances of points (B, D) into the running scale; returns their mean."""
        return self.usual.measure(self.spacing(points.detach()))

    def entropy(self, points: Tensor) -> Tensor:
        """e (B,) of points (B, D)."""
        return torch.as_tensor(self.usual(self.spacing(points))).log1p()

    def spacing(self, points: Tensor) -> Tensor:
        """Mean distance (B,) of points (B, D) to the k nearest others."""
        distance = torch.cdist(points, points)
        distance = distance.fill_diagonal_(math.inf)
        nearest = min(self.neighbours, len(points) - 1)
        return distance.topk(nearest, largest=False).values.mean(-1)
