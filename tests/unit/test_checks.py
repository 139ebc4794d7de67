"""Each half of every rule of `etude.envs.checks` alone: an environment that breaks just that.

`tests/contract/test_broken_envs.py` has an offence for every rule; here are those that differ from
what the rule wants in one of several things only, and sound environments that it must let pass.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

from etude.envs.bodies.points import PointOpen
from etude.envs.checks import check
from etude.envs.engine import BatchedEnv
from etude.envs.spec import Field
from etude.errors import EnvContractError

N = 3
Step = tuple[Any, Any, Any, Any, dict[str, Any]]


class Point(BatchedEnv):
    """A sound point of five steps an episode."""

    def __init__(self, max_steps: int = 5, autoreset: bool = True) -> None:
        super().__init__(PointOpen(), None, N, seed=0, max_steps=max_steps, autoreset=autoreset)
        self.build()

    def build(self) -> None:
        """Spoil what is fixed."""

    def says(self, **values: Any) -> None:
        self.env_spec = dataclasses.replace(self.env_spec, **values)

    def foreign(self, **values: Any) -> None:
        """Not a body of the registry, so that its spec may say anything."""
        self.says(id="foreign", body="foreign", **values)


# ---- what is sound


class Foreign(Point):
    def build(self) -> None:
        self.foreign(descriptor=("east", "north"))


class EndsExactly(Point):
    """Truncates at the limit and not beyond it: nobody else sets the clock."""

    def step(self, actions: np.ndarray, active: np.ndarray | None = None) -> Step:
        self.max_steps, limit = 0, self.max_steps
        over = self.elapsed + 1 == limit
        try:
            obs, reward, terminated, _, infos = super().step(actions, active)
        finally:
            self.max_steps = limit
        truncated = over if active is None else over & active
        if truncated.any():
            self._finish(truncated, infos)
            obs = self._obs.copy()
        return obs, reward, terminated, truncated, infos


@pytest.mark.parametrize(
    "env",
    [
        lambda: Point(),
        lambda: Point(max_steps=0),
        lambda: Point(autoreset=False),
        lambda: Point(max_steps=0, autoreset=False),
        lambda: Foreign(),
        lambda: EndsExactly(),
    ],
    ids=["plain", "no limit", "no autoreset", "neither", "foreign", "ends exactly"],
)
def test_sound_environments_pass(env: Callable[[], Point]) -> None:
    check(env())


# ---- what is fixed: the rule, and what is done to a sound environment


def box(low: float = -1, high: float = 1, dim: int = 2, dtype: type = np.float32) -> Box:
    return Box(low, high, (dim,), dtype)


def attribute(name: str, value: Any) -> Callable[[Point], None]:
    return lambda env: setattr(env, name, value)


BODY, OWN = "what it says of its body", "a body has its own id"
WIDE, BATCHED = "observations are a float32 Box", "batched spaces have one row"
FIXED: list[tuple[str, Callable[[Point], None]]] = [
    (OWN, lambda env: env.says(task_fields=("y_velocity",), obs_mean=None, obs_std=None)),
    (BODY, lambda env: env.says(fields=(Field("other", 1), *env.env_spec.fields[1:]))),
    (BODY, lambda env: env.says(action_dim=3)),
    (BODY, lambda env: env.says(descriptor=("y", "x"))),
    (WIDE, attribute("single_observation_space", Discrete(4))),
    (WIDE, attribute("single_observation_space", box(dim=3))),
    (WIDE, attribute("single_observation_space", box(dim=4, dtype=np.float64))),
    ("actions are a Box", attribute("single_action_space", Discrete(2))),
    ("actions are a Box", attribute("single_action_space", box(dim=3))),
    ("actions are a Box", attribute("single_action_space", box(low=-2))),
    ("actions are a Box", attribute("single_action_space", box(high=2))),
    (BATCHED, attribute("observation_space", Box(-1, 1, (N, 3)))),
    (BATCHED, attribute("action_space", Box(-1, 1, (N + 1, 2)))),
    ("cell and dt are above zero", lambda env: env.foreign(cell=-1.0)),
    ("cell and dt are above zero", lambda env: env.foreign(dt=0.0)),
]


@pytest.mark.parametrize(("rule", "spoil"), FIXED)
def test_each_part_of_what_is_fixed(rule: str, spoil: Callable[[Point], None]) -> None:
    env = Point()
    spoil(env)
    with pytest.raises(EnvContractError, match=rule):
        check(env)


# ---- what a step returns


def flags(first: int, change: Callable[[Any], Any]) -> Callable[[Step], Step]:
    """`terminated` (2) or `truncated` (3), changed."""
    return lambda step: (*step[:first], change(step[first]), *step[first + 1 :])  # type: ignore[return-value]


def final(change: Callable[[Any], Any]) -> Callable[[Step], Step]:
    old = "final_obs_array"
    return lambda step: (*step[:4], {**step[4], old: change(step[4][old])})


BOOLEANS, FINAL = "separate booleans", "final observations are finite float32"
STEPS: list[tuple[str, Callable[[Step], Step]]] = [
    ("rewards are finite", lambda step: (step[0], step[1] + np.inf, *step[2:])),
    (BOOLEANS, flags(2, list)),
    (BOOLEANS, flags(3, list)),
    (BOOLEANS, flags(2, lambda ended: ended.astype(np.int8))),
    (BOOLEANS, flags(3, lambda ended: ended.astype(np.int8))),
    (BOOLEANS, flags(2, lambda ended: ended[:, None])),
    (BOOLEANS, flags(3, lambda ended: ended[:, None])),
    (BOOLEANS, lambda step: (*step[:2], step[2].astype(int), step[3].astype(int), step[4])),
    ("infos hold the arrays", final(np.ndarray.tolist)),
    (FINAL, final(lambda obs: obs.astype(float))),
    (FINAL, final(lambda obs: obs[:, :-1])),
    (FINAL, final(lambda obs: obs * np.nan)),
]


@pytest.mark.parametrize(("rule", "spoil"), STEPS)
def test_each_part_of_a_step(rule: str, spoil: Callable[[Step], Step]) -> None:
    class Spoilt(Point):
        def step(self, actions: np.ndarray, active: np.ndarray | None = None) -> Step:
            return spoil(super().step(actions, active))

    with pytest.raises(EnvContractError, match=rule):
        check(Spoilt(max_steps=0))


# ---- what a state, a mask and a limit do

RULES: dict[type[Point], str] = {}


def breaks(rule: str) -> Callable[[type[Point]], type[Point]]:
    """Note which rule a class breaks."""

    def note(kind: type[Point]) -> type[Point]:
        RULES[kind] = rule
        return kind

    return note


@breaks("infos hold the descriptor")
class RoundedDescriptor(Point):
    """What the infos of a reset hold is not quite what the environment measures."""

    def reset(self, **how: Any) -> Any:
        obs, infos = super().reset(**how)
        return obs, {"descriptor": infos["descriptor"].astype(np.float32)}


@breaks("set_state goes back")
class ObservesBefore(Point):
    """Returns what was observed before the state was set."""

    def set_state(self, state: np.ndarray, ids: np.ndarray | None = None) -> np.ndarray:
        before = self._obs.copy()
        super().set_state(state, ids)
        return before

    def load_state_dict(self, tree: Any) -> np.ndarray:
        super().load_state_dict(tree)
        return self._obs.copy()


@breaks("set_state goes back")
class Tired(Point):
    """Its reward falls with every step since the reset, which only checkpoints remember."""

    worn = 0

    def reset(self, **how: Any) -> Any:
        self.worn = 0
        return super().reset(**how)

    def step(self, actions: np.ndarray, active: np.ndarray | None = None) -> Step:
        step = super().step(actions, active)
        self.worn += 1
        return step[0], step[1] - self.worn * (active is None), *step[2:]

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "worn": self.worn}

    def load_state_dict(self, tree: Any) -> np.ndarray:
        self.worn = tree["worn"]
        return super().load_state_dict(tree)


@breaks("set_state goes back")
class Counts(Point):
    """Its state says how often it was set, which changes nothing else."""

    count = 0

    def get_state(self) -> np.ndarray:
        return np.column_stack([super().get_state(), np.full(N, self.count)])

    def set_state(self, state: np.ndarray, ids: np.ndarray | None = None) -> np.ndarray:
        self.count += 1
        held, self.get_state = self.get_state, super().get_state  # type: ignore[method-assign]
        try:
            return super().set_state(np.asarray(state)[:, :-1], ids)
        finally:
            self.get_state = held  # type: ignore[method-assign]


@breaks("a reset with a state begins there, with the clock at zero")
class KeepsTheClock(Point):
    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        found = super().reset(seed=seed, options=options)
        if "state" in (options or {}):
            self.elapsed[:] = 1
        return found


def masked(reset: Callable[[Point, Any], Any]) -> Callable[..., Any]:
    """A `reset` whose result under a mask goes through another function."""

    def changed(self: Point, *, seed: Any = None, options: Any = None) -> Any:
        found = BatchedEnv.reset(self, seed=seed, options=options)
        return reset(self, found) if "mask" in (options or {}) else found

    return changed


def late(self: Point, found: Any) -> Any:
    self.elapsed[0] = 1
    return found


def disturbs(self: Point, found: Any) -> Any:
    self._view.qvel[1] += 1  # observed in the next step only
    return found


def misreports(self: Point, found: Any) -> Any:
    found[0][1] += 1
    return found


class Stays(Point):
    """A masked reset sets the clock, and nothing else."""

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        if "mask" not in (options or {}):
            return super().reset(seed=seed, options=options)
        state = self.get_state()
        _, infos = super().reset(seed=seed, options=options)
        obs = self.set_state(state)
        self.elapsed[0] = 0
        return obs, infos


MASK = "a reset with a mask begins anew"
RULES[Stays] = MASK
for how in (late, disturbs, misreports):
    RULES[type(how.__name__, (Point,), {"reset": masked(how)})] = MASK


class Frozen(Point):
    """Where only some are active, nothing moves but the clock."""

    def step(self, actions: np.ndarray, active: np.ndarray | None = None) -> Step:
        if active is None:
            return super().step(actions)
        state = self.get_state()
        _, *rest = super().step(actions, active)
        clock = self.elapsed.copy()
        obs = self.set_state(state)
        self.elapsed[:] = clock
        return obs, *rest  # type: ignore[return-value]


RULES[Frozen] = "active environments advance"


def of_the_idle(change: Callable[[Point, Step], Step]) -> type[Point]:
    """A `step` that is changed when only some environments are active."""

    class Idle(Point):
        def step(self, actions: np.ndarray, active: np.ndarray | None = None) -> Step:
            step = super().step(actions, active)
            return step if active is None else change(self, step)

    return Idle


def one(value: Any, index: int = 1) -> Callable[[Any], Any]:
    """An array with `value` for one environment."""

    def change(array: np.ndarray) -> np.ndarray:
        array[index] = value
        return array

    return change


def moves(env: Point, step: Step) -> Step:
    env._view.qvel[1] += 1
    return step


IDLE = "not active are left alone"
for number, value in ((0, 9.0), (1, 1.0), (2, True), (3, True)):
    RULES[
        of_the_idle(lambda _, step, i=number, x=value: flags(i, one(x))(step))  # type: ignore[misc]
    ] = IDLE
RULES[of_the_idle(moves)] = IDLE


def at_the_limit(change: Callable[[Point, Step], Step]) -> type[Point]:
    """A last step that is changed."""

    class Last(Point):
        def step(self, actions: np.ndarray, active: np.ndarray | None = None) -> Step:
            step = super().step(actions, active)
            return change(self, step) if step[3].all() else step

    return Last


def infos(**values: Any) -> Callable[[Point, Step], Step]:
    return lambda _, step: (*step[:4], {**step[4], **values})


def clock(env: Point, step: Step) -> Step:
    env.elapsed[2] = 1
    return step


def goes_on(_: Point, step: Step) -> Step:
    step[0][2] = step[4]["final_obs_array"][2]
    return step


LAST, ANEW = "the last observation of an episode is in the infos", "begins anew in the same step"
ENDS: list[tuple[str, Callable[[Point, Step], Step]]] = [
    ("the time limit truncates", lambda _, step: flags(3, one(False, 2))(step)),
    ("the time limit does not terminate", lambda _, step: flags(2, one(True, 2))(step)),
    (LAST, infos(_final_obs=np.array([True, True, False]))),
    (LAST, infos(final_obs=np.zeros((N, 4), np.float32))),
    (LAST, lambda _, step: (*step[:4], {k: v for k, v in step[4].items() if k != "final_obs"})),
    (ANEW, goes_on),
]


@pytest.mark.parametrize(("rule", "change"), ENDS)
def test_each_part_of_an_ending(rule: str, change: Callable[[Point, Step], Step]) -> None:
    with pytest.raises(EnvContractError, match=rule):
        check(at_the_limit(change)(max_steps=40))


@pytest.mark.parametrize("kind", RULES)
def test_each_part_of_what_is_done(kind: type[Point]) -> None:
    with pytest.raises(EnvContractError, match=RULES[kind]):
        check(kind(max_steps=0))


def test_a_clock_that_runs_into_the_next_episode() -> None:
    with pytest.raises(EnvContractError, match="the clock counts steps|begins anew"):
        check(at_the_limit(clock)())
