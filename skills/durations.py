"""How long a decision holds its skill: always k steps, for a random time, or as long as is chosen.

A random time is drawn uniformly from k/2 to 3k/2 steps with mean k: a controller that was trained
so does not count on one rhythm, and HiPPO reports it to be the more robust (Li et al. 2020,
"Sub-policy Adaptation for Hierarchical Reinforcement Learning", arXiv:1906.05862, with 5 to 15
steps). A chosen time is a second part of the action, an entry of a short menu. Discounting is exact
in each case, because every decision reports the steps that it took.

Shapes: N choices, C command.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import numpy as np
from gymnasium import spaces

from etude.errors import UsageError, unknown

Mode = Literal["fixed", "random", "chosen"]
STREAM = 1  # beside an environment's own generator, which has the same seed


@dataclass(frozen=True)
class Duration:
    """The steps for which a decision holds a skill, unless skill or episode end sooner."""

    k: int
    """environment steps; their mean where they are random"""
    mode: Mode = "fixed"
    menu: tuple[int, ...] = ()
    """what can be chosen, in steps; empty: half of k, k and twice k"""

    def __post_init__(self) -> None:
        if not (isinstance(self.k, int | np.integer) and self.k >= 1):
            raise UsageError(f"k = {self.k!r} steps per decision: choose k as a whole number >= 1.")
        if self.mode not in get_args(Mode):
            raise unknown("duration of a decision", str(self.mode), get_args(Mode))
        if self.menu and self.mode != "chosen":
            raise UsageError(
                f'a menu of durations has no use in mode "{self.mode}": take "chosen".'
            )
        if any(steps < 1 for steps in self.menu) or len({*self.menu}) < len(self.menu):
            raise UsageError(f"durations {self.menu}: give distinct whole numbers >= 1.")
        if self.mode == "chosen" and not self.menu:
            menu = sorted({max(1, self.k // 2), self.k, 2 * self.k})
            object.__setattr__(self, "menu", tuple(menu))

    @property
    def shortest(self) -> int:
        """The fewest steps that may be drawn or chosen."""
        return {"fixed": self.k, "random": self.k - self.k // 2}.get(self.mode) or min(self.menu)

    @property
    def longest(self) -> int:
        """The most steps that a decision can hold."""
        return {"fixed": self.k, "random": self.k + self.k // 2}.get(self.mode) or max(self.menu)

    def action_space(self, skills: spaces.Space[Any]) -> spaces.Space[Any]:
        """Where a controller chooses from, given the space in which it chooses a skill.

        With a menu this is a pair of indices, or one more coordinate beside a continuous skill,
        whose range [-1, 1] is cut into equal parts.
        """
        if self.mode != "chosen":
            return skills
        if isinstance(skills, spaces.Discrete):
            return spaces.MultiDiscrete([int(skills.n), len(self.menu)])
        assert isinstance(skills, spaces.Box)
        low, high = (np.append(bound, end) for bound, end in ((skills.low, -1), (skills.high, 1)))
        return spaces.Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32)

    def split(self, choice: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """The choices of skills (N, …) in `choice`, and the steps (N,) where they are chosen."""
        if self.mode != "chosen":
            return choice, None
        skill, last, parts = choice[..., :-1], choice[..., -1], len(self.menu)
        if choice.dtype.kind in "iu":
            return skill[..., 0], np.array(self.menu)[last]
        at = np.clip((last + 1) / 2 * parts, 0, parts - 1).astype(np.int64)
        return skill, np.array(self.menu)[at]

    def masks(self, skills: np.ndarray) -> np.ndarray:
        """Masks (N, M) of all that can be chosen, given those of the skills (N, n)."""
        if self.mode != "chosen":
            return skills
        return np.hstack([skills, np.ones((len(skills), len(self.menu)), bool)])

    def draw(self, generators: Sequence[np.random.Generator]) -> np.ndarray:
        """Random steps (N,), one of each generator."""
        bounds = self.shortest, self.longest + 1
        return np.array([rng.integers(*bounds) for rng in generators])


@runtime_checkable
class Timed(Protocol):
    """A controller that also says for how long its latest commands are to be held."""

    @property
    def steps(self) -> np.ndarray | None:
        """Environment steps (N,); None: for k."""


def generator(seed: int | None) -> np.random.Generator:
    """The generator of an environment's random durations."""
    return np.random.default_rng(None if seed is None else [seed, STREAM])
