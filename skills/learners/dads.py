"""DADS: skills whose effect a model can predict, and that no other skill would have had.

Sharma, Gu, Levine, Kumar, Hausman, "Dynamics-Aware Unsupervised Discovery of Skills", ICLR 2020
(arXiv:1907.01657). The skill dynamics q(s' | s, z) are fitted by maximum likelihood, and the policy
maximises, with L skills z_j of the prior, an estimate of the information I(S'; Z | s),

    r = log q(s' | s, z) - log[ (q(s' | s, z) + sum_j q(s' | s, z_j)) / (L + 1) ]  <=  log(L + 1),

and the skills can be planned with the same model (`controllers/planner.py`). q is a mixture with
fixed unit variance over the change s' - s, scaled to mean 0 and deviation 1.

Deviations: the scale is a running average in loss and reward (published: batch norm), with a floor
below which a coordinate is dead and its noise is not blown up; the loop has normalised the inputs
already; all rows share the L skills, which `update` draws anew; a short replay keeps the data
recent, as theirs, but without importance weights, for old densities of actions are not kept; the
preset `paper` fixes the temperature at 0.1 (theirs: tuned, for rewards times ten).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from etude.agents.networks import linear_layers
from etude.agents.replay import Batch
from etude.config import Range
from etude.skills.dynamics import DYNAMICS, folded
from etude.skills.learners.base import Learner, LearnerConfig, Spec, descend, own_generator
from etude.skills.mlp import MLP
from etude.skills.spaces import Cube
from etude.worldmodels.densities import CondDensity
from etude.worldmodels.distributions import MixtureHead
from etude.worldmodels.scale import RunningScale

CLIP = 50.0  # nats; of a difference of log-densities, as published


class Dads(Learner):
    """Rewards changes that the skill predicts better than the skills of the prior do."""

    others: Tensor

    @dataclass(frozen=True)
    class Config(LearnerConfig):
        """Settings of DADS."""

        dim: Annotated[int, Range(1, 1024)] = 2
        """dimension of z, uniform on a cube (paper: 2 Ant, 5 Humanoid)"""
        model_obs: Literal["none", "chosen", "all"] = "all"
        """what the model sees beside z: nothing, the fields of skill_obs, or the whole observation
        (authors' Ant: none, with x and y in skill_obs)"""
        samples: Annotated[int, Range(1, 4096)] = 32
        """skills L of the prior in the reward (paper: 100)"""
        components: Annotated[int, Range(1, 64)] = 4
        """normal distributions in the mixture (paper: 4)"""
        hidden: tuple[Annotated[int, Range(1)], ...] = (256, 256)
        """widths of the model's hidden layers (paper: 512, 512)"""
        lr: Annotated[float, Range(0, 1, open_low=True)] = 3e-4
        """learning rate of the model (paper: 3e-4)"""
        momentum: Annotated[float, Range(0, 1, open_low=True)] = 0.01
        """share of a batch in the running scale of changes (re-run by METRA: 0.01)"""
        min_std: Annotated[float, Range(0, open_low=True)] = 1e-3
        """floor of that scale, in units of the normalised observation (ours)"""

    def __init__(self, spec: Spec, config: Config) -> None:
        super().__init__(spec, config)
        self.config = config
        self.space = Cube(config.dim)
        views = {"none": slice(0), "chosen": self.columns, "all": slice(None)}
        self.view = views[config.model_obs]  # of the observation, for the model
        width = {"none": 0, "chosen": self.seen_dim, "all": spec.obs_dim}[config.model_obs]
        head = MixtureHead(self.seen_dim, config.components)
        self.q = CondDensity(width, config.dim, head, config.hidden)
        self.scale = RunningScale(self.seen_dim, config.momentum, config.min_std)  # of changes
        self.generator = own_generator()
        self.register_buffer("others", self.drawn())  # (L, Z)
        self.optimiser = torch.optim.Adam(self.q.parameters(), lr=config.lr, fused=True)

    def update(self, batch: Batch) -> dict[str, Tensor]:
        change = self.change(batch)
        self.scale.measure(change)
        loss = self.q.nll(batch.obs[:, self.view], batch.skill, self.scale(change))
        descend(self.optimiser, loss)
        self.others = self.drawn().to(batch.skill)
        return {"skill/dynamics_loss": loss.detach(), "skill/change": self.scale.std.mean()}

    @torch.no_grad()
    def signal(self, batch: Batch) -> Tensor:
        seen, change = batch.obs[:, self.view], self.scale(self.change(batch))
        own = self.q(seen, batch.skill).log_prob(change)  # (B,)
        if not seen.shape[-1]:
            seen = seen[:1]  # all rows have the same model
        rows = (len(self.others), len(seen))
        z = self.others.unsqueeze(1).expand(*rows, -1)
        other = self.q(seen.expand(*rows, -1), z).log_prob(change)  # (L, B)
        ratio = (other - own).clamp(-CLIP, CLIP).exp()
        reward = math.log(1 + len(ratio)) - ratio.sum(0).log1p()
        return torch.as_tensor(reward.unsqueeze(-1))  # (B, 1)

    def drawn(self) -> Tensor:
        """L skills (L, Z) of the prior."""
        shape = self.config.samples, self.config.dim
        return torch.empty(shape).uniform_(-1, 1, generator=self.generator)

    def change(self, batch: Batch) -> Tensor:
        """s' - s in the fields of skill_obs, (B, X)."""
        return torch.as_tensor((batch.next_obs - batch.obs)[:, self.columns])

    def export(self) -> dict[str, MLP]:
        chosen = self.config.skill_obs or tuple(self.spec.fields)
        seen = {"none": (), "chosen": chosen, "all": None}[self.config.model_obs]
        layers = folded(linear_layers(self.q.net), self.scale.mean.cpu(), self.scale.std.cpu())
        return {DYNAMICS: MLP(layers, input_fields=seen, output_fields=chosen)}
