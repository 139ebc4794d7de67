"""Arrival, constants and skills in the tasks of other suites.

What a suite has as a bare number is measured here, or read where it stands.
"""

from __future__ import annotations

import inspect
import os
import re
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from external_tasks import inner, needs_ogbench, put_ant, spec_of, still
from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.env_util import make_vec_env

import etude
from etude.envs import external
from etude.envs.bodies.locomotion import Ant
from etude.envs.body import View
from etude.errors import LibraryError

# Arrival


def test_an_ant_that_arrives_is_paid_once_and_done() -> None:
    env = external.make("AntMaze_UMaze-v5")
    obs, _ = env.reset(seed=0)
    constants, at = spec_of(env).constants, spec_of(env).slices()
    goal, radius = inner(env).goal, constants["goal_radius"]
    np.testing.assert_allclose(obs[at["goal"]], goal, rtol=1e-6)
    put_ant(env, goal + [radius + 0.1, 0])
    assert still(env)[1:4] == (0, False, False)
    put_ant(env, goal + [radius - 0.1, 0])
    obs, reward, terminated, truncated, info = still(env)
    assert (reward, terminated, truncated, info["is_success"]) == (1, True, False, True)
    pays = [inner(env).compute_reward(goal + [radius + d, 0], goal, {}) for d in (1e-6, -1e-6)]
    assert pays == [0, 1], "goal_radius is not the suite's"


@needs_ogbench
@pytest.mark.parametrize("env_id", ["pointmaze-medium-v0", "antmaze-medium-v0"])
def test_an_arrival_in_ogbench(env_id: str) -> None:
    env = external.make(env_id)
    env.reset(seed=0)
    for further, reward in ((0.1, 0.0), (-0.1, 1.0)):
        radius = spec_of(env).constants["goal_radius"]
        inner(env).set_xy(np.array(inner(env).cur_goal_xy) + [radius + further, 0])
        obs, paid, terminated, _, info = still(env)
        assert (paid, terminated, info["is_success"]) == (reward, bool(reward), bool(reward))
    np.testing.assert_allclose(obs[-2:], inner(env).cur_goal_xy, rtol=1e-6)


@needs_ogbench
def test_a_single_task_of_ogbench_is_paid_0_or_1() -> None:
    """The suite itself pays -1 and 0 there, and looks at the state before the action."""
    env = external.make("antmaze-medium-singletask-task2-v0")
    env.reset(seed=0)
    assert still(env)[1:3] == (0, False) and inner(env).cur_task_id == 2
    inner(env).set_xy(np.array(inner(env).cur_goal_xy))
    assert still(env)[1:3] == (1, True)


def test_a_gripper_that_arrives_is_done() -> None:
    env = external.make("FetchReach-v4")
    obs, _ = env.reset(seed=0)
    at = spec_of(env).slices()
    inner(env).goal = obs[at["achieved_goal"]] + [
        spec_of(env).constants["goal_radius"] - 0.02,
        0,
        0,
    ]
    obs, reward, terminated, _, _ = still(env)
    assert (reward, terminated) == (1, True)
    np.testing.assert_allclose(obs[at["goal"]], inner(env).goal, rtol=1e-6)


@needs_ogbench
def test_a_cube_that_arrives_is_done() -> None:
    """Its goal is seen after warm-up actions, which a seed must reach too."""
    env = external.make("cube-single-v0")
    one, again = (env.reset(seed=0, options={"task_id": 1})[0] for _ in range(2))
    np.testing.assert_array_equal(one, again)
    arm = inner(env)
    assert spec_of(env).constants["goal_radius"] == 0.04
    for away, reward in ((0.05, 0), (0.03, 1)):
        target = arm._data.mocap_pos[arm._cube_target_mocap_ids[0]]
        arm._data.joint("object_joint_0").qpos[:3] = target + [away, 0, 0]
        assert still(env)[1:3] == (reward, bool(reward))


def test_the_kitchen_is_done_when_all_of_its_tasks_are() -> None:
    env = external.make("FrankaKitchen-v1", tasks_to_complete=["kettle", "microwave"])
    env.reset(seed=0)
    assert spec_of(env).constants["tasks"] == ["kettle", "microwave"]
    kitchen = inner(env)
    kitchen.goal["kettle"] = kitchen.data.qpos[23:30].copy()
    assert still(env)[1:3] == (0, False)
    kitchen.goal["microwave"] = kitchen.data.qpos[22:23].copy()
    assert still(env)[1:3] == (1, True)


# Constants


def test_constants_of_a_maze() -> None:
    env = external.make("AntMaze_UMaze-v5")
    constants = spec_of(env).constants
    assert constants["map"] == ["#####", "#...#", "###.#", "#...#", "#####"]
    wanted = {"map_cell": 4, "wall_height": 2, "place_noise": 1, "goal_reach": 5}
    wanted |= {"frame_skip": 5, "timestep": 0.01, "gear": [150] * 8, "gravity": 9.81}
    assert {name: constants[name] for name in wanted} == wanted
    maze = inner(env).maze
    for seed in range(5):
        env.reset(seed=seed)
        for place, cells in (
            (inner(env).goal, maze.unique_goal_locations),
            (inner(env).ant_env.data.qpos[:2], maze.unique_reset_locations),
        ):
            off = min(np.abs(place - cell).max() for cell in cells)
            assert 0 < off <= constants["place_noise"]
    np.testing.assert_array_equal(inner(env).ant_env.data.qpos[7:], Ant().model().qpos0[7:])


@needs_ogbench
def test_constants_of_ogbench() -> None:
    wanted = {"map_cell": 4, "wall_height": 2, "place_noise": 1, "goal_radius": 0.5, "tasks": 5}
    wanted |= {"frame_skip": 5, "timestep": 0.02, "gear": [30] * 8, "goal_noise": True}
    spec = spec_of(external.make("antmaze-medium-v0"))
    assert {name: spec.constants[name] for name in wanted} == wanted
    assert spec.dt == pytest.approx(0.1) and spec.constants["map"][1] == "#..##..#"


def test_bare_numbers_are_still_those_of_the_suite() -> None:
    """Success of Adroit's tasks stands in the code of a step, and in no attribute."""
    from etude.envs.suites.robotics import ADROIT

    for name, numbers in ADROIT.items():
        kind = type(inner(external.make(f"{name}Sparse-v1")))
        line = next(t for t in inspect.getsource(kind.step).splitlines() if "goal_achieved =" in t)
        assert {*map(float, re.findall(r"[\d.]+", line))} == {*numbers.values()}, line


COLUMNS = ["width", "goal", "actions", "dt", "limit", "radius", "gear", "cell", "wall", "noise"]
PAGE = (Path(__file__).resolve().parents[2] / "docs" / "external.md").read_text()
TABLE = [row.split("|")[1:-1] for row in PAGE.splitlines() if row.count("|") == len(COLUMNS) + 2]
ARMS = ("cube", "scene", "puzzle", "Franka")  # a second each to make


def row_of(cells: list[str]) -> Any:
    env_id, *told = (cell.strip(" `") for cell in cells)
    slow = [pytest.mark.slow] if env_id.startswith(ARMS) else []
    return pytest.param(env_id, told, marks=[*slow, *([needs_ogbench] if env_id.islower() else [])])


@pytest.mark.parametrize(("env_id", "told"), [row_of(cells) for cells in TABLE[2:]])
def test_the_page_states_the_constants(env_id: str, told: list[str]) -> None:
    spec = spec_of(external.make(env_id))
    constants, widths = spec.constants, {field.name: field.dim for field in spec.fields}
    gears = {*constants["gear"]} if "map" in constants else set()
    found = {
        "width": spec.obs_dim,
        "goal": widths.get("goal"),
        "actions": spec.action_dim,
        "dt": round(spec.dt, 9),
        "limit": spec.max_steps,
        "radius": constants.get("goal_radius"),
        "gear": gears.pop() if len(gears) == 1 else None,
        "cell": constants.get("map_cell"),
        "wall": constants.get("wall_height"),
        "noise": constants.get("place_noise"),
    }
    assert [*found] == COLUMNS
    assert [None if text == "-" else float(text) for text in told] == [*found.values()]


# Skills


def test_our_ants_skills_act_in_a_maze() -> None:
    env = etude.SkillEnv(external.make("AntMaze_UMaze-v5"), "ant-metra", k=25)
    obs, info = env.reset(seed=0)
    ant = inner(env).ant_env
    for _ in range(3):
        seen = View(ant.data.qpos[None], ant.data.qvel[None], {})
        np.testing.assert_allclose(
            env.read_body(obs, info, env.unwrapped), Ant().observe(seen)[0], rtol=1e-6, atol=1e-6
        )
        before = ant.data.qpos.copy()
        obs, reward, terminated, truncated, info = env.step(env.action_space.sample())
        assert info["skill"]["duration"] == 25 and reward == 0
        assert np.abs(ant.data.qpos - before).max() > 0.05
    assert spec_of(env).changes == ("geoms: 18 walls", "reset_noise_scale 0.1 -> 0", "goal region")
    check_env(env)


def test_the_ant_in_a_maze_moves_as_ours_does() -> None:
    """Away from walls, equal states and actions lead to equal states."""
    env, ours = external.make("AntMaze_Open-v5"), gymnasium.make("Ant-v5")
    env.reset(seed=0)
    ours.reset(seed=0)
    put_ant(env, np.zeros(2))
    ant = inner(env).ant_env
    ours.unwrapped.set_state(ant.data.qpos, ant.data.qvel)
    for action in np.random.default_rng(0).uniform(-1, 1, (20, 8)):
        env.step(action.astype(np.float32))
        ours.step(action.astype(np.float32))
    np.testing.assert_allclose(ant.data.qpos, ours.unwrapped.data.qpos, atol=1e-6)


@needs_ogbench
def test_ogbenchs_ant_is_refused_with_the_differences() -> None:
    with pytest.raises(LibraryError) as caught:
        etude.SkillEnv(external.make("antmaze-large-v0"), "ant-metra")
    for line in (
        "body: skills have ant, the environment has ogbench/ant",
        "dt: skills have 0.05, the environment has 0.1",
        "timestep: skills have 0.01, the environment has 0.02",
        "gear: skills have [150.0, 150.0, ",
    ):
        assert line in str(caught.value)


def test_another_robot_in_the_maze_is_refused(tmp_path: Path) -> None:
    """The walls are a declared change of the XML, so the robot in it is looked at by itself."""
    source = Path(gymnasium.__file__).parent / "envs/mujoco/assets/ant.xml"
    other = tmp_path / "ant.xml"
    other.write_text(source.read_text().replace('range="-30 30"', 'range="-20 20"'))
    env = external.make("AntMaze_UMaze-v5", xml_file=str(other))
    with pytest.raises(LibraryError, match="body: skills have ant, .* has robotics/AntMaze"):
        etude.SkillEnv(env, "ant-metra")


def test_sb3_chooses_skills_in_a_maze() -> None:
    venv = make_vec_env(
        external.make,
        n_envs=2,
        seed=0,
        env_kwargs={"env_id": "AntMaze_UMaze-v5", "include_cfrc_ext_in_observation": False},
        wrapper_class=etude.SkillEnv,
        wrapper_kwargs={"library": "ant-metra", "k": 5},
    )
    assert venv.observation_space.shape == (31,)
    PPO("MlpPolicy", venv, n_steps=8, batch_size=8, n_epochs=1, device="cpu").learn(16)
    venv.close()


@pytest.mark.skipif(os.environ.get("MUJOCO_GL") not in ("egl", "osmesa"), reason="no drawing here")
@pytest.mark.parametrize(
    "env_id", ["AntMaze_UMaze-v5", pytest.param("antmaze-medium-v0", marks=needs_ogbench)]
)
def test_pictures(env_id: str) -> None:
    env = external.make(env_id, render_mode="rgb_array")
    env.reset(seed=0)
    picture = env.render()
    assert picture.ndim == 3 and picture.dtype == np.uint8 and picture.std() > 5
    env.close()
    silent = external.make(env_id)
    silent.reset(seed=0)
    assert silent.unwrapped.render() is None
