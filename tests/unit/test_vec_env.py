"""SkillVecEnv: decisions of several steps, counted, discounted and reported exactly."""

from __future__ import annotations

import copy
import dataclasses

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv

from etude.envs.registry import make_vec, spec
from etude.errors import LibraryError, UsageError
from etude.skills.durations import Duration
from etude.skills.env import SkillEnv
from etude.skills.library import MLP, SetData, SkillLibrary
from etude.skills.library_data import Contents
from etude.skills.predicates import annotate
from etude.skills.spaces import Discrete, Sphere
from etude.skills.vec_env import LibraryLevel, PrimitiveLevel, SkillVecEnv

GAMMA = 0.9


class Script:
    """Environment i ends its first episode at step `ends[i]`, for a reason; step t pays t.

    It stands in for a BatchedEnv; the observation is (environment, episode, step).
    """

    def __init__(self, ends, reasons):
        self.ends, self.reasons, self.num_envs = np.array(ends), reasons, len(ends)
        self.env_spec = spec("half-cheetah-goal")  # any with a task
        self.calls = []

    def reset(self, *, seed=None, options=None):
        self.seeds = list(seed)
        self.step_, self.episode = np.zeros(self.num_envs, int), np.zeros(self.num_envs, int)
        return self._obs(), {}

    def step(self, actions, active=None):
        moved = np.ones(self.num_envs, bool) if active is None else active.copy()
        self.calls.append((actions.copy(), moved))
        self.step_ += moved
        done = moved & (self.step_ == self.ends) & (self.episode == 0)
        reward = np.where(moved, self.step_, 0.0)
        infos = {"final_obs_array": self._obs(), "is_success": done & (np.arange(len(done)) == 0)}
        terminated = done & np.array([reason == "terminated" for reason in self.reasons])
        self.episode[done] += 1
        self.step_[done] = 0
        return self._obs(), reward, terminated, done & ~terminated, infos

    def _obs(self):
        obs = np.zeros((self.num_envs, self.env_spec.obs_dim), np.float32)
        obs[:, 0], obs[:, 1], obs[:, 2] = np.arange(self.num_envs), self.episode, self.step_
        return obs

    render_mode = None


def scripted(k=10, ends=(13, 17, 100), reasons=("terminated", "truncated", ""), **kwargs):
    script = Script(ends, reasons)
    env = SkillVecEnv(script, PrimitiveLevel(6), k, GAMMA, normalise=False, **kwargs)
    return env, script


ACTIONS = np.arange(18, dtype=np.float32).reshape(3, 6) / 18


def test_a_decision_of_k_steps():
    env, script = scripted()
    env.reset()
    obs, reward, done, infos = env.step(ACTIONS)
    assert len(script.calls) == 10
    assert all((actions == ACTIONS).all() and moved.all() for actions, moved in script.calls)
    assert reward == pytest.approx([sum(GAMMA**i * (i + 1) for i in range(10))] * 3)
    assert not done.any()
    assert obs[:, 2].tolist() == [10, 10, 10]
    for i, info in enumerate(infos):
        assert info.keys() == {"skill"}
        assert info["skill"].pop("z").tolist() == ACTIONS[i].tolist()
        discount = pytest.approx(GAMMA**10)
        expected = {"duration": 10, "discount": discount, "reward": 55.0, "ended_by": "k"}
        assert info["skill"] == expected


def test_decisions_that_end_early_wait_and_are_reported():
    env, script = scripted()
    env.reset()
    env.step(ACTIONS)
    obs, reward, done, infos = env.step(ACTIONS)
    assert done.tolist() == [True, True, False]
    assert [info["skill"]["duration"] for info in infos] == [3, 7, 10]
    assert [info["skill"]["ended_by"] for info in infos] == ["terminated", "truncated", "k"]
    assert [info["skill"]["discount"] for info in infos] == pytest.approx(
        [GAMMA**3, GAMMA**7, GAMMA**10]
    )
    assert reward == pytest.approx(
        [sum(GAMMA**i * (11 + i) for i in range(n)) for n in (3, 7, 10)], rel=1e-6
    )
    # nobody was stepped beyond its end: the new episodes still stand at their first observation
    assert obs[:, 1].tolist() == [1, 1, 0]
    assert obs[:, 2].tolist() == [0, 0, 20]
    taken = np.sum([moved for _, moved in script.calls[10:]], axis=0)
    assert taken.tolist() == [3, 7, 10]
    assert all((actions[~moved] == 0).all() for actions, moved in script.calls)


def test_the_end_of_an_episode_is_reported_as_sb3_expects_it():
    env, _ = scripted()
    env.reset()
    env.step(ACTIONS)
    _, _, _, infos = env.step(ACTIONS)
    assert infos[0]["episode"].items() >= {"r": sum(range(14)), "l": 13}.items()
    assert infos[1]["episode"].items() >= {"r": sum(range(18)), "l": 17}.items()
    assert "episode" not in infos[2]
    assert [info.get("TimeLimit.truncated") for info in infos] == [False, True, None]
    assert [info.get("is_success") for info in infos] == [True, False, None]
    assert infos[0]["terminal_observation"][:3].tolist() == [0, 0, 13]
    assert infos[1]["terminal_observation"][:3].tolist() == [1, 0, 17]
    _, _, _, infos = env.step(ACTIONS)
    assert [info["skill"]["reward"] for info in infos] == [55, 55, sum(range(21, 31))]
    assert env.env_steps == 30 + 20 + 30  # waiting is not counted


def test_returns_begin_at_zero_in_every_episode():
    env, _ = scripted(ends=(5, 5, 5), reasons=("terminated",) * 3)
    for _ in range(2):
        env.reset()
        _, _, _, infos = env.step(ACTIONS)
        assert [info["episode"]["r"] for info in infos] == [15, 15, 15]
        assert [info["episode"]["l"] for info in infos] == [5, 5, 5]


def test_all_ended_ends_the_decision():
    env, script = scripted(ends=(2, 3, 4), reasons=("terminated",) * 3)
    env.reset()
    env.step(ACTIONS)
    assert len(script.calls) == 4


def test_per_decision_discounting():
    env, _ = scripted(smdp="per_decision")
    env.reset()
    env.step(ACTIONS)
    _, reward, _, infos = env.step(ACTIONS)
    assert reward.tolist() == [11 + 12 + 13, sum(range(11, 18)), sum(range(11, 21))]
    assert [info["skill"]["discount"] for info in infos] == [GAMMA] * 3


def test_seeds_reach_the_environments_once():
    env, script = scripted()
    env.seed(5)
    env.reset()
    assert script.seeds == [5, 6, 7]
    env.reset()
    assert script.seeds == [None] * 3


@pytest.mark.parametrize(("k", "gamma"), [(0, 0.9), (5, 0.0), (5, 1.1)])
def test_impossible_settings_are_refused(k, gamma):
    with pytest.raises(UsageError, match="choose k"):
        SkillVecEnv(Script((1,), ("",)), PrimitiveLevel(6), k, gamma)


def test_single_environments_cannot_be_changed():
    env, _ = scripted()
    with pytest.raises(UsageError, match="set it on `venv`"):
        env.set_attr("k", 3)
    with pytest.raises(UsageError, match="call it on `venv`"):
        env.env_method("reset")
    assert env.get_attr("num_envs", [0, 2]) == [3, 3]


# ---- on the real point maze


def compass(space, body="point-maze-u", fields=None):
    """A library whose skills walk towards z, with phi = place."""
    env = spec(body).to_json()
    env["fields"] = fields or env["fields"]
    angle = 2 * np.pi * np.arange(space.dim) / space.dim
    towards = np.stack([np.cos(angle), np.sin(angle)], 1) if space.dim > 2 else np.eye(2)
    weight = np.concatenate([np.zeros((4, 2)), 3 * towards])
    policy = MLP([(weight, np.zeros(2))], output="tanh")
    phi = MLP([(towards.T, np.zeros(space.dim))], inputs=("obs",), input_fields=("x", "y"))
    data = SetData("main", "none", {}, space, policy, {"phi": phi}, np.zeros(4), np.ones(4), [])
    return SkillLibrary(Contents("compass", env, [data]))


def choices(space, n, rng):
    """Random choices of a controller, (n, …)."""
    if isinstance(space, spaces.Box):
        return rng.uniform(-1, 1, (n, *space.shape)).astype(np.float32)
    return np.stack([space.sample() for _ in range(n)])


def ruled(library):
    """Skill 0 ends at the right, and skill 1 may not begin there."""
    rows = [{"id": i, "z": np.eye(8)[i]} for i in range(8)]
    data = dataclasses.replace(library.data, skills=rows)
    right = {"field": "x", "above": 0.1}
    rules = {0: {"termination": right}, 1: {"initiation": {"not": right}}}
    return annotate(SkillLibrary(Contents("compass", library.env, [data])), rules)


def same_skill(one, other):
    """Why both decisions ended."""
    skill, skill_b = one["skill"], other["skill"]
    for key in ("duration", "ended_by"):
        assert skill_b[key] == skill[key]
    assert skill_b["discount"] == pytest.approx(skill["discount"])
    np.testing.assert_allclose(skill_b["z"], skill["z"])
    for key in skill.get("within", ()):
        np.testing.assert_allclose(skill_b["within"][key], skill["within"][key], atol=1e-5)
    return skill["ended_by"]


@pytest.mark.parametrize(
    ("space", "hold", "every_step"),
    [
        (Sphere(2), Duration(25), False),
        (Discrete(8), Duration(25), False),
        (Sphere(2), Duration(25, "random"), True),
        (Discrete(8), Duration(12, "chosen"), False),
        (Sphere(2), Duration(12, "chosen"), True),
    ],
)
def test_it_equals_one_skill_env_per_environment(space, hold, every_step):
    """The same seeds and choices: decisions through both ways agree, ends of episodes included."""
    library, task, n = compass(space), "point-maze-u-goal", 3
    fallback = None
    if isinstance(space, Discrete):
        library, fallback = ruled(library), 2
    options = {"every_step": every_step}

    def single():
        env = gymnasium.make("etude/PointMazeUGoal-v0")
        return SkillEnv(env, library, k=hold, gamma=GAMMA, fallback=fallback, **options)

    one = DummyVecEnv([single] * n)
    level = LibraryLevel.for_spec(library, spec(task), fallback)
    raw = make_vec(task, n, threads=1)
    batched = SkillVecEnv(raw, level, hold, GAMMA, normalise=False, **options)
    assert batched.action_space == one.action_space
    assert batched.observation_space.shape == one.observation_space.shape
    one.seed(7)
    batched.seed(7)
    np.testing.assert_array_equal(one.reset(), batched.reset())
    one.action_space.seed(0)
    rng, ended, reasons = np.random.default_rng(0), 0, set()
    for _ in range(60):
        if isinstance(space, Discrete):
            masks = (env.env_method("action_masks") for env in (one, batched))
            np.testing.assert_array_equal(*masks)
        choice = choices(one.action_space, n, rng)
        obs, reward, done, infos = one.step(choice)
        obs_b, reward_b, done_b, infos_b = batched.step(choice)
        np.testing.assert_allclose(obs_b, obs, atol=1e-5)
        np.testing.assert_allclose(reward_b, reward, rtol=1e-6)
        assert done_b.tolist() == done.tolist()
        reasons |= {same_skill(*pair) for pair in zip(infos, infos_b, strict=True)}
        for i in np.flatnonzero(done):
            ended += 1
            assert infos_b[i]["TimeLimit.truncated"] == infos[i]["TimeLimit.truncated"]
            assert infos_b[i]["is_success"] == infos[i]["is_success"]
            np.testing.assert_allclose(
                infos_b[i]["terminal_observation"], infos[i]["terminal_observation"], atol=1e-5
            )
    assert ended >= n
    assert ("skill" in reasons) == isinstance(space, Discrete)
    batched.close()
    one.close()


def test_masks_where_nothing_is_masked_and_where_there_are_none():
    """How MaskablePPO asks whether it can be used."""
    task = "point-maze-u-goal"
    for space, supported in ((Discrete(8), True), (Sphere(2), False)):
        level = LibraryLevel.for_spec(compass(space), spec(task))
        env = SkillVecEnv(make_vec(task, 3, threads=1), level, 5, GAMMA)
        env.reset()
        assert env.has_attr("action_masks") == supported
        if supported:
            assert (
                np.stack(env.env_method("action_masks", indices=[0, 2])).tolist()
                == [[True] * 8] * 2
            )
        with pytest.raises(UsageError, match="HerReplayBuffer does not know"):
            env.env_method("compute_reward")
        env.close()


def test_every_step_of_a_decision_reports_what_it_still_earns():
    env, _ = scripted(every_step=True)
    first = env.reset()
    assert first.shape[1] == env.observation_space.shape[0] and not first[:, -1].any()
    env.step(ACTIONS)
    obs, reward, _, infos = env.step(ACTIONS)
    assert not obs[:, -1].any()
    for i, tau in enumerate((3, 7, 10)):
        within = infos[i]["skill"]["within"]
        earned = [sum(GAMMA**m * (11 + j + m) for m in range(tau - j)) for j in range(tau)]
        np.testing.assert_allclose(within["reward"], earned)
        np.testing.assert_allclose(within["discount"], GAMMA ** np.arange(tau, 0, -1))
        np.testing.assert_allclose(within["obs"][:, 2], 10 + np.arange(tau))
        np.testing.assert_allclose(within["obs"][:, -1], np.arange(tau) / 10, rtol=1e-6)
        assert within["reward"][0] == pytest.approx(reward[i])


def test_flat_steps_equal_the_engines():
    task, n = "half-cheetah-goal", 4
    raw, flat = (
        make_vec(task, n, threads=1),
        SkillVecEnv(make_vec(task, n, threads=1), PrimitiveLevel(6), 1, GAMMA, normalise=False),
    )
    raw.reset(seed=3)
    flat.seed(3)
    flat.reset()
    rng = np.random.default_rng(0)
    for _ in range(20):
        action = rng.uniform(-1, 1, (n, 6)).astype(np.float32)
        obs, reward, *_ = raw.step(action)
        obs_f, reward_f, _, _ = flat.step(action)
        np.testing.assert_array_equal(obs, obs_f)
        np.testing.assert_allclose(reward, reward_f)
    assert flat.env_steps == 20 * n


def test_fields_are_found_by_name():
    """A library whose fields stand in another order acts as the one in order does."""
    fields = spec("point-maze-u").to_json()["fields"]
    turned = compass(Sphere(2), fields=[fields[i] for i in (2, 0, 3, 1)])
    body = np.array([[1.0, 2.0, 3.0, 4.0]], np.float32)
    level = LibraryLevel.for_spec(turned, spec("point-maze-u-goal"))
    assert level.columns is not None
    assert body[0, level.columns].tolist() == [3, 1, 4, 2]


def test_a_library_of_another_body_is_refused():
    with pytest.raises(LibraryError, match="compass"):
        LibraryLevel.for_spec(compass(Sphere(2)), spec("half-cheetah-goal"))


def test_observations_are_scaled_and_the_low_level_sees_raw_ones():
    task, seen = "half-cheetah-goal", []

    class Spy(PrimitiveLevel):
        def plan(self, obs, command):
            seen.append(obs)
            return super().plan(obs, command)

    raw = make_vec(task, 2, threads=1)
    env = SkillVecEnv(make_vec(task, 2, threads=1), Spy(6), 1, GAMMA)
    env.seed(0)
    expected, _ = raw.reset(seed=0)
    got = env.reset()
    np.testing.assert_allclose(got, env.scaling(expected))
    assert np.abs(expected[:, -1]).max() > 5  # a goal, m
    assert np.abs(got).max() < 5
    env.step(np.zeros((2, 6), np.float32))
    np.testing.assert_array_equal(seen[0], expected[:, :18])


def test_it_goes_on_exactly_from_its_state():
    """Within episodes, whose returns and lengths go on; a seed of the new one does not count."""

    def make():
        level = LibraryLevel.for_spec(compass(Sphere(2)), spec("point-maze-u-goal"))
        return SkillVecEnv(make_vec("point-maze-u-goal", 3, threads=1, max_steps=37), level, 5, 0.9)

    choices = np.random.default_rng(0).uniform(-1, 1, (12, 3, 2)).astype(np.float32)
    one, two = make(), make()
    one.seed(0)
    one.reset()
    for choice in choices[:3]:
        one.step(choice)
    one._returns[:] = 1, 2, 3  # the task pays nothing before its end
    two.seed(9)
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    assert two.env_steps == one.env_steps == 3 * 5 * 3
    episodes = []
    for choice in choices[3:]:
        (*arrays, infos), (*again, infos_again) = one.step(choice), two.step(choice)
        for a, b in zip(arrays, again, strict=True):
            np.testing.assert_array_equal(a, b)
        pairs = zip(infos, infos_again, strict=True)
        episodes += [(a["episode"], b["episode"]) for a, b in pairs if "episode" in a]
    assert [(a["r"], a["l"]) for a, _ in episodes] == [(b["r"], b["l"]) for _, b in episodes]
    assert [(a["r"], a["l"]) for a, _ in episodes[:3]] == [(1, 37), (2, 37), (3, 37)]
    one.reset()
    two.reset()
    np.testing.assert_array_equal(one._obs, two._obs)  # the same generators, not seed 9
    one.close()
    two.close()
