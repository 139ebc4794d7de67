"""APS: skills as tasks that also explore: successor features, with the entropy of the features.

Liu, Abbeel, "APS: Active Pretraining with Successor Features", ICML 2021 (arXiv:2108.13956). As in
VISR, features phi of length one guess the skill w of the state that it led to, E[phi(s') . w], and
a critic learns psi with Q = psi . w. The other half of the information of states about skills,

    I(S; W) = H(S) - H(S | W)  ~  E[ e(s') + phi(s') . w ],

is the entropy of particles e(s') among the features before they have length one. Whatever task has
the reward phi(s') . w is done by the skill w, found by regressing rewards on phi.

Deviations: e does not depend on w, so the critic has a coordinate of its own for it, with weight
`entropy` in place of w, and Q = psi . (w, entropy) stays a product (released: one scalar target for
both, of which psi . w is then no longer the task's value); the regression is that of rewards on phi
(`etude.skills.controllers.reward_regression`; released: its arguments are swapped, which gives a
correlation in place of w); the preset `cpu` holds w for an episode of the point, in mazes for 50
steps (paper, the preset `paper` and `cpu` on robots: 5); distances as `_particles` has them; SAC
without entropy in the critic's target and single steps (released: DDPG, three-step sums).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor
from torch.nn.functional import normalize

from etude.agents.replay import Batch
from etude.config import Range
from etude.skills.learners._particles import Particles
from etude.skills.learners._unit_phi import UnitPhi
from etude.skills.learners.base import Spec


class Aps(UnitPhi):
    """Rewards states whose features point along the skill and lie apart from others."""

    @dataclass(frozen=True)
    class Config(UnitPhi.Config):
        """Settings of APS."""

        dim: Annotated[int, Range(2, 1024)] = 10
        """dimension of w and phi, both on the unit sphere (paper: 10)"""
        entropy: Annotated[float, Range(0)] = 1.0
        """weight of the entropy beside phi . w (paper: 1)"""
        neighbours: Annotated[int, Range(1, 1024)] = 12
        """nearest others k that make the entropy (released: 12)"""
        momentum: Annotated[float, Range(0, 1, open_low=True)] = 0.01
        """share of a batch in the running mean of distances (ours)"""

    def __init__(self, spec: Spec, config: Config) -> None:
        super().__init__(spec, config)
        self.weight = config.entropy
        self.signal_dim = config.dim + 1
        self.particles = Particles(config.neighbours, config.momentum)

    def update(self, batch: Batch) -> dict[str, Tensor]:
        raw = self.raw(batch)
        distance = self.particles.measure(raw)
        return {"skill/alignment": self.align(raw, batch.skill), "skill/distance": distance}

    @torch.no_grad()
    def signal(self, batch: Batch) -> Tensor:
        raw = self.raw(batch)
        entropy = self.particles.entropy(raw).unsqueeze(-1)
        return torch.cat((normalize(raw, dim=-1), entropy), -1)  # (B, D + 1)

    def task_vector(self, z: Tensor) -> Tensor:
        return torch.cat((z, z.new_full((len(z), 1), self.weight)), -1)
