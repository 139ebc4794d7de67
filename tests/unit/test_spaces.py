"""Skill spaces: priors integrate to one, samples belong, actions become skills, JSON round trip."""

import math

import numpy as np
import pytest
from gymnasium.spaces import Box
from gymnasium.spaces import Discrete as DiscreteActions

from etude.errors import UsageError
from etude.skills.spaces import Cube, Discrete, Gaussian, SkillSpace, Sphere

SPACES = [Discrete(1), Discrete(5), Sphere(1), Sphere(2), Sphere(7), Gaussian(3), Cube(2)]
each_space = pytest.mark.parametrize("space", SPACES, ids=str)


@each_space
def test_samples_belong_and_are_reproducible(space: SkillSpace) -> None:
    z = space.sample(np.random.default_rng(3), 200)
    assert z.shape == (200, space.dim) and z.dtype == np.float32
    assert space.contains(z) and space.contains(z[0])
    assert np.isfinite(space.log_prob(z)).all() and space.log_prob(z).shape == (200,)
    np.testing.assert_array_equal(z, space.sample(np.random.default_rng(3), 200))
    assert space.dim == 1 or not np.array_equal(z, space.sample(np.random.default_rng(4), 200))


@each_space
def test_json_round_trip(space: SkillSpace) -> None:
    assert SkillSpace.from_json(space.to_json()) == space


@each_space
def test_actions_become_skills(space: SkillSpace) -> None:
    actions = space.action_space()
    actions.seed(0)
    batch = np.stack([actions.sample() for _ in range(20)])
    z = space.from_action(batch)
    assert z.shape == (20, space.dim) and z.dtype == np.float32 and space.contains(z)
    np.testing.assert_array_equal(space.from_action(batch[0]), z[0])


@each_space
def test_even_set_is_fixed_and_belongs(space: SkillSpace) -> None:
    z = space.even(9)
    assert z.shape == (9, space.dim) and space.contains(z)
    np.testing.assert_array_equal(z, space.even(9))
    assert space.even(0).shape == (0, space.dim)


@each_space
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_no_skill(space: SkillSpace, bad: float) -> None:
    z = space.sample(np.random.default_rng(0), 2)
    z[1, 0] = bad
    assert not space.contains(z)
    with pytest.raises(UsageError, match="no skill of"):
        space.check(z)


def test_wrong_vectors_are_refused() -> None:
    assert not Discrete(3).contains([1, 1, 0]) and not Discrete(3).contains([0, 0, 0])
    assert not Sphere(2).contains([1, 1]) and not Cube(2).contains([1.1, 0])
    assert not Gaussian(2).contains([1, 2, 3]) and not Gaussian(2).contains(np.zeros((1, 1, 2)))
    with pytest.raises(UsageError, match="norm 1"):
        Sphere(2).check([3, 4])
    with pytest.raises(UsageError, match="one-hot"):
        Discrete(2).check([0.5, 0.5])


def test_discrete_prior_is_uniform() -> None:
    np.testing.assert_allclose(Discrete(8).log_prob(np.eye(8)), -math.log(8))
    assert Discrete(2).log_prob([[1, 1]]) == -np.inf
    shares = Discrete(4).sample(np.random.default_rng(0), 40_000).mean(0)
    np.testing.assert_allclose(shares, 0.25, atol=0.01)


def test_sphere_prior_is_one_over_its_area() -> None:
    for dim, area in ((1, 2.0), (2, 2 * np.pi), (3, 4 * np.pi)):
        np.testing.assert_allclose(Sphere(dim).log_prob(np.eye(dim)), -math.log(area))
    assert Sphere(2).log_prob([2, 0]) == -np.inf


def test_sphere_samples_have_no_preferred_direction() -> None:
    z = Sphere(3).sample(np.random.default_rng(0), 50_000)
    np.testing.assert_allclose(z.mean(0), 0, atol=0.01)
    np.testing.assert_allclose(np.cov(z.T), np.eye(3) / 3, atol=0.01)


def test_gaussian_and_cube_priors_integrate_to_one() -> None:
    grid = np.linspace(-6, 6, 601)
    points = np.stack(np.meshgrid(grid, grid), -1).reshape(-1, 2)
    cell = (grid[1] - grid[0]) ** 2
    assert np.exp(Gaussian(2).log_prob(points)).sum() * cell == pytest.approx(1, abs=1e-3)
    np.testing.assert_allclose(Cube(3).log_prob(np.zeros((1, 3))), math.log(1 / 8))
    assert Cube(2).log_prob([[2, 0]]) == -np.inf


def test_action_conventions() -> None:
    assert Discrete(3).action_space() == DiscreteActions(3)
    assert Sphere(2).action_space() == Box(-1, 1, (2,), np.float32)
    np.testing.assert_array_equal(Discrete(3).from_action(2), [0, 0, 1])
    np.testing.assert_allclose(Sphere(2).from_action([0.3, 0.4]), [0.6, 0.8], rtol=1e-6)
    np.testing.assert_array_equal(Sphere(2).from_action([0.0, 0.0]), [1, 0])
    np.testing.assert_allclose(Gaussian(2).from_action([1, -0.5]), [1.5, -0.75])
    np.testing.assert_allclose(Cube(2).from_action([0.2, -2]), [0.2, -1])


@pytest.mark.parametrize("index", [3, -1, 0.5])
def test_discrete_action_out_of_range(index: float) -> None:
    with pytest.raises(UsageError, match="choose 0 to 2"):
        Discrete(3).from_action(index)


def test_towards_points_along_the_direction() -> None:
    way = np.array([[0.1, -2.0], [3.0, 1.0]])
    np.testing.assert_array_equal(Discrete(2).towards(way), [[1, 0], [1, 0]])
    for space in (Sphere(2), Gaussian(2), Cube(2)):
        z = space.towards(way)
        cosine = (z * way).sum(-1) / np.linalg.norm(z, axis=-1) / np.linalg.norm(way, axis=-1)
        np.testing.assert_allclose(cosine, 1, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(Gaussian(2).towards(way), axis=-1), math.sqrt(2))
    np.testing.assert_allclose(np.abs(Cube(2).towards(way)).max(-1), 1)


@each_space
def test_the_nearest_skill_is_none_farther_than_any_other(space: SkillSpace) -> None:
    rng = np.random.default_rng(0)
    points = 2 * rng.standard_normal((20, space.dim))
    z = space.nearest(points)
    assert space.contains(z) and z.dtype == np.float32
    others = np.concatenate((space.sample(rng, 500), space.even(50)))
    apart = np.linalg.norm(points[:, None] - others, axis=-1).min(1)
    assert (np.linalg.norm(points - z, axis=-1) <= apart + 1e-6).all()
    np.testing.assert_allclose(space.nearest(others), others, atol=1e-6)
    np.testing.assert_array_equal(space.nearest(points[0]), z[0])


def test_even_sets() -> None:
    np.testing.assert_array_equal(Discrete(5).even(12).sum(0), [3, 2, 3, 2, 2])
    np.testing.assert_array_equal(Discrete(4).even(2).argmax(-1), [0, 2])
    np.testing.assert_array_equal(Sphere(1).even(3), [[1], [-1], [1]])
    angles = np.unwrap(np.arctan2(*Sphere(2).even(8).T[::-1]))
    np.testing.assert_allclose(np.diff(angles), np.pi / 4, atol=1e-6)


@pytest.mark.parametrize("dim", [0, -1, 10**9, 2.5, "3"])
def test_impossible_sizes(dim: object) -> None:
    with pytest.raises(UsageError, match="whole number from 1"):
        Sphere(dim)  # type: ignore[arg-type]


def test_unknown_kind_names_the_nearest() -> None:
    with pytest.raises(UsageError, match='did you mean "sphere"'):
        SkillSpace.from_json({"kind": "spere", "dim": 2})
