"""QRL: a skill is a goal, and pays by how many steps the policy came nearer to it.

Wang, Torralba, Isola, Zhang, "Optimal Goal-Reaching Reinforcement Learning via Quasimetric
Learning", ICML 2023 (arXiv:2304.01203). The least number of steps from here to there is a
quasimetric: it keeps the triangle inequality, and the way back may be longer. It is the largest of
those in which no step of the data is longer than 1, so that

    max  E[ d(s, g) ]  over random pairs   subject to   E[ max(0, d(s, s') - 1)^2 ] <= epsilon^2

finds it from any transitions, whoever made them. d is the interval quasimetric of an encoder
(`worldmodels/quasimetric.py`); the constraint is held by dual ascent on lambda. The policy is paid

    r = d(s, z) - d(s', z) <= d(s, s'),

which leads round walls, away from z at first where that is the way. A skill z is a point of the
cube [-1, 1]^Z: the fields of `skill_obs`, normalised, over `reach`. Any place of it is practised
and, in hindsight, those that the episode came to later.

Deviations: d is of the fields of `skill_obs`, because a place must do for a goal (paper: of whole
states); of what they leave out, such as a velocity, the best is assumed. SAC learns the policy from
r (paper: min_a max_i d_i(T(s, a), g), with a model T of latents and two d). One network encodes
(paper: encoder and projector). lambda is learned as its logarithm and clamped (paper: as a
softplus, which takes Adam 10,000 updates to 100; here it comes to some hundreds). epsilon is 0.1
(paper: 0.25).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from torch import Tensor, nn

from etude.agents.replay import Batch
from etude.config import Range
from etude.skills.learners._goal_cube import GoalCube
from etude.skills.learners.base import LOG_LAMBDA, Spec, in_hindsight
from etude.worldmodels.quasimetric import Quasimetric, spread_loss


class Qrl(GoalCube):
    """Rewards each step by how much of the way to the skill, a goal, it has saved."""

    config: Config

    @dataclass(frozen=True)
    class Config(GoalCube.Config):
        """Settings of QRL."""

        hindsight: Annotated[float, Range(0, 1)] = 0.5
        """share of transitions whose goal is a place that the episode came to later"""
        slack: Annotated[float, Range(0, open_low=True)] = 0.1
        """epsilon, by which steps may be longer than 1, root mean square (paper: 0.25)"""
        offset: Annotated[float, Range(0, open_low=True)] = 500.0
        """distance where no more is gained, above the longest way, steps (paper: 15, mazes 500)"""
        beta: Annotated[float, Range(0, open_low=True)] = 0.01
        """how sharply that sets in, per step (paper: 0.1, mazes 0.01)"""
        components: Annotated[int, Range(1, 1024)] = 32
        """components of a latent, whose distances are mixed (paper: 64)"""
        size: Annotated[int, Range(1, 1024)] = 8
        """intervals of a component (paper: 32)"""
        hidden: tuple[Annotated[int, Range(1)], ...] = (256, 256)
        """widths of the encoder's hidden layers (paper: 512, 512, 128, 512)"""
        lr: Annotated[float, Range(0, 1, open_low=True)] = 3e-4
        """learning rate of d (paper: 1e-4)"""
        dual_lr: Annotated[float, Range(0, 1, open_low=True)] = 1e-2
        """learning rate of log lambda (paper: 1e-2)"""
        dual_init: Annotated[float, Range(0, open_low=True)] = 100.0
        """lambda at first (paper: 0.01, from which it comes too late and distances overshoot)"""

    def __init__(self, spec: Spec, config: Config) -> None:
        super().__init__(spec, config)
        self.metric = Quasimetric(self.seen_dim, config.hidden, config.components, config.size)
        self.log_lambda = nn.Parameter(torch.tensor(math.log(config.dual_init)))
        self.optimiser = torch.optim.Adam(self.metric.parameters(), lr=config.lr, fused=True)
        self.optimiser.add_param_group({"params": [self.log_lambda], "lr": config.dual_lr})

    def update(self, batch: Batch) -> dict[str, Tensor]:
        loss, violation, pairs = self.loss(batch)
        self.optimiser.zero_grad()
        loss.backward()
        self.log_lambda.grad = -violation.detach()  # ascends
        self.optimiser.step()
        self.log_lambda.data.clamp_(*LOG_LAMBDA)
        return {
            "skill/spread_loss": loss.detach(),
            "skill/violation": violation.detach(),
            "skill/distance": pairs.mean(),
            "skill/lambda": self.log_lambda.detach().exp(),
        }

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """What is minimised, the constraint's violation, and distances (B,) of random pairs."""
        c, multiplier = self.config, self.log_lambda.exp()
        both = torch.cat((batch.obs, batch.next_obs))[:, self.columns]
        here, after = self.metric.encoder(both).chunk(2)
        step, pairs = self.metric.head(here, torch.stack((after, after.roll(1, 0))))  # (B,) each
        found = spread_loss(step, pairs, multiplier, slack=c.slack, offset=c.offset, beta=c.beta)
        return *found, pairs.detach()

    def relabel(self, batch: Batch, rng: np.random.Generator) -> Batch:
        later = batch.next_obs if batch.future_obs is None else batch.future_obs
        met = self.goal_skill(batch.obs, later)
        # the skills of a dataset may be of another kind; there the goals of other rows are told
        told = met.roll(1, 0) if self.offline else batch.skill
        return batch.replace(skill=in_hindsight(told, met, self.config.hindsight, rng))

    @torch.no_grad()
    def signal(self, batch: Batch) -> Tensor:
        ends = torch.stack((batch.obs, batch.next_obs))[..., self.columns]  # (2, B, Z)
        before, after = self.metric(ends, batch.skill * self.config.reach)
        return torch.as_tensor(before - after).unsqueeze(-1)  # (B, 1)
