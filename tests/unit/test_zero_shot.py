"""Controllers without training: regressed rewards, the best single skill, programs as data."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etude.envs.registry import spec
from etude.errors import LibraryError, UsageError
from etude.skills.controllers.best_skill import OneSkillController, Selection, select
from etude.skills.controllers.programmatic import ProgrammaticController
from etude.skills.controllers.reward_regression import RewardRegressionController, regress
from etude.skills.library import MLP, SetData, SkillLibrary
from etude.skills.library_data import Contents
from etude.skills.predicates import annotate
from etude.skills.spaces import Discrete, Gaussian, Sphere

TASK = "point-maze-u-goal"


def compass(space):
    """Skills that walk towards z; phi is the place itself, or its share of each direction."""
    env = spec("point-maze-u").to_json()
    angle = 2 * np.pi * np.arange(space.dim) / space.dim
    towards = np.stack([np.cos(angle), np.sin(angle)], 1) if space.dim > 2 else np.eye(2)
    policy = MLP([(np.concatenate([np.zeros((4, 2)), 0.1 * towards]), np.zeros(2))], output="tanh")
    phi = MLP([(towards.T, np.zeros(space.dim))], inputs=("obs",), input_fields=("x", "y"))
    rows = [{"id": i, "z": z} for i, z in enumerate(space.even(space.dim))]
    data = SetData("main", "none", {}, space, policy, {"phi": phi}, np.zeros(4), np.ones(4), rows)
    return SkillLibrary(Contents("compass", env, [data]))


# ---- regression


@given(st.integers(1, 5), st.floats(-100, 100), st.integers(0, 10**6))
def test_an_affine_reward_is_found_exactly(dim, offset, seed):
    rng = np.random.default_rng(seed)
    x, w = rng.normal(size=(60, dim)) + rng.normal(size=dim) * 5, rng.normal(size=dim)
    found = regress(x, x @ w + offset, ridge=1e-9)
    np.testing.assert_allclose(found.weights, w, atol=1e-5)
    assert found.intercept == pytest.approx(offset, abs=1e-3)
    assert found.r2 == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(found(x), x @ w + offset, atol=1e-3)


def test_it_is_ridge_regression_as_the_normal_equations_say():
    rng = np.random.default_rng(0)
    x, noise = rng.normal(size=(200, 3)) * [1, 2, 0.1], rng.normal(size=200)
    r = x @ [1.0, -2.0, 3.0] + 7 + noise
    found = regress(x, r, ridge=0.1)
    penalty = np.sqrt(0.1 * ((x - x.mean(0)) ** 2).sum() / 3)  # as rows of an ordinary fit
    rows = np.vstack(
        [np.hstack([x, np.ones((200, 1))]), np.hstack([penalty * np.eye(3), np.zeros((3, 1))])]
    )
    expected = np.linalg.lstsq(rows, np.append(r, np.zeros(3)), rcond=None)[0]
    np.testing.assert_allclose([*found.weights, found.intercept], expected, rtol=1e-8)
    assert found.r2 == pytest.approx(1 - np.var(r - found(x)) / np.var(r))
    assert 0.7 < found.r2 < 0.99


def test_a_reward_outside_the_span_has_no_r2():
    x = np.random.default_rng(0).normal(size=(4000, 2))
    assert abs(regress(x, (x**2).sum(1)).r2) < 0.02


@pytest.mark.parametrize(
    ("x", "r", "match"),
    [
        (np.eye(3), np.ones(3), "the reward is the same in all 3"),
        (np.ones((3, 2)), np.arange(3), "the feature vector is the same"),
        (np.eye(3), [1, 2, np.nan], "NaN or infinite"),
        (np.ones((1, 2)), np.ones(1), "B > 1"),
        (np.ones((3, 2)), np.ones(4), "B > 1"),
    ],
)
def test_samples_that_say_nothing(x, r, match):
    with pytest.raises(UsageError, match=match):
        regress(x, r)


def transitions(rng, n=300, step=0.1):
    """Random steps from random places of an open plane: body observations before and after."""
    obs = np.zeros((n, 4), np.float32)
    obs[:, :2] = rng.uniform(-5, 5, (n, 2))
    after = obs.copy()
    after[:, :2] += rng.uniform(-step, step, (n, 2))
    return obs, after


@pytest.mark.parametrize("space", [Sphere(2), Gaussian(2), Discrete(16)], ids=str)
def test_a_reward_of_coming_closer_reaches_every_goal(space):
    """Identity phi: samples of progress towards a goal, from the start, and one skill from them."""
    library, rng = compass(space), np.random.default_rng(0)
    for _ in range(64):
        goal = rng.uniform(-5, 5, 2)
        goal /= np.abs(goal).max() / 5
        if isinstance(space, Discrete):  # which has no finer angle than its skills
            goal = 5 * library.data.policy.weights[0][0][4 + rng.integers(16)] / 0.1
        obs, after = transitions(rng)
        obs[:, :2] *= 0.02  # near the start
        after[:, :2] = obs[:, :2] + rng.uniform(-0.1, 0.1, (300, 2))
        far = [np.linalg.norm(o[:, :2] - goal, axis=1) for o in (obs, after)]
        controller = RewardRegressionController(library, obs, after, far[0] - far[1] + 3.0)
        assert controller.regression.r2 > 0.99
        place, nearest = np.zeros((1, 4), np.float32), np.inf
        controller.reset(place)
        z = controller.act(place)
        assert library.space.contains(z)
        for _ in range(160):
            place[:, :2] += library.act(place, z)
            nearest = min(nearest, np.linalg.norm(place[0, :2] - goal))
        assert nearest < 0.2


def test_centring_keeps_an_offset_from_tilting_the_direction():
    library, rng = compass(Sphere(2)), np.random.default_rng(1)
    obs, after = transitions(rng)
    after[:, 0] += 0.2  # all steps have a drift, as those of a moving body
    move = (after - obs)[:, :2]
    controller = RewardRegressionController(library, obs, after, move @ [0.0, 1.0] + 50)
    np.testing.assert_allclose(controller.z, [0, 1], atol=1e-2)


def test_features_of_places_for_skills_that_are_no_directions():
    library, rng = compass(Sphere(2)), np.random.default_rng(1)
    obs, after = transitions(rng)
    reward = 2 * after[:, 0]
    states = RewardRegressionController(library, obs, after, reward, directional=False)
    np.testing.assert_allclose(states.z, [1, 0], atol=1e-2)
    assert states.regression.r2 > 0.999
    assert RewardRegressionController(library, obs, after, reward).regression.r2 < 0.1


def test_a_value_chooses_among_skills_without_the_reward_being_seen():
    """Skill 0 goes farther but is cut off at once; the reward is to go right."""
    library, rng = compass(Discrete(8)), np.random.default_rng(0)
    obs, after = transitions(rng)
    controller = RewardRegressionController(library, obs, after, (after - obs)[:, 0])
    assert controller.candidates().shape == (9, 8)
    paths = np.zeros((3, 4, 4), np.float32)
    paths[:, :, 0] = [[0, 3, 3, 3], [0, 1, 2, 3], [0, -1, -2, -3]]
    found = controller.select_by_value(np.eye(8)[:3], paths, np.array([1, 3, 3]), 0.5)
    bias = controller.regression.intercept
    np.testing.assert_allclose(
        found.scores, [3 + bias, 1.75 * (1 + bias), 1.75 * (bias - 1)], atol=0.02
    )
    assert found.best.tolist() == np.eye(8)[0].tolist()
    paths[0, :, 0] = 0
    assert controller.select_by_value(np.eye(8)[:3], paths, np.full(3, 3)).best[1] == 1


def test_features_must_be_as_wide_as_skills():
    library, rng = compass(Sphere(2)), np.random.default_rng(0)
    wide = MLP([(np.ones((2, 3)), np.zeros(3))], inputs=("obs",), input_fields=("x", "y"))
    data = dataclasses.replace(library.data, encoders={"phi": wide})
    obs, after = transitions(rng)
    other = SkillLibrary(Contents("wide", library.env, [data]))
    with pytest.raises(LibraryError, match="has 3 dimensions and z 2"):
        RewardRegressionController(other, obs, after, after[:, 0])
    data = dataclasses.replace(library.data, encoders={})
    blind = SkillLibrary(Contents("blind", library.env, [data]))
    with pytest.raises(LibraryError, match="phi"):
        RewardRegressionController(blind, obs, after, after[:, 0])


# ---- the best skill


def test_the_best_skill_wins():
    skills = Sphere(2).even(8)
    obs = np.zeros((3, 6))
    found = select(skills, lambda controller: float(controller.act(obs)[2] @ [0.0, 1.0]))
    np.testing.assert_allclose(found.best, [0, 1], atol=1e-6)
    np.testing.assert_allclose(found.scores, skills[:, 1], atol=1e-6)
    controller = found.controller
    assert isinstance(controller, OneSkillController)
    controller.reset(obs)
    np.testing.assert_array_equal(controller.act(obs), np.tile(found.best, (3, 1)))
    assert Selection(skills, np.ones(8)).best.tolist() == skills[0].tolist()


def test_nothing_to_choose_from():
    with pytest.raises(UsageError, match="give one or more"):
        select(np.zeros((0, 2)), lambda controller: 0.0)
    with pytest.raises(UsageError, match="skill 0 has the score NaN"):
        select(np.zeros((1, 2)), lambda controller: float("nan"))


# ---- programs

AT = {"field": "x", "above": 1}
PROGRAM = [
    {"skill": 3, "initiation": {"near": {"x": 0, "y": 5}, "within": 1}},
    {"skill": 1, "initiation": {"not": AT}, "termination": AT},
    {"skill": 2, "termination": {"field": "goal", "entry": 1, "above": 0}},
]


def at(*rows):
    """Observations with x, y and the goal's second coordinate."""
    obs = np.zeros((len(rows), 6), np.float32)
    obs[:, [0, 1, 5]] = rows
    return obs


@pytest.mark.parametrize("through_a_file", [False, True])
def test_a_program_is_followed_in_every_environment(through_a_file, tmp_path):
    library = compass(Discrete(4))
    controller = ProgrammaticController(library, spec(TASK), PROGRAM)
    if through_a_file:
        path = controller.save(tmp_path / "program.json")
        assert json.loads(path.read_text()) == PROGRAM
        controller = ProgrammaticController(library, spec(TASK), path)
    controller.reset(at((0, 0, 0), (2, 0, 0), (0, 5, 0)))
    for rows, skills in (
        ([(0, 0, 0), (2, 0, 0), (0, 5, 0)], [1, 2, 3]),
        ([(0.9, 0, 0), (0, 0, 0), (0, 5, 0)], [1, 2, 3]),  # held until its end; else by priority
        ([(1.1, 0, 0), (0, 0, 1), (0, 0, 0)], [2, 1, 1]),
        ([(0, 5, 0), (0, 5, 1), (0, 5, 0)], [2, 1, 1]),  # nothing interrupts what is held
        ([(0, 5, 1), (1.5, 5, 0), (0, 5, 0)], [3, 2, 1]),
    ):
        assert controller.act(at(*rows)).argmax(1).tolist() == skills
    controller.reset(at((0, 5, 0)))
    assert controller.act(at((0, 5, 0))).argmax(1).tolist() == [3]


def test_a_librarys_rows_are_a_program():
    rules = {1: {"initiation": {"not": AT}, "termination": AT}, 0: {"initiation": AT}}
    library = annotate(compass(Discrete(3)), rules)
    controller = ProgrammaticController(library, spec(TASK))
    controller.reset(at((0, 0, 0)))
    chosen = [controller.act(at((x, 0, 0))).argmax() for x in (0, 0.5, 1.5, 0.5)]
    assert chosen == [1, 1, 0, 1]


@pytest.mark.parametrize(
    ("program", "match"),
    [
        ([], "an empty program"),
        ([{"skill": 9}], 'unknown skill id of a rule "9"'),
        ([{"initiation": True}], 'unknown skill id of a rule "None"'),
        ([{"skill": 1, "until": True}], 'unknown key of a rule "until"'),
        ([{"skill": 1, "termination": {"field": "zz", "above": 1}}], "observation field"),
    ],
)
def test_programs_are_checked(program, match):
    with pytest.raises(UsageError, match=match):
        ProgrammaticController(compass(Discrete(4)), spec(TASK), program)


def test_files_and_gaps(tmp_path):
    library = compass(Discrete(4))
    for text in ("[{", "{}", "[1]"):
        (tmp_path / "broken.json").write_text(text)
        with pytest.raises(UsageError, match="is no program"):
            ProgrammaticController(library, spec(TASK), tmp_path / "broken.json")
    controller = ProgrammaticController(library, spec(TASK), PROGRAM[1:2])
    controller.reset(at((0, 0, 0), (2, 0, 0)))
    with pytest.raises(UsageError, match="no rule may begin in environment 1"):
        controller.act(at((0, 0, 0), (2, 0, 0)))
