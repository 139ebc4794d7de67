"""Zero-shot goals: the skill that points from here to the goal in the library's own features.

A learner whose skills are directions in a feature space phi answers a goal without any training:
z = (phi(g) - phi(s)) / |phi(g) - phi(s)| (Park et al. 2022, "Lipschitz-constrained Unsupervised
Skill Discovery"; Park et al. 2024, METRA); among discrete skills, the one that points most along
it. Of other learners the skill is the one that their networks name for g, if they do
(`SkillLibrary.goal_skill`). The goal observation g is the present one with its place replaced, so
the direction is the task's and not that of a posture.
"""

from __future__ import annotations

from collections.abc import Sequence

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
        return _towards(self._library, obs[:, : self._body], self._place, obs[:, self._goal])


class Heading:
    """Leads to one place, whatever the task's goal: at every step by another skill."""

    def __init__(self, library: SkillLibrary, env_spec: EnvSpec, place: Sequence[float]) -> None:
        """Describe it.

        Args:
            library: answers goals; see `SkillLibrary.goal_skill`.
            env_spec: the environment, whose observations begin with the body's.
            place: in descriptor coordinates.
        """
        at = env_spec.slices()
        self.place = np.asarray(place, np.float32)
        self._columns = [at[name].start for name in env_spec.descriptor]
        self._library, self._body = library, env_spec.body_dim

    def __call__(self, obs: np.ndarray) -> np.ndarray:
        """The skills (N, Z) that lead there from raw observations (N, O)."""
        return _towards(self._library, obs[:, : self._body], self._columns, self.place)


def _towards(
    library: SkillLibrary, here: np.ndarray, columns: Sequence[int], place: np.ndarray
) -> np.ndarray:
    """Skills (N, Z) from body observations (N, O) to the same ones with `place` in `columns`."""
    there = here.copy()
    there[:, columns] = place
    return library.goal_skill(here, there)
