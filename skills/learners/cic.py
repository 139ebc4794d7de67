"""CIC: transitions that spread out, and tell which of endlessly many skills made them.

Laskin, Liu, Peng, Yarats, Rajeswaran, Abbeel, "CIC: Contrastive Intrinsic Control for Unsupervised
Skill Discovery", 2022 (arXiv:2202.00161). The information of transitions about skills is split into

    I(T; Z) = H(T) - H(T | Z),        T = (s, s').

Embeddings h(T) of transitions and q(z) of skills, both of length one, learn by telling the
transition of a skill from those of the B - 1 others in the batch,

    c_i = log  exp(q_i . h_i / temperature) / ( 1/B sum_j exp(q_i . h_j / temperature) )  <=  log B,

and the entropy is that of particles: e_i = log(1 + mean distance of i to its k nearest neighbours,
over the usual one). `reward = "paper"` is e_i of transitions, before they are normalised, and
`"released"` what the authors' code runs, e_i of the states s' alone; for neither has a policy to
listen to z. `"split"` is e_i + c_i, both halves of the information.

Deviations: `"split"` is ours; a softmax over the batch with the positive in its denominator
(released: less a constant); a particle is no neighbour of its own; distances are over their running
mean, without a clip (released: variance, whose unit does not cancel, less 5e-4); z is uniform on
[-1, 1]^Z (paper: [0, 1]^Z), redrawn every `loop.hold` steps (50, as there; never on the point); SAC
and single steps (released: DDPG, with one reward for three steps).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from etude.agents.networks import mlp
from etude.agents.replay import Batch
from etude.config import Range
from etude.skills.learners._particles import Particles
from etude.skills.learners.base import Learner, LearnerConfig, Spec, descend
from etude.skills.spaces import Cube


class Cic(Learner):
    """Rewards transitions far from others, of which a contrastive critic knows the skill."""

    @dataclass(frozen=True)
    class Config(LearnerConfig):
        """Settings of CIC."""

        reward: Literal["paper", "released", "split"] = "paper"
        """entropy of transitions, entropy of states, or of transitions with what they tell of z"""
        dim: Annotated[int, Range(1, 1024)] = 64
        """dimension of z and of every embedding (paper: 64)"""
        neighbours: Annotated[int, Range(1, 1024)] = 16
        """nearest others k that make the entropy (released: 16)"""
        temperature: Annotated[float, Range(0, open_low=True)] = 0.5
        """of the contrastive softmax (paper: 0.5)"""
        momentum: Annotated[float, Range(0, 1, open_low=True)] = 0.01
        """share of a batch in the running mean of distances (ours)"""
        hidden: tuple[Annotated[int, Range(1)], ...] = (256, 256)
        """widths of the hidden layers of every network (paper: 1024, 1024)"""
        lr: Annotated[float, Range(0, 1, open_low=True)] = 3e-4
        """learning rate of the embeddings (paper: 1e-4)"""

    def __init__(self, spec: Spec, config: Config) -> None:
        super().__init__(spec, config)
        self.config = config
        self.space = Cube(config.dim)
        self.state = mlp((self.seen_dim, *config.hidden, config.dim))
        self.transition = mlp((2 * config.dim, *config.hidden, config.dim))
        self.skill = mlp((config.dim, *config.hidden, config.dim))
        self.optimiser = torch.optim.Adam(self.parameters(), lr=config.lr, fused=True)
        self.particles = Particles(config.neighbours, config.momentum)

    def update(self, batch: Batch) -> dict[str, Tensor]:
        points, score = self.embed(batch)
        descend(self.optimiser, -score.mean())
        distance = self.particles.measure(points)
        return {"skill/contrast": score.detach().mean(), "skill/distance": distance}

    @torch.no_grad()
    def signal(self, batch: Batch) -> Tensor:
        points, score = self.embed(batch)
        entropy = self.particles.entropy(points)
        whole = entropy + score if self.config.reward == "split" else entropy
        return whole.unsqueeze(-1)  # (B, 1)

    def embed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The points (B, D) of the entropy, and c (B,) in nats."""
        before, after = self.encode(torch.cat((batch.obs, batch.next_obs))).chunk(2)
        made = self.transition(torch.cat((before, after), -1))  # (B, D)
        meant = normalize(self.skill(batch.skill), dim=-1)  # (B, D)
        logits = meant @ normalize(made, dim=-1).mT / self.config.temperature  # (B, B)
        score = logits.diagonal() - logits.logsumexp(-1) + math.log(len(logits))
        return after if self.config.reward == "released" else made, score

    def encode(self, obs: Tensor) -> Tensor:
        return torch.as_tensor(self.state(obs[:, self.columns]))
