"""Zero-shot goals: the skill that points from here to the goal in the library's own features.

A learner whose skills are directions in a feature space phi answers a goal without any training:
z = (phi(g) - phi(s)) / |phi(g) - phi(s)| (Park et al. 2022, "Lipschitz-constrained Unsupervised
Skill Discovery"; Park et al. 2024, METRA); among discrete skills, the one that points most along
it. The goal observation g is the present one with its place replaced, so the direction is the
task's and not that of a posture.
"""

from __future__ import annotations

import numpy as np

from etude.envs.spec import EnvSpec
from etude.skills.controllers.base import goal_and_place
from etude.skills.library import SkillLibrary


class GoalDirectionController:
    """Follows the task's goal field; asked every step or every k steps alike."""

    def __init__(self, library: SkillLibrary, env_spec: EnvSpec, seed: int = 0) -> None:
        self._goal, self._place = goal_and_place(env_spec, "goal")
        self._library, self._body = library, env_spec.body_dim

    def reset(self, obs: np.ndarray) -> None:
        """Nothing is remembered between decisions."""

    def act(self, obs: np.ndarray) -> np.ndarray:
        """The skills (N, Z) that lead towards each environment's goal."""
        here = obs[:, : self._body]
        there = here.copy()
        there[:, self._place] = obs[:, self._goal]
        return self._library.goal_skill(here, there)
