"""Coverage, displacement, discriminability and statistics against counts made by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etude.errors import UsageError
from etude.evaluate import metrics, statistics
from etude.evaluate.metrics import RunningCoverage, coverage, discriminability, displacement


def naive_cells(paths: np.ndarray, cell: float) -> int:
    seen = set()
    for path in paths:
        for place in path:
            seen.add(tuple(int(np.floor(c / cell)) for c in place))
    return len(seen)


def test_coverage_counts_floors_and_the_final_coordinate():
    path = np.array([[[0.2, 0.0], [-0.2, 0.0], [0.9, 0.9], [1.0, 0.0]]])
    # floor, not truncation towards zero: -0.2 is a cell of its own, and so is the last place
    assert coverage(path, 1.0) == 3
    assert coverage(path, 4.0) == 2
    assert coverage(path[..., :1], 1.0) == 3


@given(st.integers(0, 2**16), st.integers(1, 3), st.sampled_from([0.25, 0.5, 1.0, 3.0]))
def test_coverage_is_the_naive_count(seed, dim, cell):
    paths = np.random.default_rng(seed).normal(scale=3, size=(4, 9, dim))
    assert coverage(paths, cell) == naive_cells(paths, cell)


def test_straight_rays_cover_what_is_known_of_them():
    # 48 rays of 10 m in random directions cover about 258 cells (mean over directions)
    rng = np.random.default_rng(0)
    counts = []
    for _ in range(40):
        angle = rng.uniform(0, 2 * np.pi, 48)
        ray = np.stack([np.cos(angle), np.sin(angle)], -1)[:, None]
        way = ray * np.linspace(0, 10, 201)[:, None]
        counts.append(coverage(way, 1.0))
    assert np.mean(counts) == pytest.approx(258, rel=0.03)


def test_displacement_and_range():
    paths = np.array([[[0.0, 0.0], [9.0, 0.0], [3.0, 4.0]], [[1.0, 1.0], [-2.0, 1.0], [1.0, 1.0]]])
    assert displacement(paths).tolist() == [5.0, 0.0]
    assert metrics.x_range(paths) == 11.0
    found = metrics.policy_metrics(paths, 1.0)
    assert found == {"policy_coverage": 5.0, "displacement": 2.5, "x_range": 11.0}


def test_effects_average_the_episodes_of_a_skill():
    paths = np.array([[[0.0], [2.0]], [[0.0], [4.0]], [[1.0], [0.5]]])
    z = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], np.float32)
    first, second = metrics.effects(paths, z, 1.0, ("x",))
    assert first == {"dx": 3.0, "distance": 3.0, "cells": 3}
    assert second == {"dx": -0.5, "distance": 0.5, "cells": 2}


def test_effective_skills():
    z = np.array([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [np.nan, np.nan]]])
    assert metrics.effective_skills(z) == pytest.approx(3 / (2 ** (2 / 3)))
    assert metrics.effective_skills(z[:1]) == pytest.approx(2.0)


def test_queue_and_total_coverage_leave_the_final_coordinate_out():
    running = RunningCoverage(1.0)
    running.add(np.array([[[0.0], [1.0], [2.0]]]))
    assert (running.queue, running.total) == (2, 2)


@given(st.integers(0, 2**16), st.integers(1, 5), st.integers(1, 40))
def test_running_coverage_is_a_recount_of_the_last_episodes(seed, length, window):
    rng = np.random.default_rng(seed)
    running, episodes = RunningCoverage(0.5, window), []
    for _ in range(6):
        paths = rng.normal(size=(3, length + 1, 2))
        running.add(paths)
        episodes += [path[:-1] for path in paths]
        last = episodes[-(window // length) :] if window >= length else []
        assert running.queue == (naive_cells(np.array(last), 0.5) if last else 0)
        assert running.total == naive_cells(np.array(episodes), 0.5)


def test_running_coverage_goes_on_after_a_checkpoint():
    rng = np.random.default_rng(0)
    first, second = RunningCoverage(0.5, 20), RunningCoverage(0.5, 20)
    for _ in range(4):
        first.add(rng.normal(size=(2, 6, 2)))
    second.restore(first.checkpoint())
    assert (second.queue, second.total) == (first.queue, first.total)
    more = rng.normal(size=(3, 6, 2))
    first.add(more)
    second.add(more)
    assert (second.queue, second.total) == (first.queue, first.total)
    empty = RunningCoverage(1.0)
    empty.restore(RunningCoverage(1.0).checkpoint())
    assert (empty.queue, empty.total) == (0, 0)


def skills_and_states(episodes: int, apart: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    skills = np.eye(4, dtype=np.float32)[np.arange(4 * episodes) % 4]
    centre = skills @ np.array([[1, 0], [-1, 0], [0, 1], [0, -1.0]])
    obs = apart * centre[:, None] + rng.normal(scale=0.1, size=(len(skills), 31, 2))
    return obs.astype(np.float32), skills


def test_a_fitted_classifier_names_skills_that_differ():
    obs, skills = skills_and_states(6, apart=1.0)
    found = discriminability(obs, skills)
    assert (found.chance, found.method) == (0.25, metrics.CLASSIFIER)
    assert found.accuracy > 0.99
    same, skills = skills_and_states(6, apart=0.0)
    assert discriminability(same, skills).accuracy == pytest.approx(0.25, abs=0.08)


def test_episodes_are_held_out_whole():
    # each episode has a place of its own: only a split by states could recognise it again
    rng = np.random.default_rng(1)
    skills = np.eye(4, dtype=np.float32)[np.arange(40) % 4]
    place = rng.normal(size=(40, 1, 3))
    obs = (place + rng.normal(scale=1e-3, size=(40, 21, 3))).astype(np.float32)
    assert discriminability(obs, skills).accuracy < 0.5


def test_a_learners_discriminator_is_asked_and_named():
    obs, skills = skills_and_states(3, apart=1.0)
    way = np.array([[1, 0], [-1, 0], [0, 1], [0, -1.0]])
    found = discriminability(obs, skills, lambda o: o @ way.T)
    assert (found.accuracy, found.method) == (1.0, metrics.DISCRIMINATOR)
    wrong = discriminability(obs, skills, lambda o: -(o @ way.T))
    assert wrong.accuracy == 0.0


def test_one_skill_cannot_be_told_apart():
    obs, skills = skills_and_states(3, apart=1.0)
    with pytest.raises(UsageError, match="two skills"):
        discriminability(obs[:1], skills[:1])


def test_iqm_drops_a_quarter_at_each_end():
    values = np.array([100.0, 1, 2, 3, 4, 5, 6, -50])
    assert statistics.iqm(values) == np.mean([2, 3, 4, 5])
    assert statistics.iqm(np.array([1.0, 2, 6])) == 3.0  # too few to drop any
    assert statistics.iqm(np.array([1.0, 2, 3, 4, 90])) == 3.0
    assert statistics.median(np.array([1.0, 9, 3])) == 3.0


def test_bootstrap_interval():
    rng = np.random.default_rng(0)
    values = rng.normal(5, 2, 40)
    low, high = statistics.bootstrap_ci(values, lambda v: v.mean(-1))
    # a normal approximation of the mean's interval
    half = 1.96 * values.std() / np.sqrt(40)
    assert low == pytest.approx(values.mean() - half, abs=0.1)
    assert high == pytest.approx(values.mean() + half, abs=0.1)
    assert statistics.bootstrap_ci(values, seed=3) == statistics.bootstrap_ci(values, seed=3)
    assert statistics.bootstrap_ci(values, seed=3) != statistics.bootstrap_ci(values, seed=4)
    assert statistics.bootstrap_ci(values, level=0.5)[0] > statistics.bootstrap_ci(values)[0]


def test_summary():
    summary = statistics.summarise([0.5, 0.5, 0.5])
    assert (summary.n, summary.median, summary.iqm) == (3, 0.5, 0.5)
    assert (summary.low, summary.high, str(summary)) == (0.5, 0.5, "0.5 [0.5, 0.5]")
    for bad in ([], [1.0, np.nan]):
        with pytest.raises(UsageError, match="one finite value per seed"):
            statistics.summarise(bad)
