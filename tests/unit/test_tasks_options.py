"""The unit box, the line and the four rooms: motion, rewards, and values that are known exactly."""

from __future__ import annotations

import numpy as np
import pytest

from etude.envs.bodies.box import BoxPainter, PointBox
from etude.envs.bodies.tables import four_rooms, line
from etude.envs.body import Mark, View
from etude.envs.engine import BatchedEnv
from etude.envs.maps import FOUR_ROOMS
from etude.envs.registry import make_vec
from etude.envs.tasks.options import CellGoal, held, optimal_values
from etude.envs.tasks.points import PointNav
from etude.errors import UsageError

EAST = np.array([1, 0], np.float32)
GAMMA, K = 0.9, 10


def all_do(env: BatchedEnv, action: np.ndarray) -> np.ndarray:
    return np.tile(action, (env.num_envs, 1)).astype(np.float32)


# ---- the unit box


def test_a_point_steps_by_its_action_and_stops_at_the_walls() -> None:
    env = make_vec("point-box", 3, seed=0)
    places = np.random.default_rng(0).uniform(0, 1, (10**5, 2))
    np.testing.assert_allclose(env.env_spec.obs_mean, places.mean(axis=0), atol=0.01)
    np.testing.assert_allclose(env.env_spec.obs_std, places.std(axis=0), atol=0.01)
    obs, infos = env.reset(seed=0)
    assert (np.abs(obs - 0.5) <= 0.01).all()
    assert len(np.unique(obs)) == 6
    place, rng = infos["descriptor"], np.random.default_rng(0)
    for _ in range(40):
        action = rng.uniform(-1, 1, (3, 2)).astype(np.float32)
        action[:, 0] = 1
        place = np.clip(place + 0.1 * action.astype(np.float64), 0, 1)
        obs, reward, terminated, _, infos = env.step(action)
        np.testing.assert_allclose(infos["descriptor"], place, atol=1e-12)
        np.testing.assert_allclose(obs, place, rtol=1e-6)
        assert not reward.any()
        assert not terminated.any()
    assert (obs[:, 0] == 1).all()


def test_some_points_may_step_alone() -> None:
    env = make_vec("point-box", 3, seed=0)
    env.reset(seed=0)
    obs = env.step(all_do(env, EAST))[0]  # they would go on, had they not to wait
    after = env.step(all_do(env, EAST), np.array([False, True, False]))[0]
    np.testing.assert_allclose(after - obs, [[0, 0], [0.1, 0], [0, 0]], atol=1e-6)


def test_the_picture_of_the_box_has_y_upwards() -> None:
    painter = BoxPainter()
    goal = Mark((0.5, 0.9, 0.0), 0.05, (0.0, 1.0, 0.0, 1.0))
    picture = painter.draw(np.array([0.1, 0.5]), 110, 110, [goal])
    assert picture.shape == (110, 110, 3)
    green = np.argwhere((picture == (0, 255, 0)).all(axis=2)).mean(axis=0)
    point = np.argwhere((picture == (217, 84, 51)).all(axis=2)).mean(axis=0)
    np.testing.assert_allclose(green, [14.5, 54.5], atol=0.6)  # row, column
    np.testing.assert_allclose(point, [54.5, 14.5], atol=0.6)
    assert (picture[0, 0] == (64, 71, 84)).all()
    env = make_vec("point-nav", 1, seed=0)
    env.reset(seed=0)
    assert env.render(width=60, height=40).shape == (40, 60, 3)
    painter.close()


def test_nav_pays_by_the_square_and_succeeds_near_by() -> None:
    task, rng = PointNav(), np.random.default_rng(0)
    place, goal = rng.uniform(0, 1, (50, 2)), rng.choice([0.1, 0.3, 0.5, 0.7, 0.9], (50, 2))
    view = View(place, np.zeros((50, 0)), {})
    reward, ended, success = task.step(goal, view, [rng] * 50)
    square = (place[:, 0] - goal[:, 0]) ** 2 + (place[:, 1] - goal[:, 1]) ** 2
    np.testing.assert_allclose(reward, -square)
    np.testing.assert_array_equal(success, square <= 0.01)
    assert not ended.any()
    assert 0 < success.sum() < 50
    np.testing.assert_array_equal(task.observe(goal, view), goal)
    assert task.spec.constants["goal_radius"] == 0.1


def test_nav_has_25_goals_and_draws_all_of_them() -> None:
    task, rng = PointNav(), np.random.default_rng(0)
    start = PointBox().reset(rng)
    goals = np.array([task.reset(rng, *start)[2] for _ in range(1000)])
    found, counts = np.unique(goals, axis=0, return_counts=True)
    assert len(found) == 25
    np.testing.assert_allclose(np.diff(np.unique(found)), 0.2)
    assert counts.min() > 15


def test_one_held_direction_is_enough_to_get_there() -> None:
    """Steps of 0.1 reach any of the goals; the best constant command brings the point near."""
    env = make_vec("point-nav", 25, seed=0)
    obs, _ = env.reset(seed=0)
    offset = obs[:, 2:] - obs[:, :2]
    direction = offset / np.abs(offset).max(axis=1, keepdims=True)
    strides = np.round(np.abs(offset).max(axis=1) / 0.1)
    for step in range(5):
        going = (step < strides)[:, None]
        infos = env.step((direction * going).astype(np.float32))[4]
    assert infos["is_success"].all()


# ---- the line


def roll(env: BatchedEnv, k: int) -> tuple[float, list[tuple[float, float, int]]]:
    """Hold "east" for k steps at a time: the discounted return, and each option's reward as the
    sum, discounted from its start, and its duration."""
    env.reset(seed=0)
    total, t, options, over = 0.0, 0, [], False
    while not over:
        plain = weighted = 0.0
        for i in range(k):
            _, reward, terminated, _, _ = env.step(all_do(env, EAST))
            total += GAMMA**t * reward[0]
            plain, weighted = plain + reward[0], weighted + GAMMA**i * reward[0]
            t, over = t + 1, bool(terminated[0])
            if over:
                break
        options.append((plain, weighted, i + 1))
    return total, options


def test_the_line_is_worth_its_discount_however_actions_are_held() -> None:
    assert pytest.approx(0.0985, abs=1e-4) == GAMMA**22
    env = make_vec("line-option", 1, seed=0)
    for k in (1, 10):
        total, options = roll(env, k)
        assert total == pytest.approx(GAMMA**22, rel=1e-12)
        exact, elapsed = 0.0, 0
        for _, weighted, duration in options:  # R + gamma^tau V'
            exact += GAMMA**elapsed * weighted
            elapsed += duration
        assert exact == pytest.approx(GAMMA**22, rel=1e-12)
    assert [duration for _, _, duration in options] == [10, 10, 3]
    per_decision = sum(GAMMA**i * plain for i, (plain, _, _) in enumerate(options))
    mixed = sum(GAMMA ** (K * i) * plain for i, (plain, _, _) in enumerate(options))
    assert per_decision == pytest.approx(0.81)  # the conventions that are wrong
    assert mixed == pytest.approx(0.1216, abs=1e-4)


@pytest.mark.parametrize("k", [1, 5, 10, 23, 40])
def test_value_iteration_on_the_line_is_the_closed_form(k: int) -> None:
    """Every first cell is worth gamma^(steps - 1), and holding costs nothing on a line."""
    table = line().table
    found = optimal_values(table.transition, 23, GAMMA, k)
    np.testing.assert_allclose(found[:23], GAMMA ** np.arange(22.0, -1, -1), rtol=1e-12)
    assert found[23] == 0


def test_episodes_on_the_line_begin_in_its_first_cell_and_end_in_its_last() -> None:
    env = make_vec("line-option", 4, seed=0)
    obs, _ = env.reset(seed=0)
    np.testing.assert_array_equal(obs[:, :2], np.zeros((4, 2)))
    assert set(obs[:, 2:-2].ravel()) == {0, 1}  # random bits, and only they differ
    np.testing.assert_array_equal(obs[:, -2:], [[23, 0]] * 4)
    for step in range(23):
        obs, reward, terminated, _, infos = env.step(all_do(env, EAST))
        assert (reward == (step == 22)).all()
        assert (terminated == infos["is_success"]).all()
    assert terminated.all()
    assert (infos["final_obs_array"][:, 0] == 23).all()
    assert (obs[:, 0] == 0).all()


# ---- four rooms


def test_the_rooms_are_those_of_the_paper() -> None:
    assert FOUR_ROOMS.sha256[:8] == "a194343e"
    free = FOUR_ROOMS.free_cells()
    assert len(free) == 104
    doors = [(3, 6), (6, 2), (7, 9), (10, 6)]
    inside = [cell for cell in free if cell not in doors]
    assert len(inside) == 25 + 25 + 30 + 20
    assert np.isfinite([FOUR_ROOMS.distances((1, 1))[cell] for cell in free]).all()


def test_a_move_succeeds_twice_in_three_times() -> None:
    table = four_rooms().table
    free = FOUR_ROOMS.free_cells()
    middle = free.index((3, 3))
    for action, ahead in enumerate([(3, 4), (3, 2), (2, 3), (4, 3)], start=1):
        row = table.transition[action, middle]
        assert row[free.index(ahead)] == pytest.approx(2 / 3)
        assert sorted(row[row > 0]) == pytest.approx([1 / 9] * 3 + [2 / 3])
    np.testing.assert_array_equal(table.transition[0], np.eye(104))
    corner = free.index((1, 1))
    assert table.transition[1, corner, corner] == pytest.approx(2 / 9)  # west and north are walls


def brute(transition: np.ndarray, goal: int, k: int, horizon: int) -> np.ndarray:
    """Finite-horizon values in plain loops: decisions every k steps, the goal ends an episode."""
    actions, states, _ = transition.shape
    values = np.zeros(states)
    for _ in range(horizon):
        best = np.full(states, -np.inf)
        for a in range(actions):
            inner = values
            for _ in range(k):
                ahead = np.where(np.arange(states) == goal, 1.0, GAMMA * inner)
                inner = np.array([transition[a, s] @ ahead for s in range(states)])
                inner[goal] = 0
            best = np.maximum(best, inner)
        values = best
    return values


@pytest.mark.parametrize("k", [1, 4])
def test_values_of_the_rooms_are_those_of_plain_loops(k: int) -> None:
    task = CellGoal("four-rooms-option")
    transition = task.body.table.transition
    found = optimal_values(transition, task.goal, GAMMA, k)
    expected = brute(transition, task.goal, k, 240 // k)
    np.testing.assert_allclose(found, expected, atol=1e-9)
    assert (found <= optimal_values(transition, task.goal, GAMMA) + 1e-12).all()


def test_values_of_the_rooms_are_what_the_environment_pays() -> None:
    """The greedy policy's mean discounted return, over 4000 episodes from across its room."""
    task, n, k = CellGoal("four-rooms-option"), 4000, 2
    reward, weight = held(task.body.table.transition, task.goal, GAMMA, k)
    values = optimal_values(task.body.table.transition, task.goal, GAMMA, k)
    greedy = (reward + weight @ values).argmax(axis=0)
    start = FOUR_ROOMS.free_cells().index((8, 7))
    env = BatchedEnv(task.body, task, n, seed=0, autoreset=False)
    env.reset(seed=0)
    state = env.get_state()
    state[:, 0] = start
    env.set_state(state)
    total, running = np.zeros(n), np.ones(n, dtype=bool)
    for t in range(100):
        if t % k == 0:
            command = task.body.actions[greedy[env.get_state()[:, 0].astype(int)]]
        _, paid, terminated, _, _ = env.step(command.astype(np.float32), running)
        total += GAMMA**t * paid
        running &= ~terminated
        if not running.any():
            break
    assert abs(total.mean() - values[start]) < 4 * total.std() / n**0.5
    assert values[start] > 0.2


def test_rooms_begin_anywhere_but_at_the_goal() -> None:
    env = make_vec("four-rooms-option", 2000, seed=0)
    starts = env.reset(seed=0)[0][:, :2]
    goal = FOUR_ROOMS.goal
    assert len(np.unique(starts, axis=0)) == 103
    assert not (starts == goal).all(axis=1).any()


@pytest.mark.parametrize(("k", "gamma"), [(0, 0.9), (3, 1.0), (3, -0.1)])
def test_what_cannot_be_valued_is_refused(k: int, gamma: float) -> None:
    with pytest.raises(UsageError, match="choose k >= 1 and gamma in"):
        held(line().table.transition, 23, gamma, k)
