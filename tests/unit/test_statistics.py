"""Statistics over tasks and seeds, against SciPy and against counts made by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats

from etude.errors import UsageError
from etude.evaluate import statistics


def scores(seed: int = 0, seeds: int = 7, shift: float = 0.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {task: rng.normal(level + shift, 1, seeds) for task, level in (("a", 0), ("b", 5))}


def test_the_mean_of_the_middle_is_that_of_scipy() -> None:
    x = scores()
    value, low, high = statistics.aggregate(x)
    together = np.concatenate(list(x.values()))
    assert value == pytest.approx(stats.trim_mean(together, 0.25))
    assert low < value < high
    median, *_ = statistics.aggregate(x, statistics.median)
    assert median == pytest.approx(np.median(together))


@pytest.mark.parametrize(
    ("value", "told"),
    [(0.01234, "0.0123"), (999.4, "999"), (999.6, "1,000"), (-1004.2, "-1,004"), (0.0, "0")],
)
def test_figures_are_short_and_never_powers_of_ten(value: float, told: str) -> None:
    assert statistics.short(value) == told
    assert str(statistics.summarise([value])).startswith(told)


def test_seeds_are_resampled_within_their_task() -> None:
    """Tasks far apart widen nothing; without strata they would."""
    x = {"low": [0.0, 0.1, 0.2], "high": [10.0, 10.1, 10.2]}
    _, low, high = statistics.aggregate(x, lambda v: v.mean(-1))
    assert high - low < 0.2
    pooled = np.concatenate(list(x.values()))
    wide = statistics.bootstrap_ci(pooled, lambda v: v.mean(-1))
    assert wide[1] - wide[0] > 4


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """With 20 seeds of each of two tasks, the mean lies in 95 % of intervals, less a little."""
    inside = 0
    for i in range(200):
        x = scores(i, seeds=20)
        _, low, high = statistics.aggregate(x, lambda v: v.mean(-1), resamples=300)
        inside += low <= 2.5 <= high
    assert 0.88 <= inside / 200 <= 0.99


def test_probability_of_improvement_is_that_of_mann_and_whitney() -> None:
    x, y = scores(1), scores(2, seeds=5, shift=-1)
    y["a"][0] = x["a"][0]  # a tie
    value, low, high = statistics.probability_of_improvement(x, y)
    truth = np.mean([stats.mannwhitneyu(x[t], y[t]).statistic / (7 * 5) for t in x])
    assert value == pytest.approx(truth)
    assert 0 <= low < value < high <= 1
    back, *_ = statistics.probability_of_improvement(y, x)
    assert value + back == pytest.approx(1)
    assert statistics.probability_of_improvement(x, x)[0] == pytest.approx(0.5)
    assert statistics.probability_of_improvement({"t": [2, 3]}, {"t": [1, 2]}) == (0.875, 0.5, 1.0)


def test_tasks_of_the_two_must_be_the_same_whatever_their_order() -> None:
    x, y = scores(1), scores(2)
    turned = dict(reversed(y.items()))
    first, second = (statistics.probability_of_improvement(x, v) for v in (y, turned))
    assert first == second
    with pytest.raises(UsageError, match="scores on a, b with scores on a: give both the same"):
        statistics.probability_of_improvement(x, {"a": [1.0]})


def test_a_profile_is_the_share_of_runs_above() -> None:
    x = {"a": [0.1, 0.5], "b": [0.5, 0.9, 0.9, 0.9]}
    share, low, high = statistics.performance_profile(x, [0.0, 0.4, 0.5, 0.95])
    np.testing.assert_allclose(share, [1, 0.75, 0.375, 0])
    assert (low <= share).all() and (share <= high).all() and low[1] < high[1]
    assert low[0] == high[0] == 1 and low[3] == high[3] == 0


@pytest.mark.parametrize(
    "function",
    [
        statistics.aggregate,
        lambda x: statistics.probability_of_improvement(x, x),
        lambda x: statistics.performance_profile(x, [0.5]),
    ],
)
def test_nothing_is_made_up(function: Callable[[Any], Any]) -> None:
    for bad in ({}, {"a": []}, {"a": [1.0, np.nan]}):
        with pytest.raises(UsageError, match="cannot summarise"):
            function(bad)
