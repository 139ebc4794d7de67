"""Names of bodies and tasks, and how an environment is made from a name."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

from etude.envs.body import Body, Task
from etude.envs.engine import BatchedEnv
from etude.envs.spec import EnvSpec
from etude.errors import unknown


def _maker(module: str, name: str, *args: Any) -> Callable[[], Any]:
    """A constructor whose module is imported when it is first called."""
    return lambda: getattr(import_module(f"etude.envs.{module}"), name)(*args)


BODIES: dict[str, Callable[[], Body]] = {
    "ant": _maker("bodies.locomotion", "Ant"),
    "ant-gear-30": _maker("bodies.locomotion", "ant_with_gear", 30),
    "half-cheetah": _maker("bodies.locomotion", "HalfCheetah"),
    "walker2d": _maker("bodies.locomotion", "Walker2d"),
    "reacher": _maker("bodies.reacher", "Reacher"),
    "pusher": _maker("bodies.pusher", "Pusher"),
    "line-24": _maker("bodies.tables", "line"),
    "four-rooms": _maker("bodies.tables", "four_rooms"),
    "point-box": _maker("bodies.box", "PointBox"),
    "point-open": _maker("bodies.points", "PointOpen"),
    "point-maze-u": _maker("bodies.points", "PointMazeU"),
    "point-maze-large": _maker("bodies.points", "PointMazeLarge"),
}

TESTBEDS: dict[str, Callable[[], Body]] = {
    "grid-5": _maker("testbeds.worlds", "grid", 5),
    "grid-5-slip": _maker("testbeds.worlds", "grid", 5, 0.2),
    "grid-5-bits": _maker("testbeds.worlds", "grid", 5, 0.0, 8),
    "grid-5-bits-corner": _maker("testbeds.worlds", "grid", 5, 0.0, 8, "corner"),
    "grid-5-bits-centre": _maker("testbeds.worlds", "grid", 5, 0.0, 8, "centre"),
    "grid-5-slip-bits": _maker("testbeds.worlds", "grid", 5, 0.2, 8),
    "grid-5-slip-bits-corner": _maker("testbeds.worlds", "grid", 5, 0.2, 8, "corner"),
    "grid-5-slip-bits-centre": _maker("testbeds.worlds", "grid", 5, 0.2, 8, "centre"),
    "grid-7": _maker("testbeds.worlds", "grid", 7),
    "ring-12": _maker("testbeds.worlds", "ring"),
    "four-rooms-stochastic": _maker("testbeds.worlds", "four_rooms"),
    "four-rooms-stochastic-bits": _maker("testbeds.worlds", "four_rooms", 5, 8),
    "room-teleport": _maker("testbeds.worlds", "room_teleport"),
    "noisy-lever": _maker("testbeds.worlds", "noisy_lever"),
    "t-maze": _maker("testbeds.worlds", "t_maze"),
}

TASKS: dict[str, Callable[[], Task]] = {
    "line-option": _maker("tasks.options", "CellGoal", "line-option"),
    "four-rooms-option": _maker("tasks.options", "CellGoal", "four-rooms-option"),
    "point-nav": _maker("tasks.points", "PointNav"),
    "point-open-goal": _maker("tasks.points", "PointOpenGoal"),
    "point-maze-u-goal": _maker("tasks.points", "PointMazeGoal", "point-maze-u"),
    "point-maze-large-goal": _maker("tasks.points", "PointMazeGoal", "point-maze-large"),
    "half-cheetah-goal": _maker("tasks.half_cheetah", "HalfCheetahGoal"),
    **{
        f"half-cheetah-hurdle-{kind}": _maker("tasks.half_cheetah", "HalfCheetahHurdle", kind)
        for kind in ("metra", "psd", "diayn")
    },
    "ant-multi-goal": _maker("tasks.ant", "AntMultiGoal"),
    "ant-multi-goal-leg-60": _maker("tasks.ant", "AntMultiGoal", 60),
    "ant-waypoints": _maker("tasks.ant", "AntWaypoints"),
    "ant-waypoints-gear-30": _maker("tasks.ant", "AntWaypoints", 30),
    "ant-maze-u": _maker("tasks.ant", "AntMaze", "ant-maze-u"),
    "ant-maze-large": _maker("tasks.ant", "AntMaze", "ant-maze-large"),
    "reacher-sequence": _maker("tasks.reacher", "ReacherSequence"),
    "push-sparse": _maker("tasks.push", "PushSparse"),
    "half-cheetah-run": _maker("tasks.dense", "HalfCheetahRun"),
    "reacher-dense": _maker("tasks.dense", "ReacherDense"),
}


CHANGED = {
    "gravity": (25, 50, 200, 500),
    "actuator": (0, 30, 60),
}
"""Percent of gravity, and of one leg's torque, that are left to a body."""

TASKS |= {
    f"{body}-{what}-{percent}": _maker("tasks.changed", "Changed", body, what, percent)
    for body in ("ant", "half-cheetah")
    for what, steps in CHANGED.items()
    for percent in steps
}


def bodies() -> tuple[str, ...]:
    """Ids of the environments without a task, where skills are discovered."""
    return tuple(BODIES)


def tasks() -> tuple[str, ...]:
    """Ids of the downstream tasks, where skills are composed."""
    return tuple(TASKS)


def testbeds() -> tuple[str, ...]:
    """Ids of the finite worlds with known answers, where methods are measured."""
    return tuple(TESTBEDS)


def ids() -> tuple[str, ...]:
    """Every environment id but those of test beds, which have no Gymnasium name."""
    return bodies() + tasks()


def build(env_id: str) -> tuple[Body, Task | None]:
    """The body of an environment and its task, if it has one.

    Raises:
        UsageError: there is no such environment.
    """
    if env_id in TASKS:
        task = TASKS[env_id]()
        return task.body, task
    known = {**BODIES, **TESTBEDS}
    if env_id not in known:
        raise unknown("environment", env_id, (*ids(), *testbeds()))
    return known[env_id](), None


@cache
def spec(env_id: str) -> EnvSpec:
    """The description of an environment.

    Raises:
        UsageError: there is no such environment.
    """
    body, task = build(env_id)
    return (task or body).spec


def make_vec(
    env_id: str,
    num_envs: int = 1,
    seed: int | None = None,
    threads: int = 0,
    max_steps: int | None = None,
    persistent: bool | None = None,
) -> BatchedEnv:
    """Make `num_envs` environments that step together; see `BatchedEnv` for the arguments.

    Raises:
        UsageError: there is no such environment, or a number is out of its range.
    """
    body, task = build(env_id)
    return BatchedEnv(
        body,
        task,
        num_envs,
        seed=seed,
        threads=threads,
        max_steps=max_steps,
        persistent=persistent,
    )
