"""Disagreement: no skills, but a single policy that goes where models of the dynamics differ.

Pathak, Gandhi, Gupta, "Self-Supervised Exploration via Disagreement", ICML 2019 (arXiv:1906.04161).
Several networks predict what an action does; they agree where there is data, also on the mean of
what is pure noise, so that the reward is the variance of their predictions,

    r = Var_members [ predicted change of s ], mean over dimensions, over the usual one.

Deviations: members learn from bootstrapped shares of the data with squared errors (released: all
data and unsquared norms); the reward is in units of its running mean; `skill_obs` chooses the
dimensions whose change is predicted, from all that is observed and the action.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from etude.agents.replay import Batch
from etude.config import Range
from etude.skills.learners._scale import Usual
from etude.skills.learners.base import Learner, LearnerConfig, Spec, descend
from etude.skills.spaces import Discrete
from etude.worldmodels.ensemble import Ensemble, EnsembleConfig


class Disagreement(Learner):
    """Rewards transitions on which an ensemble of dynamics models does not agree."""

    mask: Tensor

    @dataclass(frozen=True)
    class Config(LearnerConfig):
        """Settings of disagreement."""

        members: Annotated[int, Range(2, 64)] = 5
        """models (URLB: 5)"""
        hidden: tuple[Annotated[int, Range(1)], ...] = (256, 256)
        """widths of the models' hidden layers (URLB: 1024)"""
        lr: Annotated[float, Range(0, 1, open_low=True)] = 3e-4
        """learning rate of the models (URLB: 1e-4)"""
        momentum: Annotated[float, Range(0, 1, open_low=True)] = 0.01
        """share of a batch in the running mean of the variance (ours)"""

    def __init__(self, spec: Spec, config: Config) -> None:
        super().__init__(spec, config)
        self.config = config
        self.space = Discrete(1)
        sizes = EnsembleConfig(config.members, config.hidden)
        self.models = Ensemble(spec.obs_dim, spec.action_dim, sizes)
        self.optimiser = torch.optim.Adam(self.models.parameters(), lr=config.lr, fused=True)
        mask = torch.zeros(spec.obs_dim)
        mask[self.columns] = 1
        self.register_buffer("mask", mask)  # 1 for dimensions whose change is predicted
        self.usual = Usual(config.momentum)

    def update(self, batch: Batch) -> dict[str, Tensor]:
        weight = self.mask.expand_as(batch.obs)
        loss, metrics = self.models.loss(batch.obs, batch.action, batch.next_obs, weight)
        descend(self.optimiser, loss)
        variance = self.usual.measure(self.variance(batch))
        part = self.seen_dim / self.spec.obs_dim  # the mean is over all dimensions
        error = metrics["model/ensemble_error"] / part
        return {"skill/variance": variance, "skill/model_error": error}

    @torch.no_grad()
    def signal(self, batch: Batch) -> Tensor:
        return torch.as_tensor(self.usual(self.variance(batch))).unsqueeze(-1)  # (B, 1)

    @torch.no_grad()
    def variance(self, batch: Batch) -> Tensor:
        """Variance (B,) of the predicted changes over the members."""
        change = self.models(batch.obs, batch.action)[..., self.columns]  # (E, B, D)
        return torch.as_tensor(change.var(0).mean(-1))
