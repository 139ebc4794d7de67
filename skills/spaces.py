"""Skill spaces: what a skill z is, how it is drawn, and how a controller's action becomes one.

Four spaces cover the literature: one-hot vectors (DIAYN; Eysenbach et al. 2019), the unit sphere
(METRA; Park et al. 2024), a standard normal and a cube. Every skill is a float32 vector, also the
discrete ones, so that a policy always sees (observation, z). Shapes: n skills, Z = `dim`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray

from etude.errors import UsageError, unknown

Array = NDArray[np.float32]

MAX_DIM = 4096
TOLERANCE = 1e-3  # how far a float32 skill that went through JSON may lie off the sphere or cube
TINY = 1e-6  # a direction shorter than this has no direction
EVEN_SEED = 0


@dataclass(frozen=True)
class SkillSpace(ABC):
    """A set of skills with its prior p(z)."""

    dim: int
    """Length of the vector z."""

    kind: ClassVar[str]

    def __post_init__(self) -> None:
        if not (isinstance(self.dim, int) and 1 <= self.dim <= MAX_DIM):
            raise UsageError(
                f"a {self.kind} skill space of size {self.dim!r} is not possible: "
                f"choose a whole number from 1 to {MAX_DIM}."
            )

    @abstractmethod
    def sample(self, rng: np.random.Generator, n: int) -> Array:
        """Draw n skills from the prior: (n, Z)."""

    @abstractmethod
    def log_prob(self, z: ArrayLike) -> NDArray[np.float64]:
        """Log prior (n,) in nats of z (n, Z); -inf outside of the space."""

    @abstractmethod
    def action_space(self) -> spaces.Space[Any]:
        """The space a controller acts in; `from_action` turns its actions into skills."""

    def from_action(self, action: ArrayLike) -> Array:
        """The skill (…, Z) that a controller's action (or a batch of them) stands for."""
        return self.nearest(action)

    @abstractmethod
    def towards(self, direction: ArrayLike) -> Array:
        """The skill (…, Z) that points most along `direction` (…, Z), for zero-shot goals."""

    @abstractmethod
    def nearest(self, point: ArrayLike) -> Array:
        """The skill (…, Z) nearest to any `point` (…, Z), such as what a network gives."""

    def contains(self, z: ArrayLike) -> bool:
        """Whether z, (Z,) or (n, Z), consists of skills of this space only."""
        rows = np.asarray(z, np.float64)
        if rows.ndim not in (1, 2) or rows.shape[-1] != self.dim or not np.isfinite(rows).all():
            return False
        return bool(self._inside(np.atleast_2d(rows)).all())

    def check(self, z: ArrayLike) -> Array:
        """z as float32.

        Raises:
            UsageError: z is no skill (or batch of skills) of this space.
        """
        if not self.contains(z):
            raise UsageError(
                f"{np.array2string(np.asarray(z), precision=3, threshold=8)} is no skill of {self}:"
                f" give vectors of length {self.dim}{self._rule()}."
            )
        return np.asarray(z, np.float32)

    def even(self, n: int) -> Array:
        """A fixed set of n skills (n, Z) for evaluation, as evenly spread as the space allows."""
        return self.sample(np.random.default_rng(EVEN_SEED), n)

    def distinct(self, n: int) -> Array:
        """Those of `even(n)` that differ, in order: a line has but two."""
        return np.array(list(dict.fromkeys(map(tuple, self.even(n).tolist()))), np.float32)

    def to_json(self) -> dict[str, Any]:
        """Plain data that `from_json` reads."""
        return {"kind": self.kind, "dim": self.dim}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> SkillSpace:
        """The space written by `to_json`.

        Raises:
            UsageError: an unknown kind or an impossible size.
        """
        kinds = {c.kind: c for c in (Discrete, Sphere, Gaussian, Cube)}
        if data.get("kind") not in kinds:
            raise unknown("skill space", str(data.get("kind")), kinds)
        space: SkillSpace = kinds[data["kind"]](data.get("dim", 0))
        return space

    def _inside(self, rows: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Which of the finite rows (n, Z) lie in the space."""
        return np.ones(len(rows), bool)

    def _rule(self) -> str:
        """What a skill must fulfil, for error messages."""
        return ""

    def _density(self, z: ArrayLike, log_density: float) -> NDArray[np.float64]:
        """A uniform prior: `log_density` inside the space, -inf outside."""
        rows = np.atleast_2d(np.asarray(z, np.float64))
        return np.where(self._inside(rows), log_density, -np.inf)


@dataclass(frozen=True)
class Discrete(SkillSpace):
    """`dim` skills as one-hot vectors, all equally likely."""

    kind: ClassVar[str] = "discrete"

    @property
    def n(self) -> int:
        """Number of skills."""
        return self.dim

    def sample(self, rng: np.random.Generator, n: int) -> Array:
        return self._one_hot(rng.integers(self.dim, size=n))

    def log_prob(self, z: ArrayLike) -> NDArray[np.float64]:
        return self._density(z, -math.log(self.dim))

    def action_space(self) -> spaces.Discrete:
        return spaces.Discrete(self.dim)

    def from_action(self, action: ArrayLike) -> Array:
        """One-hot of the index; an index outside of the space is a UsageError."""
        index = np.asarray(action)
        if index.dtype.kind not in "iu" or ((index < 0) | (index >= self.dim)).any():
            raise UsageError(f"{action!r} is no skill index: choose 0 to {self.dim - 1}.")
        return self._one_hot(index)

    def towards(self, direction: ArrayLike) -> Array:
        return self.nearest(direction)

    def nearest(self, point: ArrayLike) -> Array:
        """The one-hot vector of the largest entry."""
        return self._one_hot(np.asarray(point).argmax(-1))

    def even(self, n: int) -> Array:
        """Every skill floor(n / dim) or ceil(n / dim) times, in order."""
        return self._one_hot(np.arange(n) * self.dim // max(n, 1))

    def _one_hot(self, index: NDArray[Any]) -> Array:
        return np.asarray(index[..., None] == np.arange(self.dim), np.float32)

    def _inside(self, rows: NDArray[np.float64]) -> NDArray[np.bool_]:
        return np.asarray(((rows == 0) | (rows == 1)).all(-1) & (rows.sum(-1) == 1))

    def _rule(self) -> str:
        return " that are one-hot"


@dataclass(frozen=True)
class Sphere(SkillSpace):
    """The unit sphere in `dim` dimensions, uniform."""

    kind: ClassVar[str] = "sphere"

    def sample(self, rng: np.random.Generator, n: int) -> Array:
        return self.towards(rng.standard_normal((n, self.dim)))

    def log_prob(self, z: ArrayLike) -> NDArray[np.float64]:
        half = self.dim / 2
        area = math.log(2) + half * math.log(math.pi) - math.lgamma(half)
        return self._density(z, -area)

    def action_space(self) -> spaces.Box:
        return _box(self.dim)

    def towards(self, direction: ArrayLike) -> Array:
        return self.nearest(direction)

    def nearest(self, point: ArrayLike) -> Array:
        """The point, scaled to length one; the first axis where it has no length."""
        vector = np.asarray(point, np.float64)
        norm = np.linalg.norm(vector, axis=-1, keepdims=True)
        axis = np.eye(1, self.dim)[0]
        return np.asarray(np.where(norm < TINY, axis, vector / np.maximum(norm, TINY)), np.float32)

    def even(self, n: int) -> Array:
        """On a line 1 and -1 by turns, on the circle n equal angles; elsewhere a fixed sample."""
        if self.dim == 1:
            return np.resize(np.array([[1], [-1]], np.float32), (n, 1))
        if self.dim != 2:
            return super().even(n)
        angle = 2 * np.pi * np.arange(n) / max(n, 1)
        return np.stack((np.cos(angle), np.sin(angle)), -1).astype(np.float32)

    def _inside(self, rows: NDArray[np.float64]) -> NDArray[np.bool_]:
        return np.asarray(np.abs(np.linalg.norm(rows, axis=-1) - 1) <= TOLERANCE)

    def _rule(self) -> str:
        return " and norm 1"


@dataclass(frozen=True)
class Gaussian(SkillSpace):
    """All of R^dim under a standard normal prior."""

    kind: ClassVar[str] = "gaussian"
    SIGMA: ClassVar[float] = 1.5
    """Reach of a controller's action of 1, in standard deviations (METRA's downstream layer)."""

    def sample(self, rng: np.random.Generator, n: int) -> Array:
        return rng.standard_normal((n, self.dim), np.float32)

    def log_prob(self, z: ArrayLike) -> NDArray[np.float64]:
        rows = np.atleast_2d(np.asarray(z, np.float64))
        return np.asarray(-0.5 * (rows**2 + math.log(2 * math.pi)).sum(-1))

    def action_space(self) -> spaces.Box:
        return _box(self.dim)

    def from_action(self, action: ArrayLike) -> Array:
        """The action times 1.5 standard deviations."""
        return np.asarray(action, np.float32) * np.float32(self.SIGMA)

    def towards(self, direction: ArrayLike) -> Array:
        """Along `direction` with the prior's typical length, sqrt(dim)."""
        return Sphere(self.dim).towards(direction) * np.float32(math.sqrt(self.dim))

    def nearest(self, point: ArrayLike) -> Array:
        """The point itself."""
        return np.asarray(point, np.float32)


@dataclass(frozen=True)
class Cube(SkillSpace):
    """The cube [-1, 1]^dim, uniform."""

    kind: ClassVar[str] = "cube"

    def sample(self, rng: np.random.Generator, n: int) -> Array:
        return rng.uniform(-1, 1, (n, self.dim)).astype(np.float32)

    def log_prob(self, z: ArrayLike) -> NDArray[np.float64]:
        return self._density(z, -self.dim * math.log(2))

    def action_space(self) -> spaces.Box:
        return _box(self.dim)

    def towards(self, direction: ArrayLike) -> Array:
        """The point of the cube's surface along `direction`; the centre where it has no length."""
        vector = np.asarray(direction, np.float64)
        reach = np.abs(vector).max(-1, keepdims=True)
        return np.asarray(vector / np.maximum(reach, TINY), np.float32)

    def nearest(self, point: ArrayLike) -> Array:
        """The point, clipped to the cube."""
        return np.clip(np.asarray(point, np.float32), -1, 1)

    def _inside(self, rows: NDArray[np.float64]) -> NDArray[np.bool_]:
        return np.asarray((np.abs(rows) <= 1 + TOLERANCE).all(-1))

    def _rule(self) -> str:
        return " within [-1, 1]"


def _box(dim: int) -> spaces.Box:
    return spaces.Box(-1.0, 1.0, (dim,), np.float32)
