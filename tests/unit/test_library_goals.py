"""What a library's networks say of goals and features, by their names and beside which skills."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest

from etude.envs.registry import spec
from etude.errors import LibraryError
from etude.skills.library import MLP, SetData, SkillLibrary
from etude.skills.library_data import Contents
from etude.skills.spaces import Cube, Discrete, Gaussian, SkillSpace, Sphere

RNG = np.random.default_rng(0)
OBS, GOAL = 3 * RNG.standard_normal((2, 30, 4))


def net(width: int, seed: int = 0) -> MLP:
    rng = np.random.default_rng(seed)
    layers = [(rng.normal(size=s), rng.normal(size=s[1])) for s in ((4, 8), (8, width))]
    return MLP(layers, inputs=("obs",))


def library(space: SkillSpace, encoders: Mapping[str, MLP]) -> SkillLibrary:
    policy = MLP([(np.zeros((4 + space.dim, 2)), np.zeros(2))], output="tanh")
    normaliser = np.arange(4), np.arange(1, 5)
    data = SetData("main", "none", {}, space, policy, encoders, *normaliser, [])
    return SkillLibrary(Contents("named", spec("point-open").to_json(), [data]))


def test_features_are_phi_of_length_one_where_skills_have_that_length() -> None:
    lib = library(Sphere(3), {"features": net(3)})
    raw = lib.encoders["features"](GOAL)
    expected = raw / np.linalg.norm(raw, axis=-1, keepdims=True)
    np.testing.assert_allclose(lib.encode(GOAL), expected, atol=1e-6)
    assert not lib.directional and library(Sphere(3), {"phi": net(3)}).directional


def test_the_skill_of_a_goal_is_then_phi_of_it_from_anywhere() -> None:
    lib = library(Sphere(3), {"features": net(3)})
    np.testing.assert_array_equal(lib.goal_skill(OBS, GOAL), lib.encode(GOAL))
    np.testing.assert_array_equal(lib.goal_skill(GOAL, GOAL), lib.encode(GOAL))


@pytest.mark.parametrize("space", [Discrete(3), Gaussian(3), Cube(3), Sphere(4)], ids=str)
def test_features_learnt_beside_other_skills_answer_nothing(space: SkillSpace) -> None:
    lib = library(space, {"features": net(3)})
    with pytest.raises(LibraryError, match='no encoder "phi"'):
        lib.encode(OBS)
    with pytest.raises(LibraryError, match='no encoder "phi"'):
        lib.goal_skill(OBS, GOAL)


@pytest.mark.parametrize("name", ["goal", "discriminator"])
@pytest.mark.parametrize(
    ("space", "chosen"),
    [
        (Discrete(3), lambda out: np.eye(3)[out.argmax(-1)]),
        (Cube(3), lambda out: np.clip(out, -1, 1)),
        (Sphere(3), lambda out: out / np.linalg.norm(out, axis=-1, keepdims=True)),
    ],
    ids=("discrete", "cube", "sphere"),
)
def test_a_network_that_names_skills_answers_by_the_nearest(
    name: str, space: SkillSpace, chosen: Callable[[np.ndarray], np.ndarray]
) -> None:
    lib = library(space, {name: net(3)})
    expected = chosen(lib.encoders[name](GOAL))
    np.testing.assert_allclose(lib.goal_skill(OBS, GOAL), expected, atol=1e-6)
    with pytest.raises(LibraryError, match='no encoder "phi"'):
        library(space, {name: net(2)}).goal_skill(OBS, GOAL)


def test_a_gaussian_goal_is_a_skill_and_a_gaussian_discriminator_gives_its_mean_first() -> None:
    lib = library(Gaussian(2), {"goal": net(2), "other": net(4)})
    np.testing.assert_array_equal(lib.goal_skill(OBS, GOAL), lib.encoders["goal"](GOAL))
    lib = library(Gaussian(2), {"discriminator": net(4)})
    expected = lib.encoders["discriminator"](GOAL)[:, :2]
    np.testing.assert_array_equal(lib.goal_skill(OBS, GOAL), expected)
    with pytest.raises(LibraryError, match='no encoder "phi"'):
        library(Gaussian(2), {"discriminator": net(2)}).goal_skill(OBS, GOAL)


def test_a_goal_goes_before_phi_and_phi_before_all_others() -> None:
    nets = {"discriminator": net(3, 1), "features": net(3, 2), "phi": net(3, 3)}
    lib = library(Sphere(3), nets)
    way = lib.encode(GOAL) - lib.encode(OBS)
    np.testing.assert_array_equal(lib.encode(OBS), lib.encoders["phi"](OBS))
    np.testing.assert_array_equal(lib.goal_skill(OBS, GOAL), lib.space.towards(way))
    lib = library(Sphere(3), {**nets, "goal": net(3, 4)})
    named = lib.space.nearest(lib.encoders["goal"](GOAL))
    np.testing.assert_array_equal(lib.goal_skill(OBS, GOAL), named)
