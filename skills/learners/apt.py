"""APT: no skills, but a single policy that visits states evenly.

Liu, Abbeel, "Behavior From the Void: Unsupervised Active Pre-Training", NeurIPS 2021
(arXiv:2103.04551). The policy maximises the entropy of the states it visits,

    H(S) ~ mean_i log(1 + mean distance of s'_i to its k nearest others / the usual one),

the objective of reinforcement learning with general utilities for the utility -E log d(s) (Zhang et
al. 2020, arXiv:2007.02151; Hazan et al. 2019, arXiv:1812.02690), which is no sum of fixed rewards:
the reward of a state falls as others come to lie beside it.

Deviations: distances are those of the normalised observations of `skill_obs`, which is the authors'
variant for states without pixels, so that there is no representation to learn, and are taken as
`_particles` has them; the batch comes from the replay, and so the entropy is that of all it holds
and not of the present policy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from etude.agents.replay import Batch
from etude.config import Range
from etude.skills.learners._particles import Particles
from etude.skills.learners.base import Learner, LearnerConfig, Spec
from etude.skills.spaces import Discrete


class Apt(Learner):
    """Rewards states far from others: e(s') = log(1 + distance to neighbours / the usual one)."""

    @dataclass(frozen=True)
    class Config(LearnerConfig):
        """Settings of APT."""

        neighbours: Annotated[int, Range(1, 1024)] = 12
        """nearest others k that make the entropy (released: 12)"""
        momentum: Annotated[float, Range(0, 1, open_low=True)] = 0.01
        """share of a batch in the running mean of distances (ours)"""

    def __init__(self, spec: Spec, config: Config) -> None:
        super().__init__(spec, config)
        self.space = Discrete(1)
        self.particles = Particles(config.neighbours, config.momentum)

    def update(self, batch: Batch) -> dict[str, Tensor]:
        return {"skill/distance": self.particles.measure(batch.next_obs[:, self.columns])}

    @torch.no_grad()
    def signal(self, batch: Batch) -> Tensor:
        return self.particles.entropy(batch.next_obs[:, self.columns]).unsqueeze(-1)  # (B, 1)
