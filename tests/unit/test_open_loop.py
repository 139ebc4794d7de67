"""Libraries whose skills are plans: kept, refused, acted out in every way there is."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from etude.envs import registry
from etude.errors import UsageError
from etude.evaluate.rollouts import rollout_skills
from etude.skills import library_files
from etude.skills.acting import Acting
from etude.skills.env import SkillEnv
from etude.skills.library import SkillLibrary, write
from etude.skills.library_data import Contents, SetData
from etude.skills.mlp import MLP
from etude.skills.spaces import Cube
from etude.skills.vec_env import LibraryLevel, SkillVecEnv

ENV = "point-open"
SPEC = registry.spec(ENV)
KNOTS, HOLD = 3, 2


def a_set(knots: int = KNOTS, hold: int = HOLD) -> SetData:
    rng = np.random.default_rng(0)
    shape = (SPEC.body_dim + 2, knots * SPEC.action_dim)
    weight = rng.normal(size=shape).astype(np.float32)
    net = MLP([(weight, np.zeros(shape[1]))], output="tanh", knots=knots, hold=hold)
    mean, std = np.zeros(SPEC.body_dim), np.ones(SPEC.body_dim)
    return SetData("plans", "fake", {}, Cube(2), net, {}, mean, std, [])


@pytest.fixture
def library() -> SkillLibrary:
    return SkillLibrary(Contents("plans", SPEC.to_json(), [a_set()]))


def test_what_is_written_comes_back_as_format_1_1(tmp_path: Path, library: SkillLibrary) -> None:
    for name, data, schema, kind in (
        ("plans", a_set(), "1.1", "open_loop"),
        ("steps", a_set(1, 1), "1.0", "mlp"),
    ):
        path = write(tmp_path / name, sets=[data], env=SPEC.to_json(), provenance={}, name=name)
        index = json.loads((path / library_files.INDEX).read_text())
        assert (index["schema"], index["sets"][0]["policy"]["kind"]) == (schema, kind)
        assert SkillLibrary.load(path).period == data.policy.period
    loaded = SkillLibrary.load(tmp_path / "plans")
    obs, z = np.ones((4, SPEC.body_dim), np.float32), np.full((4, 2), 0.5, np.float32)
    np.testing.assert_array_equal(loaded.plan(obs, z), library.plan(obs, z))


def test_a_plan_is_its_knots_each_held(library: SkillLibrary) -> None:
    obs, z = np.ones(SPEC.body_dim, np.float32), np.array([0.5, -1.0], np.float32)
    data = library.data
    flat = np.tanh(np.concatenate((obs, z)) @ data.policy.weights[0][0])
    plan = library.plan(obs, z)
    assert plan.shape == (6, 2) and library.period == 6
    np.testing.assert_allclose(plan, flat.reshape(3, 2).repeat(2, 0), rtol=1e-5)
    with pytest.raises(UsageError, match=r"plans of 6 steps: act with `policy\(z\)`"):
        library.act(obs, z)


def test_a_policy_looks_again_when_its_plan_is_used_up_or_it_begins_anew(
    library: SkillLibrary,
) -> None:
    z, rng = np.zeros(2, np.float32), np.random.default_rng(1)
    seen = rng.normal(size=(9, SPEC.body_dim)).astype(np.float32)
    policy = library.policy(z)
    acted = np.array([policy.act(obs) for obs in seen])
    np.testing.assert_array_equal(acted[:6], library.plan(seen[0], z))
    np.testing.assert_array_equal(acted[6:], library.plan(seen[6], z)[:3])
    policy.reset(seen[0])
    np.testing.assert_array_equal(policy.act(seen[1]), library.plan(seen[1], z)[0])


def test_acting_side_by_side_leaves_out_whoever_waits(library: SkillLibrary) -> None:
    acting, rng = Acting(library), np.random.default_rng(2)
    z = rng.uniform(-1, 1, (3, 2)).astype(np.float32)
    obs = rng.normal(size=(8, 3, SPEC.body_dim)).astype(np.float32)
    for t in range(8):
        active = np.array([True, t < 2, t < 6])
        action = acting(t, obs[t], z, active)
        plan = library.plan(obs[t // 6 * 6], z)[:, t % 6]
        np.testing.assert_array_equal(action, np.where(active[:, None], plan, 0))


def test_every_way_of_acting_gives_the_same_path(library: SkillLibrary) -> None:
    """Rollouts, `SkillVecEnv` and `SkillEnv` hold one plan from one start."""
    z = np.array([[0.3, -0.7]], np.float32)
    path = rollout_skills(library, ENV, z=z, steps=6).paths[0, -1]
    venv = SkillVecEnv(
        registry.make_vec(ENV, 1, seed=0), LibraryLevel(library), 6, 0.99, normalise=False
    )
    venv.reset()
    np.testing.assert_allclose(venv.step(z)[0][0, :2], path, atol=1e-6)
    env = SkillEnv(gymnasium.make("etude/PointOpen-v0"), library, k=6)
    env.reset(seed=0)
    obs, *_ = env.step(z[0])
    np.testing.assert_allclose(np.asarray(obs)[:2], path, atol=1e-5)


@pytest.mark.parametrize(
    ("knots", "hold", "match"),
    [
        (0, 1, "knots = 0: choose a whole number from 1 to 4096"),
        (1, 5000, "hold = 5000"),
        (True, 1, "knots = True"),
        (4, 1, "6 outputs cannot hold 4 actions"),
    ],
)
def test_impossible_plans_are_refused(knots: int, hold: int, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        MLP([(np.zeros((4, 6)), np.zeros(6))], knots=knots, hold=hold)


def test_a_plan_of_other_actions_and_an_encoder_that_plans_are_refused() -> None:
    data = a_set()
    with pytest.raises(UsageError, match="the body needs 9 tanh outputs"):
        data.check({"x": SPEC.body_dim}, 3)
    encoder = dataclasses.replace(data.policy, inputs=("obs", "z"))
    with pytest.raises(UsageError, match="an encoder makes no plan"):
        dataclasses.replace(data, encoders={"phi": encoder}).check({"x": SPEC.body_dim}, 2)


def test_a_kind_that_does_not_fit_its_plan_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a", sets=[a_set()], env=SPEC.to_json(), provenance={}, name="a")
    contents = library_files.read(path)
    spec = contents.sets[0].policy.to_json()
    for changes in ({"kind": "mlp"}, {"knots": 1, "hold": 1}):
        weights = {
            f"p/0/{key}": value
            for key, value in zip(
                ("weight", "bias"), contents.sets[0].policy.weights[0], strict=True
            )
        }
        with pytest.raises(ValueError, match="which kind"):
            library_files._mlp({**spec, **changes}, weights, "p")
