"""Summaries of a handful of seeds that do not pretend to more than the seeds know.

The interquartile mean drops the lowest and the highest quarter before averaging: less noise than a
median, less trust in one lucky seed than a mean (Agarwal et al. 2021, "Deep Reinforcement Learning
at the Edge of the Statistical Precipice"). Intervals are percentile bootstraps over seeds. With
fewer than four seeds nothing is dropped and the interval is little more than the range.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from etude.errors import UsageError

Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Reduces the last axis."""

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
        return f"{self.iqm:.3g} [{self.low:.3g}, {self.high:.3g}]"


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
    tail = (1 - level) / 2
    low, high = np.quantile(statistic(sample[draws]), [tail, 1 - tail])
    return float(low), float(high)


def summarise(values: ArrayLike, seed: int = 0) -> Summary:
    """Median, interquartile mean and its 95% interval of independent values (n,).

    Raises:
        UsageError: there are no values, or one is not finite.
    """
    sample = _sample(values)
    low, high = bootstrap_ci(sample, seed=seed)
    return Summary(len(sample), float(median(sample)), float(iqm(sample)), low, high)


def _sample(values: ArrayLike) -> NDArray[np.float64]:
    sample = np.asarray(values, dtype=np.float64).ravel()
    if not len(sample) or not np.isfinite(sample).all():
        raise UsageError(f"cannot summarise {sample.tolist()}: give one finite value per seed.")
    return sample
