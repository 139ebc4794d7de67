"""CSD: skills that go where it is hard to get, by a distance that the agent learns.

Park, Lee, Lee, Abbeel, "Controllability-Aware Unsupervised Skill Discovery", ICML 2023
(arXiv:2302.05103). A density q(s' - s | s) = N(mu(s), diag sigma(s)^2) learns what usually happens
in one step, whatever the skill. What it finds improbable is far away, and the policy and the
representation phi: S -> R^D maximise together

    E[ (phi(s') - phi(s)) . z ]   subject to   |phi(s') - phi(s)|^2 <= d(s, s'),

    d(s, s') = mean_i w_i(s) (s'_i - s_i - mu_i(s))^2,   w_i = sigma_i^-2 / geometric mean of them,

for adjacent s, s'. The weights of the dimensions have product one: they compare dimensions, while
the length of a step stays that of normalised observations. What the skills move with ease loses
weight, so harder things get their turn. The constraint is held by dual ascent on lambda.

Deviations: z is uniform on the sphere (the paper: a standard normal), and transitions come from a
replay, as in METRA's re-run of CSD; the squared step is summed over the D dimensions (the authors'
code: the mean); sigma is at least `min_std`, because what never moves would outweigh all else (the
authors: 1e-6); lambda is clamped to [e^-5, e^10], and by default starts lower and learns faster.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from etude.agents.replay import Batch
from etude.config import Range
from etude.skills.learners._delta_phi import DeltaPhi
from etude.skills.learners.base import Spec, descend
from etude.worldmodels.densities import Gaussian


class Csd(DeltaPhi):
    """Maximises the progress (phi(s') - phi(s)) . z within a learned distance of s and s'."""

    config: Config

    @dataclass(frozen=True)
    class Config(DeltaPhi.Config):
        """Settings of CSD."""

        density_lr: Annotated[float, Range(0, 1, open_low=True)] = 3e-4
        """learning rate of the density q (paper: as the policy's, 1e-4)"""
        min_std: Annotated[float, Range(0, open_low=True)] = 1e-2
        """smallest sigma, in units of the normalised observations (paper: 1e-6)"""
        dual_lr: Annotated[float, Range(0, 1, open_low=True)] = 1e-3
        """learning rate of log lambda (paper: 1e-4)"""
        dual_init: Annotated[float, Range(0, open_low=True)] = 30.0
        """initial lambda (paper: 3000)"""
        slack: Annotated[float, Range(0, open_low=True)] = 1e-6
        """upper clip of the constraint d - |step|^2: satisfied ones no longer move phi, and lower
        lambda by this much (paper)"""
        scale: Annotated[float, Range(0, open_low=True)] = 10.0
        """factor on the signal (paper: 10)"""

    def __init__(self, spec: Spec, config: Config) -> None:
        super().__init__(spec, config)
        self.constrain(config.dual_init, config.dual_lr)
        self.q = Gaussian(self.seen_dim, self.seen_dim, config.hidden, config.min_std)
        self.density = torch.optim.Adam(self.q.parameters(), lr=config.density_lr, fused=True)

    def update(self, batch: Batch) -> dict[str, Tensor]:
        metrics = super().update(batch)
        loss = -self.q.log_prob(batch.obs[:, self.columns], self.change(batch)).mean()
        descend(self.density, loss)
        return {**metrics, "skill/density_loss": loss.detach()}

    def signal(self, batch: Batch) -> Tensor:
        return self.config.scale * super().signal(batch)

    def bound(self, batch: Batch, step: Tensor) -> Tensor:
        room = self.distance(batch) - step.square().sum(-1)  # (B,)
        return room.clamp(max=self.config.slack)

    @torch.no_grad()
    def distance(self, batch: Batch) -> Tensor:
        """d(s, s') of the batch (B,), in squared units of normalised observations."""
        mean, std = self.q(batch.obs[:, self.columns])
        log_weight = -2 * std.log()
        weight = (log_weight - log_weight.mean(-1, keepdim=True)).exp()  # product 1
        return torch.as_tensor((weight * (self.change(batch) - mean).square()).mean(-1))

    def change(self, batch: Batch) -> Tensor:
        """s' - s in what the representation sees, (B, seen)."""
        return (batch.next_obs - batch.obs)[:, self.columns]
