"""Skills drawn from the prior, whatever the task: the baseline that any controller must beat."""

from __future__ import annotations

import numpy as np

from etude.envs.spec import EnvSpec
from etude.skills.library import SkillLibrary


class RandomController:
    """A new random skill at every decision."""

    def __init__(self, library: SkillLibrary, env_spec: EnvSpec, seed: int = 0) -> None:
        self._library = library
        self._rng = np.random.default_rng(seed)

    def reset(self, obs: np.ndarray) -> None:
        """Nothing is remembered between decisions."""

    def act(self, obs: np.ndarray) -> np.ndarray:
        """Random skills (N, Z)."""
        return self._library.sample(self._rng, len(obs))
