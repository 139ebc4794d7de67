"""RND: no skills, but a single policy that goes where a network cannot guess another one yet.

Burda, Edwards, Storkey, Klimov, "Exploration by Random Network Distillation", ICLR 2019
(arXiv:1810.12894). A predictor f learns the outputs of a fixed random network g on visited states;

    r = |f(s') - g(s')|^2 / the usual error

is large where it has not been. As g is a function, noise in the dynamics gives no lasting reward.

Deviations: after URLB (Laskin et al. 2021, arXiv:2110.15191) there is one stream of rewards, no
episodic one beside it; the reward is of the next state, where the action led; its scale is a
running mean of the error, where the released code divides by a deviation over all history; the
observations are those that the loop has normalised, clipped to [-5, 5].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from etude.agents.networks import mlp
from etude.agents.replay import Batch
from etude.config import Range
from etude.skills.learners._scale import Usual
from etude.skills.learners.base import Learner, LearnerConfig, Spec, descend
from etude.skills.spaces import Discrete

CLIP = 5.0  # standard deviations


class Rnd(Learner):
    """Rewards states on which a trained network does not yet equal a random one."""

    @dataclass(frozen=True)
    class Config(LearnerConfig):
        """Settings of RND."""

        dim: Annotated[int, Range(1, 4096)] = 64
        """outputs of both networks (URLB: 512)"""
        hidden: tuple[Annotated[int, Range(1)], ...] = (256, 256)
        """widths of the hidden layers of both networks (URLB: 1024, 1024)"""
        lr: Annotated[float, Range(0, 1, open_low=True)] = 1e-4
        """learning rate of the predictor (URLB: 1e-4)"""
        momentum: Annotated[float, Range(0, 1, open_low=True)] = 0.01
        """share of a batch in the running mean of the error (ours)"""

    def __init__(self, spec: Spec, config: Config) -> None:
        super().__init__(spec, config)
        self.config = config
        self.space = Discrete(1)
        self.target = mlp((self.seen_dim, *config.hidden, config.dim)).requires_grad_(False)
        self.predictor = mlp((self.seen_dim, *config.hidden, config.dim))
        self.optimiser = torch.optim.Adam(self.predictor.parameters(), lr=config.lr, fused=True)
        self.usual = Usual(config.momentum)

    def update(self, batch: Batch) -> dict[str, Tensor]:
        error = self.error(batch.next_obs)  # (B,)
        descend(self.optimiser, error.mean())
        return {"skill/prediction_error": self.usual.measure(error)}

    @torch.no_grad()
    def signal(self, batch: Batch) -> Tensor:
        return torch.as_tensor(self.usual(self.error(batch.next_obs))).unsqueeze(-1)  # (B, 1)

    def error(self, obs: Tensor) -> Tensor:
        """Mean squared difference (B,) of the networks on observations (B, O)."""
        seen = obs[:, self.columns].clamp(-CLIP, CLIP)
        return torch.as_tensor((self.predictor(seen) - self.target(seen)).square().mean(-1))
