"""Maps and the point bodies: geometry, motion, friction, and how hard the mazes are."""

from __future__ import annotations

import numpy as np
import pytest

from etude.envs.bodies.points import (
    FRICTION,
    RADIUS,
    START_NOISE,
    PointMazeLarge,
    PointMazeU,
    PointOpen,
)
from etude.envs.engine import BatchedEnv
from etude.envs.maps import MAZE_LARGE, MAZE_U, OPEN, Map
from etude.envs.tasks.points import PointMazeGoal

MAPS = (OPEN, MAZE_U, MAZE_LARGE)
BODIES = (PointOpen, PointMazeU, PointMazeLarge)
PINNED = {"open": "614e00ae", "maze-u": "c7c72f9f", "maze-large": "8f08af94"}


def ids(thing: object) -> str:
    return getattr(thing, "name", "")


def env_of(body: str, num_envs: int) -> BatchedEnv:
    task = PointMazeGoal(body)
    env = BatchedEnv(task.body, task, num_envs, seed=0, threads=1)
    env.reset(seed=0)
    return env


def put(env: BatchedEnv, x: float, y: float) -> None:
    """Place every disc at rest; the integrator's row is time, qpos, qvel, …"""
    state = env.get_state()
    state[:, 1:5] = x, y, 0, 0
    env.set_state(state)


def hold(env: BatchedEnv, angle: float, steps: int) -> np.ndarray:
    """Hold a full command (degrees from +x) and return the places, (T, 2), of environment 0."""
    command = [np.cos(np.radians(angle)), np.sin(np.radians(angle))]
    actions = np.full((env.num_envs, 2), command, np.float32)
    return np.array([env.step(actions)[4]["descriptor"][0] for _ in range(steps)])


# ---- maps


@pytest.mark.parametrize("maze", MAPS, ids=ids)
def test_a_map_never_changes_under_its_version(maze: Map) -> None:
    assert maze.version == 1
    assert maze.sha256[:8] == PINNED[maze.name]


@pytest.mark.parametrize("maze", MAPS, ids=ids)
def test_walls_cover_every_wall_cell_once_and_no_free_cell(maze: Map) -> None:
    boxes = maze.walls()
    for row, line in enumerate(maze.rows):
        for col, symbol in enumerate(line):
            x, y = maze.cell_centre(row, col)
            hits = sum(x0 < x < x1 and y0 < y < y1 for x0, y0, x1, y1 in boxes)
            assert hits == (symbol == "#")
            assert maze.cell_at(x, y) == (row, col)
    area = sum((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in boxes)
    assert area == "".join(maze.rows).count("#")


def test_the_picture_is_seen_from_above() -> None:
    assert MAZE_U.cell_centre(0, 0) == (-2.0, 2.0)
    assert MAZE_U.start == (-1.0, 1.0)
    assert MAZE_U.goal == (-1.0, -1.0)
    assert OPEN.start == (0.0, 0.0)


def test_distances_count_the_cells_to_walk() -> None:
    steps = MAZE_U.distances(MAZE_U.goal_cell)
    assert [steps[1, 1], steps[1, 3], steps[2, 3], steps[3, 1]] == [6, 4, 3, 0]
    assert np.isinf(steps[2, 1])
    large = MAZE_LARGE.distances(MAZE_LARGE.goal_cell)
    assert large[MAZE_LARGE.cell_at(*MAZE_LARGE.start)] == 15
    assert all(np.isfinite(large[cell]) for cell in MAZE_LARGE.free_cells())


# ---- the disc


@pytest.mark.parametrize("make", BODIES)
def test_episodes_start_at_rest_near_the_start(make: type) -> None:
    body = make()
    env = BatchedEnv(body, num_envs=64, seed=3, threads=1)
    obs, _ = env.reset(seed=3)
    offsets = obs[:, :2] - np.array(body.maze.start)
    assert (np.abs(offsets) <= START_NOISE + 1e-6).all()
    assert np.ptp(offsets, axis=0).min() > START_NOISE
    assert (obs[:, 2:] == 0).all()


def test_observation_is_place_and_velocity() -> None:
    env = BatchedEnv(PointOpen(), num_envs=3, seed=0, threads=1)
    env.reset(seed=0)
    before = env.descriptor()
    for _ in range(10):
        previous = env.descriptor()
        obs = env.step(np.tile(np.float32([0.6, -0.3]), (3, 1)))[0]
    np.testing.assert_allclose(obs[:, :2], env.descriptor(), rtol=1e-6)
    np.testing.assert_allclose(obs[:, 2:], (env.descriptor() - previous) / 0.1, rtol=1e-3)
    np.testing.assert_allclose(obs[:, 2:], np.tile([0.72, -0.36], (3, 1)), rtol=1e-3)
    assert (env.descriptor()[:, 0] > before[:, 0] + 0.6).all()


def test_a_held_command_covers_about_three_metres_in_25_steps_whatever_its_direction() -> None:
    for angle in range(0, 360, 45):
        env = BatchedEnv(PointOpen(), num_envs=1, seed=0, threads=1)
        env.reset(seed=0)
        put(env, 0, 0)
        assert np.linalg.norm(hold(env, angle, 25)[-1]) == pytest.approx(2.94, abs=0.01)


def test_commands_are_clipped_to_the_unit_disc() -> None:
    control = PointOpen().control(np.array([[1.0, 1.0], [0.3, -0.4], [0.0, 0.0]]))
    np.testing.assert_allclose(control, [[0.5**0.5, 0.5**0.5], [0.3, -0.4], [0, 0]])


@pytest.mark.parametrize("angle", [10, 25, 40])
def test_a_disc_that_presses_a_wall_at_an_angle_sticks(angle: float) -> None:
    env = BatchedEnv(PointOpen(), num_envs=1, seed=0, threads=1)
    env.reset(seed=0)
    put(env, 5 - RADIUS - 0.05, 0)
    hold(env, angle, 10)
    path = hold(env, angle, 25)
    assert np.ptp(path[:, 1]) < 0.05
    assert path[:, 0] == pytest.approx(5 - RADIUS, abs=0.005)


def test_a_disc_that_grazes_a_wall_slides_slowly() -> None:
    env = BatchedEnv(PointOpen(), num_envs=1, seed=0, threads=1)
    env.reset(seed=0)
    put(env, 5 - RADIUS - 0.05, 0)
    hold(env, 75, 5)
    path = hold(env, 75, 20)
    # Coulomb: the wall takes FRICTION times the pressing component from the tangential one.
    slide = 1.2 * (np.sin(np.radians(75)) - FRICTION * np.cos(np.radians(75)))
    assert (path[-1, 1] - path[0, 1]) / 1.9 == pytest.approx(slide, rel=0.1)


@pytest.mark.parametrize("make", BODIES)
def test_no_disc_ever_enters_a_wall(make: type) -> None:
    env = BatchedEnv(make(), num_envs=64, seed=0, threads=1)
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    boxes = np.array(make().maze.walls())
    deepest = 0.0
    for step in range(400):
        if step % 10 == 0:
            actions = rng.normal(size=(64, 2)).astype(np.float32)
        place = env.step(actions)[4]["descriptor"][:, None]  # (N, 1, 2)
        nearest = np.clip(place, boxes[:, :2], boxes[:, 2:])  # (N, boxes, 2)
        gap = np.linalg.norm(place - nearest, axis=2).min()
        deepest = max(deepest, RADIUS - gap)
    assert 0 < deepest < 0.045


def test_the_preset_normaliser_is_that_of_uniform_places() -> None:
    spec = PointMazeLarge().spec
    places = np.array([MAZE_LARGE.cell_centre(r, c) for r in range(1, 8) for c in range(1, 11)])
    np.testing.assert_allclose(spec.obs_mean[:2], places.mean(axis=0), atol=1e-12)
    # A cell adds the variance of a uniform metre to that of the centres.
    np.testing.assert_allclose(spec.obs_std[:2], np.sqrt(places.var(axis=0) + 1 / 12))


# ---- how hard the mazes are


def random_success(body: str, hold_for: int, episodes: int) -> float:
    """Success rate of random commands, each held for some steps."""
    env = env_of(body, episodes)
    rng = np.random.default_rng(0)
    arrived = np.zeros(episodes, dtype=bool)
    for step in range(env.max_steps):
        if step % hold_for == 0:
            actions = rng.normal(size=(episodes, 2))
            actions /= np.linalg.norm(actions, axis=1, keepdims=True)
        arrived |= env.step(actions.astype(np.float32))[4]["is_success"]
    return float(arrived.mean())


@pytest.mark.parametrize("hold_for", [1, 25])
def test_random_commands_do_not_solve_the_large_maze(hold_for: int) -> None:
    assert random_success("point-maze-large", hold_for, 300) <= 0.01


def test_random_held_commands_rarely_solve_the_u_maze() -> None:
    assert 0 < random_success("point-maze-u", 25, 300) < 0.2


@pytest.mark.parametrize(("body", "most"), [("point-maze-u", 75), ("point-maze-large", 300)])
def test_walking_from_cell_to_cell_solves_the_mazes(body: str, most: int) -> None:
    env = env_of(body, 50)
    maze: Map = PointMazeGoal(body).body.maze
    steps_to_go = maze.distances(maze.goal_cell)
    obs, _ = env.reset(seed=1)
    arrival = np.zeros(50)
    for step in range(1, most + 1):
        actions = np.zeros((50, 2), np.float32)
        for i, place in enumerate(obs[:, :2]):
            row, col = maze.cell_at(*place)
            near = [(row, col), (row + 1, col), (row - 1, col), (row, col + 1), (row, col - 1)]
            offset = maze.cell_centre(*min(near, key=lambda cell: steps_to_go[cell])) - place
            actions[i] = offset / max(np.linalg.norm(offset), 0.1)
        obs, reward, terminated, _, infos = env.step(actions)
        np.testing.assert_array_equal(reward, terminated)
        np.testing.assert_array_equal(infos["is_success"], terminated)
        arrival[(arrival == 0) & terminated] = step
        if arrival.all():
            break
    assert arrival.all()
