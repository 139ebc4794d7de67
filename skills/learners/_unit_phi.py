"""Features of length one that name the skill of a state: what VISR and APS have in common.

Skills z lie on the unit sphere, and phi: S -> R^D learns E[phi(s') . z], which under a von
Mises-Fisher density around phi is log q(z | s') + const. The reward is linear in z, so that a
critic of successor features psi has Q = psi . z, and the skill of a task with the reward
phi(s') . w is w / |w| (Hansen et al. 2020, arXiv:1906.05030; Liu & Abbeel 2021, arXiv:2108.13956).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from etude.agents.networks import mlp
from etude.agents.replay import Batch
from etude.config import Range
from etude.skills.learners.base import Learner, LearnerConfig, Spec, descend
from etude.skills.spaces import Sphere


class UnitPhi(Learner):
    """Features phi with |phi| = 1 that point along the skill."""

    entropy_in_target: ClassVar[bool] = False

    @dataclass(frozen=True)
    class Config(LearnerConfig):
        """Settings of the family."""

        dim: Annotated[int, Range(2, 1024)] = 5
        """dimension of z and phi, both on the unit sphere (VISR: 5, APS: 10)"""
        hidden: tuple[Annotated[int, Range(1)], ...] = (256, 256)
        """widths of phi's hidden layers (APS, and VISR as of Zheng et al.: 1024, 1024)"""
        lr: Annotated[float, Range(0, 1, open_low=True)] = 3e-4
        """learning rate of phi (APS, and VISR as of Zheng et al.: 1e-4)"""

    def __init__(self, spec: Spec, config: Config) -> None:
        super().__init__(spec, config)
        self.space = Sphere(config.dim)
        self.phi = mlp((self.seen_dim, *config.hidden, config.dim))
        self.optimiser = torch.optim.Adam(self.phi.parameters(), lr=config.lr, fused=True)

    def align(self, raw: Tensor, z: Tensor) -> Tensor:
        """A gradient step on phi(s') . z, from what `raw` returned; the alignment before it."""
        alignment = (normalize(raw, dim=-1) * z).sum(-1).mean()
        descend(self.optimiser, -alignment)
        return alignment.detach()

    def raw(self, batch: Batch) -> Tensor:
        """Features (B, D) of the next observations, not yet of length one."""
        return torch.as_tensor(self.phi(batch.next_obs[:, self.columns]))

    def encode(self, obs: Tensor) -> Tensor:
        return normalize(torch.as_tensor(self.phi(obs[:, self.columns])), dim=-1)

    @torch.no_grad()
    def goal_skill(self, obs: Tensor, goal: Tensor) -> Tensor:
        return self.encode(goal)

    def export(self) -> dict[str, nn.Sequential]:
        return {"features": self.phi}
