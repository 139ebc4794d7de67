"""Tasks of gymnasium-robotics and OGBench: each thing that the adapters put right.

Every test of an adapter fails without it.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium
import mujoco
import numpy as np
import pytest
from external_tasks import inner, needs_ogbench, spec_of, still
from stable_baselines3.common.env_checker import check_env

from etude.envs import external
from etude.envs.suites import compat
from etude.errors import UsageError

OGBENCH = ["antmaze-medium-v0", "antmaze-teleport-v0", "antsoccer-arena-v0"]
ROBOTICS = ["AntMaze_UMaze-v5", "PointMaze_Large-v3", "FetchReach-v4"]
EACH = [*ROBOTICS, *(pytest.param(name, marks=needs_ogbench) for name in OGBENCH)]


# Starting: imports, enums, files, sentences


def test_nothing_is_imported_before_it_is_asked_for_and_nothing_is_said(tmp_path: Path) -> None:
    """A suite's notice at import stays off stderr; warnings are errors; the enums are put right."""
    lines = (
        "import sys",
        "from etude.envs import external",
        "print(*{'gymnasium_robotics', 'ogbench', 'mujoco', 'torch'} & sys.modules.keys())",
        "env = external.make('FetchReach-v4')",
        "env.reset(seed=0); env.step(env.action_space.sample()); env.close()",
    )
    python = [sys.executable, "-W", "error", "-c", "\n".join(lines)]
    done = subprocess.run(python, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("env_id", ["FetchPush-v4", "HandReach-v3", "FrankaKitchen-v1"])
def test_robots_that_ask_for_joint_types_start(env_id: str) -> None:
    env = external.make(env_id)
    for seed in (0, 1):
        obs, _ = env.reset(seed=seed)
        assert env.observation_space.contains(obs)
        obs, reward, terminated, truncated, info = still(env)
        assert (reward, terminated, truncated, info["is_success"]) == (0, False, False, False)
    env.close()


def test_enums_are_replaced_only_where_they_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    user: Any = ModuleType("user")
    user.mujoco = mujoco
    monkeypatch.setattr(compat, "enums_equal_integers", lambda: True)
    compat.give_plain_enums(user)
    assert user.mujoco is mujoco
    monkeypatch.setattr(compat, "enums_equal_integers", lambda: False)
    compat.give_plain_enums(user)
    seen = user.mujoco
    assert np.int32(3) in (seen.mjtJoint.mjJNT_SLIDE, seen.mjtJoint.mjJNT_HINGE)
    assert seen.mj_step is mujoco.mj_step and type(mujoco.mjtJoint.mjJNT_HINGE) is not int
    compat.give_plain_enums(user)
    assert user.mujoco is seen


def test_the_fault_in_the_enums_is_found() -> None:
    """MuJoCo 3.12 to 4.0 have it; a later one that has not needs no replacement."""
    hinge = mujoco.mjtJoint.mjJNT_HINGE
    works = np.int32(int(hinge)) in (hinge,)
    assert compat.enums_equal_integers() == works


@pytest.mark.parametrize(
    "env_id", ["AntMaze_UMaze-v5", pytest.param("antmaze-medium-v0", marks=needs_ogbench)]
)
def test_no_file_is_left(env_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    external.ids("robotics")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    external.make(env_id).close()
    assert not [*tmp_path.iterdir()] and tempfile.tempdir == str(tmp_path)


@pytest.mark.parametrize(
    ("env_id", "package", "module"),
    [
        ("FetchReach-v4", "gymnasium_robotics", "robotics"),
        ("antmaze-large-v0", "ogbench", "ogbench"),
    ],
)
def test_a_missing_extra_is_named(
    env_id: str, package: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"etude.envs.suites.{module}", raising=False)
    with pytest.raises(UsageError, match=rf"need {package}, .* pip install 'etude-rl\[{module}\]'"):
        external.make(env_id)


@pytest.mark.parametrize(
    ("env_id", "match"),
    [
        ("AntMaze_Lrge-v5", "has no task .* nearest are AntMaze_Large-v5, "),
        ("FetchReach-v3", "nearest are FetchReach-v4, "),
        ("Zzz", 'there are .*external.ids."robotics". names all'),
        ("FetchReach-v1", "needs mujoco_py"),
        ("AntMaze_Large-v4", "ask for -v5"),
        ("FetchReachDense-v4", "pays for more than arriving"),
        ("AdroitHandDoor-v1", "pays for more than arriving"),
        ("Ant-v5", "has no task"),
        pytest.param("antmaze-lrge-v0", "nearest are antmaze-large-v0", marks=needs_ogbench),
        pytest.param("visual-antmaze-large-v0", "shows pictures", marks=needs_ogbench),
        pytest.param("powderworld-easy-v0", "numbers for actions", marks=needs_ogbench),
        pytest.param("humanoidmaze-teleport-v0", "does not start", marks=needs_ogbench),
    ],
)
def test_a_task_that_cannot_be_made_is_a_sentence(env_id: str, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        external.make(env_id)


def test_bad_options_are_sentences() -> None:
    with pytest.raises(UsageError, match="does not take these options: .*walls"):
        external.make("AntMaze_UMaze-v5", walls=3)
    with pytest.raises(UsageError, match='unknown suite "gym": choose robotics or ogbench'):
        external.ids("gym")


# What every task has in common


@pytest.mark.parametrize("env_id", EACH)
def test_sb3_accepts_it(env_id: str) -> None:
    env = external.make(env_id)
    check_env(env)
    spec = spec_of(env)
    assert env.spec.max_episode_steps == spec.max_steps == gymnasium.spec(env_id).max_episode_steps
    assert spec.task_fields == ("goal",) and spec.fields[-1].name == "goal"
    env.close()


@pytest.mark.parametrize("env_id", EACH)
def test_a_seed_fixes_everything_and_nobody_else_is_disturbed(env_id: str) -> None:
    """OGBench draws task, start, goal and warm-up from generators that `reset(seed=)` misses."""

    def episode(seed: int | None) -> np.ndarray:
        rows = [env.reset(seed=seed)[0]]
        return np.stack(rows + [env.step(action)[0] for action in actions])

    theirs = compat.global_random.get_state()
    env = external.make(env_id)
    actions = np.random.default_rng(0).uniform(-1, 1, (5, *env.action_space.shape))
    actions = actions.astype(np.float32)
    one, after = episode(3), episode(None)
    again = external.make(env_id)
    again.reset(seed=8)
    env, first = again, env
    np.testing.assert_array_equal(episode(3), one)
    np.testing.assert_array_equal(episode(None), after)
    assert not np.array_equal(one, after) and not np.array_equal(one, episode(4))
    now = compat.global_random.get_state()
    np.testing.assert_array_equal(now[1], theirs[1])
    assert now[2:] == theirs[2:]
    first.close()
    again.close()


@needs_ogbench
def test_the_place_after_a_teleport_is_seeded_too() -> None:
    """It is drawn in a step, from NumPy's global generator."""
    env = external.make("antmaze-teleport-v0")

    def places(seed: int) -> list[float]:
        env.reset(seed=seed)
        found = []
        for _ in range(8):
            inner(env).set_xy(np.array(inner(env)._teleport_info["teleport_in_xys"][0]))
            still(env)
            found.append(float(inner(env).get_xy()[0].round()))
        return found

    assert places(1) == places(1) and len(set(places(1))) > 1


def test_the_time_limit_can_be_set() -> None:
    env = external.make("PointMaze_UMaze-v3", max_episode_steps=2)
    env.reset(seed=0)
    assert [still(env)[3] for _ in range(2)] == [False, True]


@pytest.mark.slow
@pytest.mark.parametrize("extra", ["robotics", pytest.param("ogbench", marks=needs_ogbench)])
def test_every_task_that_is_offered_can_be_made(extra: str) -> None:
    """Every one but the numbered tasks of OGBench, which differ in one digit."""
    names = [name for name in external.ids(extra) if "-task" not in name]
    assert len(names) > 40
    for env_id in names:
        env = external.make(env_id)
        start, _ = env.reset(seed=0)
        obs, reward, _, _, info = still(env)
        assert env.observation_space.contains(obs) and reward in (0, 1), env_id
        assert info["is_success"] == bool(reward), env_id
        np.testing.assert_array_equal(env.reset(seed=0)[0], start, err_msg=env_id)
        env.close()
