"""Skills that travel far in a learned space: what LSD, CSD, METRA and CSF have in common.

Policy and representation phi: S -> R^D maximise together the progress along the skill,

    E[ (phi(s') - phi(s)) . z ],

over adjacent states s, s'; its sum over an episode is (phi(s_T) - phi(s_0)) . z, which no policy
earns by pacing to and fro. Alone it has no optimum, since phi may grow. The members differ in what
bounds phi(s') - phi(s):

    LSD    the distance of the observations: phi is 1-Lipschitz by its architecture
    CSD    a learned distance, large where the skills seldom move
    METRA  one step of time: |phi(s') - phi(s)| <= 1
    CSF    the progress along other skills: a contrastive normaliser

Park et al. 2022 (arXiv:2202.00914), 2023 (arXiv:2302.05103), 2024 (arXiv:2310.08887); Zheng et al.
2025 (arXiv:2412.08021).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from etude.agents.networks import mlp
from etude.agents.replay import Batch
from etude.config import Range
from etude.errors import UsageError
from etude.skills.learners.base import LOG_LAMBDA, Learner, LearnerConfig, Spec
from etude.skills.spaces import Discrete, Sphere


class DeltaPhi(Learner):
    """Maximises the progress (phi(s') - phi(s)) . z; `bound` says what keeps phi from growing."""

    config: Config
    log_lambda: nn.Parameter | None
    """of a member whose bound is a constraint"""

    @dataclass(frozen=True)
    class Config(LearnerConfig):
        """Settings of the family."""

        skills: Literal["continuous", "discrete"] = "continuous"
        """z on the unit sphere, or one-hot (centred in the objective)"""
        dim: Annotated[int, Range(1, 1024)] = 2
        """dimension of z and phi, or number of discrete skills (METRA: 2 Ant, 16 HalfCheetah)"""
        hidden: tuple[Annotated[int, Range(1)], ...] = (256, 256)
        """widths of phi's hidden layers (METRA: 1024, 1024)"""
        lr: Annotated[float, Range(0, 1, open_low=True)] = 3e-4
        """learning rate of phi (METRA, CSF: 1e-4; LSD: 3e-5)"""

    def __init__(self, spec: Spec, config: Config) -> None:
        super().__init__(spec, config)
        self.config = config
        self.discrete = config.skills == "discrete"
        if self.discrete and config.dim == 1:
            raise UsageError("dim = 1 discrete skill has no direction: choose at least 2.")
        self.space = Discrete(config.dim) if self.discrete else Sphere(config.dim)
        self.phi = self.network((self.seen_dim, *config.hidden, config.dim))
        self.optimiser = torch.optim.Adam(self.phi.parameters(), lr=config.lr, fused=True)
        self.register_parameter("log_lambda", None)

    def network(self, sizes: tuple[int, ...]) -> nn.Sequential:
        """phi, untrained."""
        return mlp(sizes)

    @abstractmethod
    def bound(self, batch: Batch, step: Tensor) -> Tensor:
        """What keeps steps of phi (B, D) from growing, (B,).

        It is added to the progress, or it is a constraint c >= 0 that lambda weighs (`constrain`).
        """

    def update(self, batch: Batch) -> dict[str, Tensor]:
        self.optimiser.zero_grad()
        step = self.step(batch)  # (B, D)
        progress = (step * self.direction(batch.skill)).sum(-1)  # (B,)
        bound = self.bound(batch, step)  # (B,)
        if self.log_lambda is not None:
            self.log_lambda.grad = bound.detach().mean()  # descends log lambda * mean(c)
            bound = self.log_lambda.detach().exp() * bound
        loss = -(progress + bound).mean()
        loss.backward()
        self.optimiser.step()
        metrics = {
            "skill/phi_loss": loss.detach(),
            "skill/squared_step": step.detach().square().sum(-1).mean(),
        }
        if self.log_lambda is not None:
            self.log_lambda.data.clamp_(*LOG_LAMBDA)
            metrics["skill/lambda"] = self.log_lambda.detach().exp()
        return metrics

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
        return (z - 1 / n) * (n / (n - 1))

    def constrain(self, init: float, lr: float) -> None:
        """Make the bound a constraint with a dual variable lambda, learned as its logarithm."""
        self.log_lambda = nn.Parameter(torch.tensor(math.log(init)))
        self.optimiser.add_param_group({"params": [self.log_lambda], "lr": lr})

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
