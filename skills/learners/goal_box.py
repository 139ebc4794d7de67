"""Goal box: skills are goals, and the box that they are drawn from grows to what can be reached.

Levy, Rammohan, Allievi, Niekum, Konidaris, "Hierarchical Empowerment: Towards Tractable
Empowerment-Based Skill Learning", 2023 (arXiv:2307.02728). A skill z, uniform on the cube, stands
for a goal g = c + w z among the features f(s), here the fields of `skill_obs`, normalised. Whoever
sees the state s_n where a skill ends guesses its goal by N(g; f(s_n), sigma^2), so that

    J = sum_d log 2 w_d + E log N(g; f(s_n), sigma^2)  <=  I(Z; S_n).

The first term grows the box; the second falls where goals can no longer be reached, and so tells it
where to end. Of goals in [-w, w] with all of [-1, 1] and no more in reach, J is largest at

    6 sigma^2 w = (w - 1)^2 (2 w + 1),      w = 1.14 for sigma = 0.1.

The policy is paid for coming nearer to the goal, in units of sigma: with d(s) = |g - f(s)|,

    r = (d(s) - d(s')) / sigma.

Goals are those that were told and, in hindsight, places that the episode came to later.

Deviations: the box, the guess with its fixed sigma, the ascent through g = c + w z and hindsight
are the paper's, which differentiates a critic of goals and has a box for each start. Ours ascends J
with the ends s_n of the replay held, which needs no critic (by the envelope theorem the slope is
the same once each goal is approached as far as it can be), and has one box for all starts, because
a library's policy is told z alone. Ours are also the reward, which unlike the squared distance
keeps its slope near the goal; S_n as any state of a skill's last part; and a single level (paper:
up to four, whose actions are the goals of the level below).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from torch import Tensor, nn

from etude.agents.replay import Batch, Replay
from etude.config import Range
from etude.skills.learners.base import Learner, LearnerConfig, Spec, affine, descend, in_hindsight
from etude.skills.spaces import Cube


class GoalBox(Learner):
    """Pays for coming nearer to goals of a box whose place and size are learned."""

    @dataclass(frozen=True)
    class Config(LearnerConfig):
        """Settings of the goal box."""

        sigma: Annotated[float, Range(0, open_low=True)] = 0.1
        """how near to its goal a skill is to end, normalised units; the box grows by up to
        3 sigma^2 / w while the replay is renewed"""
        width: Annotated[float, Range(0, open_low=True)] = 1.0
        """half-width w of the box at first, normalised units"""
        arrival: Annotated[float, Range(0, 1, open_high=True)] = 0.5
        """share of a skill's steps that are its way; any state after them is an end s_n"""
        hindsight: Annotated[float, Range(0, 1)] = 0.5
        """share of transitions whose goal is a place that the episode came to later"""
        gamma: Annotated[float, Range(0, 1, open_low=True, open_high=True)] = 0.98
        """discount of the future that these places are taken from, per step"""
        lr: Annotated[float, Range(0, 1, open_low=True)] = 1e-3
        """learning rate of c and log w"""

    def __init__(self, spec: Spec, config: Config) -> None:
        super().__init__(spec, config)
        self.config, self.space = config, Cube(self.seen_dim)
        self.centre = nn.Parameter(torch.zeros(self.seen_dim))
        self.log_width = nn.Parameter(torch.full((self.seen_dim,), math.log(config.width)))
        box = list(self.parameters())  # slopes fall by much when the box fits, so a short memory
        self.optimiser = torch.optim.Adam(box, config.lr, (0.9, 0.99), fused=True)

    def draw(self, replay: Replay, size: int) -> Batch:
        return replay.future(size, self.config.gamma)

    def update(self, batch: Batch) -> dict[str, Tensor]:
        bound, error = self.bound(batch)
        descend(self.optimiser, -bound)
        centre, width = self.centre.detach(), self.log_width.detach().exp()
        return {
            "skill/bound": bound.detach(),
            "skill/goal_error": error.detach(),
            **{f"skill/box_centre_{i}": c.clone() for i, c in enumerate(centre)},
            **{f"skill/box_width_{i}": w for i, w in enumerate(width)},
        }

    def bound(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """J in nats and the mean distance between goals and ends, normalised units."""
        way = self.goal(batch.skill) - batch.next_obs[:, self.columns]  # (B, Z)
        end = (batch.time >= self.config.arrival * batch.time.max()).to(way)  # (B,)
        share = end / end.sum()
        sigma = self.config.sigma
        norm = math.log(sigma * math.sqrt(2 * math.pi))
        log_density = -(0.5 * (way / sigma).square() + norm).sum(-1)  # (B,) log N(g; f, sigma^2)
        size = (math.log(2) + self.log_width).sum()
        return size + (share * log_density).sum(), (share * way.norm(dim=-1)).sum()

    def relabel(self, batch: Batch, rng: np.random.Generator) -> Batch:
        if batch.future_obs is None:
            return batch
        met = self.goal_skill(batch.obs, batch.future_obs)
        share = self.config.hindsight
        return batch.replace(skill=in_hindsight(batch.skill, met, share, rng))

    @torch.no_grad()
    def signal(self, batch: Batch) -> Tensor:
        goal, seen = self.goal(batch.skill), (batch.obs, batch.next_obs)
        before, after = ((goal - s[:, self.columns]).norm(dim=-1, keepdim=True) for s in seen)
        return torch.as_tensor((before - after) / self.config.sigma)  # (B, 1)

    def goal(self, z: Tensor) -> Tensor:
        """Goals c + w z (B, Z) of skills, normalised."""
        return torch.as_tensor(self.centre + self.log_width.exp() * z)

    @torch.no_grad()
    def encode(self, obs: Tensor) -> Tensor:
        """The place (B, Z) of observations in the box, whose sides are at -1 and 1."""
        return (obs[:, self.columns] - self.centre) / self.log_width.exp()

    def goal_skill(self, obs: Tensor, goal: Tensor) -> Tensor:
        return self.encode(goal).clamp(-1, 1)

    def export(self) -> dict[str, nn.Sequential]:
        return {"goal": affine((-self.log_width).exp(), -self.centre / self.log_width.exp())}
