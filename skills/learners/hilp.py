"""HILP: skills are directions in a space where the distance of two states is the time between them.

Park, Kreiman, Levine, "Foundation Policies with Hilbert Representations", ICML 2024
(arXiv:2402.15567). The representation phi: S -> R^D is that of a goal-conditioned value,

    V(s, g) = -|phi(s) - phi(g)|,

which pays -1 for each step that is not yet there. It is learned from any transitions, whoever made
them, towards the best that they show: with an expectile kappa over 1/2,

    A      = -1 + gamma min_i V'_i(s', g) - mean_i V'_i(s, g)
    L_i    = mean_B |kappa - 1{A < 0}| (-1 + gamma V'_i(s', g) - V_i(s, g))^2,      i = 1, 2

where V' are slow copies. A goal is met later in the same episode, or anywhere by another. At the
optimum |phi(s) - phi(g)| = (1 - gamma^d) / (1 - gamma) for states d steps apart, as nearly as a
Hilbert space can have it, and a step has length 1 at most. The policy maximises

    r = (phi(s') - phi(s)) . z,   z on the unit sphere,

for skills drawn afresh for every transition, so z = (phi(g) - phi(s)) / |phi(g) - phi(s)| leads to
g, and a dataset is as good as experience.

Deviations: V(g, g) = 0 by its form, so nothing is to be done where s is g (released: no bootstrap);
a random goal is that of the row before; no layer norm, ReLU for GELU; SAC learns the policy (paper:
IQL or successor features), which offline does nothing against actions that the dataset lacks.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from etude.agents.networks import mlp
from etude.agents.replay import Batch, Replay
from etude.config import Range
from etude.skills.learners.base import Learner, LearnerConfig, Spec, descend
from etude.skills.spaces import Sphere

SHORTEST = 1e-3  # below it a distance has no slope, which at zero would be infinite


class Hilp(Learner):
    """Rewards steps along z in a space that a goal-conditioned value learns."""

    reads_skills: ClassVar[bool] = False

    @dataclass(frozen=True)
    class Config(LearnerConfig):
        """Settings of HILP."""

        dim: Annotated[int, Range(1, 1024)] = 32
        """dimension of z and phi (paper: 32 or 50)"""
        gamma: Annotated[float, Range(0, 1, open_low=True, open_high=True)] = 0.99
        """discount of the value and of the goals' future, per step (paper: 0.96 to 0.99)"""
        expectile: Annotated[float, Range(0.5, 1, open_high=True)] = 0.9
        """kappa; the nearer to 1, the more a rare short way counts (paper: 0.5 to 0.95)"""
        random_goals: Annotated[float, Range(0, 1)] = 0.375
        """share of goals from anywhere, the others being met by the episode (paper: 0.375)"""
        tau: Annotated[float, Range(0, 1, open_low=True)] = 0.005
        """share of phi that moves into its slow copy per update (paper: 0.005)"""
        hidden: tuple[Annotated[int, Range(1)], ...] = (256, 256)
        """widths of phi's hidden layers (paper: 512, 512, 512)"""
        lr: Annotated[float, Range(0, 1, open_low=True)] = 3e-4
        """learning rate of phi (paper: 3e-4 or 5e-4)"""

    def __init__(self, spec: Spec, config: Config) -> None:
        super().__init__(spec, config)
        self.config, self.space = config, Sphere(config.dim)
        sizes = self.seen_dim, *config.hidden, config.dim
        self.phi = nn.ModuleList([mlp(sizes), mlp(sizes)])  # the first is the representation
        self.slow = copy.deepcopy(self.phi).requires_grad_(False)
        self.optimiser = torch.optim.Adam(self.phi.parameters(), lr=config.lr, fused=True)

    def draw(self, replay: Replay, size: int) -> Batch:
        return replay.future(size, self.config.gamma)

    def update(self, batch: Batch) -> dict[str, Tensor]:
        loss, value = self.loss(batch)
        descend(self.optimiser, loss)
        with torch.no_grad():
            for slow, phi in zip(self.slow.parameters(), self.phi.parameters(), strict=True):
                slow.lerp_(phi, self.config.tau)
        metrics = {"skill/phi_loss": loss.detach(), "skill/distance": -value.mean()}
        if not self.offline:  # a dataset may have skills of another kind
            metrics["skill/progress"] = self.signal(batch).mean()
        return metrics

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The sum of L_i, and V (2, B)."""
        assert batch.future_obs is not None, "goals come from the future"
        anywhere = int(self.config.random_goals * len(batch.obs))
        goal = torch.cat((batch.next_obs.roll(1, 0)[:anywhere], batch.future_obs[anywhere:]))
        with torch.no_grad():
            after = -1 + self.config.gamma * self.values(self.slow, batch.next_obs, goal)  # (2, B)
            advantage = after.min(0).values - self.values(self.slow, batch.obs, goal).mean(0)
            weight = (self.config.expectile - (advantage < 0).float()).abs()  # (B,)
        value = self.values(self.phi, batch.obs, goal)
        return (weight * (after - value).square()).mean(1).sum(), value.detach()

    def values(self, networks: nn.ModuleList, obs: Tensor, goal: Tensor) -> Tensor:
        """V (2, B) of observations and goals, both (B, O)."""
        both = torch.cat((obs, goal))[:, self.columns]
        ways = [here - there for here, there in (net(both).chunk(2) for net in networks)]
        return -torch.stack(ways).square().sum(-1).clamp_min(SHORTEST**2).sqrt()

    def relabel(self, batch: Batch, rng: np.random.Generator) -> Batch:
        z = torch.from_numpy(self.space.sample(rng, len(batch.obs)))
        return batch.replace(skill=z.to(batch.obs.device))

    @torch.no_grad()
    def signal(self, batch: Batch) -> Tensor:
        step = self.encode(batch.next_obs) - self.encode(batch.obs)  # (B, D)
        return (step * batch.skill).sum(-1, keepdim=True)  # (B, 1)

    def encode(self, obs: Tensor) -> Tensor:
        return torch.as_tensor(self.phi[0](obs[:, self.columns]))

    @torch.no_grad()
    def goal_skill(self, obs: Tensor, goal: Tensor) -> Tensor:
        return nn.functional.normalize(self.encode(goal) - self.encode(obs), dim=-1)

    def export(self) -> dict[str, nn.Sequential]:
        phi = self.phi[0]
        assert isinstance(phi, nn.Sequential)
        return {"phi": phi}
