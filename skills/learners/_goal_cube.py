"""Skills that are places to reach: what CRL and QRL have in common.

A skill z is a point of the cube [-1, 1]^Z: the fields of `skill_obs`, normalised, over `reach`. Of
the spaces only the cube is bounded and keeps distances: a controller's action is then a place, and
a place the same skill wherever it is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn

from etude.agents.replay import Batch, Replay
from etude.config import Range
from etude.skills.learners.base import Learner, LearnerConfig, Spec, affine
from etude.skills.spaces import Cube


class GoalCube(Learner):
    """Learns of goals in hindsight: places that an episode came to later."""

    reads_skills: ClassVar[bool] = False
    config: Config

    @dataclass(frozen=True)
    class Config(LearnerConfig):
        """Settings of the family."""

        reach: Annotated[float, Range(0, open_low=True)] = 3**0.5
        """half the width of the cube, normalised units; a coordinate that is uniform on its range
        ends at 3^0.5 deviations"""
        gamma: Annotated[float, Range(0, 1, open_low=True, open_high=True)] = 0.99
        """discount of the future that goals are taken from, per step (CRL: 0.99)"""

    def __init__(self, spec: Spec, config: Config) -> None:
        super().__init__(spec, config)
        self.config, self.space = config, Cube(self.seen_dim)

    def draw(self, replay: Replay, size: int) -> Batch:
        return replay.future(size, self.config.gamma)

    def encode(self, obs: Tensor) -> Tensor:
        """The place (B, Z) of observations, in units of the cube; goals may lie outside."""
        return obs[:, self.columns] / self.config.reach

    def goal_skill(self, obs: Tensor, goal: Tensor) -> Tensor:
        return self.encode(goal).clamp(-1, 1)

    def export(self) -> dict[str, nn.Sequential]:
        scale = torch.ones(self.seen_dim) / self.config.reach
        return {"goal": affine(scale, torch.zeros(self.seen_dim))}
