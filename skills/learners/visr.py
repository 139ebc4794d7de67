"""VISR: skills as tasks, so that a reward which is linear in features names its skill.

Hansen, Dabney, Barreto, Van de Wiele, Warde-Farley, Mnih, "Fast Task Inference with Variational
Intrinsic Successor Features", ICLR 2020 (arXiv:1906.05030). Features phi: S -> R^D of length one
guess the skill z of the state that it led to. Under a von Mises-Fisher density around phi, log
q(z | s') = phi(s') . z + const, so both maximise

    E[ phi(s') . z ],

a bound on I(S; Z). It is linear in z: the critic learns successor features psi(s, a, z) of phi(s'),
with Q = psi . z, and whatever task has the reward phi(s') . w is done by the skill w / |w|.

Deviations: phi sees the next observation (the paper: s), so that the reward credits the action that
led there; SAC for continuous actions, as in Zheng et al. 2025 (arXiv:2412.08021), where the paper
has Q-learning; no generalised policy improvement over sampled skills when acting.
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
from etude.skills.learners.base import Learner, LearnerConfig, Spec
from etude.skills.spaces import Sphere


class Visr(Learner):
    """Rewards states whose features point along the skill: phi(s') . z with |phi| = 1."""

    entropy_in_target: ClassVar[bool] = False

    @dataclass(frozen=True)
    class Config(LearnerConfig):
        """Settings of VISR."""

        dim: Annotated[int, Range(2, 1024)] = 5
        """dimension of z and phi, both on the unit sphere (paper: 5)"""
        hidden: tuple[Annotated[int, Range(1)], ...] = (256, 256)
        """widths of phi's hidden layers (Zheng et al.: 1024, 1024)"""
        lr: Annotated[float, Range(0, 1, open_low=True)] = 3e-4
        """learning rate of phi (Zheng et al.: 1e-4)"""

    def __init__(self, spec: Spec, config: Config) -> None:
        super().__init__(spec, config)
        self.signal_dim = config.dim
        self.space = Sphere(config.dim)
        self.phi = mlp((self.seen, *config.hidden, config.dim))
        self.optimiser = torch.optim.Adam(self.phi.parameters(), lr=config.lr, fused=True)

    def update(self, batch: Batch) -> dict[str, Tensor]:
        features = self.encode(batch.next_obs)  # (B, D)
        loss = -(features * batch.skill).sum(-1).mean()
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        return {
            "skill/alignment": -loss.detach(),
            "skill/collapse": features.detach().mean(0).norm(),
        }

    @torch.no_grad()
    def signal(self, batch: Batch) -> Tensor:
        return self.encode(batch.next_obs)  # (B, D)

    def task_vector(self, z: Tensor) -> Tensor:
        return z

    def encode(self, obs: Tensor) -> Tensor:
        """phi, of length one."""
        return normalize(torch.as_tensor(self.phi(obs[:, self.columns])), dim=-1)

    @torch.no_grad()
    def goal_skill(self, obs: Tensor, goal: Tensor) -> Tensor:
        return self.encode(goal)

    def export(self) -> dict[str, nn.Sequential]:
        return {"features": self.phi}
