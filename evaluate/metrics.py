"""What skills are worth before any task: how far they reach and whether they differ.

Coverage is counted as METRA publishes it (Park et al. 2024, "METRA: Scalable Unsupervised RL with
Metric-Aware Abstraction", and its released code): cut descriptor space into cells, count the
distinct cells floor(coordinate / cell) that were visited. Three counts go by that name:

- policy coverage: 48 deterministic episodes of 200 steps, all pre-step coordinates and the last;
- queue coverage: the last 100,000 steps of training, pre-step coordinates only;
- total coverage: all training steps, pre-step coordinates only.

Shapes: M episodes, T steps, D descriptor, O body observation, Z skill.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from etude.errors import UsageError

Cell = tuple[int, ...]

QUEUE_STEPS = 100_000
HELD_OUT = 0.5
CLASSIFIER = "extra-trees classifier fitted to single states"
DISCRIMINATOR = "the learner's own discriminator"


def cells(paths: ArrayLike, cell: float) -> set[Cell]:
    """The distinct cells that positions (…, D) lie in."""
    places = np.asarray(paths, dtype=np.float64)
    index = np.floor(places / cell).astype(np.int64)
    return set(map(tuple, index.reshape(-1, places.shape[-1]).tolist()))


def coverage(paths: ArrayLike, cell: float) -> int:
    """Number of distinct cells that paths (M, T+1, D) visit."""
    return len(cells(paths, cell))


def x_range(paths: ArrayLike) -> float:
    """Extent of all positions of paths (M, T+1, D) along the first coordinate."""
    return float(np.ptp(np.asarray(paths)[..., 0]))


def displacement(paths: ArrayLike) -> NDArray[np.float64]:
    """Distance |x_T - x_0| between the ends of each path (M, T+1, D), (M,)."""
    places = np.asarray(paths, dtype=np.float64)
    return np.asarray(np.linalg.norm(places[:, -1] - places[:, 0], axis=-1))


def policy_metrics(paths: ArrayLike, cell: float) -> dict[str, float]:
    """Coverage (cells), mean displacement and range of x of evaluation episodes (M, T+1, D)."""
    return {
        "policy_coverage": float(coverage(paths, cell)),
        "displacement": float(displacement(paths).mean()),
        "x_range": x_range(paths),
    }


def effects(
    paths: ArrayLike, skills: ArrayLike, cell: float, descriptor: Sequence[str]
) -> list[dict[str, Any]]:
    """What each distinct skill did, in order of appearance: mean shift, distance, cells.

    Args:
        paths: (M, T+1, D).
        skills: (M, Z); episodes with equal rows are averaged.
        cell: edge of a coverage cell.
        descriptor: names of the D coordinates.
    """
    places, z = np.asarray(paths, dtype=np.float64), np.asarray(skills)
    shift = places[:, -1] - places[:, 0]  # (M, D)
    rows = []
    for skill in dict.fromkeys(map(tuple, z.tolist())):
        own = (z == np.asarray(skill, z.dtype)).all(axis=-1)
        row = {f"d{name}": float(d) for name, d in zip(descriptor, shift[own].mean(0), strict=True)}
        row["distance"] = float(displacement(places[own]).mean())
        rows.append({**row, "cells": coverage(places[own], cell)})
    return rows


def effective_skills(commands: np.ndarray) -> float:
    """exp H of the commands (M, decisions, C) in use: how many a controller really chooses among.

    Rows with NaN are no decisions. Commands count as equal when they round to the same tenth, so
    that the number is finite for continuous skills, too.
    """
    used = commands.reshape(-1, commands.shape[-1])
    used = used[~np.isnan(used).any(axis=-1)]
    _, counts = np.unique(np.round(used, 1), axis=0, return_counts=True)
    share = counts / counts.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


class RunningCoverage:
    """Queue and total coverage of training, kept up to date epoch by epoch.

    Only sets of cells are kept, one per episode of the queue, never the trajectories.
    """

    def __init__(self, cell: float, window: int = QUEUE_STEPS) -> None:
        self.cell, self.window = cell, window
        self._total: set[Cell] = set()
        self._queue: deque[tuple[int, set[Cell]]] = deque()  # steps and cells of an episode
        self._counts: Counter[Cell] = Counter()  # episodes of the queue that visit a cell
        self._steps = 0

    @property
    def queue(self) -> int:
        """Distinct cells of the last `window` steps, in whole episodes."""
        return len(self._counts)

    @property
    def total(self) -> int:
        """Distinct cells of all steps."""
        return len(self._total)

    def add(self, paths: np.ndarray) -> None:
        """Take in episodes (N, T+1, D); their final coordinates do not count."""
        for path in paths[:, :-1]:
            self._append(len(path), cells(path, self.cell))
        while self._steps > self.window:
            steps, gone = self._queue.popleft()
            self._steps -= steps
            self._counts.subtract(gone)
            for place in gone:
                if not self._counts[place]:
                    del self._counts[place]

    def _append(self, steps: int, visited: set[Cell]) -> None:
        self._queue.append((steps, visited))
        self._steps += steps
        self._counts.update(visited)
        self._total |= visited

    def checkpoint(self) -> dict[str, Any]:
        """The sets, as a tree of arrays."""
        return {
            "steps": [steps for steps, _ in self._queue],
            "sizes": [len(visited) for _, visited in self._queue],
            "queue": np.array([c for _, v in self._queue for c in sorted(v)], dtype=np.int64),
            "total": np.array(sorted(self._total), dtype=np.int64),
        }

    def restore(self, tree: Mapping[str, Any]) -> None:
        """Take over a tree made by `checkpoint`."""
        self._queue, self._counts, self._steps = deque(), Counter(), 0
        ends = np.cumsum([0, *tree["sizes"]])
        places = list(map(tuple, np.asarray(tree["queue"]).tolist()))
        for steps, start, end in zip(tree["steps"], ends, ends[1:], strict=False):
            self._append(int(steps), set(places[start:end]))
        self._total = set(map(tuple, np.asarray(tree["total"]).tolist()))


@dataclass(frozen=True)
class Discriminability:
    """How often the skill is recognised from where it leads."""

    accuracy: float
    """share of the states of held-out episodes whose skill is named rightly"""
    chance: float
    """the same for guessing"""
    method: str
    """who named them"""


def discriminability(
    obs: np.ndarray,
    skills: np.ndarray,
    discriminator: Callable[[np.ndarray], np.ndarray] | None = None,
    seed: int = 0,
) -> Discriminability:
    """How well skills can be told apart by single states of episodes nobody was fitted to.

    Args:
        obs: body observations (M, T+1, O); start states are left out.
        skills: (M, Z), each distinct row in two episodes or more.
        discriminator: a learner's q(z | s), log-probabilities (B, Z) of one-hot skills from
            observations (B, O); None fits a classifier to half of each skill's episodes.
        seed: of the split and of the classifier.

    Raises:
        UsageError: fewer than two skills, or one in a single episode.
    """
    kinds, label = np.unique(skills, axis=0, return_inverse=True)
    label = label.ravel()
    counts = np.bincount(label)
    if len(kinds) < 2 or counts.min() < 2:
        raise UsageError("to tell skills apart takes two skills or more, in two episodes each.")
    states = obs[:, 1:]
    if discriminator is not None:
        guess = discriminator(states.reshape(-1, obs.shape[-1])).argmax(-1)
        right = guess == np.repeat(skills.argmax(-1), states.shape[1])
        return Discriminability(float(right.mean()), 1 / skills.shape[1], DISCRIMINATOR)
    from sklearn.ensemble import ExtraTreesClassifier

    fitted, held_out = _split(label, seed)
    model = ExtraTreesClassifier(50, min_samples_leaf=3, random_state=seed, n_jobs=1)
    model.fit(*_flat(states[fitted], label[fitted]))
    accuracy = float(model.score(*_flat(states[held_out], label[held_out])))
    return Discriminability(accuracy, 1 / len(kinds), CLASSIFIER)


def _split(label: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Episodes to fit and to hold out: half of each skill's, whole episodes only."""
    rng = np.random.default_rng(seed)
    groups = [rng.permutation(np.flatnonzero(label == kind)) for kind in np.unique(label)]
    cut = [max(1, int(len(group) * HELD_OUT)) for group in groups]
    held_out = np.concatenate([group[:n] for group, n in zip(groups, cut, strict=True)])
    return np.setdiff1d(np.arange(len(label)), held_out), held_out


def _flat(states: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Single states (B, O) with the skill of their episode (B,)."""
    steps = states.shape[1]
    return states.reshape(-1, states.shape[-1]), np.repeat(label, steps)
