"""Composing with decisions of unlike lengths, and judging the controllers that it gives."""

from __future__ import annotations

import dataclasses

import gymnasium
import numpy as np
import pytest

from etude.agents.meta_config import MetaConfig
from etude.envs.registry import spec
from etude.errors import UsageError
from etude.evaluate.rollouts import rollout_task
from etude.skills.compose import ComposeConfig, compose, load_trained
from etude.skills.durations import Duration
from etude.skills.env import SkillEnv
from etude.skills.library import MLP, SetData, SkillLibrary
from etude.skills.library_data import Contents
from etude.skills.predicates import annotate
from etude.skills.spaces import Discrete, Sphere
from etude.skills.vec_env import LibraryLevel

TASK = "point-maze-u-goal"
RIGHT = {"field": "x", "above": -0.7}  # it begins at -1


def compass(space, rules=None):
    """Skills that walk towards z; with rules in the rows of discrete ones."""
    env = spec("point-maze-u").to_json()
    angle = 2 * np.pi * np.arange(space.dim) / space.dim
    towards = np.stack([np.cos(angle), np.sin(angle)], 1) if space.dim > 2 else np.eye(2)
    policy = MLP([(np.concatenate([np.zeros((4, 2)), 3 * towards]), np.zeros(2))], output="tanh")
    rows = [{"id": i, "z": z} for i, z in enumerate(space.even(space.dim))]
    data = SetData("main", "none", {}, space, policy, {}, np.zeros(4), np.ones(4), rows)
    return annotate(SkillLibrary(Contents("compass", env, [data])), rules or {})


SMALL = MetaConfig(hidden=(16,), batch_size=32)
ROLLOUT = dataclasses.replace(SMALL, rollout=64)
REPLAY = dataclasses.replace(SMALL, learning_starts=20, updates_per_decision=0.25)
BEGINS_LEFT = {1: {"initiation": {"not": RIGHT}}, 2: {"termination": RIGHT}}


@pytest.mark.parametrize(
    ("settings", "space", "rules"),
    [
        ({"algo": "ppo", "duration": "random", "hyper": ROLLOUT}, Sphere(2), None),
        ({"algo": "ppo", "duration": "chosen", "hyper": ROLLOUT}, Sphere(2), None),
        ({"algo": "sac", "every_step": True, "hyper": REPLAY}, Sphere(2), None),
        ({"algo": "dqn", "fallback": 0, "hyper": REPLAY}, Discrete(4), BEGINS_LEFT),
        (
            {"algo": "maskable-ppo", "duration": "chosen", "menu": (3, 9), "hyper": ROLLOUT},
            Discrete(4),
            BEGINS_LEFT,
        ),
    ],
)
def test_compose_with_options(settings, space, rules, tmp_path):
    library = compass(space, rules)
    config = ComposeConfig(k=10, env_steps=1500, num_envs=4, **settings)
    trained = compose(library, TASK, config)
    assert trained.stats.env_steps >= 1500
    trained.save(tmp_path)
    loaded = load_trained(tmp_path, library)
    assert loaded.config == config
    obs = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)
    z = loaded.controller.act(obs)
    assert library.space.contains(z)
    np.testing.assert_allclose(z, trained.controller.act(obs), atol=1e-6)
    made = rollout_task(TASK, loaded.level, loaded.controller, config.k, episodes=3)
    assert (made.lengths > 0).all() and made.success is not None


class Script:
    """Names skill 0 and then skill 1 for ever, and holds each for its own time."""

    def __init__(self, steps):
        self.steps = np.array(steps)

    def reset(self, obs):
        self.asked = -1

    def act(self, obs):
        self.asked += 1
        return np.tile(np.eye(4, dtype=np.float32)[min(self.asked, 1)], (len(obs), 1))


@pytest.mark.parametrize("rules", [None, {0: {"termination": RIGHT}, 1: {"initiation": RIGHT}}])
def test_judging_holds_skills_as_training_does(rules):
    """Each episode equals one in a SkillEnv with the same durations."""
    library, steps = compass(Discrete(4), rules), (4, 9, 2)
    level = LibraryLevel(library, fallback=2)
    made = rollout_task(TASK, level, Script(steps), 10, episodes=3, seed=5)
    reasons = set()
    for i, hold in enumerate(steps):
        env = gymnasium.make("etude/PointMazeUGoal-v0")
        menu = Duration(10, "chosen", (hold,))
        env = SkillEnv(env, library, k=menu, fallback=2)
        env.reset(seed=5 + i)
        ended, total, taken, held = False, 0.0, [], 0
        while not ended:
            skill = min(len(taken), 1)
            _, _, terminated, truncated, info = env.step(np.array([skill, 0]))
            ended = terminated or truncated
            taken.append(info["skill"]["z"])
            reasons.add(info["skill"]["ended_by"])
            total += info["skill"]["reward"]
            held += info["skill"]["duration"]
        assert (made.lengths[i], made.returns[i]) == (held, pytest.approx(total))
        kept = made.commands[i][~np.isnan(made.commands[i][:, 0])]
        np.testing.assert_array_equal(kept, taken)
    assert ("skill" in reasons) == bool(rules)


def test_impossible_options_are_refused():
    with pytest.raises(UsageError, match='take "chosen"'):
        ComposeConfig(menu=(3, 4))
    with pytest.raises(UsageError, match="every_step is for sac and dqn"):
        compose(compass(Sphere(2)), TASK, ComposeConfig(every_step=True))
    with pytest.raises(UsageError, match="DQN chooses a skill alone"):
        compose(compass(Discrete(4)), TASK, ComposeConfig(algo="dqn", duration="chosen"))
    with pytest.raises(UsageError, match="masks are for discrete skills"):
        compose(compass(Sphere(2)), TASK, ComposeConfig(algo="maskable-ppo"))
