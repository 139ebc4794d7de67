"""Hurdles for the half-cheetah: where they stand, that they are solid, and what they pay."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest

from etude.envs.bodies.locomotion import HalfCheetah
from etude.envs.body import View
from etude.envs.engine import BatchedEnv
from etude.envs.registry import make_vec, spec
from etude.envs.tasks.half_cheetah import HURDLES, HalfCheetahHurdle, hind_foot

RNGS = [np.random.default_rng(0)]


def put(env: BatchedEnv, *place: float) -> None:
    """Move every body, and leave the rest; the integrator's row is time, qpos, qvel, …"""
    state = env.get_state()
    state[:, 1 : 1 + len(place)] = place
    env.set_state(state)


def still(env: BatchedEnv) -> np.ndarray:
    return np.zeros(env.action_space.shape, np.float32)


def feet(n: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Random postures of a half-cheetah, and where MuJoCo puts the hind foot."""
    model = HalfCheetah().model()
    data, rng = mujoco.MjData(model), np.random.default_rng(0)
    postures, places = rng.normal(size=(n, model.nq)), []
    for posture in postures:
        data.qpos[:] = posture
        mujoco.mj_kinematics(model, data)
        places.append(data.body("bfoot").xpos[0])
    return postures, np.array(places)


def with_foot_at(x: np.ndarray) -> View:
    """Half-cheetahs in their upright posture whose hind foot is at x (n,)."""
    qpos = np.zeros((len(x), 9))
    qpos[:, 0] = x + 0.62
    return View(qpos, np.zeros((len(x), 9)), {})


def test_the_hind_foot_is_where_mujoco_puts_it() -> None:
    postures, places = feet()
    np.testing.assert_allclose(hind_foot(postures), places, atol=1e-12)
    np.testing.assert_allclose(hind_foot(with_foot_at(np.array([3.0])).qpos), 3.0)


def test_the_sets_of_hurdles_are_three_different_tasks() -> None:
    places = {kind: list(hurdles.places) for kind, hurdles in HURDLES.items()}
    assert places == {
        "metra": [-15, -13, -9, -5, -1, 3, 7, 11, 15, 19, 23, 27],
        "psd": [2.5, 4, 7, 10, 15, 22, 30],
        "diayn": list(range(-1, 60, 3)),
    }
    depths = [h.half_depth for h in HURDLES.values()]
    assert depths == [1, 1, 0.5]
    counted = {k: spec(f"half-cheetah-hurdle-{k}").constants["hurdles_counted"] for k in HURDLES}
    assert counted == {"metra": 7, "psd": 7, "diayn": 20}
    tops = {k: round(h.centre + h.half_height, 3) for k, h in HURDLES.items()}
    assert tops == {"metra": 0.23, "psd": 0.26, "diayn": 0.25}
    bottoms = {k: round(h.centre - h.half_height, 3) for k, h in HURDLES.items()}
    assert bottoms == {"metra": 0.17, "psd": 0.0, "diayn": 0.0}
    limits = {k: h.max_steps for k, h in HURDLES.items()}
    assert limits == {"metra": 200, "psd": 300, "diayn": 1000}
    assert len({spec(f"half-cheetah-hurdle-{k}").xml_sha256 for k in HURDLES}) == 3
    reaches = {k: spec(f"half-cheetah-hurdle-{k}").constants["goal_reach"] for k in HURDLES}
    assert reaches == {"metra": 27, "psd": 30, "diayn": 59}


@pytest.mark.parametrize("kind", HURDLES)
def test_hurdles_stand_in_the_model_and_leave_the_runner_alone(kind: str) -> None:
    task, hurdles = HalfCheetahHurdle(kind), HURDLES[kind]
    model, plain = task.body.model(), HalfCheetah().model()
    boxes = np.flatnonzero(model.geom_type == mujoco.mjtGeom.mjGEOM_BOX)
    np.testing.assert_allclose(model.geom_pos[boxes][:, 0], hurdles.places)
    assert (model.geom_pos[boxes][:, 2] == hurdles.centre).all()
    size = [0.05, hurdles.half_depth, hurdles.half_height]
    np.testing.assert_array_equal(model.geom_size[boxes], [size] * len(boxes))
    np.testing.assert_array_equal(model.body_mass[1:], plain.body_mass[1:])
    env, free = make_vec(f"half-cheetah-hurdle-{kind}", 4, threads=1), make_vec("half-cheetah", 4)
    obs, _ = env.reset(seed=2)
    np.testing.assert_array_equal(obs[:, :18], free.reset(seed=2)[0])
    rng = np.random.default_rng(0)
    for _ in range(10):  # too few steps to get to a hurdle
        action = rng.uniform(-1, 1, (4, 6)).astype(np.float32)
        np.testing.assert_array_equal(env.step(action)[0][:, :18], free.step(action)[0])


@pytest.mark.parametrize("kind", HURDLES)
def test_hurdles_are_solid(kind: str) -> None:
    """A foot that stands in one touches it, and nothing else of the world does."""
    model = HalfCheetahHurdle(kind).body.model()
    data, boxes = mujoco.MjData(model), model.geom_type == mujoco.mjtGeom.mjGEOM_BOX
    for x, touching in ((15.0 if kind == "psd" else 11.0, True), (11.6, False)):
        data.qpos[:] = with_foot_at(np.array([x])).qpos[0]
        mujoco.mj_forward(model, data)
        pairs = [tuple(c.geom) for c in data.contact]
        touched = {model.geom(other).name for box, other in map(sorted, pairs) if boxes[box]}
        assert touched == ({"bfoot"} if touching else set())
        assert not any(boxes[list(pair)].all() for pair in pairs)


def test_hurdles_pay_the_change_in_their_number_behind() -> None:
    """Any way there and back: NumPy counts the hurdles between the ends."""
    task, rng = HalfCheetahHurdle("metra"), np.random.default_rng(0)
    foot = np.cumsum(rng.normal(scale=3, size=(300, 5)), axis=0)
    state = task.reset(rng, np.zeros(9), np.zeros(9))[2][None].repeat(5, axis=0)
    counted = np.array([3, 7, 11, 15, 19, 23, 27])
    total, seen = np.zeros(5), set()
    for x in foot:
        reward, ended, success = task.step(state, with_foot_at(x), RNGS * 5)
        total += reward
        seen |= set(reward)
        behind = (counted[None] < x[:, None]).sum(axis=1)
        np.testing.assert_array_equal(total, behind)
        np.testing.assert_array_equal(success, behind == 7)
        assert not ended.any()
    assert seen >= {-1, 0, 1}


def test_hurdles_behind_the_start_do_not_count() -> None:
    task, state = HalfCheetahHurdle("metra"), np.zeros((1, 1))
    for x in (-0.6, -1.5, -6.0, -16.0, -0.6, 2.99):
        assert task.step(state, with_foot_at(np.array([x])), RNGS)[0][0] == 0
    assert task.step(state, with_foot_at(np.array([3.01])), RNGS)[0][0] == 1


def test_hurdles_show_the_next_one_and_its_distance() -> None:
    task = HalfCheetahHurdle("psd")
    foot = np.array([-0.6, 2.4, 2.6, 29.0, 31.0])
    fields = task.observe(np.zeros((5, 1)), with_foot_at(foot))
    np.testing.assert_allclose(fields[:, 0] - 1, [2.5, 2.5, 4, 30, 30])
    np.testing.assert_allclose(fields[:, 1], [3.1, 0.1, 1.4, 1.0, -1.0], atol=1e-12)


def test_hurdles_in_the_engine() -> None:
    env = make_vec("half-cheetah-hurdle-metra", 2, seed=0, threads=1)
    env.reset(seed=0)
    earned = []
    for x in (1.0, 3.9, 8.0, 5.0, 27.9):
        put(env, x, 0.8)
        _, reward, terminated, truncated, infos = env.step(still(env))
        earned.append(reward[0])
        assert not (terminated | truncated).any()
    assert earned == [0, 1, 1, -1, 6]
    assert infos["is_success"].all()
    env.elapsed[:] = 199
    obs, _, terminated, truncated, _ = env.step(still(env))
    assert truncated.all()
    assert not terminated.any()
    assert (env.get_state()[:, -1] == 0).all()
    np.testing.assert_allclose(obs[:, -2], 4)
