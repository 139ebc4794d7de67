"""Downstream tasks: every rule on constructed states, and once through the engine."""

from __future__ import annotations

import numpy as np
import pytest

from etude.envs.body import Task, View
from etude.envs.engine import BatchedEnv
from etude.envs.tasks.ant import AntMultiGoal
from etude.envs.tasks.half_cheetah import HalfCheetahGoal
from etude.envs.tasks.points import PointMazeGoal, PointOpenGoal

TASKS = {
    "point-open-goal": (PointOpenGoal, 200),
    "point-maze-u-goal": (lambda: PointMazeGoal("point-maze-u"), 300),
    "point-maze-large-goal": (lambda: PointMazeGoal("point-maze-large"), 600),
    "half-cheetah-goal": (HalfCheetahGoal, 200),
    "ant-multi-goal": (AntMultiGoal, 200),
}


def generators(n: int) -> list[np.random.Generator]:
    return [np.random.default_rng(i) for i in range(n)]


def view_at(task: Task, places: np.ndarray) -> View:
    """A view whose descriptor is `places` (n, D)."""
    model = task.body.model()
    qpos = np.zeros((len(places), model.nq))
    qpos[:, : places.shape[1]] = places
    return View(qpos, np.zeros((len(places), model.nv)), {})


@pytest.mark.parametrize("name", TASKS)
def test_spec_adds_task_fields_behind_the_bodys(name: str) -> None:
    make, limit = TASKS[name]
    task = make()
    spec, body = task.spec, task.body.spec
    assert (spec.id, spec.body, spec.max_steps) == (name, body.id, limit)
    assert spec.fields[: len(body.fields)] == body.fields
    assert spec.body_dim == body.obs_dim
    assert spec.constants.items() >= body.constants.items()
    state = task.reset(np.random.default_rng(0), *task.body.reset(np.random.default_rng(0)))[2]
    assert state.shape == (task.state_dim,)


@pytest.mark.parametrize("name", TASKS)
def test_time_limit_truncates_and_never_terminates(name: str) -> None:
    make, limit = TASKS[name]
    task = make()
    env = BatchedEnv(task.body, task, 2, seed=0, threads=1)
    obs, _ = env.reset(seed=5)
    assert obs.shape == (2, task.spec.obs_dim)
    for step in range(1, limit + 1):
        _, _, terminated, truncated, _ = env.step(np.zeros((2, task.spec.action_dim), np.float32))
        assert not terminated.any()
        assert truncated.all() == truncated.any() == (step == limit)


# ---- points


@pytest.mark.parametrize(
    ("dx", "dy", "arrived"), [(0, 0, 1), (0.49, 0, 1), (0.3, -0.41, 0), (0, 0.51, 0)]
)
def test_open_goal_is_a_disc(dx: float, dy: float, arrived: bool) -> None:
    task, goal = PointOpenGoal(), np.array([[-3.0, 2.0]])
    view = view_at(task, goal + [dx, dy])
    for outcome in task.step(goal, view, generators(1)):
        assert outcome[0] == arrived
    np.testing.assert_array_equal(task.observe(goal, view), goal)


def test_open_goals_are_uniform_in_a_square_that_the_disc_can_reach() -> None:
    task, rng = PointOpenGoal(), np.random.default_rng(0)
    start = task.body.reset(rng)
    goals = np.array([task.reset(rng, *start)[2] for _ in range(2000)])
    assert 4.4 < np.abs(goals).max() <= 4.5
    np.testing.assert_allclose(goals.std(0), 4.5 / 3**0.5, rtol=0.05)


@pytest.mark.parametrize(
    ("dx", "dy", "arrived"),
    [(0, 0, 1), (0.249, -0.249, 1), (0.251, 0, 0), (0, -0.251, 0), (0.2, 0.3, 0)],
)
def test_maze_goal_is_a_box(dx: float, dy: float, arrived: bool) -> None:
    task = PointMazeGoal("point-maze-large")
    view = view_at(task, np.array([task.body.maze.goal]) + [dx, dy])
    for outcome in task.step(np.zeros((1, 0)), view, generators(1)):
        assert outcome[0] == arrived
    np.testing.assert_array_equal(task.observe(np.zeros((1, 0)), view), [task.body.maze.goal])


# ---- half-cheetah


@pytest.mark.parametrize(("offset", "arrived"), [(2.99, 1), (-2.99, 1), (3.01, 0), (-3.01, 0)])
def test_half_cheetah_goal_has_a_radius(offset: float, arrived: bool) -> None:
    task = HalfCheetahGoal()
    state = np.array([[40.0]])
    for outcome in task.step(state, view_at(task, np.array([[40 + offset]])), generators(1)):
        assert outcome[0] == arrived


def test_half_cheetah_goals_are_uniform_and_new_in_every_episode() -> None:
    task, rng = HalfCheetahGoal(), np.random.default_rng(0)
    start = task.body.reset(rng)
    goals = np.array([task.reset(rng, *start)[2][0] for _ in range(2000)])
    assert np.abs(goals).max() <= 100
    assert np.std(goals) == pytest.approx(100 / 3**0.5, rel=0.05)
    assert len(np.unique(goals)) == 2000


def test_half_cheetah_episode_ends_on_arrival_and_the_next_has_another_goal() -> None:
    task = HalfCheetahGoal()
    env = BatchedEnv(task.body, task, 2, seed=0, threads=1)
    env.reset(seed=0)
    state = env.get_state()
    state[:, -1] = 0.5, 50.0  # the goal is the last entry; the body stands at 0
    env.set_state(state)
    obs, reward, terminated, truncated, infos = env.step(np.zeros((2, 6), np.float32))
    assert reward.tolist() == [1, 0]
    assert terminated.tolist() == infos["is_success"].tolist() == [True, False]
    assert not truncated.any()
    assert infos["final_obs_array"][:, -1].tolist() == [0.5, 50.0]
    assert obs[0, -1] != 0.5
    assert obs[1, -1] == 50


# ---- ant


def far(n: int = 1) -> np.ndarray:
    return np.full((n, 2), 100.0)


def ant_state(clock: float, reached: float, goal: tuple[float, float] = (0, 0)) -> np.ndarray:
    return np.array([[*goal, clock, reached]], dtype=float)


def test_ant_arrival_pays_once_jumps_the_clock_and_draws_a_goal_near_the_body() -> None:
    task = AntMultiGoal()
    state, place = ant_state(12, 0, (20, 20)), np.array([[20.0, 22.9]])
    reward, terminated, success = task.step(state, view_at(task, place), generators(1))
    assert (reward[0], terminated[0], success[0]) == (2.5, False, False)
    assert state[0, 2:].tolist() == [50, 1]
    assert state[0, :2].tolist() != [20, 20]
    assert (np.abs(state[0, :2] - place[0]) <= 7.5).all()
    state[0, :2] = 100, 100
    assert task.step(state, view_at(task, place), generators(1))[0][0] == 0
    assert state[0, 2:].tolist() == [51, 1]


def test_ant_goal_outside_the_radius_stays_and_the_clock_ticks() -> None:
    task = AntMultiGoal()
    state = ant_state(12, 2, (0, 0))
    reward = task.step(state, view_at(task, np.array([[0, 3.01]])), generators(1))[0]
    assert reward[0] == 0
    assert state[0].tolist() == [0, 0, 13, 2]


def test_ant_goal_is_given_up_after_50_steps_and_the_next_is_near_the_body() -> None:
    task = AntMultiGoal()
    state, rngs = ant_state(0, 0), generators(1)
    for step in range(1, 50):
        task.step(state, view_at(task, far()), rngs)
        assert state[0].tolist() == [0, 0, step, 0]
    reward = task.step(state, view_at(task, far()), rngs)[0]
    assert reward[0] == 0
    assert state[0, 2:].tolist() == [50, 0]
    assert (np.abs(state[0, :2] - 100) <= 7.5).all()


def test_ant_goal_may_be_reached_with_its_last_step() -> None:
    task = AntMultiGoal()
    state = ant_state(49, 0)
    assert task.step(state, view_at(task, np.zeros((1, 2))), generators(1))[0][0] == 2.5
    assert state[0, 2:].tolist() == [50, 1]


def test_ant_success_is_all_four_and_nothing_is_paid_after_the_last() -> None:
    task = AntMultiGoal()
    state, rngs, total = ant_state(0, 0), generators(1), 0.0
    for step in range(1, 201):
        on_goal = state[:, :2].copy()
        reward, terminated, success = task.step(state, view_at(task, on_goal), rngs)
        total += reward[0]
        assert not terminated[0]
        assert success[0] == (step >= 4)
    assert total == 10
    assert state[0, 2:].tolist() == [200, 4]


def test_ant_three_of_four_is_no_success() -> None:
    task = AntMultiGoal()
    state, rngs = ant_state(0, 0), generators(1)
    for goal in range(4):
        for _ in range(50):
            place = far() if goal == 1 else state[:, :2].copy()
            success = task.step(state, view_at(task, place), rngs)[2]
            if state[0, 2] == 50 * (goal + 1):
                break
    assert state[0, 2:].tolist() == [200, 3]
    assert not success[0]


def test_ant_observes_goal_and_share_of_time_left() -> None:
    task = AntMultiGoal()
    states = np.concatenate([ant_state(clock, 0, (1, 2)) for clock in (0, 10, 49, 50, 199, 200)])
    fields = task.observe(states, view_at(task, far(6)))
    assert (fields[:, :2] == [1, 2]).all()
    np.testing.assert_allclose(fields[:, 2], [1, 0.8, 0.02, 1, 0.02, 0])


def test_ant_rows_are_independent_and_draw_from_their_own_generators() -> None:
    task = AntMultiGoal()
    both = np.concatenate([ant_state(49, 0), ant_state(20, 1)])
    alone = ant_state(49, 0)
    task.step(both, view_at(task, far(2)), generators(2))
    task.step(alone, view_at(task, far()), generators(1))
    np.testing.assert_array_equal(both[0], alone[0])
    assert both[1].tolist() == [0, 0, 21, 1]


def test_ant_goals_chain_from_the_place_in_the_engine() -> None:
    task = AntMultiGoal()
    env = BatchedEnv(task.body, task, 3, seed=0, threads=1)
    obs, _ = env.reset(seed=0)
    where = task.spec.slices()["goal"]
    goals = [obs[:, where]]
    assert len(np.unique(goals[0], axis=0)) == 3
    rewards = np.zeros(3)
    for _ in range(50):
        obs, reward, *_ = env.step(np.zeros((3, 8), np.float32))
        rewards += reward
    unreached = rewards == 0
    assert unreached.any()
    assert (obs[unreached, where] != goals[0][unreached]).all()
    assert (np.abs(obs[:, where] - env.descriptor()) <= 7.6).all()


@pytest.mark.parametrize("make", [HalfCheetahGoal, AntMultiGoal])
def test_same_seed_same_goals(make: type) -> None:
    observed = []
    for _ in range(2):
        task = make()
        env = BatchedEnv(task.body, task, 4, seed=None, threads=1)
        observed.append(env.reset(seed=9)[0])
    np.testing.assert_array_equal(*observed)
