"""Tasks that a script solves and chance does not: they ask for something, and it can be done."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from etude.envs.bodies.pusher import RADIUS
from etude.envs.registry import make_vec, spec
from etude.skills.controllers.automaton import AutomatonController, Effect, TaskAutomaton

Policy = Callable[[np.ndarray], np.ndarray]
"""Observations (N, O) -> actions (N, A)."""


def success(task: str, act: Policy, episodes: int = 64) -> float:
    """Share of first episodes that succeed."""
    env = make_vec(task, episodes, seed=7, threads=1)
    obs, _ = env.reset(seed=7)
    done, solved = np.zeros(episodes, dtype=bool), np.zeros(episodes, dtype=bool)
    for _ in range(env.max_steps):
        obs, _, terminated, truncated, infos = env.step(act(obs).astype(np.float32))
        solved |= infos["is_success"] & ~done
        done |= terminated | truncated
    return float(solved.mean())


def noise(hold: int, dim: int) -> Policy:
    """Random actions, each held for some steps."""
    rng, held = np.random.default_rng(0), {"step": 0, "action": np.zeros(0)}

    def act(obs: np.ndarray) -> np.ndarray:
        if held["step"] % hold == 0:
            held["action"] = rng.uniform(-1, 1, (len(obs), dim))
        held["step"] += 1
        return held["action"]

    return act


def push(obs: np.ndarray) -> np.ndarray:
    """Go round the puck until it is between paddle and goal, then push."""
    paddle, puck, goal = obs[:, :2], obs[:, 2:4], obs[:, -2:]
    ahead = goal - puck
    ahead /= np.linalg.norm(ahead, axis=1, keepdims=True) + 1e-9
    across = np.stack([-ahead[:, 1], ahead[:, 0]], axis=1)
    offset = paddle - puck
    along, side = (offset * ahead).sum(axis=1), (offset * across).sum(axis=1)
    ready = (along < 0) & (np.abs(side) < 0.01)
    past = along > -1.5 * RADIUS  # not behind it yet: first give way
    away = np.where(side >= 0, 1, -1)[:, None] * across * 3.5 * RADIUS
    behind = puck - 2.5 * RADIUS * ahead
    near = (np.abs(side) < 2.5 * RADIUS)[:, None] & past[:, None]
    target = np.where(near, puck + away + along[:, None] * ahead, behind)
    target = np.where((past & ~near[:, 0])[:, None], puck + away - 3 * RADIUS * ahead, target)
    target = np.where(ready[:, None], puck + 2 * RADIUS * ahead - side[:, None] * across, target)
    return 20 * (target - paddle)


def test_pushing_is_for_those_who_go_round_the_puck() -> None:
    assert success("push-sparse", push) > 0.9
    assert success("push-sparse", noise(1, 2)) < 0.05
    assert success("push-sparse", noise(10, 2), 256) < 0.1


def folded(place: np.ndarray) -> np.ndarray:
    """Joint angles (n, 2) that put the fingertip at places (n, 2)."""
    square = np.square(place).sum(axis=1).clip(0.02**2, 0.205**2)
    second = np.arccos((square - 0.1**2 - 0.11**2) / (2 * 0.1 * 0.11))
    behind = np.arctan2(0.11 * np.sin(second), 0.1 + 0.11 * np.cos(second))
    return np.stack([np.arctan2(place[:, 1], place[:, 0]) - behind, second], axis=1)


def reach(stride: float) -> Policy:
    """Follow points that move towards the goal in a straight line, `stride` m ahead."""
    return lambda obs: towards(obs, obs[:, 8:10], stride)


def towards(obs: np.ndarray, place: np.ndarray, stride: float) -> np.ndarray:
    """Torques (N, 2) that move the fingertip to a place (N, 2)."""
    tip, cosine, sine, speed = obs[:, :2], obs[:, 2:4], obs[:, 4:6], obs[:, 6:8]
    offset = place - tip
    far = np.linalg.norm(offset, axis=1, keepdims=True)
    wanted = folded(tip + offset * np.minimum(1, stride / np.maximum(far, 1e-9)))
    turn = (wanted - np.arctan2(sine, cosine) + np.pi) % (2 * np.pi) - np.pi
    return (300 * turn - 25 * speed) / 200


def test_the_sequence_is_for_those_who_keep_clear_of_the_forbidden_target() -> None:
    assert success("reacher-sequence", reach(0.03)) > 0.9
    assert success("reacher-sequence", noise(1, 2)) < 0.05
    assert success("reacher-sequence", noise(10, 2)) < 0.05


def test_an_automaton_over_the_propositions_does_the_sequence_without_training() -> None:
    """It knows what each of four reaching skills brings about, and neither goal nor progress."""
    task = spec("reacher-sequence")
    found = task.constants
    names, targets = found["propositions"], np.array(found["targets"])
    skills = np.eye(len(names), dtype=np.float32)
    effects = [Effect(skills[i], (name,), 30) for i, name in enumerate(names)]
    logic = TaskAutomaton.sequence(found["sequence"], avoid=found["never"])
    controller = AutomatonController(logic, effects, found["labels"], task)
    at, started = task.slices(), []

    def act(obs: np.ndarray) -> np.ndarray:
        blind = obs.copy()
        blind[:, at["goal"]] = blind[:, at["sequence_left"]] = np.nan
        if not started:
            controller.reset(blind)
            started.append(True)
        return towards(obs, targets[controller.act(blind).argmax(axis=1)], 0.03)

    assert success("reacher-sequence", act) > 0.9


def test_a_point_is_near_by_for_those_who_go_there() -> None:
    assert success("point-nav", lambda obs: 10 * (obs[:, 2:] - obs[:, :2])) == 1
    held = noise(spec("point-nav").max_steps, 2)
    assert 0.02 < success("point-nav", held, 512) < 0.3


def test_the_rooms_take_some_luck() -> None:
    assert 0.02 < success("four-rooms-option", noise(1, 2), 256) < 0.6
    assert success("line-option", lambda obs: np.tile([1.0, 0.0], (len(obs), 1))) == 1
    assert success("line-option", noise(1, 2)) == 0
