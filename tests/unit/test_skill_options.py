"""SkillEnv beside k steps: predicates, durations, every step; and all algorithms over it."""

import dataclasses
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from line_world import GOAL, LINE_SPEC, Costly, library_at, make_line
from sb3_contrib import QRDQN, TQC, MaskablePPO
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3, HerReplayBuffer
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from etude.agents.smdp import (
    DurationCallback,
    EveryStepReplayBuffer,
    SMDPReplayBuffer,
    SMDPRolloutBuffer,
    maskable_rollout_buffer,
)
from etude.envs import registry
from etude.errors import UsageError
from etude.skills.durations import Duration
from etude.skills.env import SkillEnv
from etude.skills.library import SkillLibrary, write
from etude.skills.library_data import Contents
from etude.skills.predicates import annotate
from etude.skills.spaces import Discrete, Sphere


@pytest.fixture
def line(tmp_path: Path) -> Path:
    """Two skills of the line's body: 0 goes right, 1 goes left."""
    return library_at(tmp_path / "line", LINE_SPEC, Discrete(2))


@pytest.fixture(scope="module")
def cheetah(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = registry.spec("half-cheetah").to_json()
    return library_at(tmp_path_factory.mktemp("zoo") / "cheetah", spec, Sphere(2), 0.5)


# Decisions that end early, at random, or when the controller says

STOP = {"any": [{"field": "x", "above": 6.5, "below": 7.5}, {"field": "x", "above": 20.5}]}


def rules(path: Path, conditions: dict[int, Any]) -> Path:
    """A copy of the line's library with predicates for its two skills."""
    old = SkillLibrary.load(path)
    rows = [{"id": i, "z": np.eye(2)[i]} for i in range(2)]
    data = dataclasses.replace(old.data, skills=rows)
    made = annotate(SkillLibrary(Contents("tested", old.env, [data])), conditions)
    return write(path.parent / "rules", sets=[made.data], env=old.env, provenance={}, name="tested")


def walked(env: SkillEnv, action: Any) -> tuple[list[int], list[str], list[float], float]:
    """Durations, reasons, discounts of walking right to the end; and what the start is worth."""
    env.reset(seed=0)
    terminated, found = False, []
    while not terminated:
        _, reward, terminated, _, info = env.step(action)
        found.append((info["skill"], reward))
    value = 0.0
    for skill, reward in reversed(found):
        value = reward + skill["discount"] * value
    keys = ("duration", "ended_by", "discount")
    durations, reasons, discounts = ([skill[key] for skill, _ in found] for key in keys)
    return durations, reasons, discounts, value


def test_a_skill_ends_where_its_predicate_says(line: Path) -> None:
    env = SkillEnv(make_line(), rules(line, {0: {"termination": STOP}}), k=10, gamma=0.9)
    durations, reasons, discounts, value = walked(env, 0)
    assert durations == [7, 10, 4, 1, 1] and value == pytest.approx(0.9**22)
    assert reasons == ["skill", "k", "skill", "skill", "terminated"]
    assert discounts == pytest.approx([0.9**tau for tau in durations])


def test_random_durations_keep_the_value(line: Path) -> None:
    env = SkillEnv(make_line(), line, k=Duration(4, "random"), gamma=0.9)
    durations, reasons, _, value = walked(env, 0)
    assert sum(durations) == GOAL and {*durations[:-1]} <= {*range(2, 7)}
    assert len({*durations}) > 1 and {*reasons[:-1]} == {"k"}
    assert value == pytest.approx(0.9**22)
    assert walked(env, 0)[0] == durations  # the seed of reset, again
    env.reset()
    again = [env.step(0)[4]["skill"]["duration"] for _ in range(3)]
    env.reset(seed=1)
    assert again != [env.step(0)[4]["skill"]["duration"] for _ in range(3)]


def test_chosen_durations(line: Path) -> None:
    env = SkillEnv(make_line(), line, k=Duration(10, "chosen", (2, 7)), gamma=0.9)
    assert env.action_space == spaces.MultiDiscrete([2, 2])
    durations, _, _, value = walked(env, np.array([0, 1]))
    assert durations == [7, 7, 7, 2] and value == pytest.approx(0.9**22)
    env.reset()
    assert env.step(np.array([0, 0]))[4]["x"] == 2
    assert env.step(np.array([1, 1]))[4]["x"] == 0
    with pytest.raises(UsageError, match="choose 0 to 1"):
        env.step(np.array([2, 0]))


def test_skills_that_may_not_begin(line: Path) -> None:
    path = rules(line, {1: {"initiation": {"field": "x", "above": 2.5}}})
    env = SkillEnv(make_line(), path, k=2)
    env.reset()
    assert env.action_masks().tolist() == [True, False]
    with pytest.raises(UsageError, match="may not begin here"):
        env.step(1)
    env.reset(options={"x": 3})
    assert env.action_masks().tolist() == [True, True]
    assert env.step(1)[4]["x"] == 1
    falls = SkillEnv(make_line(), path, k=2, fallback=0)
    falls.reset()
    info = falls.step(1)[4]
    assert info["x"] == 2 and info["skill"]["z"].tolist() == [1, 0]
    timed = SkillEnv(make_line(), path, k=Duration(2, "chosen"))
    timed.reset()
    assert timed.action_masks().tolist() == [True, False, True, True, True]


@pytest.mark.parametrize(
    ("modes", "rewards", "discounts"),
    [
        ({}, [1 + 2 / 2 + 3 / 4, 2 + 3 / 2, 3], [1 / 8, 1 / 4, 1 / 2]),
        ({"reward": "sum", "smdp": "per_decision"}, [6, 5, 3], [1 / 2] * 3),
    ],
)
def test_every_step_begins_a_transition(
    line: Path, modes: dict[str, Any], rewards: list[float], discounts: list[float]
) -> None:
    env = SkillEnv(TimeLimit(Costly(), 100), line, k=3, gamma=0.5, every_step=True, **modes)
    obs, _ = env.reset()
    assert obs.tolist() == [GOAL, 0, 0] and env.observation_space.contains(obs)
    obs, reward, _, _, info = env.step(0)
    within = info["skill"]["within"]
    thirds = np.array([0, 1, 2]) / 3
    np.testing.assert_allclose(
        within["obs"], np.stack([[GOAL] * 3, [0, 1, 2], thirds], 1), rtol=1e-6
    )
    np.testing.assert_allclose(within["reward"], rewards)
    np.testing.assert_allclose(within["discount"], discounts)
    assert reward == pytest.approx(rewards[0]) and obs.tolist() == [GOAL, 3, 0]


def test_hindsight_goals_are_refused(line: Path) -> None:
    """HER asks the environment for rewards of other goals, decision by decision."""

    class ToGoal(gymnasium.ObservationWrapper[Any, Any, Any]):
        def __init__(self, env: Any) -> None:
            super().__init__(env)
            names = ("observation", "achieved_goal", "desired_goal")
            self.observation_space = spaces.Dict({n: spaces.Box(0, GOAL, (1,)) for n in names})

        def observation(self, obs: np.ndarray) -> dict[str, np.ndarray]:
            return {"observation": obs[1:], "achieved_goal": obs[1:], "desired_goal": obs[:1]}

        def compute_reward(self, *args: Any) -> np.ndarray:
            raise AssertionError

    def read(obs: dict[str, np.ndarray], info: Any, unwrapped: Any) -> np.ndarray:
        return obs["observation"]

    env = SkillEnv(ToGoal(make_line(8)), line, k=3, field_map=read)
    model = DQN(
        "MultiInputPolicy",
        env,
        replay_buffer_class=HerReplayBuffer,
        learning_starts=10,
        buffer_size=100,
        device="cpu",
    )
    with pytest.raises(UsageError, match="HerReplayBuffer does not know how long a decision"):
        model.learn(20)


# Algorithms


def make_skills(line: Path, n: int = 2, limit: int = 60, **options: Any) -> Any:
    """The line with its skills, in vectors as SB3 makes them."""
    skills = {"library": str(line), "k": 3, "gamma": 0.9, **options}
    return make_vec_env(
        make_line,
        n,
        seed=0,
        env_kwargs={"limit": limit},
        wrapper_class=SkillEnv,
        wrapper_kwargs=skills,
    )


def quick() -> dict[str, Any]:
    """Small networks; SB3 changes the dictionaries that it is given."""
    return {"device": "cpu", "seed": 0, "policy_kwargs": {"net_arch": [8]}}


REPLAY: dict[str, Any] = {"learning_starts": 8, "batch_size": 8, "buffer_size": 200}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (DQN, {**REPLAY, "replay_buffer_class": SMDPReplayBuffer}),
        (QRDQN, {**REPLAY, "replay_buffer_class": SMDPReplayBuffer}),
        (DQN, {**REPLAY, "replay_buffer_class": EveryStepReplayBuffer}),
        (A2C, {"n_steps": 4, "rollout_buffer_class": SMDPRolloutBuffer}),
        (PPO, {"n_steps": 8, "batch_size": 8, "rollout_buffer_class": SMDPRolloutBuffer}),
        (MaskablePPO, {"n_steps": 8, "batch_size": 8}),
        (
            MaskablePPO,
            {"n_steps": 8, "batch_size": 8, "rollout_buffer_class": maskable_rollout_buffer()},
        ),
    ],
)
def test_algorithms_over_discrete_skills(line: Path, kind: Any, options: dict[str, Any]) -> None:
    every_step = options.get("replay_buffer_class") is EveryStepReplayBuffer
    model = kind("MlpPolicy", make_skills(line, every_step=every_step), **quick(), **options)
    exact = "rollout_buffer_class" in options
    model.learn(48, callback=[DurationCallback()] if exact else None)
    assert model.num_timesteps >= 48 and model._n_updates > 0
    if not exact and hasattr(model, "replay_buffer"):
        batch = model.replay_buffer.sample(64)
        steps = np.log(batch.discounts.numpy()) / np.log(0.9)
        np.testing.assert_allclose(steps, np.round(steps), atol=1e-4)
        assert {*np.round(steps).flatten()} <= {1, 2, 3}


@pytest.mark.parametrize("kind", [SAC, TD3, TQC])
@pytest.mark.parametrize("buffer", [SMDPReplayBuffer, EveryStepReplayBuffer])
def test_algorithms_over_continuous_skills(cheetah: Path, kind: Any, buffer: Any) -> None:
    every_step = buffer is EveryStepReplayBuffer
    env = gymnasium.make("etude/HalfCheetahGoal-v0")
    env = SkillEnv(env, cheetah, k=Duration(3, "random"), every_step=every_step)
    model = kind("MlpPolicy", env, replay_buffer_class=buffer, **quick(), **REPLAY)
    model.learn(16)
    assert model._n_updates > 0
    assert model.replay_buffer.size() == (model.replay_buffer.total if every_step else 16)
    assert (model.replay_buffer.total > 16) == every_step


def test_maskable_ppo_never_chooses_what_may_not_begin(line: Path) -> None:
    """The other skill would be an error here, so every decision of the training obeys."""
    path = rules(line, {1: {"initiation": {"field": "x", "above": 8.5}}})
    model = MaskablePPO("MlpPolicy", make_skills(path), n_steps=32, batch_size=32, **quick())
    model.learn(128)
    assert model.rollout_buffer.action_masks.min() == 0
    with pytest.raises(UsageError, match="may not begin"):
        PPO("MlpPolicy", make_skills(path), n_steps=32, batch_size=32, **quick()).learn(128)


def test_vec_normalize_and_eval_callback(line: Path) -> None:
    """Statistics stand above the skills: the replay keeps raw observations, of every step too."""
    train, test = (VecNormalize(make_skills(line, n, every_step=True), gamma=0.9) for n in (2, 1))
    test.training = test.norm_reward = False
    judge = EvalCallback(test, n_eval_episodes=2, eval_freq=16, verbose=0)
    replay = {**REPLAY, "replay_buffer_class": EveryStepReplayBuffer}
    model = DQN("MlpPolicy", train, **quick(), **replay)
    model.learn(64, callback=judge)
    assert 0 <= judge.last_mean_reward <= 1 and model._n_updates > 0
    kept = model.replay_buffer
    assert kept.observations[: kept.total, 0, 0].tolist() == [GOAL] * kept.total
    assert {*kept.observations[: kept.total, 0, 1]} >= {0, 1, 2, 3}
    batch = kept.sample(32, env=train)
    assert (batch.observations[:, 0].abs() < 0.01).all()  # the goal's place is constant
