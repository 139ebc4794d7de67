"""VISR: skills as tasks, so that a reward which is linear in features names its skill.

Hansen, Dabney, Barreto, Van de Wiele, Warde-Farley, Mnih, "Fast Task Inference with Variational
Intrinsic Successor Features", ICLR 2020 (arXiv:1906.05030). Features phi: S -> R^D of length one
guess the skill z of the state that it led to. Under a von Mises-Fisher density around phi, log
q(z | s') = phi(s') . z + const, so both maximise

    E[ phi(s') . z ],

a bound on I(S; Z). It is linear in z: the critic learns successor features psi(s, a, z) of phi(s'),
with Q = psi . z, and whatever task has the reward phi(s') . w is done by the skill w / |w|.

Deviations: phi sees the next observation (the paper: s), so that the reward credits the action that
led there; SAC for continuous actions without entropy in the critic's target, as in Zheng et al.
2025 (arXiv:2412.08021), where the paper has Q-learning; no generalised policy improvement over
sampled skills when acting.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from etude.agents.replay import Batch
from etude.skills.learners._unit_phi import UnitPhi
from etude.skills.learners.base import Spec


class Visr(UnitPhi):
    """Rewards states whose features point along the skill: phi(s') . z with |phi| = 1."""

    @dataclass(frozen=True)
    class Config(UnitPhi.Config):
        """Settings of VISR."""

        target: Literal["unit", "raw"] = "unit"
        """the phi whose sums the critic learns: of length one, or as the network gives it, which
        pays for going where it is long (Hansen et al.: unit; Zheng et al. and `paper`: raw)"""

    def __init__(self, spec: Spec, config: Config) -> None:
        super().__init__(spec, config)
        self.config = config
        self.signal_dim = config.dim

    def update(self, batch: Batch) -> dict[str, Tensor]:
        raw = self.raw(batch)
        return {
            "skill/alignment": self.align(raw, batch.skill),
            "skill/collapse": normalize(raw.detach(), dim=-1).mean(0).norm(),
        }

    @torch.no_grad()
    def signal(self, batch: Batch) -> Tensor:
        unit = self.config.target == "unit"
        return self.encode(batch.next_obs) if unit else self.raw(batch)  # (B, D)

    def task_vector(self, z: Tensor) -> Tensor:
        return z
