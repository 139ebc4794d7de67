"""Controllers, the scaling of what they see, and composing on the real point maze."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from etude.agents.meta_config import MetaConfig
from etude.envs.registry import ids, make_vec, spec, tasks
from etude.errors import CheckpointError, LibraryError, UsageError
from etude.logger import Logger
from etude.skills.compose import ComposeConfig, compose, flat, load_trained
from etude.skills.controllers.base import Scaling
from etude.skills.controllers.goal_direction import GoalDirectionController
from etude.skills.controllers.random import RandomController
from etude.skills.controllers.trained import TrainedController
from etude.skills.library import MLP, SetData, SkillLibrary
from etude.skills.library_data import Contents
from etude.skills.spaces import Discrete, Sphere

TASK = "point-maze-u-goal"


def compass(space, name="compass"):
    """Skills that walk towards z; phi is the place itself, or its share of each direction."""
    env = spec("point-maze-u").to_json()
    angle = 2 * np.pi * np.arange(space.dim) / space.dim
    towards = np.stack([np.cos(angle), np.sin(angle)], 1) if space.dim > 2 else np.eye(2)
    policy = MLP([(np.concatenate([np.zeros((4, 2)), 3 * towards]), np.zeros(2))], output="tanh")
    phi = MLP([(towards.T, np.zeros(space.dim))], inputs=("obs",), input_fields=("x", "y"))
    data = SetData("main", "none", {}, space, policy, {"phi": phi}, np.zeros(4), np.ones(4), [])
    return SkillLibrary(Contents(name, env, [data]))


# ---- goal direction


@pytest.mark.parametrize("space", [Sphere(2), Discrete(16)])
def test_goal_direction_reaches_every_goal_of_an_open_plane(space):
    library, n = compass(space), 64
    controller = GoalDirectionController(library, spec(TASK))
    rng = np.random.default_rng(0)
    obs = np.zeros((n, 6), np.float32)
    obs[:, 4:] = rng.uniform(-5, 5, (n, 2))
    controller.reset(obs)
    reached = np.zeros(n, bool)
    for _ in range(120):
        z = controller.act(obs)
        assert library.space.contains(z)
        obs[:, :2] += 0.1 * library.act(obs[:, :4], z)
        reached |= np.linalg.norm(obs[:, :2] - obs[:, 4:], axis=1) < 0.2
    assert reached.all()


def test_goal_direction_is_the_unit_vector_to_the_goal():
    controller = GoalDirectionController(compass(Sphere(2)), spec(TASK))
    obs = np.array([[1, 2, 9, 9, 4, 6], [0, 0, 9, 9, -2, 0]], np.float32)
    np.testing.assert_allclose(controller.act(obs), [[0.6, 0.8], [-1, 0]], atol=1e-6)
    assert obs[0].tolist() == [1, 2, 9, 9, 4, 6]  # left alone


def test_goal_direction_needs_a_goal():
    with pytest.raises(UsageError, match='a field "goal" with x, y'):
        GoalDirectionController(compass(Sphere(2)), spec("point-maze-u"))


def test_goal_direction_needs_features():
    library = compass(Sphere(2))
    blind = dataclasses.replace(library.data, encoders={})
    library = SkillLibrary(Contents("blind", library.env, [blind]))
    with pytest.raises(LibraryError, match="phi"):
        GoalDirectionController(library, spec(TASK)).act(np.zeros((1, 6), np.float32))


# ---- random


def test_random_skills_repeat_with_their_seed_and_only_with_it():
    library, obs = compass(Sphere(2)), np.zeros((5, 6))
    first, again, other = (RandomController(library, spec(TASK), seed) for seed in (0, 0, 1))
    drawn = [first.act(obs) for _ in range(3)]
    assert all(library.space.contains(z) for z in drawn)
    assert not np.allclose(drawn[0], drawn[1])
    np.testing.assert_array_equal(drawn, [again.act(obs) for _ in range(3)])
    assert not np.allclose(drawn[0], other.act(obs))


# ---- scaling


@pytest.mark.parametrize("env_id", ids())
def test_first_observations_are_of_order_one(env_id):
    venv = make_vec(env_id, 64, threads=1)
    obs, _ = venv.reset(seed=0)
    scaled = Scaling.of(venv.env_spec)(obs)
    venv.close()
    assert scaled.dtype == np.float32
    assert np.abs(scaled).max() < 6  # METRA's preset puts an ant's standing height at 0.3 std


@pytest.mark.parametrize("env_id", [name for name in tasks() if "goal" in spec(name).task_fields])
def test_a_place_at_the_goal_and_the_goal_get_the_same_numbers(env_id):
    task = spec(env_id)
    at, scaling = task.slices(), Scaling.of(task)
    obs = np.random.default_rng(0).normal(size=(8, task.obs_dim))
    places = [at[name].start for name in task.descriptor]
    obs[:, at["goal"]] = obs[:, places]
    scaled = scaling(obs)
    np.testing.assert_allclose(scaled[:, at["goal"]], scaled[:, places], rtol=1e-6)


def test_positions_take_the_unit_of_the_goals():
    scaling, at = Scaling.of(spec("half-cheetah-goal")), spec("half-cheetah-goal").slices()
    assert scaling.std[at["x"]] == scaling.std[at["goal"]] == 100
    assert scaling.std[at["z"]] == pytest.approx(spec("half-cheetah").obs_std[1])
    assert Scaling.of(spec("half-cheetah")).std[0] == pytest.approx(0.4039283)
    ant, at = Scaling.of(spec("ant-multi-goal")), spec("ant-multi-goal").slices()
    assert ant.std[at["goal_time_left"]] == 1
    assert ant.std[at["goal"]].tolist() == [7.5, 7.5]


# ---- trained


class Pointer:
    """A policy that always chooses the same, and remembers what it saw."""

    def predict(self, observation, *, deterministic=False):
        self.seen, self.deterministic = observation, deterministic
        return np.full((len(observation), 2), [3, 4]), None


def test_a_trained_controller_scales_and_translates():
    policy, library = Pointer(), compass(Sphere(2))
    scaling = Scaling(np.full(6, 1.0), np.full(6, 2.0))
    controller = TrainedController(policy, library.space.from_action, scaling)
    obs = np.full((3, 6), 5.0)
    controller.reset(obs)
    np.testing.assert_allclose(controller.act(obs), [[0.6, 0.8]] * 3, atol=1e-6)
    assert policy.seen.tolist() == [[2.0] * 6] * 3
    assert policy.deterministic


# ---- composing, for real

QUICK = {"env_steps": 3000, "num_envs": 4, "k": 10}
SMALL = MetaConfig(hidden=(16,), batch_size=32)
OFF_POLICY = dataclasses.replace(SMALL, learning_starts=20, updates_per_decision=0.25)


@pytest.mark.parametrize(
    ("algo", "space", "hyper"),
    [
        ("ppo", Sphere(2), dataclasses.replace(SMALL, rollout=64)),
        ("ppo", Discrete(8), dataclasses.replace(SMALL, rollout=64)),
        ("sac", Sphere(2), OFF_POLICY),
        ("dqn", Discrete(8), OFF_POLICY),
    ],
)
def test_compose_trains_counts_saves_and_loads(algo, space, hyper, tmp_path):
    library, notes = compass(space), []
    config = ComposeConfig(algo=algo, hyper=hyper, **QUICK)
    log = Logger(tmp_path)
    trained = compose(
        library, TASK, config, log=log, progress=lambda steps, latest: notes.append((steps, latest))
    )
    log.close()
    stats = trained.stats
    assert 3000 <= stats.env_steps < 3000 + 4 * 10
    assert stats.env_steps / 10 <= stats.decisions < stats.env_steps / 5
    assert stats.episodes >= 8
    assert len(notes) == pytest.approx(75, abs=2)  # every decision of 4 x 10 steps: 3000 / 40
    assert notes[-1][0] == stats.env_steps
    assert stats.curve[-1].env_steps == stats.env_steps
    assert notes[-1][1]["meta/success_rate"] == stats.curve[-1].success
    saved = trained.save(tmp_path)
    assert saved == tmp_path / "controller"
    loaded = load_trained(tmp_path, library)
    assert (loaded.task, loaded.config, loaded.stats) == (TASK, config, stats)
    obs = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)
    z = loaded.controller.act(obs)
    assert library.space.contains(z)
    np.testing.assert_allclose(z, trained.controller.act(obs), atol=1e-6)


def test_flat_and_action_repeat_use_primitive_actions(tmp_path):
    for k in (1, 10):
        config = ComposeConfig(
            k=k, env_steps=1500, num_envs=4, hyper=MetaConfig(hidden=(16,), rollout=64)
        )
        trained = flat(TASK, config)
        assert trained.stats.decisions == pytest.approx(trained.stats.env_steps / k, rel=0.05)
        trained.save(tmp_path / str(k))
        loaded = load_trained(tmp_path / str(k))
        obs = np.zeros((3, 6), np.float32)
        action = loaded.controller.act(obs)
        assert action.shape == (3, 2)
        np.testing.assert_array_equal(loaded.level.plan(obs[:, :4], action)[:, 0], action)


def test_runs_repeat_with_their_seed():
    config = ComposeConfig(hyper=dataclasses.replace(SMALL, rollout=64), **QUICK)
    obs = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    first, again, other = (
        compose(compass(Sphere(2)), TASK, dataclasses.replace(config, seed=seed))
        for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(first.controller.act(obs), again.controller.act(obs))
    assert first.stats.curve == again.stats.curve
    assert not np.allclose(first.controller.act(obs), other.controller.act(obs))


def test_a_controller_is_refused_to_other_skills(tmp_path):
    config = ComposeConfig(env_steps=100, num_envs=2, k=10)
    compose(compass(Sphere(2)), TASK, config).save(tmp_path)
    with pytest.raises(LibraryError, match="was trained with .*compass.* not with .*other"):
        load_trained(tmp_path, compass(Sphere(2), name="other"))
    with pytest.raises(LibraryError, match="not with no library"):
        load_trained(tmp_path)
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        load_trained(tmp_path / "nothing")


def test_a_library_of_another_body_is_refused_before_training():
    with pytest.raises(LibraryError, match="half-cheetah"):
        compose(compass(Sphere(2)), "half-cheetah-goal", ComposeConfig())


@pytest.mark.slow
def test_composing_beats_flat_control_in_a_maze():
    """Eight directions held for ten steps solve the U maze, where flat PPO does not."""
    config = ComposeConfig(k=10, env_steps=60_000)
    composed = compose(compass(Discrete(8)), TASK, dataclasses.replace(config, algo="dqn"))
    alone = flat(TASK, dataclasses.replace(config, k=1))
    assert composed.stats.curve[-1].success >= 0.8
    assert alone.stats.curve[-1].success <= 0.2
