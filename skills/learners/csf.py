"""CSF: skills that successor features choose, in a space that other skills bound.

Zheng, Tuyls, Peng, Eysenbach, "Can a MISL Fly? Analysis and Ingredients for Mutual Information
Skill Learning", ICLR 2025 (arXiv:2412.08021). The representation phi: S -> R^D tells the skill of a
transition from other skills of the prior,

    max_phi E[ (phi(s') - phi(s)) . z - xi log E_z'[ exp((phi(s') - phi(s)) . z') ] ],

a contrastive bound on the information that transitions hold about skills; the policy maximises its
first term alone. That is linear in z, so the critic learns successor features psi(s, a, z) of the
steps phi(s') - phi(s), with Q = psi . z and no entropy in their target.

If a transition gave its skill away, the best step would be kappa z with A(kappa) = 1 / xi, where
A(kappa) = I_{D/2}(kappa) / I_{D/2-1}(kappa) is the ratio of Bessel functions: the scale of the
signal depends on xi and D, and xi <= 1 has no optimum.

Deviations: D one-hot skills as well, centred in the objective, whose normaliser is exact; for
skills on the sphere z' are drawn afresh for each update, as in the authors' code, which drops the
constant log M of their mean; the critics' loss is half the squared error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from etude.agents.replay import Batch
from etude.config import Range
from etude.skills.learners._delta_phi import DeltaPhi
from etude.skills.learners.base import Spec, own_generator


class Csf(DeltaPhi):
    """Features phi(s') - phi(s) that tell skills apart, maximised along z by a wide critic."""

    config: Config
    entropy_in_target: ClassVar[bool] = False

    @dataclass(frozen=True)
    class Config(DeltaPhi.Config):
        """Settings of CSF."""

        xi: Annotated[float, Range(1, open_low=True)] = 5.0
        """weight of the normaliser (paper: 5)"""
        negatives: Annotated[int, Range(2, 65536)] = 256
        """skills z' that continuous ones are told from (paper: 256)"""

    def __init__(self, spec: Spec, config: Config) -> None:
        super().__init__(spec, config)
        self.signal_dim = config.dim
        self.generator = own_generator()

    @torch.no_grad()
    def signal(self, batch: Batch) -> Tensor:
        return self.step(batch)  # (B, D)

    def task_vector(self, z: Tensor) -> Tensor:
        return self.direction(z)  # (B, D)

    def bound(self, batch: Batch, step: Tensor) -> Tensor:
        others = self.others().to(step)  # (M, D)
        return -self.config.xi * ((step @ others.mT).logsumexp(-1) - math.log(len(others)))

    def others(self) -> Tensor:
        """Directions (M, D) of the prior: of all one-hot skills, or of a fresh sample."""
        if self.discrete:
            return self.direction(torch.eye(self.config.dim))
        shape = self.config.negatives, self.config.dim
        return normalize(torch.randn(shape, generator=self.generator), dim=-1)
