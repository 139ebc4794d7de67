"""Capacities of channels with known answers, through the test beds that realise them."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etude.envs.testbeds.worlds import (
    four_rooms,
    grid,
    moves,
    noisy_lever,
    ring,
    room_teleport,
    t_maze,
)
from etude.errors import UsageError
from etude.evaluate.capacity import capacity, limit, mutual_information
from etude.skills.spaces import Cube, Discrete, Gaussian, SkillSpace, Sphere

LN = math.log
GRIDS = [  # side, start, n, slip, capacity, mutual information of uniform actions
    (5, "centre", 1, 0.0, LN(5), 1.60944),
    (5, "centre", 2, 0.0, LN(13), 2.45337),
    (5, "corner", 2, 0.0, LN(6), 1.46457),
    (5, "edge", 2, 0.0, LN(9), 1.98767),
    (5, "centre", 1, 0.2, 0.94796, 0.94796),
    (5, "centre", 2, 0.2, 1.40268, 1.26354),
    (5, "corner", 2, 0.2, 0.95519, 0.73981),
    (5, "centre", 3, 0.2, 1.59502, 1.30074),
    (7, "centre", 3, 0.0, LN(25), 2.94694),
    (7, "centre", 3, 0.1, 2.24825, 1.93598),
]
"""Computed once by an independent program that multiplies the matrices of every block."""


@pytest.mark.parametrize(("side", "start", "n", "slip", "best", "uniform"), GRIDS)
def test_grids(side: int, start: str, n: int, slip: float, best: float, uniform: float) -> None:
    channel = grid(side, slip).channel(start, n)
    assert channel.shape == (5**n, side**2)
    found = capacity(channel)
    assert found.lower == pytest.approx(best, abs=1e-5)
    assert -1e-12 < found.upper - found.lower < 1e-9
    assert mutual_information(channel, found.inputs) == pytest.approx(found.lower, abs=1e-9)
    assert mutual_information(channel) == pytest.approx(uniform, abs=1e-5)


def test_five_symmetric_moves() -> None:
    """One step from the centre with slip 0.2 errs with probability 0.16, evenly."""
    e = 0.16
    known = LN(5) + (1 - e) * LN(1 - e) + e * LN(e) - e * LN(4)
    assert capacity(grid(5, 0.2).channel("centre", 1)).lower == pytest.approx(known, abs=1e-12)


@pytest.mark.parametrize(("n", "weights"), [(1, (1, 2, 1)), (2, (1, 4, 6, 4, 1))])
def test_ring(n: int, weights: tuple[int, ...]) -> None:
    """A turn by any number of cells plus noise: ln 12 less the noise's entropy."""
    noise = np.array(weights) / sum(weights)
    known = LN(12) + float(noise @ np.log(noise))
    assert capacity(ring().channel(3, n)).lower == pytest.approx(known, abs=1e-9)
    assert n > 1 or known == pytest.approx(1.44519, abs=1e-5)


def test_z_channel() -> None:
    found = capacity([[1, 0], [0.5, 0.5]])
    assert found.lower == pytest.approx(LN(1.25), abs=1e-9)
    np.testing.assert_allclose(found.inputs, (0.6, 0.4), atol=1e-4)


def test_rooms_neither_add_nor_remove() -> None:
    assert capacity(room_teleport().channel("anywhere", 1)).lower == pytest.approx(LN(6), abs=1e-9)
    assert capacity(room_teleport().channel(17, 2)).lower == pytest.approx(LN(6), abs=1e-9)
    assert capacity(four_rooms().channel("corner", 2)).lower == pytest.approx(LN(6), abs=1e-9)
    assert capacity(four_rooms().channel("centre", 2)).lower == pytest.approx(LN(13), abs=1e-9)


def test_random_bits_change_nothing() -> None:
    channel = grid(5, 0.2).channel("corner", 2)
    with_bits = np.kron(channel, np.full((1, 8), 1 / 8))  # three bits
    assert capacity(with_bits).lower == pytest.approx(capacity(channel).lower, abs=1e-8)


def test_noisy_lever() -> None:
    found = capacity(noisy_lever().channel("anywhere", 1))
    assert found.lower == pytest.approx(0.71150, abs=1e-5)
    assert found.inputs[2] == pytest.approx(0.055, abs=1e-3)
    # what is left of the capacity when the two sure levers are all there is
    assert capacity(noisy_lever().channel(0, 1)[:2]).lower == pytest.approx(LN(2), abs=1e-9)


@pytest.mark.parametrize("stem", [1, 3])
def test_t_maze_is_worth_one_end_more_with_memory(stem: int) -> None:
    maze = t_maze(stem)
    for cue in ("first cue", "second cue"):
        known = capacity(maze.channel(cue, stem + 1)).lower
        assert known == pytest.approx(LN(stem + 3), abs=1e-9)
    unseen = maze.channel("anywhere", stem + 1)
    cells = unseen.reshape(len(unseen), 4, stem + 3).sum(axis=1)
    assert capacity(cells).lower == pytest.approx(LN(stem + 2), abs=1e-9)


@given(st.integers(0, 2**16), st.integers(1, 6), st.integers(1, 6), st.sampled_from([0.05, 1, 20]))
def test_bracket_of_random_channels(seed: int, a: int, s: int, spread: float) -> None:
    """No input distribution beats the upper end, and the lower end is what the inputs achieve."""
    rng = np.random.default_rng(seed)
    channel = rng.dirichlet(np.full(s, spread), a)
    found = capacity(channel, tolerance=1e-6, iterations=2000)
    assert mutual_information(channel, found.inputs) == pytest.approx(found.lower, abs=1e-9)
    assert found.lower <= min(LN(a), LN(s)) + 1e-9
    for inputs in (*rng.dirichlet(np.ones(a), 20), *np.eye(a)):
        assert mutual_information(channel, inputs) <= found.upper + 1e-9


def test_mutual_information_by_the_definition() -> None:
    rng = np.random.default_rng(0)
    channel, inputs = rng.dirichlet(np.ones(4), 3), rng.dirichlet(np.ones(3))
    joint = inputs[:, None] * channel
    outputs = joint.sum(axis=0)
    pairs = itertools.product(range(3), range(4))
    known = sum(joint[i, j] * LN(joint[i, j] / (inputs[i] * outputs[j])) for i, j in pairs)
    assert mutual_information(channel, inputs) == pytest.approx(known, abs=1e-12)


def test_without_noise_one_update_is_enough() -> None:
    assert capacity(grid(5).channel("centre", 2)).iterations == 1


def test_limit_of_iterations_and_tolerance() -> None:
    channel = grid(5, 0.2).channel("corner", 2)
    short, wide = capacity(channel, iterations=3), capacity(channel, tolerance=0.01)
    assert short.iterations == 3 and short.upper - short.lower > 1e-3
    assert 1e-9 < wide.upper - wide.lower <= 0.01
    for found in (short, wide):  # the bracket holds however wide it is
        assert found.lower <= 0.95519 + 1e-5 and found.upper >= 0.95519 - 1e-5
    assert capacity(channel, iterations=0).lower == pytest.approx(mutual_information(channel))


@pytest.mark.parametrize(
    "channel", [[0.5, 0.5], [[0.5, 0.4]], [[1.5, -0.5]], [[np.nan, 1.0]], np.zeros((0, 2))]
)
def test_no_channel(channel: list[float]) -> None:
    for function in (capacity, mutual_information):
        with pytest.raises(UsageError, match="channel of shape .* sum to 1"):
            function(channel)


def test_no_inputs_for_this_channel() -> None:
    with pytest.raises(UsageError, match="inputs of shape"):
        mutual_information(np.eye(2), [0.5, 0.6])
    with pytest.raises(UsageError, match="3 inputs for a channel with 2 rows"):
        mutual_information(np.eye(2), [0.5, 0.5, 0.0])


@pytest.mark.parametrize("slip", [0.0, 0.3])
def test_channel_is_the_product_of_the_matrices(slip: float) -> None:
    """Every block by hand, in lexicographic order."""
    steps = moves(3, slip)
    channel = grid(3, slip).channel(1, 2)
    for row, (first, second) in enumerate(itertools.product(range(5), repeat=2)):
        np.testing.assert_allclose(channel[row], (steps[first] @ steps[second])[1], atol=1e-15)


CORNER = "grid-5-slip-bits-corner"
LIMITS = [  # space, environment, steps of a plan, from the start only; the least limit and why
    (Discrete(8), "point-open", 0, False, LN(8), "the logarithm of 8 skills"),
    (Discrete(3), CORNER, 2, False, LN(3), "the logarithm of 3 skills"),
    (Discrete(3), CORNER, 2, True, 0.95519, "the capacity of plans of 2 steps"),
    (Cube(2), CORNER, 2, False, 1.40268, "the capacity of plans of 2 steps"),  # the centre
    (Cube(2), CORNER, 0, False, LN(25), "the logarithm of 25 states"),
    (Discrete(200), "four-rooms-stochastic", 0, False, LN(100), "the logarithm of 100 states"),
    (Sphere(2), "grid-5", 20, True, LN(25), "the logarithm of 25 states"),  # 5^20 blocks
    (Gaussian(2), "point-open", 10, True, math.inf, "no limit is known"),
]


@pytest.mark.parametrize(("space", "env", "planned", "first", "nats", "why"), LIMITS)
def test_the_least_of_the_known_limits(
    space: SkillSpace, env: str, planned: int, first: bool, nats: float, why: str
) -> None:
    found = limit(space, env, planned, first)
    assert found.why == why
    assert nats - 1e-5 <= found.nats <= nats + 2e-4 or found.nats == nats
