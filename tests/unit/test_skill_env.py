"""SkillEnv: semi-Markov semantics against closed forms, and what agents expect of it."""

import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from line_world import GOAL, LINE_SPEC, Costly, Line, library_at, make_line
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import SubprocVecEnv, VecNormalize

import etude
from etude.envs import registry
from etude.errors import UsageError
from etude.skills.durations import Duration
from etude.skills.env import SkillEnv
from etude.skills.library import SkillLibrary
from etude.skills.spaces import Cube, Discrete, Gaussian, SkillSpace, Sphere


@pytest.fixture
def line(tmp_path: Path) -> Path:
    """Two skills of the line's body: 0 goes right, 1 goes left."""
    return library_at(tmp_path / "line", LINE_SPEC, Discrete(2))


@pytest.fixture(scope="module")
def cheetah(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = registry.spec("half-cheetah").to_json()
    return library_at(tmp_path_factory.mktemp("zoo") / "cheetah", spec, Sphere(2), 0.5)


# Semi-Markov semantics


def optimal_value(env: SkillEnv) -> float:
    """Value of the start by exact value iteration over every transition that SkillEnv makes."""
    transitions: dict[tuple[int, int], tuple[float, float, int]] = {}
    for x in range(GOAL):
        for action in range(2):
            env.reset(options={"x": x})
            _, reward, terminated, truncated, info = env.step(action)
            assert not truncated
            weight = info["skill"]["discount"] * (not terminated)
            transitions[x, action] = reward, weight, info["x"]
    value = np.zeros(GOAL + 1)
    for _ in range(60):
        for x in range(GOAL):
            outcomes = (transitions[x, action] for action in range(2))
            value[x] = max(r + weight * value[after] for r, weight, after in outcomes)
    return float(value[0])


@pytest.mark.parametrize(
    ("modes", "value"),
    [
        ({}, 0.9**22),
        ({"reward": "sum", "smdp": "per_decision"}, 0.9**2),
        ({"reward": "sum"}, 0.9**20),
        ({"reward": "last"}, 0.9**20),
        ({"reward": "mean"}, 0.9**20 / 3),
        ({"smdp": "per_decision"}, 0.9**2 * 0.9**2),
    ],
)
def test_value_of_the_line_world(line: Path, modes: dict[str, Any], value: float) -> None:
    """23 steps to a reward of 1 are worth 0.9^22 = 0.0985, held in tens or not; else wrong."""
    assert optimal_value(SkillEnv(make_line(), line, k=10, gamma=0.9, **modes)) == pytest.approx(
        value, abs=1e-12
    )


def test_the_value_does_not_depend_on_k(line: Path) -> None:
    for k in (1, 3, 7, 23, 40):
        value = optimal_value(SkillEnv(make_line(), line, k=k, gamma=0.9))
        assert value == pytest.approx(0.9**22)


def test_reward_conventions(line: Path) -> None:
    paid = {}
    for mode in ("discounted", "sum", "mean", "last"):
        env = SkillEnv(TimeLimit(Costly(), 50), line, k=4, gamma=0.5, reward=mode)
        env.reset()
        paid[mode] = env.step(0)[1]
    assert paid == {"discounted": 1 + 2 / 2 + 3 / 4 + 4 / 8, "sum": 10, "mean": 2.5, "last": 4}


def test_info_of_a_decision(line: Path) -> None:
    env = SkillEnv(make_line(12), line, k=5, gamma=0.9)
    obs, info = env.reset(seed=0)
    np.testing.assert_array_equal(obs, [GOAL, 0])
    obs, reward, terminated, truncated, info = env.step(0)
    np.testing.assert_array_equal(obs, [GOAL, 5])
    assert (reward, terminated, truncated, info["x"]) == (0.0, False, False, 5)
    np.testing.assert_array_equal(info["skill"].pop("z"), [1, 0])
    decision = {"duration": 5, "discount": 0.9**5, "reward": 0.0, "ended_by": "k"}
    assert info["skill"] == decision
    assert env.step(1)[4]["x"] == 0
    _, _, terminated, truncated, info = env.step(0)
    assert (terminated, truncated) == (False, True)
    assert info["skill"]["duration"] == 2 and info["skill"]["ended_by"] == "truncated"
    assert info["skill"]["discount"] == pytest.approx(0.81) and info["is_success"] is False
    env.reset(options={"x": 21})
    _, reward, terminated, truncated, info = env.step(0)
    assert (reward, terminated, truncated) == (pytest.approx(0.9), True, False)
    assert info["skill"]["ended_by"] == "terminated" and info["skill"]["reward"] == 1.0
    assert info["is_success"] is True and env.decision_gamma == pytest.approx(0.9**5)


def test_reset_is_needed_first_and_after_the_end(line: Path) -> None:
    env = SkillEnv(make_line(), line, k=30)
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(0)
    env.reset()
    assert env.step(0)[2]
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(0)


@pytest.mark.parametrize("space", [Discrete(3), Sphere(2), Gaussian(2), Cube(2)], ids=str)
def test_actions_are_the_spaces(tmp_path: Path, space: SkillSpace) -> None:
    path = library_at(tmp_path / "lib", LINE_SPEC, space, 1e4)
    env = SkillEnv(make_line(), path)
    assert env.action_space == space.action_space()
    env.reset()
    action = env.action_space.sample()
    np.testing.assert_array_equal(env.step(action)[4]["skill"]["z"], space.from_action(action))


# Settings


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"k": 0}, "k = 0"),
        ({"k": 2.5}, "k = 2.5"),
        ({"gamma": 0.0}, "gamma = 0.0"),
        ({"gamma": 1.1}, "gamma = 1.1"),
        ({"reward": "summ"}, 'did you mean "sum"'),
        ({"smdp": "exakt"}, 'did you mean "exact"'),
        ({"every_step": True, "reward": "last"}, 'take "discounted" with "exact"'),
        ({"every_step": True, "smdp": "per_decision"}, '"sum" with "per_decision"'),
        ({"fallback": 3}, 'unknown skill id to fall back to "3"'),
    ],
)
def test_settings_are_checked(line: Path, settings: dict[str, Any], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        SkillEnv(make_line(), line, **settings)


def test_actions_that_are_no_skill(line: Path, cheetah: Path) -> None:
    env = SkillEnv(make_line(), line)
    env.reset()
    with pytest.raises(UsageError, match="choose 0 to 1"):
        env.step(2)
    env = SkillEnv(gymnasium.make("etude/HalfCheetah-v0"), cheetah)
    env.reset()
    with pytest.raises(UsageError, match="no skill of"):
        env.step(np.array([np.nan, 0]))


def test_a_missing_time_limit_is_mentioned(line: Path) -> None:
    with pytest.warns(UserWarning, match="no TimeLimit below SkillEnv"):
        SkillEnv(Line(), line)
    with warnings.catch_warnings(action="error"):
        SkillEnv(gymnasium.wrappers.RecordEpisodeStatistics(make_line()), line)


# Agents on top


def test_sb3_accepts_it(line: Path, cheetah: Path) -> None:
    for options in (
        {},
        {"every_step": True},
        {"k": Duration(3, "chosen")},
        {"k": Duration(3, "random")},
    ):
        check_env(SkillEnv(make_line(), line, **({"k": 3} | options)))
    env = gymnasium.make("etude/HalfCheetahGoal-v0")
    check_env(SkillEnv(env, cheetah, k=Duration(3, "chosen"), every_step=True))
    for env_id in ("etude/HalfCheetahGoal-v0", "HalfCheetah-v5"):
        check_env(SkillEnv(gymnasium.make(env_id), cheetah, k=3))


def test_ten_lines_with_ppo(line: Path) -> None:
    k, gamma = 10, 0.9
    skills = {"library": str(line), "k": k, "gamma": gamma}
    venv = make_vec_env(make_line, 2, seed=0, wrapper_class=SkillEnv, wrapper_kwargs=skills)
    model = PPO("MlpPolicy", venv, gamma=gamma**k, n_steps=16, batch_size=32, device="cpu")
    model.learn(64)
    assert model.num_timesteps == 64 and venv.action_space == spaces.Discrete(2)
    venv.reset()
    infos, dones = [], np.zeros(2, bool)
    while not dones.any():
        _, _, dones, infos = venv.step(np.zeros(2, int))
    assert infos[0]["episode"]["l"] == GOAL and infos[0]["episode"]["r"] == 1.0
    assert infos[0]["is_success"] and infos[0]["skill"]["duration"] == 3


def test_sac_under_vec_normalize(cheetah: Path) -> None:
    skills = {"library": cheetah, "k": 5}
    venv = make_vec_env("HalfCheetah-v5", 1, wrapper_class=SkillEnv, wrapper_kwargs=skills)
    model = SAC("MlpPolicy", VecNormalize(venv), learning_starts=4, batch_size=4, device="cpu")
    model.learn(8)
    assert model._n_updates > 0


def test_pickle_and_spec(line: Path, cheetah: Path) -> None:
    env = SkillEnv(make_line(), str(line), k=5)
    copy = pickle.loads(pickle.dumps(env))
    for each in (env, copy):
        each.reset()
        assert each.step(0)[4]["x"] == 5
    env = SkillEnv(gymnasium.make("etude/HalfCheetah-v0"), str(cheetah), k=7, gamma=0.9)
    assert env.spec is not None
    again = gymnasium.make(env.spec)
    assert isinstance(again, SkillEnv) and (again.k, again.gamma) == (7, 0.9)


def test_the_cards_example_runs(
    cheetah: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = (cheetah / "README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0]
    monkeypatch.setattr(etude, "SkillLibrary", SkillLibrary, raising=False)
    monkeypatch.setattr(etude, "SkillEnv", SkillEnv, raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tested").symlink_to(cheetah)
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["info"]["skill"]["duration"] == 25 and names["library"].name == "tested"


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "start", ["fork", pytest.param("forkserver", marks=SLOW), pytest.param("spawn", marks=SLOW)]
)
def test_workers(cheetah: Path, start: str) -> None:
    """Each process imports, registers the environments and loads the library by itself."""
    found = []
    for vec_env_cls, kwargs in ((None, None), (SubprocVecEnv, {"start_method": start})):
        venv = make_vec_env(
            "etude/HalfCheetahGoal-v0",
            n_envs=2,
            seed=0,
            wrapper_class=SkillEnv,
            wrapper_kwargs={"library": str(cheetah), "k": Duration(5, "random")},
            vec_env_cls=vec_env_cls,
            vec_env_kwargs=kwargs,
        )
        venv.reset()
        found.append(venv.step(np.array([[1, 0], [0, 1]], np.float32)))
        venv.close()
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-6)
    skills = [[info["skill"] for info in infos] for *_, infos in found]
    assert [s["duration"] for s in skills[0]] == [s["duration"] for s in skills[1]]
    assert 3 <= skills[0][0]["duration"] <= 7


def test_skill_env_needs_no_torch(cheetah: Path) -> None:
    script = f"""
import sys
sys.modules["torch"] = None
import gymnasium
from etude.skills.env import SkillEnv
for name in ("etude/HalfCheetah-v0", "HalfCheetah-v5"):
    env = SkillEnv(gymnasium.make(name), {str(cheetah)!r}, k=5)
    env.reset(seed=0)
    assert env.step(env.action_space.sample())[4]["skill"]["duration"] == 5
"""
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True, timeout=120)
