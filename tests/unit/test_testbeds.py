"""Finite worlds: what their matrices say, and that simulation does what the matrices say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gymnasium.wrappers import TimeLimit

from etude.config import replace
from etude.envs import registry
from etude.envs.engine import BatchedEnv
from etude.envs.registry import make_vec
from etude.envs.single import SingleEnv
from etude.envs.testbeds import worlds
from etude.envs.testbeds.body import Testbed
from etude.envs.testbeds.table import AGENT, PAPER, TILE, Table, noise
from etude.errors import UsageError
from etude.evaluate.monitor import Monitor
from etude.skills.discovery import Discovery, preset
from etude.skills.env import SkillEnv
from etude.skills.export import export
from etude.skills.library import SkillLibrary
from etude.skills.vec_env import LibraryLevel, SkillVecEnv

every_world = pytest.mark.parametrize("env_id", registry.testbeds())
STAY, EAST, WEST, NORTH, SOUTH = worlds.COMPASS


def world(env_id: str) -> Testbed:
    body, task = registry.build(env_id)
    assert isinstance(body, Testbed) and task is None
    return body


def states(env: BatchedEnv) -> np.ndarray:
    return env.get_state()[:, 0].astype(int)


def put(env: BatchedEnv, state: int) -> np.ndarray:
    """All environments into one state, each with its own noise to come."""
    rows = env.get_state()
    rows[:, 0] = state
    return env.set_state(rows)


# ---- what controls mean


def test_compass() -> None:
    given = [(0.29, 0), (0.31, 0), (-0.5, 0.4), (0.4, 0.5), (0.1, -0.9), (0.2, 0.2), (1, 1), (0, 0)]
    assert worlds.compass(np.array(given)).tolist() == [0, 1, 2, 3, 4, 0, 1, 0]


def test_pointed() -> None:
    angle = np.deg2rad([0, 14, 16, 89, 181, -31, -14])
    given = 0.1 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    assert worlds.pointed(12, given).tolist() == [0, 0, 1, 3, 6, 11, 0]


@every_world
def test_each_primitive_action_has_a_control_that_means_it(env_id: str) -> None:
    body = world(env_id)
    assert len(body.actions) == len(body.table.transition)
    assert (np.abs(body.actions) <= 1).all()
    assert body.control(body.actions.astype(np.float32))[:, 0].tolist() == [
        *range(len(body.actions))
    ]


# ---- what the matrices say


def test_moves_of_a_square() -> None:
    """Three by three, s = x + 3 y: from the west edge's middle, from the centre, at the wall."""
    exact = worlds.moves(3)
    assert exact[:, 3].argmax(axis=1).tolist() == [3, 4, 3, 6, 0]
    assert exact[:, 4].argmax(axis=1).tolist() == [4, 5, 3, 7, 1]
    assert exact[:, 8].argmax(axis=1).tolist() == [8, 8, 7, 8, 5]
    assert set(exact.ravel().tolist()) == {0.0, 1.0}
    slippery = worlds.moves(3, 0.2)
    assert slippery[1, 4, 5] == pytest.approx(0.84) and slippery[1, 4, 4] == pytest.approx(0.04)
    assert slippery[2, 3, 3] == pytest.approx(0.84 + 0.04)  # the wall, and the uniform "stay"


def test_ring_turns_and_errs_by_one() -> None:
    table = worlds.ring().table
    assert table.transition[3, 11, [1, 2, 3]].tolist() == [0.25, 0.5, 0.25]
    assert np.linalg.norm(table.places[0] - table.places[1]) == pytest.approx(1.55, abs=0.01)


def test_rooms_are_shuffled() -> None:
    table = worlds.four_rooms(3).table
    after = table.transition[1, 9 + 4]  # east from the centre of the second room
    assert np.flatnonzero(after).tolist() == [5, 14, 23, 32] and set(after[after > 0]) == {0.25}
    assert table.places[[0, 9, 18, 35]].tolist() == [[0, 0], [4, 0], [0, 4], [6, 6]]
    assert len(np.unique(table.places, axis=0)) == 36
    choice = worlds.room_teleport().table.transition[2, 23]
    assert np.flatnonzero(choice).tolist() == [2, 8, 14, 20] and choice[2] == 0.25


def test_the_cue_turns_the_junction_round() -> None:
    table, n = worlds.t_maze(3).table, 6  # 0 … 3 the stem, then the left and the right end
    for cue, (east, west) in enumerate(((5, 4), (4, 5))):
        for block in (cue, cue + 2):
            junction = n * block + 3
            assert table.transition[1, junction].argmax() == n * (cue + 2) + east
            assert table.transition[2, junction].argmax() == n * (cue + 2) + west
            assert (
                table.transition[:, n * block + 5].argmax(axis=1).tolist()
                == [n * (cue + 2) + 5] * 5
            )
    assert table.seen[:, n:].sum(axis=0).tolist() == [n, n]  # either cue, before the first step
    assert table.seen[0, n:].tolist() == [1, 0] and table.seen[n, n:].tolist() == [0, 1]
    assert not table.seen[2 * n :, n:].any()


@every_world
def test_states_are_seen_apart_unless_memory_is_wanted(env_id: str) -> None:
    table = world(env_id).table
    seen = len(np.unique(table.seen, axis=0))
    assert seen == (18 if env_id == "t-maze" else table.states)
    assert set(table.seen.ravel()) == {0.0, 1.0}


def test_starts() -> None:
    body = worlds.grid(5)
    assert body.start("corner").argmax() == 0 and body.start("edge").argmax() == 2
    assert body.start("centre").argmax() == 12 == body.start(12).argmax()
    np.testing.assert_allclose(body.start("anywhere"), 1 / 25)
    np.testing.assert_allclose(body.channel("anywhere", 0), np.full((1, 25), 1 / 25))
    for name, cell in (("corner", 0), ("centre", 12)):
        env = BatchedEnv(worlds.grid(5, start=name), num_envs=6, seed=0)
        env.reset()
        assert states(env).tolist() == [cell] * 6
        assert env.env_spec.id == f"grid-5-{name}" and env.env_spec.constants["start"] == name
    for where, cell in (("corner", 0), (7, 7)):
        moved = BatchedEnv(body.at(where), num_envs=6, seed=0)
        moved.reset()
        assert states(moved).tolist() == [cell] * 6 and moved.env_spec == body.spec
    env = make_vec("grid-5", 400, seed=0)
    env.reset()
    assert set(states(env)) == set(range(25))


def test_what_cannot_be_is_named() -> None:
    with pytest.raises(UsageError, match='unknown start "center": did you mean "centre"'):
        worlds.grid(5, start="center")
    with pytest.raises(UsageError, match='unknown start "center"'):
        worlds.grid(5).channel("center", 1)
    with pytest.raises(UsageError, match="start 25: choose a state from 0 to 24"):
        worlds.grid(5).channel(25, 1)
    with pytest.raises(UsageError, match="start -1: choose a state"):
        worlds.grid(5).at(-1)
    with pytest.raises(UsageError, match="n = 12: 5 actions make 244140625 blocks"):
        worlds.grid(5).channel(0, 12)
    with pytest.raises(UsageError, match="n = -1"):
        worlds.grid(5).channel(0, -1)
    with pytest.raises(UsageError, match="side = 1"):
        worlds.grid(1)
    with pytest.raises(UsageError, match=r"slip = 1.5"):
        worlds.grid(5, 1.5)
    with pytest.raises(UsageError, match="bits is -1"):
        worlds.grid(5, bits=-1)
    with pytest.raises(UsageError, match='environment "grid-6": did you mean "grid-'):
        make_vec("grid-6")
    with pytest.raises(AssertionError):
        Table(np.full((1, 2, 2), 0.4), np.zeros((2, 2)), np.eye(2))


# ---- what simulation does


def test_noise_is_splitmix64() -> None:
    """The first outputs of the reference program from the seeds 0 and 1234567."""
    values, after = noise(np.array([[0, 0], [0, 1234567]], np.float64), 3)
    known = [
        [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F],
        [6457827717110365317, 3203168211198807973, 9817491932198370423],
    ]
    assert values.tolist() == [[(k >> 11) / 2**53 for k in row] for row in known]
    np.testing.assert_array_equal(
        noise(after, 2)[0], noise(np.array([[0, 0], [0, 1234567]]), 5)[0][:, 3:]
    )


@every_world
def test_frequencies_are_those_of_the_channel(env_id: str) -> None:
    """Two steps of 4,000 environments for several blocks: within five standard errors."""
    body, n = world(env_id), 4000
    env = make_vec(env_id, n, seed=1)
    env.reset()
    count = len(body.actions)
    for start, first, second in ((0, 1, 1), (1, 0, count - 1), (2, 2, 1)):
        put(env, start)
        for action in (first, second):
            env.step(np.tile(body.actions[action], (n, 1)))
        expected = body.channel(start, 2)[first * count + second]
        found = np.bincount(states(env), minlength=len(expected)) / n
        error = 5 * np.sqrt(expected * (1 - expected) / n)
        assert (np.abs(found - expected) <= error).all()


def test_bits_are_fair_fresh_and_independent() -> None:
    """Of each other, of those before, and of the room that the same step has drawn."""
    env = make_vec("four-rooms-stochastic-bits", 3000, seed=0)
    view = env.env_spec.slices()["bits"]
    obs, _ = env.reset()
    shown = [obs[:, view], *(env.step(np.tile(EAST, (3000, 1)))[0][:, view] for _ in range(2))]
    lower = env.descriptor()[:, 1:] < 5
    columns = np.concatenate([*shown, lower], axis=1)  # (N, 25)
    assert set(columns.ravel().tolist()) == {0.0, 1.0}
    assert np.abs(columns.mean(axis=0) - 0.5).max() < 5 * 0.5 / 3000**0.5
    correlation = np.corrcoef(columns.T) - np.eye(25)
    assert np.abs(correlation).max() < 5 / 3000**0.5


def test_observation_and_descriptor() -> None:
    env = make_vec("grid-5-bits", 2, seed=0)
    env.reset()
    obs = put(env, 7)
    assert obs.dtype == np.float32 and obs[0, :25].argmax() == 7 and obs[0, :25].sum() == 1
    assert env.descriptor().tolist() == [[2, 1]] * 2
    obs, reward, terminated, truncated, infos = env.step(np.stack([NORTH, WEST]))
    assert infos["descriptor"].tolist() == [[2, 2], [1, 1]]
    assert not (reward.any() or terminated.any() or truncated.any())


def test_the_cue_is_shown_once() -> None:
    env = make_vec("t-maze", 40, seed=0)
    cue = env.env_spec.slices()["cue"]
    obs, _ = env.reset()
    said = obs[:, cue].argmax(axis=1)
    assert (obs[:, cue].sum(axis=1) == 1).all() and set(said) == {0, 1}
    for move in (NORTH, NORTH, NORTH, EAST):
        obs = env.step(np.tile(move, (40, 1)))[0]
        assert not obs[:, cue].any()
    assert (env.descriptor()[:, 0] == 1 - 2 * said).all()
    obs, _ = env.reset()
    assert obs[:, cue].any(axis=1).all()


def test_only_active_environments_step() -> None:
    """What a world goes through, noise included, does not depend on when others step."""
    masked, whole = (make_vec("grid-5-slip-bits", 5, seed=3, max_steps=6) for _ in range(2))
    masked.reset()
    whole.reset()
    rng = np.random.default_rng(0)
    for action in rng.uniform(-1, 1, (6, 5, 2)):
        whole.step(action)
        for i in rng.permutation(5):
            masked.step(np.where(np.arange(5)[:, None] == i, action, np.nan), np.arange(5) == i)
    np.testing.assert_array_equal(masked.get_state(), whole.get_state())
    assert (whole.elapsed == 0).all()


def test_restored_in_the_middle() -> None:
    env = make_vec("four-rooms-stochastic-bits", 3, seed=3, max_steps=5)
    env.reset()
    plan = np.random.default_rng(0).uniform(-1, 1, (20, 3, 2))
    for action in plan[:7]:
        env.step(action)
    saved = env.state_dict()
    first = [env.step(action)[0] for action in plan[7:]]
    other = make_vec("four-rooms-stochastic-bits", 3, seed=8, max_steps=5)
    other.reset()
    other.load_state_dict(saved)
    np.testing.assert_array_equal(first, [other.step(action)[0] for action in plan[7:]])


def test_picture() -> None:
    env = make_vec("grid-5", 2, seed=0)
    env.reset()
    put(env, 3)  # x = 3, y = 0: below
    picture = env.render(1, 100, 120)
    assert picture.shape == (120, 100, 3) and picture.dtype == np.uint8
    assert picture[110, 70].tolist() == list(AGENT)
    assert picture[90, 70].tolist() == picture[110, 10].tolist() == list(TILE)
    assert picture[10, 50].tolist() == picture[110, 60].tolist() == list(PAPER)
    env.close()


# ---- who takes them


def test_discovery_monitor_library_and_controllers_take_them(tmp_path: Path) -> None:
    small = {
        "steps": 240,
        "agent": {"hidden": [8, 8]},
        "method": {"hidden": [8, 8], "skill_obs": ["cell"]},
        "loop": {
            "num_envs": 4,
            "episode_steps": 10,
            "updates_per_epoch": 1,
            "batch_size": 16,
            "warmup_steps": 40,
            "replay_capacity": 200,
        },
    }
    run = Discovery(replace(preset("diayn", "grid-5-slip-bits"), small))
    monitor = Monitor("grid-5-slip-bits", 120, episodes=4)
    run.run([monitor])
    assert run.done and monitor.last()["policy_coverage"] >= 1
    library = SkillLibrary.load(export(run, tmp_path / "library", {"command": "test"}, {}))
    env = SkillEnv(TimeLimit(SingleEnv("grid-5-slip-bits"), 10), library, k=3)
    obs, _ = env.reset(seed=0)
    _, _, _, _, info = env.step(env.action_space.sample())
    assert obs.shape == (33,) and info["skill"]["duration"] == 3
    venv = make_vec("grid-5-slip-bits", 3, seed=0)
    many = SkillVecEnv(venv, LibraryLevel.for_spec(library, venv.env_spec), 2, 0.99)
    assert many.reset().shape == (3, 33)
    many.step(np.zeros(3, np.int64))
    assert venv.elapsed.tolist() == [2, 2, 2]
