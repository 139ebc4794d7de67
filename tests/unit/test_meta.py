"""Meta-controllers: presets, budgets, logs over environment steps, and files without a pickle."""

from __future__ import annotations

import csv
import dataclasses
import json
import sys

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from etude.agents import meta
from etude.agents.meta_config import PRESETS, PRIMITIVE, MetaConfig, settings, update_ratio
from etude.agents.smdp import (
    DurationCallback,
    EveryStepReplayBuffer,
    SMDPReplayBuffer,
    SMDPRolloutBuffer,
    maskable_rollout_buffer,
)
from etude.errors import CheckpointError, UsageError
from etude.logger import Logger

DISCRETE, CONTINUOUS = spaces.Discrete(3), spaces.Box(-1, 1, (2,), np.float32)
PAIR = spaces.MultiDiscrete([3, 2])  # a skill and its duration
DURATIONS = (7, 5, 2)  # steps of an episode's three decisions
SMALL = MetaConfig(hidden=(8,), batch_size=16)
RATIO = {"rollout": 30, "epochs": 4}


class Bandit(VecEnv):
    """Episodes of three decisions of 7, 5 and 2 steps; success in every other episode."""

    def __init__(self, action_space, num_envs=4, limit=False):
        super().__init__(num_envs, spaces.Box(-np.inf, np.inf, (3,), np.float32), action_space)
        self.limit = limit

    def reset(self):
        self.t, self.episode = 0, 0
        return self._obs()

    def step_async(self, actions):
        pass

    def step_wait(self):
        duration, last = DURATIONS[self.t], self.t == 2
        skill = {"duration": duration, "discount": 0.9**duration}
        infos = [{"skill": skill} for _ in range(self.num_envs)]
        self.t = 0 if last else self.t + 1
        if last:
            self.episode += 1
            for info in infos:
                info["episode"] = {"r": float(self.episode), "l": 14, "t": 0.0}
                info["is_success"] = self.episode % 2 == 0
                info["terminal_observation"] = self._obs()[0]
                info["TimeLimit.truncated"] = self.limit
        return self._obs(), np.ones(self.num_envs, np.float32), np.full(self.num_envs, last), infos

    def _obs(self):
        return np.repeat(np.eye(3, dtype=np.float32)[[self.t]], self.num_envs, axis=0)

    def get_attr(self, attr_name, indices=None):
        return [getattr(self, attr_name, None) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name, value, indices=None):
        raise NotImplementedError

    def env_method(self, method_name, *args, indices=None, **kwargs):
        assert method_name == "action_masks"
        return [np.arange(spaces.flatdim(self.action_space)) != 1] * self.num_envs

    def env_is_wrapped(self, wrapper_class, indices=None):
        return [False] * self.num_envs

    def close(self):
        pass


CASES = [
    ("ppo", DISCRETE, {"rollout": 16, "epochs": 2}),
    ("ppo", CONTINUOUS, {"rollout": 16, "epochs": 2}),
    ("sac", CONTINUOUS, {"learning_starts": 8}),
    ("dqn", DISCRETE, {"learning_starts": 8}),
    ("ppo", PAIR, {"rollout": 16, "epochs": 2}),
    ("maskable-ppo", DISCRETE, {"rollout": 16, "epochs": 2}),
    ("maskable-ppo", PAIR, {"rollout": 16, "epochs": 2}),
]


def make(algo, space, hyper=None, seed=0, **kwargs):
    chosen = dataclasses.replace(SMALL, **(hyper or {}))
    return meta.make_model(algo, Bandit(space, **kwargs), gamma=0.9, k=7, seed=seed, hyper=chosen)


# ---- presets


@pytest.mark.parametrize(("algo", "space"), [("sac", CONTINUOUS), ("ppo", DISCRETE)])
def test_the_stated_update_ratio_is_that_of_training(algo, space):
    """Counted where gradients are applied: 60 decisions of 3 environments, 20 of them random."""
    hyper = dataclasses.replace(SMALL, **({"learning_starts": 20} if algo == "sac" else RATIO))
    model = meta.make_model(algo, Bandit(space, 3), gamma=0.9, k=7, seed=0, hyper=hyper)
    optimiser = (model.actor if algo == "sac" else model.policy).optimizer
    steps, step = [], optimiser.step
    optimiser.step = lambda *args, **kwargs: (steps.append(1), step(*args, **kwargs))[1]
    model.learn(60, callback=DurationCallback() if algo == "ppo" else None)
    learnt_from = 60 if algo == "ppo" else 60 - 21 + 3  # it begins with the first step past 20
    assert len(steps) == learnt_from * update_ratio(algo, 7, 3, hyper)


@pytest.mark.parametrize("algo", PRESETS)
def test_presets_become_the_algorithms_settings(algo):
    space = CONTINUOUS if algo == "sac" else DISCRETE
    model = meta.make_model(algo, Bandit(space, num_envs=16), gamma=0.99, k=25, seed=1)
    preset = PRESETS[algo]
    assert model.gamma == pytest.approx(0.99**25)
    assert model.learning_rate == preset.learning_rate
    assert model.seed == 1
    assert model.policy.net_arch == list(preset.hidden)
    if algo in ("ppo", "maskable-ppo"):
        assert type(model).__name__ == {"ppo": "PPO"}.get(algo, "MaskablePPO")
        assert isinstance(model.rollout_buffer, SMDPRolloutBuffer)
        assert model.n_steps * 16 == preset.rollout
        assert (model.batch_size, model.n_epochs) == (preset.batch_size, preset.epochs)
        assert (model.ent_coef, model.gae_lambda) == (preset.ent_coef, preset.gae_lambda)
        return
    assert isinstance(model.replay_buffer, SMDPReplayBuffer)
    assert model.gradient_steps == round(16 * preset.updates_per_decision)
    assert model.train_freq.frequency == 1
    assert model.batch_size == preset.batch_size
    assert model.learning_starts == preset.learning_starts
    if algo == "sac":
        assert model.ent_coef == f"auto_{preset.ent_coef}"
        assert model.tau == preset.tau
    else:
        assert model.target_update_interval == preset.target_period
        assert model.exploration_final_eps == preset.exploration_final


def test_overrides_win_and_primitive_control_has_its_own_values():
    assert settings("sac", 25, MetaConfig(tau=0.5)).tau == 0.5
    assert settings("sac", 25) == PRESETS["sac"]
    assert settings("sac", 1).hidden == PRIMITIVE["sac"].hidden != PRESETS["sac"].hidden
    assert settings("sac", 1).tau == PRESETS["sac"].tau
    assert settings("sac", 1, MetaConfig(hidden=(9,))).hidden == (9,)


def test_settings_that_mean_nothing_are_refused():
    with pytest.raises(UsageError, match="dqn has no use for ent_coef: it takes hidden"):
        settings("dqn", 5, MetaConfig(ent_coef=0.1))
    with pytest.raises(UsageError, match='unknown algorithm "pppo": did you mean "ppo"'):
        settings("pppo", 5)
    with pytest.raises(UsageError, match="learning_rate = 0"):
        MetaConfig(learning_rate=0.0)


@pytest.mark.parametrize(
    ("algo", "space"),
    [
        ("sac", DISCRETE),
        ("sac", PAIR),
        ("dqn", CONTINUOUS),
        ("dqn", PAIR),
        ("maskable-ppo", CONTINUOUS),
    ],
)
def test_algorithms_refuse_skills_they_cannot_choose(algo, space):
    with pytest.raises(UsageError, match="take algo ppo"):
        make(algo, space)


def test_every_step_is_for_algorithms_with_a_replay():
    model = meta.make_model("sac", Bandit(CONTINUOUS), gamma=0.9, k=7, hyper=SMALL, every_step=True)
    assert type(model.replay_buffer) is EveryStepReplayBuffer
    for algo in ("ppo", "maskable-ppo"):
        with pytest.raises(UsageError, match="every_step is for sac and dqn"):
            meta.make_model(algo, Bandit(DISCRETE), gamma=0.9, k=7, hyper=SMALL, every_step=True)


def test_a_missing_sb3_contrib_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "sb3_contrib.common.maskable.buffers", None)
    maskable_rollout_buffer.cache_clear()
    with pytest.raises(UsageError, match=r"etude-rl\[contrib\]"):
        make("maskable-ppo", DISCRETE)


def test_masks_are_obeyed_in_training():
    """Skill 1 is masked in every environment of the bandit."""
    chosen = []

    class Seen(BaseCallback):
        def _on_step(self):
            chosen.extend(self.locals["actions"].flatten().tolist())
            return True

    model = make("maskable-ppo", DISCRETE, {"rollout": 16, "epochs": 1})
    meta.train(model, 600, callbacks=[Seen()])
    assert {*chosen} == {0, 2}


@pytest.mark.parametrize(("num_envs", "rollout"), [(1, 100), (7, 1024), (64, 32)])
def test_ppo_batches_divide_the_rollout(num_envs, rollout):
    """SB3 warns where they do not, and warnings are errors here."""
    hyper = MetaConfig(rollout=rollout)
    model = meta.make_model("ppo", Bandit(DISCRETE, num_envs), gamma=0.9, k=5, hyper=hyper)
    size = model.n_steps * num_envs
    assert size >= rollout
    assert size % model.batch_size == 0
    assert 16 <= model.batch_size <= 128


# ---- training


@pytest.mark.parametrize(("algo", "space", "hyper"), CASES)
def test_training_counts_environment_steps_and_learns(algo, space, hyper):
    model = make(algo, space, hyper)
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    heard = []
    stats = meta.train(model, 1000, progress=lambda *news: heard.append(news), points=10)
    # three decisions of four environments take 56 steps: 17 episodes (952) and one decision of 28,
    # then one of 20
    assert stats.env_steps == 17 * 56 + 28 + 20 == 1000
    assert stats.decisions == (17 * 3 + 2) * 4
    assert stats.episodes == 17 * 4
    assert stats.first_success == 2 * 56
    assert [point.env_steps for point in stats.curve] == [step for step, _ in heard]
    assert len(stats.curve) == pytest.approx(9, abs=1)
    last = stats.curve[-1]
    assert last.env_steps == 1000
    assert last.success == pytest.approx(8 / 17)
    assert last.episode_return == pytest.approx(9)  # the mean of 1 to 17
    assert model._n_updates > 10
    after = model.policy.state_dict()
    assert any(not torch.equal(value, before[name]) for name, value in after.items())
    assert meta.Stats.from_json(json.loads(json.dumps(stats.to_json()))) == stats


class Watch(BaseCallback):
    """Remembers epsilon after every decision."""

    def __init__(self):
        super().__init__()
        self.epsilon = []

    def _on_step(self):
        self.epsilon.append(self.model.exploration_rate)
        return True


def test_exploration_falls_over_environment_steps():
    model = make("dqn", DISCRETE, {"exploration": 0.5, "exploration_final": 0.1})
    watch = Watch()
    meta.train(model, 1120, callbacks=[watch])  # 20 rounds of 56 steps, 60 decisions
    assert watch.epsilon[1] == pytest.approx(1 - 0.9 * 28 / 560)
    assert watch.epsilon[15] == pytest.approx(1 - 0.9 * 0.5)  # after 5 rounds, half of the fall
    assert watch.epsilon[31:] == pytest.approx([0.1] * len(watch.epsilon[31:]))


@pytest.mark.parametrize(("algo", "space", "hyper"), CASES)
def test_logs_are_over_environment_steps(algo, space, hyper, tmp_path):
    log = Logger(tmp_path)
    stats = meta.train(make(algo, space, hyper), 1000, log=log, points=10)
    log.close()
    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert tags >= {
        "meta/success_rate",
        "meta/episode_return",
        "meta/decision_steps",
        "meta/decisions",
        "meta/episodes",
        "rollout/ep_rew_mean",
        "rollout/success_rate",
        "time/env_steps",
        "time/fps",
        "train/learning_rate",
    }
    success = events.Scalars("meta/success_rate")
    assert [e.step for e in success] == [point.env_steps for point in stats.curve]
    assert [e.value for e in success] == pytest.approx([p.success for p in stats.curve])
    for event in events.Scalars("time/env_steps"):
        assert event.value == event.step
    decisions = events.Scalars("meta/decisions")[-1]
    assert (decisions.step, decisions.value) == (1000, stats.decisions)
    assert events.Scalars("rollout/ep_rew_mean")[-1].step == 1000
    assert events.Scalars("meta/decision_steps")[-1].value == pytest.approx(14 / 3, abs=0.1)
    with (tmp_path / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["key"] == "meta/success_rate"]
    assert [int(row["step"]) for row in rows] == [point.env_steps for point in stats.curve]


# ---- files


@pytest.mark.parametrize(("algo", "space", "hyper"), CASES)
def test_a_saved_policy_chooses_as_before(algo, space, hyper, tmp_path):
    model = make(algo, space, hyper)
    meta.train(model, 300)
    about = {"task": "bandit", "scaling": {"mean": np.arange(3.0)}, "library": None}
    meta.save_policy(model.policy, tmp_path, about)
    files = sorted(p.suffix for p in (tmp_path / "policy").iterdir())
    assert files == [".json", ".json", ".safetensors"]
    policy, read = meta.load_policy(tmp_path)
    assert read.pop("scaling")["mean"].tolist() == [0, 1, 2]
    assert read == {"task": "bandit", "library": None}
    obs = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    choice, _ = policy.predict(obs, deterministic=True)
    np.testing.assert_array_equal(choice, model.policy.predict(obs, deterministic=True)[0])
    again = meta.load_model(tmp_path, Bandit(space), gamma=0.9, k=7, seed=5, hyper=SMALL)
    np.testing.assert_array_equal(choice, again.policy.predict(obs, deterministic=True)[0])
    meta.train(again, 100)  # and can go on learning


def test_a_policy_for_other_spaces_is_refused(tmp_path):
    meta.save_policy(make("dqn", DISCRETE).policy, tmp_path, {})
    with pytest.raises(CheckpointError, match="other observations or skills"):
        meta.load_model(tmp_path, Bandit(spaces.Discrete(4)), gamma=0.9, k=7)


def test_a_newer_format_is_refused(tmp_path, monkeypatch):
    with monkeypatch.context() as newer:
        newer.setattr(meta, "FORMAT", meta.FORMAT + 1)
        meta.save_policy(make("ppo", PAIR).policy, tmp_path, {})
    with pytest.raises(CheckpointError, match="upgrade etude-rl"):
        meta.load_policy(tmp_path)


def test_a_damaged_policy_is_refused(tmp_path):
    path = meta.save_policy(make("dqn", DISCRETE).policy, tmp_path, {})
    arrays = path / "arrays.safetensors"
    arrays.write_bytes(arrays.read_bytes()[:-1] + b"\1")
    with pytest.raises(CheckpointError, match="damaged"):
        meta.load_policy(tmp_path)
