"""DIAYN: skills that a discriminator can tell apart by the states they visit.

Eysenbach, Gupta, Ibarz, Levine, "Diversity is All You Need", ICLR 2019 (arXiv:1802.06070). The
policy maximises a lower bound on the mutual information of skills and states,

    I(S; Z) >= E[ log q(z | s') - log p(z) ],

and q is fitted to the skills that visited s'. With K discrete skills the reward is at most log K.

Deviations: q sees the next observation s' (the paper: s), so that the reward credits the action
that led there; a continuous variant has a Gaussian prior and a Gaussian q whose standard deviation
is at least `min_std`, which bounds the reward; the agent's temperature is tuned, not fixed at 0.1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from etude.agents.replay import Batch
from etude.config import Range
from etude.skills.learners.base import Learner, LearnerConfig, Spec, descend
from etude.skills.spaces import Discrete, Gaussian
from etude.worldmodels import densities


class Diayn(Learner):
    """Rewards states from which the skill can be recognised: log q(z | s') - log p(z)."""

    @dataclass(frozen=True)
    class Config(LearnerConfig):
        """Settings of DIAYN."""

        skills: Literal["discrete", "continuous"] = "discrete"
        """one-hot skills with a softmax q, or Gaussian skills with a Gaussian q"""
        dim: Annotated[int, Range(1, 1024)] = 8
        """number of discrete skills, or dimension of z (paper: 50 skills)"""
        hidden: tuple[Annotated[int, Range(1)], ...] = (256, 256)
        """widths of q's hidden layers (paper: 300, 300)"""
        lr: Annotated[float, Range(0, 1, open_low=True)] = 3e-4
        """learning rate of q (paper: 3e-4)"""
        min_std: Annotated[float, Range(0, open_low=True)] = 0.2
        """smallest standard deviation of the Gaussian q, in units of z (ours)"""

    def __init__(self, spec: Spec, config: Config) -> None:
        super().__init__(spec, config)
        self.config = config
        self.discrete = config.skills == "discrete"
        self.q: densities.Categorical | densities.Gaussian
        if self.discrete:
            self.space = Discrete(config.dim)
            self.q = densities.Categorical(self.seen_dim, config.dim, config.hidden)
        else:
            self.space = Gaussian(config.dim)
            self.q = densities.Gaussian(self.seen_dim, config.dim, config.hidden, config.min_std)
        self.optimiser = torch.optim.Adam(self.q.parameters(), lr=config.lr, fused=True)

    def update(self, batch: Batch) -> dict[str, Tensor]:
        loss = -self.log_q(batch).mean()
        descend(self.optimiser, loss)
        metrics = {"skill/q_loss": loss.detach()}
        if self.discrete:
            metrics["skill/accuracy"] = self.accuracy(batch)
        return metrics

    @torch.no_grad()
    def signal(self, batch: Batch) -> Tensor:
        return (self.log_q(batch) - self.log_prior(batch.skill)).unsqueeze(-1)  # (B, 1)

    def log_prior(self, z: Tensor) -> Tensor:
        """log p(z) of skills (B, Z): (B,) in nats."""
        if self.discrete:
            return z.new_full((len(z),), -math.log(self.config.dim))
        return -0.5 * (z.square() + math.log(2 * math.pi)).sum(-1)

    def log_q(self, batch: Batch) -> Tensor:
        """log q(z | s') of the batch (B,), in nats."""
        return self.q.log_prob(batch.next_obs[:, self.columns], batch.skill)

    @torch.no_grad()
    def accuracy(self, batch: Batch) -> Tensor:
        """Share of next observations whose skill q names: the likeliest, or the right orthant."""
        guess = self.q.mode(batch.next_obs[:, self.columns])
        if self.discrete:
            return (guess.argmax(-1) == batch.skill.argmax(-1)).float().mean()
        return (guess.sign() == batch.skill.sign()).all(-1).float().mean()

    @torch.no_grad()
    def goal_skill(self, obs: Tensor, goal: Tensor) -> Tensor:
        return self.q.mode(goal[:, self.columns])

    def export(self) -> dict[str, nn.Sequential]:
        return {"discriminator": self.q.net}
