"""Summaries of a handful of seeds that do not pretend to more than the seeds know.

The interquartile mean drops the lowest and the highest quarter before averaging: less noise than a
median, less trust in one lucky seed than a mean (Agarwal et al. 2021, "Deep Reinforcement Learning
at the Edge of the Statistical Precipice", arXiv:2108.13264). Intervals are percentile bootstraps
over seeds. With fewer than four seeds nothing is dropped and the interval is little more than the
range.

Results on several tasks are scores, a mapping of each task to one value per seed, all on one scale.
Seeds are resampled within their task, so that an interval says what other seeds would have given,
not what other tasks would have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from etude.errors import UsageError

Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Reduces the last axis."""
Scores = Mapping[str, ArrayLike]
"""One value per seed of each task."""

RESAMPLES = 5000


@dataclass(frozen=True)
class Summary:
    """One number for several seeds, and how far to trust it."""

    n: int
    median: float
    iqm: float
    """interquartile mean"""
    low: float
    """lower end of the 95% interval of the interquartile mean"""
    high: float
    """upper end of it"""

    def __str__(self) -> str:
        return f"{short(self.iqm)} [{short(self.low)}, {short(self.high)}]"


def short(value: float) -> str:
    """Three digits that count; from a thousand on, whole numbers."""
    return f"{value:.3g}" if abs(value) < 999.5 else f"{value:,.0f}"


def median(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The middle value along the last axis."""
    return np.asarray(np.median(values, axis=-1))


def iqm(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean without the lowest and the highest floor(n / 4) values, along the last axis."""
    ordered = np.sort(values, axis=-1)
    n = ordered.shape[-1]
    return np.asarray(ordered[..., n // 4 : n - n // 4].mean(axis=-1))


def bootstrap_ci(
    values: ArrayLike,
    statistic: Statistic = iqm,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic of independent values (n,).

    Raises:
        UsageError: there are no values, or one is not finite.
    """
    sample = _sample(values)
    draws = np.random.default_rng(seed).integers(len(sample), size=(resamples, len(sample)))
    return _interval(statistic(sample[draws]), level)


def summarise(values: ArrayLike, seed: int = 0) -> Summary:
    """Median, interquartile mean and its 95% interval of independent values (n,).

    Raises:
        UsageError: there are no values, or one is not finite.
    """
    sample = _sample(values)
    low, high = bootstrap_ci(sample, seed=seed)
    return Summary(len(sample), float(median(sample)), float(iqm(sample)), low, high)


def aggregate(
    scores: Scores, statistic: Statistic = iqm, level: float = 0.95, resamples: int = RESAMPLES
) -> tuple[float, float, float]:
    """A statistic of the runs of all tasks together, and its stratified interval.

    Raises:
        UsageError: there is no task, a task has no values, or one is not finite.
    """
    samples = _samples(scores)
    drawn = np.concatenate(_resampled(samples, resamples, np.random.default_rng(0)), axis=1)
    low, high = _interval(statistic(drawn), level)
    return float(statistic(np.concatenate(samples))), low, high


def probability_of_improvement(
    x: Scores, y: Scores, level: float = 0.95, resamples: int = RESAMPLES
) -> tuple[float, float, float]:
    """How likely a run of x beats a run of y on a task drawn evenly, and its stratified interval.

    Ties count half: the Mann-Whitney statistic over its greatest value, averaged over tasks.

    Raises:
        UsageError: they are not of the same tasks, or as for `aggregate`.
    """
    if set(x) != set(y):
        raise UsageError(
            f"cannot compare scores on {', '.join(sorted(x))} with scores on "
            f"{', '.join(sorted(y))}: give both the same tasks."
        )
    first, second = _samples(x), _samples({task: y[task] for task in x})
    rng = np.random.default_rng(0)
    drawn = zip(_resampled(first, resamples, rng), _resampled(second, resamples, rng), strict=True)
    low, high = _interval(np.mean([_wins(a, b) for a, b in drawn], axis=0), level)
    middle = np.mean([_wins(a, b) for a, b in zip(first, second, strict=True)])
    return float(middle), low, high


def performance_profile(
    scores: Scores, thresholds: ArrayLike, level: float = 0.95, resamples: int = RESAMPLES // 5
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Share of runs above each threshold (T,), tasks weighing alike, and its interval (T,), (T,).

    Raises:
        UsageError: as for `aggregate`.
    """
    at = np.asarray(thresholds, np.float64)
    samples = _samples(scores)

    def share(parts: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:  # of (…, seeds) each
        above = [(part[..., None] > at).mean(axis=-2) for part in parts]
        return np.asarray(np.mean(above, axis=0))

    drawn = share(_resampled(samples, resamples, np.random.default_rng(0)))
    tail = (1 - level) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail], axis=0)
    return share(samples), low, high


def _wins(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of pairs of the last axes that x wins."""
    a, b = x[..., :, None], y[..., None, :]
    return np.asarray(((a > b) + 0.5 * (a == b)).mean(axis=(-2, -1)))


def _resampled(
    samples: Sequence[NDArray[np.float64]], resamples: int, rng: np.random.Generator
) -> list[NDArray[np.float64]]:
    """Each task's seeds drawn anew with replacement, (resamples, seeds)."""
    return [v[rng.integers(len(v), size=(resamples, len(v)))] for v in samples]


def _interval(values: NDArray[np.float64], level: float) -> tuple[float, float]:
    tail = (1 - level) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def _samples(scores: Scores) -> list[NDArray[np.float64]]:
    if not scores:
        raise UsageError("cannot summarise no task at all: give one or more.")
    return [_sample(values) for values in scores.values()]


def _sample(values: ArrayLike) -> NDArray[np.float64]:
    sample = np.asarray(values, dtype=np.float64).ravel()
    if not len(sample) or not np.isfinite(sample).all():
        raise UsageError(f"cannot summarise {sample.tolist()}: give one finite value per seed.")
    return sample
