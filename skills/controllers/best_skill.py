"""The one skill that does best: try each in some episodes, then hold the winner for ever.

What a library is worth without any composition; DIAYN takes its best skill so (Eysenbach et al.
2019, arXiv:1802.06070, §4.2), and SMM its best prior. Choosing costs environment steps, which
belong into every comparison.

Shapes: N environments, O observation, C candidates, Z skill.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from etude.errors import UsageError
from etude.skills.controllers.base import Controller


class OneSkillController:
    """Names one skill z (Z,) for ever."""

    def __init__(self, z: np.ndarray) -> None:
        self.z = np.asarray(z, np.float32)

    def reset(self, obs: np.ndarray) -> None:
        """Nothing is remembered between decisions."""

    def act(self, obs: np.ndarray) -> np.ndarray:
        """The skill, (N, Z)."""
        return np.tile(self.z, (len(obs), 1))


@dataclass(frozen=True, eq=False)
class Selection:
    """Candidates and how they did."""

    skills: np.ndarray
    """(C, Z)"""
    scores: np.ndarray
    """(C,), larger is better"""

    @property
    def best(self) -> np.ndarray:
        """The winner (Z,); the first of equals."""
        return np.asarray(self.skills[int(np.argmax(self.scores))])

    @property
    def controller(self) -> OneSkillController:
        """Holds the winner."""
        return OneSkillController(self.best)


def select(skills: np.ndarray, judge: Callable[[Controller], float]) -> Selection:
    """Let each of `skills` (C, Z) act alone, and keep what `judge` says of it.

    Args:
        skills: the candidates.
        judge: what a controller is worth, such as the mean return of some episodes.

    Raises:
        UsageError: there is no candidate, or a score is NaN.
    """
    if not len(skills):
        raise UsageError("no skills to choose from: give one or more.")
    scores = np.array([judge(OneSkillController(z)) for z in skills], np.float64)
    if np.isnan(scores).any():
        raise UsageError(f"skill {int(np.isnan(scores).argmax())} has the score NaN: give numbers.")
    return Selection(np.asarray(skills), scores)
