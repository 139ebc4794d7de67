"""The variational bound on skills with known mutual information, and densities by quadrature."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

import etude.evaluate.skillset_mi
from etude.envs.engine import BatchedEnv
from etude.envs.registry import make_vec
from etude.envs.testbeds.worlds import COMPASS, grid
from etude.errors import Stopped, UsageError
from etude.evaluate.capacity import mutual_information
from etude.evaluate.skillset_mi import (
    LEAST,
    MIN_STD,
    SkillsetMI,
    _density,
    rollout_mi,
    skillset_mi,
)
from etude.skills.spaces import Cube, Discrete, Gaussian, SkillSpace, Sphere

Array = np.ndarray
M = 1500
SPACES = (Discrete(6), Sphere(2), Sphere(3), Cube(1), Cube(2), Gaussian(2))


def three_errors(found: SkillsetMI) -> float:
    """Three standard errors, from the width of the 95 % interval, and a little for rounding."""
    return 3 * (found.high - found.low) / 3.92 + 1e-9


# ---- densities


def points(space: SkillSpace) -> tuple[Array, Array]:
    """Nodes (n, Z) and weights (n,) of a quadrature over the space."""
    if isinstance(space, Discrete):
        return np.eye(space.dim), np.ones(space.dim)
    if isinstance(space, Sphere) and space.dim == 1:
        return np.array([[-1.0], [1.0]]), np.ones(2)
    if isinstance(space, Sphere):
        angle = (np.arange(4000) + 0.5) * 2 * np.pi / 4000
        if space.dim == 2:
            return np.stack([np.cos(angle), np.sin(angle)], 1), np.full(4000, 2 * np.pi / 4000)
        height, around = np.meshgrid((np.arange(400) + 0.5) / 200 - 1, angle[::20])
        flat, z = np.sqrt(1 - height**2), height
        nodes = np.stack([flat * np.cos(around), flat * np.sin(around), z], -1).reshape(-1, 3)
        return nodes, np.full(len(nodes), 4 * np.pi / len(nodes))
    half, n = (1.0, 200) if isinstance(space, Cube) else (15.0, 400)
    line = ((np.arange(n) + 0.5) / n * 2 - 1) * half
    axes = np.meshgrid(*[line] * space.dim)
    nodes = np.stack([axis.ravel() for axis in axes], 1)
    return nodes, np.full(len(nodes), (2 * half / n) ** space.dim)


@pytest.mark.parametrize("space", [*SPACES, Sphere(1), Gaussian(1)], ids=str)
def test_densities_integrate_to_one_over_the_space(space: SkillSpace) -> None:
    """Whatever the network says; as far as a quadrature can see how sharp they get."""
    outputs, log_prob = _density(space)
    nodes, weights = points(space)
    rng = np.random.default_rng(0)
    for out in rng.standard_normal((5, outputs)):
        rows = torch.as_tensor(np.broadcast_to(out, (len(nodes), outputs)).copy())
        density = log_prob(rows, torch.as_tensor(nodes)).exp().numpy()
        assert float(density @ weights) == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_densities_and_gradients_stay_finite(space: SkillSpace) -> None:
    """Far out of range: the sharpest and the flattest components, centres beyond every edge."""
    outputs, log_prob = _density(space)
    z = torch.as_tensor(space.sample(np.random.default_rng(0), 64)).double()
    for scale in (0.0, 30.0, -1e4, 1e4):
        rng = np.random.default_rng(1)
        out = torch.as_tensor(scale * rng.standard_normal((64, outputs))).requires_grad_()
        value = log_prob(out, z)
        value.sum().backward()
        assert torch.isfinite(value).all() and torch.isfinite(out.grad).all()


def test_the_sharpest_component() -> None:
    """Nothing is sharper than MIN_STD: the height of a density at its centre is bounded."""
    for space, z in ((Cube(1), [[0.0]]), (Gaussian(1), [[0.0]]), (Sphere(2), [[1.0, 0.0]])):
        outputs, log_prob = _density(space)
        out = torch.full((1, outputs), 50.0, dtype=torch.float64)
        out[:, 4] = -50.0  # the prior's weight
        each = (outputs - 5) // 4
        shapes = out[:, 5:].view(4, each)
        shapes[:] = 0
        shapes[:, 0] = float(space.kind == "sphere")
        shapes[:, -1] = 50.0 if space.kind == "sphere" else -50.0
        peak = float(log_prob(out, torch.tensor(z, dtype=torch.float64)))
        assert peak == pytest.approx(-math.log(MIN_STD) - 0.5 * math.log(2 * math.pi), abs=1e-3)


# ---- known answers


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_shuffled_skills_tell_nothing(space: SkillSpace) -> None:
    rng = np.random.default_rng(1)
    z = space.sample(rng, M)
    found = skillset_mi(z[rng.permutation(M)], z, space)
    assert found.nats <= three_errors(found)
    assert found.nats > -0.1


@pytest.mark.parametrize("k", [2, 12])
def test_skills_that_are_seen_tell_all(k: int) -> None:
    z = Discrete(k).sample(np.random.default_rng(0), M)
    found = skillset_mi(z, z, Discrete(k))
    assert math.log(k) - 0.02 < found.nats <= math.log(k)
    assert found.entropy == pytest.approx(math.log(k))
    assert found.conditional == pytest.approx(0, abs=0.02)
    assert found.size == pytest.approx(k, rel=0.02)
    assert found.rows == M // 10


def cube(rng: np.random.Generator, n: int) -> tuple[Array, Array]:
    z = Cube(1).sample(rng, n)
    return z + 0.1 * rng.standard_normal(z.shape), z


def normal(rng: np.random.Generator, n: int) -> tuple[Array, Array]:
    z = Gaussian(2).sample(rng, n)
    return z + 0.5 * rng.standard_normal(z.shape), z


def circle(rng: np.random.Generator, n: int) -> tuple[Array, Array]:
    """Angles with von Mises noise of concentration 20."""
    z = Sphere(2).sample(rng, n)
    angle = np.arctan2(z[:, 1], z[:, 0]) + rng.vonmises(0, 20, n)
    return np.stack([np.cos(angle), np.sin(angle)], 1), z


def quadrants(rng: np.random.Generator, n: int) -> tuple[Array, Array]:
    z = Sphere(2).sample(rng, n)
    return np.sign(z), z


def hemisphere(rng: np.random.Generator, n: int) -> tuple[Array, Array]:
    z = Sphere(3).sample(rng, n)
    return np.sign(z[:, 2:]), z


NOISY = np.full((5, 5), 0.04) + 0.8 * np.eye(5)


def symmetric(rng: np.random.Generator, n: int) -> tuple[Array, Array]:
    z = Discrete(5).sample(rng, n)
    seen = (z @ NOISY).cumsum(1) < rng.random((n, 1))
    return np.eye(5)[seen.sum(1).clip(max=4)], z


def angular(kappa: float) -> float:
    """Mutual information of a uniform angle and itself with von Mises noise."""
    angle = (np.arange(10_000) + 0.5) / 10_000 * 2 * np.pi
    weight = np.exp(kappa * (np.cos(angle) - 1))
    p = weight / weight.sum()
    return float(math.log(10_000) + (p * np.log(p)).sum())


KNOWN = [  # space, channel, mutual information, and what this network may leave of it
    (Cube(1), cube, 1.667, 0.06),
    (Gaussian(2), normal, math.log(5), 0.06),
    (Sphere(2), circle, angular(20), 0.08),
    (Sphere(2), quadrants, math.log(4), 0.12),
    (Sphere(3), hemisphere, math.log(2), 0.3),
    (Discrete(5), symmetric, mutual_information(NOISY), 0.05),
]


@pytest.mark.parametrize(("space", "channel", "known", "loss"), KNOWN)
def test_never_above_the_truth_and_not_far_below(space, channel, known, loss) -> None:
    features, z = channel(np.random.default_rng(2), 2 * M)
    found = skillset_mi(features, z, space, seed=1)
    assert known - loss - three_errors(found) < found.nats <= known + three_errors(found)
    assert found.low < found.nats < found.high
    assert found.nats == pytest.approx(found.entropy - found.conditional)


@pytest.mark.slow
def test_noise_of_a_tenth_on_a_cube() -> None:
    features, z = cube(np.random.default_rng(0), 20_000)
    found = skillset_mi(features, z, Cube(1))
    assert found.nats == pytest.approx(1.667, abs=three_errors(found))
    assert three_errors(found) < 0.06 and found.rows == 2000


def test_starts_tell_what_features_mean() -> None:
    """The end is start + skill mod 4: nothing without the start, everything with it."""
    rng = np.random.default_rng(0)
    z = Discrete(4).sample(rng, M)
    start = rng.integers(4, size=M)
    end = np.eye(4)[(start + z.argmax(1)) % 4]
    blind, seeing = (
        skillset_mi(end, z, Discrete(4)),
        skillset_mi(end, z, Discrete(4), np.eye(4)[start]),
    )
    assert blind.nats <= three_errors(blind)
    assert seeing.nats == pytest.approx(math.log(4), abs=0.05)


def test_what_is_reported_was_neither_fitted_nor_stopped_by() -> None:
    """Other laws in the last tenth of the split: a q that had seen some of it would do better."""
    rng = np.random.default_rng(5)
    z = Discrete(4).sample(rng, M)
    held_out = np.random.default_rng(7).permutation(M)[-M // 10 :]
    features = z.copy()
    features[held_out] = np.roll(z[held_out], 1, axis=1)
    assert skillset_mi(features, z, Discrete(4), seed=7).nats < -2


def test_folds_report_on_more_rows_and_leak_nothing() -> None:
    """Other laws in the last tenth but one: the second fold is the one that reports on it."""
    z = Discrete(4).sample(np.random.default_rng(5), M)
    later = np.random.default_rng(7).permutation(M)[-M // 5 : -M // 10]
    features = z.copy()
    features[later] = np.roll(z[later], 1, axis=1)
    assert skillset_mi(features, z, Discrete(4), seed=7, folds=2).nats < -1
    shuffled = z[np.random.default_rng(0).permutation(M)]
    one, all_of_them = (skillset_mi(shuffled, z, Discrete(4), folds=n) for n in (1, 10))
    assert (one.rows, all_of_them.rows) == (M // 10, M)
    assert all_of_them.nats <= three_errors(all_of_them)
    seen = [skillset_mi(z + np.float32(0.5), z, Discrete(4), folds=n) for n in (1, 10)]
    assert seen[1].nats == pytest.approx(math.log(4), abs=0.02) and seen[1].rows == M


def test_more_rows_make_the_interval_narrower() -> None:
    features, z = symmetric(np.random.default_rng(3), 500)
    one, five = (skillset_mi(features, z, Discrete(5), folds=n) for n in (1, 5))
    assert five.error < 0.7 * one.error
    assert five.error == pytest.approx((five.high - five.low) / 3.92)


def test_a_fit_can_be_stopped() -> None:
    z = Discrete(2).sample(np.random.default_rng(0), LEAST)
    asked = iter([False, False, True])
    with pytest.raises(Stopped):
        skillset_mi(z, z, Discrete(2), stop=lambda: next(asked))


def test_the_best_weights_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Much noise to learn by heart, at a rate that does so at once."""
    monkeypatch.setattr(etude.evaluate.skillset_mi, "RATES", (0.03,))
    rng = np.random.default_rng(0)
    z = Discrete(4).sample(rng, M)
    assert skillset_mi(rng.standard_normal((M, 50)), z, Discrete(4)).nats > -0.2


def test_features_of_any_scale_or_none() -> None:
    z = Discrete(4).sample(np.random.default_rng(0), M)
    features = np.concatenate([1e5 + 1e-2 * z, np.full((M, 2), 7e8)], axis=1)
    assert skillset_mi(features, z, Discrete(4)).nats == pytest.approx(math.log(4), abs=0.05)


def test_one_seed_one_result() -> None:
    features, z = symmetric(np.random.default_rng(0), 400)
    before = torch.get_rng_state()
    first, again, other = (skillset_mi(features, z, Discrete(5), seed=s) for s in (3, 3, 4))
    assert first == again and first != other
    assert torch.equal(before, torch.get_rng_state())


def test_bad_rows_are_named() -> None:
    z = Discrete(2).sample(np.random.default_rng(0), LEAST)
    with pytest.raises(UsageError, match=r"shapes \(50, 2\), \(49, 2\): .* 50 episodes or more"):
        skillset_mi(z[:-1], z, Discrete(2))
    with pytest.raises(UsageError, match=r"shapes \(49, 2\)"):
        skillset_mi(z[:-1], z[:-1], Discrete(2))
    with pytest.raises(UsageError, match=r"\(50, 2\), \(50, 2\), \(50,\)"):
        skillset_mi(z, z, Discrete(2), z[:, 0])
    with pytest.raises(UsageError, match="not finite"):
        skillset_mi(z * np.nan, z, Discrete(2))
    for folds in (0, 11):
        with pytest.raises(UsageError, match=f"folds = {folds}: choose 1 to 10"):
            skillset_mi(z, z, Discrete(2), folds=folds)
    with pytest.raises(UsageError, match="no skill of"):
        skillset_mi(z, z * 0.5, Discrete(2))


# ---- rollouts


@dataclass
class Moves:
    """Fake skills: z is which of the compass's moves to repeat."""

    space: Discrete = field(default_factory=lambda: Discrete(5))
    seen: list[Array] = field(default_factory=list)

    period: int = 1

    def plan(self, obs: np.ndarray, z: np.ndarray) -> np.ndarray:
        self.seen.append(obs)
        return COMPASS[z.argmax(-1)][:, None]


def test_moves_of_a_grid_tell_what_the_channel_says() -> None:
    """One step from the centre with slip, beside random bits: 0.94796 nats."""
    known = mutual_information(grid(5, 0.2).channel("centre", 1))
    found = rollout_mi(Moves(), "grid-5-slip-bits-centre", ("cell",), episodes=M, steps=1)
    assert known - 0.1 - three_errors(found) < found.nats <= known + three_errors(found)
    assert found.rows == M // 10


def test_empowerment_of_one_cell_of_a_world() -> None:
    """Skills may be measured where their world is entered elsewhere: here in a corner."""
    body = grid(5, 0.2)
    known = mutual_information(body.channel("corner", 1))
    corner = BatchedEnv(body.at("corner"), num_envs=250)
    found = rollout_mi(Moves(), corner, episodes=M, steps=1)
    assert known - 0.1 - three_errors(found) < found.nats <= known + three_errors(found)
    assert known < mutual_information(body.channel("centre", 1)) - 0.3


def test_features_and_the_turns() -> None:
    """The descriptor by default, fields by name; whole turns of a vector, cut to the episodes."""
    venv, skills = make_vec("grid-5-bits", 40), Moves()
    place = rollout_mi(skills, venv, episodes=300, steps=1)
    assert len(skills.seen) == 8 and place.rows == 30
    for turn, obs in enumerate(skills.seen):  # episode i starts as environment i does
        np.testing.assert_array_equal(obs, venv.reset(seed=40 * turn)[0])
    assert place.nats > 0.5  # starts anywhere: what a move did is seen from where it began
    bits = rollout_mi(skills, venv, ("bits",), episodes=300, steps=1)
    assert bits.nats <= three_errors(bits)
    assert place == rollout_mi(Moves(), venv, episodes=300, steps=1)
    assert place != rollout_mi(Moves(), venv, episodes=300, steps=1, seed=1)


def test_what_cannot_be_measured() -> None:
    with pytest.raises(UsageError, match='observation field "cel": did you mean "cell"'):
        rollout_mi(Moves(), "grid-5", ("cel",))
    with pytest.raises(UsageError, match="unknown environment"):
        rollout_mi(Moves(), "grid-6")
    with pytest.raises(UsageError, match="50 episodes"):
        rollout_mi(Moves(), "grid-5", episodes=10, steps=1)
    with pytest.raises(Stopped):
        rollout_mi(Moves(), "grid-5", stop=lambda: True)
