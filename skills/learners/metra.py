"""METRA: skills that travel far in a space whose unit is one step of time.

Park, Rybkin, Levine, "METRA: Scalable Unsupervised RL with Metric-Aware Abstraction", ICLR 2024
(arXiv:2310.08887). The policy and the representation phi: S -> R^D maximise together

    E[ sum_t (phi(s_{t+1}) - phi(s_t)) . z ]   subject to   |phi(s) - phi(s')|^2 <= 1

for adjacent s, s': a bound on the Wasserstein dependency between skills and states under the
temporal distance. The constraint is held by dual ascent on lambda.

Deviations: the squared step is summed over the D dimensions as in the paper (the authors' code
takes the mean); time-outs are not terminal; lambda is clamped to [e^-5, e^10], without which a
lasting violation carries it to infinity; lambda starts at 3 and learns ten times faster than in
the paper in the `cpu` presets, because at 1e-4 its first e-fold takes ten thousand updates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from etude.agents.networks import mlp
from etude.agents.replay import Batch
from etude.config import Range
from etude.skills.learners.base import Learner, LearnerConfig, Spec
from etude.skills.spaces import Discrete, Sphere


class Metra(Learner):
    """Maximises the progress (phi(s') - phi(s)) . z under the unit-step constraint."""

    @dataclass(frozen=True)
    class Config(LearnerConfig):
        """Settings of METRA."""

        skills: Literal["continuous", "discrete"] = "continuous"
        """z on the unit sphere, or one-hot (centred in the objective)"""
        dim: Annotated[int, Range(1, 1024)] = 2
        """dimension of z and phi, or number of discrete skills (paper: 2 Ant, 16 HalfCheetah)"""
        hidden: tuple[Annotated[int, Range(1)], ...] = (256, 256)
        """widths of phi's hidden layers (paper: 1024, 1024)"""
        lr: Annotated[float, Range(0, 1, open_low=True)] = 3e-4
        """learning rate of phi (paper: 1e-4)"""
        dual_lr: Annotated[float, Range(0, 1, open_low=True)] = 1e-3
        """learning rate of log lambda (paper: 1e-4)"""
        dual_init: Annotated[float, Range(0, open_low=True)] = 3.0
        """initial lambda (paper: 30)"""
        slack: Annotated[float, Range(0, open_low=True)] = 1e-3
        """upper clip of the constraint 1 - |step|^2: satisfied ones stop counting (paper)"""

    def __init__(self, spec: Spec, config: Config) -> None:
        super().__init__(spec, config)
        self.config = config
        self.discrete = config.skills == "discrete"
        self.space = Discrete(config.dim) if self.discrete else Sphere(config.dim)
        self.phi = mlp((self.seen, *config.hidden, config.dim))
        self.log_lambda = nn.Parameter(torch.tensor(math.log(config.dual_init)))
        groups = [
            {"params": self.phi.parameters(), "lr": config.lr},
            {"params": [self.log_lambda], "lr": config.dual_lr},
        ]
        self.optimiser = torch.optim.Adam(groups, fused=True)

    def update(self, batch: Batch) -> dict[str, Tensor]:
        step = self.step(batch)  # (B, D)
        progress = (step * self.direction(batch.skill)).sum(-1)  # (B,)
        length = step.square().sum(-1)  # (B,)
        constraint = (1 - length).clamp(max=self.config.slack)
        loss = -(progress + self.log_lambda.detach().exp() * constraint).mean()
        dual_loss = self.log_lambda * constraint.detach().mean()
        self.optimiser.zero_grad()
        (loss + dual_loss).backward()
        self.optimiser.step()
        with torch.no_grad():
            self.log_lambda.clamp_(-5, 10)
        return {
            "skill/phi_loss": loss.detach(),
            "skill/step_length": length.detach().mean(),
            "skill/lambda": self.log_lambda.detach().exp(),
        }

    @torch.no_grad()
    def signal(self, batch: Batch) -> Tensor:
        step = self.step(batch)
        return (step * self.direction(batch.skill)).sum(-1, keepdim=True)  # (B, 1)

    def step(self, batch: Batch) -> Tensor:
        """phi(s') - phi(s), (B, D), in one pass."""
        before, after = self.encode(torch.cat((batch.obs, batch.next_obs))).chunk(2)
        return after - before

    def direction(self, z: Tensor) -> Tensor:
        """z, or for one-hot skills the centred (z - 1/D) D/(D-1): 1 at its entry, mean zero."""
        if not self.discrete:
            return z
        n = self.config.dim
        return (z - 1 / n) * (n / max(n - 1, 1))

    def encode(self, obs: Tensor) -> Tensor:
        return torch.as_tensor(self.phi(obs[:, self.columns]))

    @torch.no_grad()
    def goal_skill(self, obs: Tensor, goal: Tensor) -> Tensor:
        way = self.encode(goal) - self.encode(obs)  # (B, D)
        if self.discrete:
            return nn.functional.one_hot(way.argmax(-1), self.config.dim).to(way.dtype)
        return nn.functional.normalize(way, dim=-1)

    def export(self) -> dict[str, nn.Sequential]:
        return {"phi": self.phi}
