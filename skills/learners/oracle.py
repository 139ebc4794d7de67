"""Oracle: directions by hand, a yardstick of what directions in the plane can do on a task.

Not a method of skill discovery: somebody has said which coordinates matter (`skill_obs`, the
position of a body) and the reward is the distance covered along the skill,

    r = c (x' - x) . z - w |h'|^2,   z on the unit sphere,

in units of the normaliser, with constants c and w and perhaps some coordinates h that are to stay
at their mean: an ant on its back does not get up again, and its height says so at once. As the
reward of a transition is known for every skill, part of each batch is learnt from as if it had been
made with another. A controller that fails with these skills would fail with any that were
discovered, so whoever doubts a result on a task looks here first.

Deviations: it is what LSD and METRA (Park et al. 2022, arXiv:2202.00914; 2024, arXiv:2310.08887)
become when phi(s) = x is given and not learned; its skills have their form, and answer goals as
theirs do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from torch import Tensor, nn

from etude.agents.replay import Batch
from etude.config import Range
from etude.skills.learners.base import Learner, LearnerConfig, Spec, affine, in_hindsight
from etude.skills.spaces import Sphere


class Oracle(Learner):
    """Rewards the way that the coordinates of `skill_obs` move along z."""

    @dataclass(frozen=True)
    class Config(LearnerConfig):
        """Settings of the oracle, beside the coordinates."""

        scale: Annotated[float, Range(0, open_low=True)] = 1.0
        """constant c before the reward, which the entropy is weighed against"""
        steady: tuple[str, ...] = ()
        """fields that are to stay at their mean, such as the height of a body that may fall"""
        steadiness: Annotated[float, Range(0)] = 0.0
        """what a standard deviation from the mean costs per step, by its square"""
        hindsight: Annotated[float, Range(0, 1)] = 0.5
        """share of a batch that gets other skills, drawn from the prior"""

    def __init__(self, spec: Spec, config: Config) -> None:
        super().__init__(spec, config)
        self.config = config
        self.steady = spec.columns(config.steady) if config.steady else []
        self.space = Sphere(self.seen_dim)

    def update(self, batch: Batch) -> dict[str, Tensor]:
        return {"skill/progress": self._along(batch).mean()}  # there is nothing to learn

    def relabel(self, batch: Batch, rng: np.random.Generator) -> Batch:
        drawn = torch.from_numpy(self.space.sample(rng, len(batch.skill))).to(batch.skill)
        share = self.config.hindsight
        return batch.replace(skill=in_hindsight(batch.skill, drawn, share, rng))

    @torch.no_grad()
    def signal(self, batch: Batch) -> Tensor:
        off = batch.next_obs[:, self.steady].square().sum(-1, keepdim=True)
        return self.config.scale * self._along(batch) - self.config.steadiness * off  # (B, 1)

    def _along(self, batch: Batch) -> Tensor:
        step = self.encode(batch.next_obs) - self.encode(batch.obs)  # (B, Z)
        return (step * batch.skill).sum(-1, keepdim=True)  # (B, 1)

    def encode(self, obs: Tensor) -> Tensor:
        return obs[:, self.columns]

    def goal_skill(self, obs: Tensor, goal: Tensor) -> Tensor:
        return nn.functional.normalize(self.encode(goal) - self.encode(obs), dim=-1)

    def export(self) -> dict[str, nn.Sequential]:
        return {"phi": affine(torch.ones(self.seen_dim), torch.zeros(self.seen_dim))}
