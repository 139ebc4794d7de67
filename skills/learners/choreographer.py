"""Choreographer: explore first, name what was found with codes, and learn to reach each in a dream.

Mazzaglia, Verbelen, Dhoedt, Lacoste, Rajeswar, "Choreographer: Learning and Adapting Skills in
Imagination", ICLR 2023 (arXiv:2211.13350). A world model is learned from what an exploring policy
collects, or from a dataset. Skills have no part in that: they are the K codes of a vector-quantised
autoencoder of the model's states y, and their policy pi(s, z) learns in imagination alone, from

    r(y, z) = sg( mean distance from y to its k nearest imagined y' ) - | y - decode(z) |

the first term being the entropy of all skills, which reaches the policy through the critic only,
and the second what tells the skills apart, which does so through the dynamics as well.

Deviations: for states, not pixels, and small. The model is a latent one without memory (its decoder
shows the policies observations, so that a library can keep them) in place of a recurrent one. It is
explored by the disagreement of an ensemble (Sekar et al. 2020, arXiv:2005.05960) where the paper
regresses the posterior's surprise. The policy is told the observation that its code decodes to, not
the code's number: skills learn from each other and follow codes that move. decode(z) above is that
observation's state, because the mean of many states need not be one. No head predicts ends of
episodes: there must be none. Actors have constant noise, critics are two, and codes that are moved
start with the weight of one vector. Ours is `outcome(s, z)`, regressed on the imagined change of s
in a horizon's steps, by which a controller can choose skills without the world model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from etude.agents.networks import linear_layers, mlp
from etude.agents.replay import Batch, Replay, Sequences
from etude.config import Range
from etude.skills.learners.base import Learner, LearnerConfig, Spec, descend, own_generator
from etude.skills.mlp import MLP
from etude.skills.spaces import Discrete
from etude.worldmodels.actor_critic import ActorCritic, ActorCriticConfig
from etude.worldmodels.codebook import Codebook, CodebookConfig
from etude.worldmodels.ensemble import Ensemble, EnsembleConfig
from etude.worldmodels.imagine import Imagined, State
from etude.worldmodels.latent import Latent, LatentConfig


class Choreographer(Learner):
    """Learns to reach, in imagination, each of the codes of what was explored."""

    agent = None
    reads_skills = False
    scale: Tensor
    mask: Tensor

    @dataclass(frozen=True)
    class Config(LearnerConfig):
        """Settings of Choreographer."""

        model: LatentConfig = field(default_factory=lambda: LatentConfig(decode=1.0))
        """of the world model; its `decode` must be above 0"""
        ensemble: EnsembleConfig = field(default_factory=EnsembleConfig)
        """of the ensemble whose disagreement is explored"""
        codebook: CodebookConfig = field(default_factory=CodebookConfig)
        """of the skills"""
        exploration: ActorCriticConfig = field(default_factory=ActorCriticConfig)
        """of the policy that explores"""
        imagination: ActorCriticConfig = field(default_factory=ActorCriticConfig)
        """of that of the skills"""
        starts: Annotated[int, Range(2, 4096)] = 128
        """observations of a batch that imagination starts from (the paper: all)"""
        neighbours: Annotated[int, Range(1, 1000)] = 12
        """k of the entropy, the state itself included (the paper: 30)"""
        entropy: Annotated[float, Range(0)] = 1.0
        """weight of the entropy against reaching the code (the paper: 1)"""
        ensemble_lr: Annotated[float, Range(0, 1, open_low=True)] = 3e-4
        """learning rate of the ensemble, and of `outcome`"""

    def __init__(self, spec: Spec, config: Config) -> None:
        super().__init__(spec, config)
        self.config = config
        self.space = Discrete(config.codebook.codes)
        obs, act, z, width = spec.obs_dim, spec.action_dim, self.space.dim, config.model.width
        self.model = Latent(obs, act, config.model)
        self.ensemble = Ensemble(width, act, config.ensemble)
        self.codebook = Codebook(width, config.codebook)
        self.explorer = ActorCritic(obs, 0, width, act, config.exploration)
        self.skills = ActorCritic(obs, obs, width, act, config.imagination)
        self.outcome = mlp((obs + z, *config.imagination.hidden, obs))
        self.register_buffer("scale", torch.ones(()))  # running size of the disagreement
        mask = torch.zeros(obs)
        mask[self.columns] = 1
        self.register_buffer("mask", mask, persistent=False)
        self.model_optimiser = self.model.optimiser()
        self.codebook_optimiser = self.codebook.optimiser()
        lr = config.ensemble_lr
        self.ensemble_optimiser = torch.optim.Adam(self.ensemble.parameters(), lr, fused=True)
        self.outcome_optimiser = torch.optim.Adam(self.outcome.parameters(), lr, fused=True)
        self.explorer_actor, self.explorer_critic = self.explorer.optimisers()
        self.skills_actor, self.skills_critic = self.skills.optimisers()
        self.generator = own_generator()

    def draw(self, replay: Replay, size: int) -> Sequences:
        return replay.sequences(size, self.config.model.horizon)

    def update(self, batch: Sequences) -> dict[str, Tensor]:
        model = self.model.update(batch, self.model_optimiser)
        with torch.no_grad():
            y = self.model.encoder(batch.obs[:, :2])  # (B, 2, D)
        start = {"latent": y[: self.config.starts, 0]}
        if not self.offline:
            self._explore(start, y, batch.action[:, 0])
        seen = self.encode(batch.obs[:, 0])
        coded = self.codebook.update(seen, self.codebook_optimiser, self.generator)
        drawn = torch.randint(self.space.dim, (len(start["latent"]),), generator=self.generator)
        z = F.one_hot(drawn, self.space.dim).to(y)  # (B, K)
        both, paid_for = (self.skills_actor, self.skills_critic), partial(self.reward, z=z)
        dream, paid, returns = self.skills.update(
            self.model, start, z @ self.goals(), paid_for, both, self.generator
        )
        with torch.no_grad():
            before, after = self.model.decode(dream.feat[:, [0, -1]]).unbind(1)  # (B, O) each
        guess = self.outcome(torch.cat((before, z), -1))
        descend(self.outcome_optimiser, F.mse_loss(guess, after - before))
        found = {name.replace("model/", "model_"): value for name, value in model.items()} | coded
        found |= {"paid": paid.mean(), "return": returns.mean(), "surprise": self.scale.clone()}
        return {f"skill/{name}": value for name, value in found.items()}

    def _explore(self, start: State, y: Tensor, action: Tensor) -> None:
        """Fit the ensemble to steps from y (B, 2, D), and the policy that looks for its doubts."""
        error, _ = self.ensemble.loss(y[:, 0], action, y[:, 1])
        descend(self.ensemble_optimiser, error)
        both = self.explorer_actor, self.explorer_critic
        _, surprise, _ = self.explorer.update(
            self.model, start, None, self.disagreement, both, self.generator
        )
        self.scale.lerp_(self.scale * surprise.mean(), 0.05)

    def disagreement(self, dream: Imagined) -> Tensor:
        """What exploring is paid (B, H): variance of the ensemble, in units of its running mean."""
        y, a = dream.feat[:, :-1].flatten(0, 1), dream.action.flatten(0, 1)
        variance = self.ensemble.disagreement(y, a) / self.scale
        return torch.as_tensor(variance.unflatten(0, dream.action.shape[:2]))

    def reward(self, dream: Imagined, z: Tensor) -> Tensor:
        """What skills z (B, K) are paid in imagination, (B, H)."""
        y = dream.feat[:, 1:]  # (B, H, D)
        if self.seen_dim < self.spec.obs_dim:  # what `encode` would see of it
            y = self.model.encoder(self.model.decode(y) * self.mask)
        return self._paid(y, (z @ self.encode(self.goals())).unsqueeze(1))

    @torch.no_grad()
    def goals(self) -> Tensor:
        """The observation (K, O) that each code stands for: what the policy is told of it."""
        every = torch.eye(self.space.dim, device=self.mask.device)
        return self.model.decode(self.codebook.decode(every)) * self.mask

    @torch.no_grad()
    def signal(self, batch: Batch) -> Tensor:
        """The same reward of real steps, for any agent."""
        y = self.encode(batch.next_obs)
        return self._paid(y, batch.skill @ self.encode(self.goals())).unsqueeze(-1)

    @torch.no_grad()
    def goal_skill(self, obs: Tensor, goal: Tensor) -> Tensor:
        """The code of the goal."""
        return self.codebook.assign(self.encode(goal))

    @torch.no_grad()
    def encode(self, obs: Tensor) -> Tensor:
        """States y (B, D) of observations, as far as skills are told apart by them."""
        return torch.as_tensor(self.model.encoder(obs * self.mask))

    def plan(self, obs: Tensor, z: Tensor, deterministic: bool = False) -> Tensor:
        with torch.no_grad():
            if deterministic:
                return self.skills.act(obs, z @ self.goals(), None).unsqueeze(1)
            action = self.explorer.act(obs, None, self.generator)
        if not self.model_optimiser.state:  # nothing is known yet
            action = torch.empty(action.shape).uniform_(-1, 1, generator=self.generator).to(obs)
        return action.unsqueeze(1)

    def policy(self) -> MLP:
        (first, bias), *rest = linear_layers(self.skills.actor)
        known, told = np.split(first, [self.spec.obs_dim])  # (O, H) each
        folded = np.concatenate((known, self.goals().cpu().numpy() @ told))  # for (obs, z)
        return MLP([(folded, bias), *rest], output="tanh")

    def export(self) -> Mapping[str, nn.Sequential | MLP]:
        return {"outcome": MLP(linear_layers(self.outcome), inputs=("obs", "z"))}

    def _paid(self, y: Tensor, target: Tensor) -> Tensor:
        """r (...) of states y (..., D) with the targets of their skills."""
        flat = y.detach().flatten(0, -2)
        k = min(self.config.neighbours, len(flat))
        near = torch.cdist(flat, flat).topk(k, largest=False).values.mean(-1)
        entropy = self.config.entropy * near.view(y.shape[:-1])
        return torch.as_tensor(entropy - (y - target).norm(dim=-1))
