"""The arm and the pusher: bodies, the task in logic, sparse pushing, and the dense controls."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest

from etude.envs.bodies.pusher import APART, RADIUS, SIDE, SPREAD, TOP_SPEED, Pusher
from etude.envs.bodies.reacher import Reacher
from etude.envs.body import View
from etude.envs.engine import BatchedEnv
from etude.envs.registry import make_vec, spec
from etude.envs.tasks.dense import ReacherDense
from etude.envs.tasks.push import PushSparse
from etude.envs.tasks.reacher import TARGETS, ReacherSequence

RNGS = [np.random.default_rng(0)]
LOGIC = ReacherSequence()


def set_physics(env: BatchedEnv, qpos: np.ndarray, qvel: np.ndarray) -> None:
    """Put every simulation into one state; the integrator's row is time, qpos, qvel, …"""
    state = env.get_state()
    state[:, 1 : 1 + len(qpos)] = qpos
    state[:, 1 + len(qpos) : 1 + len(qpos) + len(qvel)] = qvel
    env.set_state(state)


def still(env: BatchedEnv) -> np.ndarray:
    return np.zeros(env.action_space.shape, np.float32)


# ---- the arm


def folded(places: np.ndarray) -> np.ndarray:
    """Joint angles (n, 2) that put the fingertip at places (n, 2): the two-link inverse."""
    square = np.square(places).sum(axis=1)
    second = np.arccos((square - 0.1**2 - 0.11**2) / (2 * 0.1 * 0.11))
    behind = np.arctan2(0.11 * np.sin(second), 0.1 + 0.11 * np.cos(second))
    return np.stack([np.arctan2(places[:, 1], places[:, 0]) - behind, second], axis=1)


def arm_at(places: np.ndarray) -> View:
    return View(folded(places), np.zeros((len(places), 2)), {})


def test_the_arm_alone_moves_as_gymnasiums_does() -> None:
    """Bit for bit, over the joint's stop as well, though the target is not there."""
    single: gymnasium.Env = gymnasium.make("Reacher-v5").unwrapped
    single.reset(seed=0)
    env = make_vec("reacher", 1, seed=0, threads=1, max_steps=0)
    env.reset()
    set_physics(env, single.data.qpos[:2], single.data.qvel[:2])
    rng, furthest = np.random.default_rng(0), 0.0
    for _ in range(200):
        action = rng.uniform(-1, 1, 2).astype(np.float32)
        theirs, obs = single.step(action)[0], env.step(action[None])[0]
        np.testing.assert_array_equal(env._view.qpos[0], single.data.qpos[:2])
        np.testing.assert_array_equal(env._view.qvel[0], single.data.qvel[:2])
        np.testing.assert_array_equal(obs[0, 2:6], theirs[:4].astype(np.float32))
        np.testing.assert_array_equal(obs[0, 6:], theirs[6:8].astype(np.float32))
        furthest = max(furthest, abs(single.data.qpos[1]))
    assert furthest > 2.9  # the stop is at 3 rad
    single.close()


def test_the_fingertip_is_where_mujoco_puts_it() -> None:
    env = make_vec("reacher", 64, seed=0, threads=1)
    obs, infos = env.reset(seed=0)
    angles = np.random.default_rng(0).uniform(-3, 3, (64, 2))
    env._restart(np.arange(64), angles, np.zeros((64, 2)))
    tip = env._view.extra["xpos"][:, env._painter._model.body("fingertip").id, :2]
    np.testing.assert_allclose(env.descriptor(), tip, atol=1e-12)
    np.testing.assert_array_equal(obs[:, :2], infos["descriptor"].astype(np.float32))
    np.testing.assert_allclose(arm_at(tip).qpos.shape, (64, 2))
    np.testing.assert_allclose(env._body.descriptor(arm_at(tip)), tip, atol=1e-9)


def test_the_arm_starts_stretched_but_for_the_noise() -> None:
    env = make_vec("reacher", 256, seed=0, threads=1)
    env.reset(seed=0)
    angles, speeds = env._view.qpos, env._view.qvel
    assert 0.09 < np.abs(angles).max() <= 0.1
    assert 0.0045 < np.abs(speeds).max() <= 0.005


# ---- A, then B, then C, never D


def logic(path: str) -> tuple[list[float], list[bool], list[bool], np.ndarray]:
    """Rewards, endings, successes and state along a path of targets ("-" is none)."""
    task, state = LOGIC, np.zeros((1, 2))
    places = {name: task._targets[i] for i, name in enumerate(TARGETS)} | {"-": [0.15, 0.0]}
    outcomes = []
    for name in path:
        outcomes.append(task.step(state, arm_at(np.array([places[name]])), RNGS))
    columns = [[row[i][0] for row in outcomes] for i in range(3)]
    return columns[0], [*map(bool, columns[1])], [*map(bool, columns[2])], state


def by_hand(path: str) -> tuple[list[float], list[bool]]:
    """The automaton as it is spoken: paid once, over when C is touched in turn, or D at all."""
    wanted, rewards, ends = ["a", "b", "c"], [], []
    dead = False
    for name in path:
        paid = 0.0
        if wanted and not dead:
            dead = name == "d"
            if name == wanted[0]:
                wanted.pop(0)
                paid = float(not wanted)
        rewards.append(paid)
        ends.append(dead or not wanted)
    return rewards, ends


@pytest.mark.parametrize("path", ["abc", "a-b-c-", "cbabbcc", "abdc", "d", "bca", "aabbcabc"])
def test_the_automaton_is_the_sentence(path: str) -> None:
    rewards, ends, successes, _ = logic(path)
    expected, over = by_hand(path)
    assert rewards == expected
    assert ends == over
    assert successes == [end and "d" not in path for end in over]


def test_random_words_of_the_automaton() -> None:
    rng = np.random.default_rng(0)
    accepted = 0
    for _ in range(200):
        path = "".join(rng.choice(list("aabbcc-d"), size=8, p=[0.14] * 6 + [0.13, 0.03]))
        rewards, ends, _, _ = logic(path)
        assert (rewards, ends) == by_hand(path)
        accepted += sum(rewards) == 1
    assert 20 < accepted < 180


def test_targets_are_discs_in_reach_that_do_not_overlap() -> None:
    task = ReacherSequence()
    apart = np.linalg.norm(task._targets[:, None] - task._targets, axis=2)
    assert apart[~np.eye(4, dtype=bool)].min() > 2 * task.radius
    assert np.linalg.norm(task._targets, axis=1) == pytest.approx([0.16] * 4)
    assert task.distance + task.radius < 0.21
    around = task._targets[1] + np.array([[0.029, 0], [0, -0.029], [0.031, 0], [0.022, 0.022]])
    held = task.propositions(arm_at(around))
    assert held[:, 1].tolist() == [True, True, False, False]
    assert not np.delete(held, 1, axis=1).any()


def test_the_forbidden_target_is_in_the_way() -> None:
    """A stretched swing from A to B touches D, the straight line does not."""
    task = ReacherSequence()
    a, b, _, d = task._targets
    turn = np.radians(np.linspace(60, 180, 100))
    swing = 0.16 * np.stack([np.cos(turn), np.sin(turn)], axis=1)
    line = a + np.linspace(0, 1, 100)[:, None] * (b - a)
    assert np.linalg.norm(swing - d, axis=1).min() < task.radius
    assert np.linalg.norm(line - d, axis=1).min() > 2 * task.radius


def test_sequence_shows_goal_propositions_and_what_is_left() -> None:
    task = ReacherSequence()
    states = np.array([[0, 0], [1, 0], [2, 0], [3, 0.0]])
    fields = task.observe(states, arm_at(task._targets[[0, 3, 2, 2]]))
    np.testing.assert_allclose(fields[:, :2], task._targets[[0, 1, 2, 2]])
    np.testing.assert_array_equal(fields[:, 2:6], np.eye(4)[[0, 3, 2, 2]])
    np.testing.assert_allclose(fields[:, 6], [1, 2 / 3, 1 / 3, 0])
    constants = task.spec.constants
    x, y = 0.16 * np.cos(np.pi / 3), 0.16 * np.sin(np.pi / 3)
    expected = [[x, y], [-0.16, 0], [x, -y], [-x, y]]
    np.testing.assert_allclose(constants["targets"], expected, atol=1e-12)
    assert constants["propositions"] == ["a", "b", "c", "d"]
    assert (constants["sequence"], constants["never"]) == (["a", "b", "c"], ["d"])
    assert [mark.colour for mark in task.marks(states[0])] == [c for _, c in TARGETS.values()]


def test_sequence_in_the_engine() -> None:
    env = make_vec("reacher-sequence", 2, seed=0, threads=1)
    env.reset(seed=0)
    task = ReacherSequence()
    words, paid = {0: "abc", 1: "abd"}, []
    for step in range(3):
        targets = task._targets[[list(TARGETS).index(words[i][step]) for i in (0, 1)]]
        state = env.get_state()
        state[:, 1:3], state[:, 3:5] = folded(targets), 0
        env.set_state(state)
        _, reward, terminated, truncated, infos = env.step(still(env))
        paid.append(reward.tolist())
        assert terminated.tolist() == [step == 2] * 2
        assert not truncated.any()
    assert paid == [[0, 0], [0, 0], [1, 0]]
    assert infos["is_success"].tolist() == [True, False]
    assert not env.get_state()[:, -2:].any()


# ---- the pusher


def test_paddle_and_puck_start_apart_on_the_table() -> None:
    body, rng = Pusher(), np.random.default_rng(0)
    starts = np.array([body.reset(rng)[0] for _ in range(2000)])
    apart = np.linalg.norm(starts[:, 2:] - starts[:, :2], axis=1)
    assert APART <= apart.min() < APART + 0.01
    assert 0.98 * SPREAD < np.abs(starts[:, 2:]).max() <= SPREAD
    assert np.abs(starts[:, :2]).max() <= 0.02


def test_the_pushers_normaliser_is_that_of_uniform_places() -> None:
    rng, pusher = np.random.default_rng(0), Pusher().spec
    places = rng.uniform(RADIUS - SIDE / 2, SIDE / 2 - RADIUS, 10**5)
    np.testing.assert_allclose(pusher.obs_std[:4], places.std(), rtol=0.01)
    assert pusher.obs_std[4:] == (TOP_SPEED / 2,) * 4  # each component of a uniform disc
    assert pusher.obs_mean == (0,) * 8


def test_a_command_is_a_velocity_and_its_norm_is_clipped() -> None:
    env = make_vec("pusher", 1, threads=1)
    env.reset(seed=0)
    set_physics(env, np.array([-0.2, 0, 0, 0.25]), np.zeros(4))
    for _ in range(10):
        obs = env.step(np.array([[0.6, -0.3]], np.float32))[0]
    np.testing.assert_allclose(obs[0, 4:6], [0.6 * TOP_SPEED, -0.3 * TOP_SPEED], rtol=1e-3)
    np.testing.assert_allclose(
        Pusher().control(np.array([[3.0, 4], [0.3, 0.4]])), [[0.6, 0.8], [0.3, 0.4]]
    )


def test_the_paddle_pushes_the_puck_and_it_stops_soon() -> None:
    env = make_vec("pusher", 1, threads=1)
    env.reset(seed=0)
    set_physics(env, np.array([-0.15, 0, 0, 0]), np.zeros(4))
    for _ in range(10):
        obs = env.step(np.array([[1, 0]], np.float32))[0]
    assert obs[0, 2] - obs[0, 0] == pytest.approx(2 * RADIUS, abs=0.002)  # they touch
    assert obs[0, 2] > 0.03
    pushed = obs[0, 2]
    for _ in range(20):
        obs = env.step(still(env))[0]
    assert 0.005 < obs[0, 2] - pushed < 0.06
    assert np.abs(obs[0, 4:]).max() < 1e-3
    np.testing.assert_array_equal(obs[0, 2:4], env.descriptor()[0].astype(np.float32))


def test_nothing_leaves_the_table_or_goes_through() -> None:
    env = make_vec("pusher", 64, seed=0, threads=1, max_steps=0)
    obs, _ = env.reset(seed=0)
    rng, edge = np.random.default_rng(0), SIDE / 2 - RADIUS
    for step in range(300):
        if step % 5 == 0:  # half of the time at the puck
            toward = obs[:, 2:4] - obs[:, :2]
            wild = rng.normal(size=(64, 2))
            actions = np.where(rng.random((64, 1)) < 0.5, toward, wild) * 10
        obs = env.step(actions.clip(-1, 1).astype(np.float32))[0]
        assert np.abs(obs[:, :4]).max() < edge + 0.006
        assert np.linalg.norm(obs[:, 2:4] - obs[:, :2], axis=1).min() > 2 * RADIUS - 0.008
    assert np.abs(obs[:, 2:4]).max() > edge - 0.01  # some puck was pushed to a wall


# ---- push to a place


@pytest.mark.parametrize(("dx", "dy", "paid"), [(0.049, 0, 1), (0.036, -0.036, 0), (0, 0.051, 0)])
def test_push_pays_where_the_puck_is(dx: float, dy: float, paid: float) -> None:
    task, goal = PushSparse(), np.array([[0.1, -0.05]])
    qpos = np.array([[0.1, -0.05, 0.1 + dx, -0.05 + dy]])  # the paddle is on the goal
    for outcome in task.step(goal, View(qpos, np.zeros((1, 4)), {}), RNGS):
        assert outcome[0] == paid
    np.testing.assert_array_equal(task.observe(goal, View(qpos, qpos, {})), goal)
    assert task.spec.constants["goal_spread"] == 0.15


def test_push_goals_are_new_in_every_episode_and_not_at_the_puck() -> None:
    task, rng = PushSparse(), np.random.default_rng(0)
    draws = [(task.body.reset(rng)[0]) for _ in range(1500)]
    goals = np.array([task.reset(rng, qpos, qpos)[2] for qpos in draws])
    apart = np.linalg.norm(goals - np.array(draws)[:, 2:], axis=1)
    assert 0.1 < apart.min() < 0.11
    assert 0.149 < np.abs(goals).max() <= 0.15
    assert len(np.unique(goals[:, 0])) == 1500


def test_push_in_the_engine() -> None:
    """A paddle that goes behind the puck and pushes it along a line gets it there."""
    env = make_vec("push-sparse", 2, seed=0, threads=1)
    env.reset(seed=0)
    set_physics(env, np.array([-0.12, 0, -0.05, 0]), np.zeros(4))
    state = env.get_state()
    state[:, -2:] = [[0.1, 0], [0, 0.14]]
    env.set_state(state)
    steps = 0
    while steps < 20:
        steps += 1
        obs, reward, terminated, truncated, infos = env.step(np.float32([[1, 0], [1, 0]]))
        assert reward[1] == 0
        assert not truncated.any()
        if reward[0]:
            break
    assert 3 < steps < 16
    assert terminated.tolist() == infos["is_success"].tolist() == [True, False]
    assert obs[0, -2:].tolist() != [np.float32(0.1), 0]
    assert obs[1, -2:].tolist() == [0, np.float32(0.14)]


# ---- dense controls


@pytest.mark.filterwarnings("ignore:.*settotalmass.*:UserWarning")
def test_half_cheetah_run_is_gymnasiums(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("log"))  # MuJoCo writes its warnings to a file
    single = gymnasium.make("HalfCheetah-v5")
    assert single.spec is not None
    assert single.spec.max_episode_steps == spec("half-cheetah-run").max_steps == 1000
    env = make_vec("half-cheetah-run", 2, threads=1)
    env.reset(seed=4)
    single.reset(seed=5)
    rng = np.random.default_rng(0)
    for _ in range(300):
        actions = rng.uniform(-1, 1, (2, 6)).astype(np.float32)
        _, reward, terminated, truncated, infos = env.step(actions)
        assert reward[1] == pytest.approx(single.step(actions[1])[1], abs=1e-6)
        assert not (terminated | truncated).any() and "is_success" not in infos
    single.close()


def test_reacher_dense_is_gymnasiums() -> None:
    single = gymnasium.make("Reacher-v5")
    assert single.spec is not None
    assert single.spec.max_episode_steps == spec("reacher-dense").max_steps == 50
    env = make_vec("reacher-dense", 1, threads=1)
    rng = np.random.default_rng(0)
    for episode in range(5):
        theirs, _ = single.reset(seed=episode)
        env.reset()
        data = single.unwrapped.data
        set_physics(env, data.qpos, data.qvel)
        state = env.get_state()
        state[:, -2:] = data.qpos[2:]
        obs = env.set_state(state)
        for step in range(50):
            joints = [obs[0, 2:6], obs[0, 8:10], obs[0, 6:8]]
            np.testing.assert_allclose(np.concatenate(joints), theirs[:8], atol=1e-6)
            np.testing.assert_allclose(
                obs[0, :2] - obs[0, 8:10], theirs[8:], atol=1e-2
            )  # a stage behind
            action = rng.uniform(-1, 1, 2).astype(np.float32)
            theirs, wanted, *_ = single.step(action)
            _, reward, terminated, truncated, infos = env.step(action[None])
            assert reward[0] == pytest.approx(wanted, abs=1e-6)
            assert not terminated[0]
            assert truncated[0] == (step == 49)
            obs = infos["final_obs_array"]
    single.close()


def test_reacher_dense_goals_are_uniform_in_the_disc_and_in_the_model() -> None:
    task, rng = ReacherDense(), np.random.default_rng(0)
    draws = [task.reset(rng, *task.body.reset(rng)) for _ in range(2000)]
    goals = np.array([goal for _, _, goal in draws])
    np.testing.assert_array_equal([qpos[2:] for qpos, _, _ in draws], goals)
    distance = np.linalg.norm(goals, axis=1)
    assert 0.195 < distance.max() < 0.2
    assert np.median(distance) == pytest.approx(0.2 / 2**0.5, rel=0.05)
    assert task.spec.changes == ("geoms: a target", "goal region")
    assert task.spec.xml_sha256 != Reacher().spec.xml_sha256
