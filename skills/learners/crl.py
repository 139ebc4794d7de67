"""CRL: a skill is a goal, and what a policy did by accident is a lesson in what it reaches.

Eysenbach, Zhang, Levine, Salakhutdinov, "Contrastive Learning as Goal-Conditioned Reinforcement
Learning", NeurIPS 2022 (arXiv:2206.07568). Whatever skill an episode was told to follow, from
(s_t, a_t) it came to the state

    s_{t+d},    P(d) ~ gamma^(d-1),    d >= 1 up to the end of the episode,

and the place z of that state is a goal which this action served. A contrastive critic
(`agents/contrastive.py`) tells the pairs of a batch from its other goals, which makes it

    f(s, a, z) = log p(z | s, a) - log p(z),

the log-odds that z is met in the discounted future, and the policy maximises it. No reward is
needed, and none is learned.

What is practised is told by `goals`: places that were visited, any place of the cube, or one that
nobody has been to ("A Single Goal is All You Need", Liu, Tang, Eysenbach 2024, arXiv:2408.05804),
which makes the policy explore: what it learns of goals that were met carries it on towards the one
that was not, as `bench/single_goal.py` has it of a point in a large maze.

Deviations: goals are fields of the state (papers: often the whole of it, or an image); visited ones
are those of the last batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor

from etude.agents.contrastive import Contrastive
from etude.agents.replay import Batch
from etude.config import Range
from etude.errors import UsageError
from etude.skills.learners._goal_cube import GoalCube
from etude.skills.learners.base import Spec

VISITED = 256  # places kept for `goals = "visited"`


class Crl(GoalCube):
    """Goals in hindsight for a contrastive agent; skills are goals."""

    agent = Contrastive
    config: Config
    visited: Tensor

    @dataclass(frozen=True)
    class Config(GoalCube.Config):
        """Settings of CRL."""

        goals: Literal["visited", "space", "single"] = "visited"
        """what is practised: places visited before, any place of the cube, or `goal` alone"""
        goal: tuple[Annotated[float, Range(-1, 1)], ...] = ()
        """the skill of `goals = "single"`, in units of the cube, with a number for each column"""

    def __init__(self, spec: Spec, config: Config) -> None:
        super().__init__(spec, config)
        wanted = self.seen_dim if config.goals == "single" else 0
        if len(config.goal) != wanted:
            raise UsageError(
                f'goal = {config.goal} does not fit goals = "{config.goals}": give {wanted} '
                'numbers ("single": one for each column of skill_obs, else none).'
            )
        self.register_buffer("visited", 2 * torch.rand(VISITED, self.seen_dim) - 1)

    @torch.no_grad()
    def update(self, batch: Batch) -> dict[str, Tensor]:
        places = self.encode(batch.next_obs).clamp(-1, 1)  # (B, Z)
        rows = torch.arange(VISITED, device=places.device) % len(places)
        self.visited.copy_(places[rows])
        return {"skill/spread": places.std(0).mean()}

    def relabel(self, batch: Batch, rng: np.random.Generator) -> Batch:
        goal = self.encode(batch.next_obs if batch.future_obs is None else batch.future_obs)
        told = goal if self.offline else batch.skill  # a dataset may have skills of another kind
        return batch.replace(skill=told, goal=goal)

    @torch.no_grad()
    def signal(self, batch: Batch) -> Tensor:
        """Minus the distance (B, 1) from the skill, only logged: the agent does without."""
        way = batch.skill - self.encode(batch.next_obs)  # (B, Z)
        return -way.square().sum(-1, keepdim=True).sqrt()

    def resample(self, z: np.ndarray, step: int, rng: np.random.Generator, hold: int) -> np.ndarray:
        drawn = super().resample(z, step, rng, hold)
        if drawn is z or self.config.goals == "space":
            return drawn
        if self.config.goals == "single":
            return np.tile(np.asarray(self.config.goal, np.float32), (len(z), 1))
        return self.visited.cpu().numpy()[rng.integers(VISITED, size=len(z))]
