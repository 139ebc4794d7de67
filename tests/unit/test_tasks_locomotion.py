"""Waypoints, mazes and changed bodies: rules on constructed states, and in the engine."""

from __future__ import annotations

import dataclasses

import mujoco
import numpy as np
import pytest

from etude.envs.bodies.locomotion import Ant
from etude.envs.body import View
from etude.envs.changes import Change, Geom
from etude.envs.engine import BatchedEnv
from etude.envs.maps import ANT_MAZE_LARGE, ANT_MAZE_U, MAZE_LARGE, MAZE_U
from etude.envs.registry import build, make_vec, spec
from etude.envs.tasks.ant import SQUARE, AntMaze, AntMultiGoal, AntWaypoints
from etude.envs.tasks.changed import Changed
from etude.skills.library_data import differences

RNGS = [np.random.default_rng(0)]


def at(places: np.ndarray, nq: int) -> View:
    """A view of bodies whose first coordinates are `places` (n, D)."""
    qpos = np.zeros((len(places), nq))
    qpos[:, : places.shape[1]] = places
    return View(qpos, np.zeros((len(places), nq)), {})


def put(env: BatchedEnv, *place: float) -> None:
    """Move every body, and leave the rest; the integrator's row is time, qpos, qvel, …"""
    state = env.get_state()
    state[:, 1 : 1 + len(place)] = place
    env.set_state(state)


def still(env: BatchedEnv) -> np.ndarray:
    return np.zeros(env.action_space.shape, np.float32)


# ---- what is changed about a model


def test_a_change_declares_each_of_its_kinds() -> None:
    assert Change().declared == ()
    change = Change(
        (Geom("box", (1, 0, 0), (1, 1, 1)),), "walls", 0.5, (("hip_1", 0.6), ("ankle_1", 0.6))
    )
    assert change.declared == ("geoms: 1 walls", "gravity x 0.5", "gear x 0.6 of hip_1, ankle_1")
    four = Change(torque=tuple((f"hip_{i}", 0.2) for i in range(4)))
    assert four.declared == ("gear x 0.2 of hip_0, hip_1, hip_2, hip_3",)
    every = Change(torque=tuple((f"hip_{i}", 0.2) for i in range(5)))
    assert every.declared == ("gear x 0.2 of 5 joints",)


def test_a_change_is_made_and_its_geoms_are_in_the_hash() -> None:
    box = Geom("box", (1, 2, 3), (0.1, 0.2, 0.3))
    ghost = Geom("sphere", (0, 0, 1), (0.5, 0, 0), solid=False)
    body = Ant(Change((box, ghost), "things", 2.0, (("ankle_3", 0.5),), above=7.0))
    model, plain = body.model(), Ant().model()
    assert model.ngeom == plain.ngeom + 2
    first = next(i for i in range(model.ngeom) if model.geom_type[i] == mujoco.mjtGeom.mjGEOM_BOX)
    np.testing.assert_array_equal(model.geom_pos[first], [1, 2, 3])
    np.testing.assert_array_equal(model.geom_size[first], [0.1, 0.2, 0.3])
    assert (model.geom_contype[first], model.geom_conaffinity[first]) == (0, 1)
    round_ones = np.flatnonzero(model.geom_type == mujoco.mjtGeom.mjGEOM_SPHERE)
    assert sorted(model.geom_conaffinity[round_ones]) == [0, 0]
    assert model.opt.gravity.tolist() == [0, 0, -19.62]
    assert sorted(model.actuator_gear[:, 0]) == [75] + [150] * 7
    assert model.cam("above").pos.tolist() == [0, 0, 7]
    assert body.camera == "above"
    assert body.spec.constants["gravity"] == 19.62
    assert body.spec.xml_sha256 != Ant().spec.xml_sha256
    moved = Ant(Change((dataclasses.replace(box, place=(1, 2, 4)), ghost), "things"))
    assert moved.spec.xml_sha256 not in (body.spec.xml_sha256, Ant().spec.xml_sha256)
    assert Ant(Change(gravity=2.0)).spec.xml_sha256 == Ant().spec.xml_sha256


def test_a_joint_without_an_actuator_is_noticed() -> None:
    with pytest.raises(AssertionError, match="no actuator drives hip_9"):
        Ant(Change(torque=(("hip_9", 0.5),)))


# ---- the corners of a square


def test_waypoints_are_those_of_the_paper() -> None:
    task = AntWaypoints()
    assert SQUARE == ((2, 2), (2, -2), (-2, -2), (-2, 2), (2, 2))
    assert (task.radius, task.spec.max_steps, task.spec.changes) == (0.5, 1000, ("goal region",))
    assert task.spec.constants["gear"] == [150.0] * 8
    assert task.spec.constants["goal_reach"] == np.abs(SQUARE).max()
    weak = AntWaypoints(30)
    assert weak.spec.id == "ant-waypoints-gear-30"
    assert weak.spec.constants["gear"] == weak.body.model().actuator_gear[:, 0].tolist()
    np.testing.assert_allclose(weak.spec.constants["gear"], 30)
    assert weak.spec.changes == ("gear x 0.2 of 8 joints", "goal region")


def test_waypoints_pay_once_each_in_order_and_the_fifth_ends() -> None:
    task, state = AntWaypoints(), np.zeros((1, 1))
    wrong_first = [(2.0, -2.0), (0.0, 0.0), (-2.0, 2.0)]
    path = [*wrong_first, *(corner for corner in SQUARE for _ in range(3))]
    rewards, ends = [], []
    for place in path:
        reward, ended, success = task.step(state, at(np.array([place]), 15), RNGS)
        rewards.append(reward[0])
        ends.append(bool(ended[0]))
        assert ended[0] == success[0]
    assert rewards == [0, 0, 0] + [1, 0, 0] * 5
    assert ends == [False] * 15 + [True] * 3
    assert state[0, 0] == 5


@pytest.mark.parametrize(
    ("dx", "dy", "paid"), [(0.49, 0, 1), (0, -0.49, 1), (0.36, 0.36, 0), (0, 0.51, 0)]
)
def test_waypoints_are_discs(dx: float, dy: float, paid: float) -> None:
    task, state = AntWaypoints(), np.array([[1.0]])
    assert task.step(state, at(np.array([[2 + dx, -2 + dy]]), 15), RNGS)[0][0] == paid
    assert state[0, 0] == 1 + paid


def test_waypoints_show_the_next_corner_and_what_is_left() -> None:
    task, states = AntWaypoints(), np.arange(6.0)[:, None]
    fields = task.observe(states, at(np.zeros((6, 2)), 15))
    np.testing.assert_array_equal(fields[:, :2], [*SQUARE, SQUARE[-1]])
    np.testing.assert_allclose(fields[:, 2], [1, 0.8, 0.6, 0.4, 0.2, 0])
    shown = task.marks(states[1])
    assert len(shown) == 5
    assert shown[-1].place[:2] == (2, -2)


def test_waypoints_in_the_engine() -> None:
    env = make_vec("ant-waypoints", 2, seed=0, threads=1)
    env.reset(seed=0)
    where = env.env_spec.slices()["goal"]
    for n, corner in enumerate(SQUARE):
        put(env, *corner)
        obs, reward, terminated, truncated, infos = env.step(still(env))
        assert reward.tolist() == [1, 1]
        assert terminated.tolist() == infos["is_success"].tolist() == [n == 4] * 2
        assert not truncated.any()
    np.testing.assert_array_equal(obs[:, where], [SQUARE[0]] * 2)
    assert (env.get_state()[:, -1] == 0).all()
    assert (np.abs(env.descriptor()) < 0.2).all()


# ---- one leg with less torque


def test_goals_with_a_weak_leg_are_the_same_goals() -> None:
    weak, whole = AntMultiGoal(60), AntMultiGoal()
    assert weak.spec.id == "ant-multi-goal-leg-60"
    assert weak.spec.changes == ("gear x 0.6 of hip_1, ankle_1", "goal region")
    gears = dict(
        zip(
            (a.target for a in mujoco.MjSpec.from_file(str(weak.body._path)).actuators),
            weak.spec.constants["gear"],
            strict=True,
        )
    )
    assert {joint: gear for joint, gear in gears.items() if gear != 150} == {
        "hip_1": 90,
        "ankle_1": 90,
    }
    one, other = (BatchedEnv(task.body, task, 2, threads=1) for task in (weak, whole))
    np.testing.assert_array_equal(one.reset(seed=3)[0], other.reset(seed=3)[0])
    push = np.ones((2, 8), np.float32)
    assert not np.array_equal(one.step(push)[0], other.step(push)[0])


# ---- mazes of four metres


def test_ant_mazes_are_the_point_mazes_four_times_as_large() -> None:
    for small, large in ((MAZE_U, ANT_MAZE_U), (MAZE_LARGE, ANT_MAZE_LARGE)):
        assert large.rows == small.rows
        assert large.sha256 != small.sha256
        np.testing.assert_allclose(large.walls(), 4 * np.array(small.walls()))
        for name in ("start", "goal", "size"):
            np.testing.assert_allclose(getattr(large, name), 4 * np.array(getattr(small, name)))
        for cell in large.free_cells():
            assert large.cell_at(*large.cell_centre(*cell)) == cell
    sizes = {name: spec(name).max_steps for name in ("ant-maze-u", "ant-maze-large")}
    assert sizes == {"ant-maze-u": 700, "ant-maze-large": 1000}


@pytest.mark.parametrize("name", ["ant-maze-u", "ant-maze-large"])
def test_ant_mazes_have_the_maps_walls(name: str) -> None:
    task = AntMaze(name)
    model = task.body.model()
    boxes = np.flatnonzero(model.geom_type == mujoco.mjtGeom.mjGEOM_BOX)
    maze = ANT_MAZE_U if name.endswith("u") else ANT_MAZE_LARGE
    low, high = np.array(maze.walls())[:, :2], np.array(maze.walls())[:, 2:]
    np.testing.assert_allclose(model.geom_pos[boxes][:, :2], (low + high) / 2)
    np.testing.assert_allclose(model.geom_size[boxes][:, :2], (high - low) / 2)
    assert (model.geom_pos[boxes][:, 2] == 1).all()
    assert (model.geom_size[boxes][:, 2] == 1).all()
    assert task.spec.changes == (f"geoms: {len(boxes)} walls", "goal region")
    x, y = maze.goal
    assert max(abs(x), abs(y)) <= task.spec.constants["goal_reach"] < max(maze.size) / 2
    field = np.tan(
        np.radians(model.vis.global_.fovy / 2)
    )  # half of what the camera sees, per metre
    seen = field * model.cam("above").pos[2]
    assert max(maze.size) / 2 < seen < 1.2 * max(maze.size) / 2
    assert task.spec.constants["gear"] == [150.0] * 8


def test_ant_maze_starts_at_its_start_and_ends_at_its_goal() -> None:
    env = make_vec("ant-maze-u", 16, seed=0, threads=1)
    obs, _ = env.reset(seed=0)
    offsets = env.descriptor() - ANT_MAZE_U.start
    assert np.ptp(offsets) > 0.1
    assert (np.abs(offsets) <= 0.1).all()
    np.testing.assert_array_equal(obs[:, -2:], [ANT_MAZE_U.goal] * 16)
    x, y = ANT_MAZE_U.goal
    for place, paid in (((x + 0.6, y), 0), ((x, y - 0.6), 0), ((x + 0.4, y), 1)):
        put(env, *place)
        obs, reward, terminated, _, infos = env.step(still(env))
        assert (reward == paid).all()
        assert (terminated == bool(paid)).all()
        assert (infos["is_success"] == bool(paid)).all()
    assert (np.abs(env.descriptor() - ANT_MAZE_U.start) <= 0.1).all()


@pytest.mark.parametrize("up", [0.0, 4.0])
def test_ants_do_not_pass_walls(up: float) -> None:
    """Thrown at the wall between start and goal, or at its edge, an ant stays on its side of it."""
    env = make_vec("ant-maze-u", 4, seed=0, threads=1)
    env.reset(seed=0)
    state = env.get_state()
    state[:, 17:19] = -6.0, up  # velocity along y and z, m/s
    env.set_state(state)
    lowest = min(float(env.step(still(env))[4]["descriptor"][:, 1].min()) for _ in range(40))
    assert 2.0 < lowest < 3.0  # the wall's face is at y = 2 m, the torso's radius is 0.25 m


# ---- changed bodies


def test_gravity_and_torque_are_what_the_name_says() -> None:
    for body, earth in (("ant", 9.81), ("half-cheetah", 9.81)):
        for percent in (25, 50, 200, 500):
            task = Changed(body, "gravity", percent)
            assert task.body.model().opt.gravity[2] == pytest.approx(-earth * percent / 100)
            gravity, own = task.spec.changes
            assert gravity == f"gravity x {percent / 100:g}"
            assert own.startswith("reward")
    weak = Changed("half-cheetah", "actuator", 30).spec.constants["gear"]
    np.testing.assert_allclose(weak, [36, 27, 18, 120, 60, 30])
    weak = Changed("ant", "actuator", 0).spec.constants["gear"]
    assert sorted(weak) == [0, 0] + [150.0] * 6


def test_a_dead_leg_does_nothing() -> None:
    env = make_vec("half-cheetah-actuator-0", 2, seed=0, threads=1)
    start = env.reset(seed=[1, 1])[0]
    np.testing.assert_array_equal(*start)
    action = still(env)
    action[1, :3] = 1  # the hind leg
    for _ in range(5):
        obs = env.step(action)[0]
    np.testing.assert_array_equal(*obs)
    action[1, 3] = 1
    obs = env.step(action)[0]
    assert not np.array_equal(*obs)


@pytest.mark.parametrize("name", ["ant-gravity-50", "half-cheetah-actuator-60"])
def test_the_reward_is_the_bodys_own(name: str) -> None:
    env, rng = make_vec(name, 3, seed=0, threads=1), np.random.default_rng(0)
    body, _ = build(env.env_spec.body)
    obs, _ = env.reset(seed=0)
    outputs = env.get_state()
    for _ in range(8):
        before = env._view.rows(slice(None))
        action = rng.uniform(-1, 1, env.action_space.shape).astype(np.float32)
        obs, reward, terminated, _, infos = env.step(action)
        np.testing.assert_array_equal(reward, body.reward(before, env._view, action))
        assert not terminated.any() and "is_success" not in infos
        moved = obs[:, 0] - before.qpos[:, 0]
        survive, cost = (1, 0.5) if name.startswith("ant") else (0, 0.1)
        plain = moved / 0.05 + survive - cost * np.square(action).sum(axis=1)
        np.testing.assert_allclose(reward, plain, atol=0.1)  # the ant's velocity is a stage behind
    assert outputs.shape == env.get_state().shape


def test_the_weak_ant_is_the_body_of_its_task_and_of_no_other() -> None:
    weak = spec("ant-gear-30")
    assert (weak.id, weak.body, weak.changes) == ("ant-gear-30", "ant", ("gear x 0.2 of 8 joints",))
    assert weak.constants["gear"] == spec("ant-waypoints-gear-30").constants["gear"]
    assert weak.constants["gear"] == pytest.approx([30.0] * 8)
    skills = weak.to_json()
    assert differences(skills, spec("ant-waypoints-gear-30").to_json()) == []
    (line,) = differences(skills, spec("ant-waypoints").to_json())
    assert line.startswith("\n  gear: skills have [30.0")
