"""BeCL: skills whose states resemble their own and not those of others.

Yang, Bai, Guo, Li, Zhao, Wang, Chen, Xu, "Behavior Contrastive Learning for Unsupervised Skill
Discovery", ICML 2023 (arXiv:2305.04477). Two states of one skill are two views of it; features h of
length one learn to match them among all others of the batch,

    l_i = log  exp(h_i . h_{i+} / T) / sum_{j != i} exp(h_i . h_j / T),    r_i = (B - 1) exp(l_i),

with i+ the other states of the skill of i, over which l_i is a mean: a bound on the information of
two such states. Those of one skill are pulled together, and those of different skills apart. The
reward is 1 where a state resembles its own skill no more than others, whatever the batch.

Deviations: all other states of the skill count (released: the first of the batch, so that few get
all of the gradient), and a state without another of its skill earns nothing; the factor B - 1
(paper: 1), without which all there is to win per step is some 0.02, less than SAC is paid for its
noise; one network for h, where theirs has a projection head behind the features; one update for one
of the agent, where theirs makes three; on the point z is held (theirs: 50 steps); SAC and single
steps (released: DDPG, three-step sums).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from etude.agents.networks import mlp
from etude.agents.replay import Batch
from etude.config import Range
from etude.skills.learners.base import Learner, LearnerConfig, Spec, descend
from etude.skills.spaces import Discrete


class Becl(Learner):
    """Rewards states that are told, among a batch, to be of their own skill."""

    @dataclass(frozen=True)
    class Config(LearnerConfig):
        """Settings of BeCL."""

        dim: Annotated[int, Range(2, 1024)] = 16
        """number of skills (paper: 16)"""
        features: Annotated[int, Range(1, 1024)] = 16
        """dimension of h (released: the number of skills)"""
        temperature: Annotated[float, Range(0, open_low=True)] = 0.5
        """T of the contrastive softmax (paper: 0.5)"""
        hidden: tuple[Annotated[int, Range(1)], ...] = (256, 256)
        """widths of the hidden layers of h (released: 1024, 1024)"""
        lr: Annotated[float, Range(0, 1, open_low=True)] = 3e-4
        """learning rate of h (released: 1e-4)"""

    def __init__(self, spec: Spec, config: Config) -> None:
        super().__init__(spec, config)
        self.config = config
        self.space = Discrete(config.dim)
        self.h = mlp((self.seen_dim, *config.hidden, config.features))
        self.optimiser = torch.optim.Adam(self.h.parameters(), lr=config.lr, fused=True)

    def update(self, batch: Batch) -> dict[str, Tensor]:
        matched, paired = self.match(batch)
        loss = -matched.sum() / paired.sum().clamp_min(1)
        descend(self.optimiser, loss)
        return {"skill/contrast_loss": loss.detach(), "skill/paired": paired.float().mean()}

    @torch.no_grad()
    def signal(self, batch: Batch) -> Tensor:
        matched, paired = self.match(batch)
        others = len(matched) - 1
        return torch.where(paired, others * matched.exp(), 0.0).unsqueeze(-1)  # (B, 1)

    def match(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """l (B,), 0 without another state of the same skill; and whether there is one (B,)."""
        h = self.encode(batch.next_obs)
        itself = torch.eye(len(h), dtype=torch.bool, device=h.device)
        logits = (h @ h.mT / self.config.temperature).masked_fill(itself, -math.inf)  # (B, B)
        same = (batch.skill @ batch.skill.mT > 0.5) & ~itself
        matched = torch.where(same, logits - logits.logsumexp(-1, keepdim=True), 0.0)
        return matched.sum(-1) / same.sum(-1).clamp_min(1), same.any(-1)

    def encode(self, obs: Tensor) -> Tensor:
        """h, of length one."""
        return normalize(torch.as_tensor(self.h(obs[:, self.columns])), dim=-1)

    def export(self) -> dict[str, nn.Sequential]:
        return {"features": self.h}
