"""One broken environment for each rule of `etude.envs.checks`: the check names that rule."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode

from etude.envs import registry
from etude.envs.bodies.points import PointOpen
from etude.envs.checks import check
from etude.envs.engine import BatchedEnv
from etude.envs.spec import Field
from etude.errors import EnvContractError

Step = tuple[Any, Any, Any, Any, dict[str, Any]]


class Sound(BatchedEnv):
    """A point whose steps and resets a subclass may spoil on the way out."""

    def __init__(self) -> None:
        super().__init__(PointOpen(), num_envs=3, seed=0)
        self.build()

    def build(self) -> None:
        """Spoil what is fixed."""

    def spoil(self, step: Step) -> Step:
        return step

    def step(self, actions: np.ndarray, active: np.ndarray | None = None) -> Step:
        return self.spoil(super().step(actions, active))

    def change(self, **values: Any) -> None:
        self.env_spec = dataclasses.replace(self.env_spec, **values)


RULES: dict[type[Sound], str] = {}


def breaks(rule: str) -> Callable[[type[Sound]], type[Sound]]:
    """Note which rule a class breaks."""

    def note(kind: type[Sound]) -> type[Sound]:
        RULES[kind] = rule
        return kind

    return note


# ---- what is fixed


@breaks("a body has its own id as body")
class BodyOfAnother(Sound):
    def build(self) -> None:
        self.change(id="point-closed")


@breaks("what it says of its body is what point-open has")
class OtherTimeStep(Sound):
    def build(self) -> None:
        self.change(dt=0.2)


@breaks("the spec survives JSON")
class TextForTuple(Sound):
    def build(self) -> None:
        self.change(changes=["a list"])


@breaks("begins anew in the same step, and the metadata say so")
class NextStepMode(Sound):
    def build(self) -> None:
        self.metadata = {**self.metadata, "autoreset_mode": AutoresetMode.NEXT_STEP}


@breaks("float32 Box as wide as the fields together")
class FieldsDoNotAddUp(Sound):
    def build(self) -> None:
        more = (*self.env_spec.fields, Field("unseen", 1))
        self.change(fields=more, obs_mean=None, obs_std=None)


@breaks("actions are a Box from -1 to 1")
class WideActions(Sound):
    def build(self) -> None:
        self.single_action_space = Box(-2.0, 2.0, (2,), np.float32)


@breaks("one row per environment")
class OneRowTooFew(Sound):
    def build(self) -> None:
        self.observation_space = Box(-np.inf, np.inf, (2, 4), np.float32)


@breaks("cell and dt are above zero")
class NoCell(Sound):
    def build(self) -> None:
        self.change(cell=0.0)


# ---- what comes out of a reset


@breaks("observations are float32")
class DoublePrecisionReset(Sound):
    def reset(self, **how: Any) -> Any:
        obs, infos = super().reset(**how)
        return obs.astype(float), infos


@breaks("as wide as the fields together")
class NarrowReset(Sound):
    def reset(self, **how: Any) -> Any:
        obs, infos = super().reset(**how)
        return obs[:, 1:], infos


@breaks("infos hold the descriptor")
class ResetWithoutDescriptor(Sound):
    def reset(self, **how: Any) -> Any:
        return super().reset(**how)[0], {}


@breaks("coordinates of the descriptor are observed under the same names")
class SwappedCoordinates(Sound):
    def descriptor(self) -> np.ndarray:
        return super().descriptor()[:, ::-1]


@breaks("the clock is zero after a reset")
class ClockRunsOn(Sound):
    def reset(self, **how: Any) -> Any:
        found = super().reset(**how)
        self.elapsed[:] = 5
        return found


# ---- what comes out of a step


@breaks("lie in the observation space")
class OutOfSpace(Sound):
    def build(self) -> None:
        self.observation_space = Box(-1e-6, 1e-6, (3, 4), np.float32)


@breaks("the clock counts steps")
class NoClock(Sound):
    def spoil(self, step: Step) -> Step:
        self.elapsed[:] = 0
        return step


def put(index: int, change: Callable[[Any], Any]) -> Callable[[Step], Step]:
    """One of the five things that `step` returns, changed."""
    return lambda step: (*step[:index], change(step[index]), *step[index + 1 :])  # type: ignore[return-value]


def info(**changes: Callable[[Any], Any]) -> Callable[[Step], Step]:
    """Entries of the infos, changed."""
    return put(4, lambda infos: {**infos, **{k: f(infos[k]) for k, f in changes.items()}})


def without(name: str) -> Callable[[Step], Step]:
    """The infos without one entry."""
    return put(4, lambda infos: {k: v for k, v in infos.items() if k != name})


SPOILT: list[tuple[str, Callable[[Step], Step]]] = [  # the rule, and a step that breaks it
    ("observations are finite", put(0, lambda obs: obs + np.float32(np.inf))),
    ("descriptors are finite", info(descriptor=lambda place: place * np.nan)),
    ("one number per named coordinate", info(descriptor=lambda _: np.zeros((3, 3)))),
    ("infos hold the descriptor", without("descriptor")),
    ("rewards are an array of floats", put(1, lambda reward: reward.astype(int))),
    ("rewards are an array of floats", put(1, lambda reward: reward.tolist())),
    ("rewards are finite", put(1, lambda reward: reward + np.nan)),
    ("rewards are finite", put(1, lambda reward: reward[:, None])),
    ("separate booleans", put(2, lambda terminated: terminated.astype(int))),
    ("separate booleans", put(3, lambda truncated: bool(truncated.any()))),
    ("infos hold the arrays descriptor and final_obs_array", without("final_obs_array")),
    ("final observations are finite float32", info(final_obs_array=lambda obs: obs.astype(float))),
    ("the final observation is the observation", info(final_obs_array=lambda obs: obs + 1)),
    ("the time limit truncates", put(3, np.zeros_like)),
    ("the last observation of an episode is in the infos", without("_final_obs")),
    ("an episode that ends begins anew", lambda step: (step[4]["final_obs_array"] + 0, *step[1:])),
]


def spoilt(how: Callable[[Step], Step]) -> type[Sound]:
    return type("Spoilt", (Sound,), {"spoil": lambda _, step: how(step)})


# ---- what a step does


@breaks("one seed gives one rollout")
class Noise(Sound):
    def build(self) -> None:
        self.noise = np.random.default_rng(0)

    def spoil(self, step: Step) -> Step:
        return step[0], step[1] + self.noise.random(3), *step[2:]


@breaks("another seed gives another start")
class OneStart(Sound):
    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        return super().reset(seed=0, options=options)


@breaks("environment i draws from the seed plus i")
class SharedSeed(Sound):
    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        seeds = None if seed is None else [1000 * seed + i for i in range(3)]
        return super().reset(seed=seeds, options=options)


@breaks("a restored state goes on as before")
class ForgetsVelocities(Sound):
    def load_state_dict(self, tree: Any) -> np.ndarray:
        super().load_state_dict(tree)
        self._view.qvel[:] = 0
        return self._obs.copy()


@breaks("caller's actions are left as they are")
class ClipsInPlace(Sound):
    def step(self, actions: np.ndarray, active: np.ndarray | None = None) -> Step:
        np.clip(actions, -1, 1, out=actions)
        return super().step(actions, active)


@breaks("actions beyond .* are clipped")
class TakesEveryAction(Sound):
    def step(self, actions: np.ndarray, active: np.ndarray | None = None) -> Step:
        beyond = np.abs(actions).max() > 1
        step = super().step(actions, active)
        return step[0], step[1] - float(beyond), *step[2:]


@breaks("an action that is not finite is refused")
class SwallowsNaN(Sound):
    def step(self, actions: np.ndarray, active: np.ndarray | None = None) -> Step:
        return super().step(np.nan_to_num(actions), active)


@breaks("is not written to by the next")
class OneBuffer(Sound):
    def spoil(self, step: Step) -> Step:
        return self._obs, *step[1:]


@breaks("writing to what was returned does not change")
class SharesItsPosition(Sound):
    """What it returns from a reset is where the next step goes on from."""

    def reset(self, **how: Any) -> Any:
        obs, infos = super().reset(**how)
        self.held = obs
        return obs, infos

    def step(self, actions: np.ndarray, active: np.ndarray | None = None) -> Step:
        step = super().step(actions, active)
        return step[0], step[1] + float(self.held.max() > 5), *step[2:]


@breaks("set_state goes back to what get_state gave")
class SetsNothing(Sound):
    """Restores checkpoints, but nothing else."""

    def set_state(self, state: np.ndarray, ids: np.ndarray | None = None) -> np.ndarray:
        return self._obs.copy()

    def load_state_dict(self, tree: Any) -> np.ndarray:
        super().load_state_dict(tree)
        return super().set_state(tree["state"])


@breaks("set_state changes the environments it is given")
class SetsOthersToo(Sound):
    def set_state(self, state: np.ndarray, ids: np.ndarray | None = None) -> np.ndarray:
        if ids is not None and len(ids) == 1:
            state, ids = np.repeat(state, 3, axis=0), None
        return super().set_state(state, ids)


@breaks("a reset with a state begins there")
class IgnoresGivenState(Sound):
    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        kept = {k: v for k, v in (options or {}).items() if k != "state"}
        return super().reset(seed=seed, options=kept)


@breaks("a reset with a mask begins anew those in the mask")
class IgnoresResetMask(Sound):
    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        kept = {k: v for k, v in (options or {}).items() if k != "mask"}
        return super().reset(seed=seed, options=kept)


@breaks("not active are left alone")
class StepsEveryone(Sound):
    def step(self, actions: np.ndarray, active: np.ndarray | None = None) -> Step:
        return super().step(actions)


@breaks("active environments advance")
class StandsStill(Sound):
    def step(self, actions: np.ndarray, active: np.ndarray | None = None) -> Step:
        if active is None:
            return super().step(actions)
        state = self.get_state()
        step = super().step(actions, active)
        self.set_state(state)
        return step


# ---- the last step of an episode


@breaks("the time limit does not terminate")
class LimitTerminates(Sound):
    def spoil(self, step: Step) -> Step:
        return *step[:2], step[2] | step[3], *step[3:]


CASES = [*((rule, kind) for kind, rule in RULES.items()), *((r, spoilt(how)) for r, how in SPOILT)]


@pytest.mark.parametrize(("rule", "kind"), CASES)
def test_the_broken_rule_is_named(rule: str, kind: type[Sound]) -> None:
    with pytest.raises(EnvContractError, match=f"breaks a rule .*{rule}") as caught:
        check(kind())
    assert str(caught.value).count("\n") == 0


def test_there_are_rules_enough() -> None:
    assert len({rule for rule, _ in CASES}) >= 20


def test_a_sound_environment_passes_and_is_left_newly_reset() -> None:
    env = Sound()
    check(env)
    assert not env.elapsed.any()


def test_a_task_that_does_not_say_what_it_changes_is_refused() -> None:
    env = registry.make_vec("point-maze-u-goal", 2, seed=0)
    env.env_spec = dataclasses.replace(env.env_spec, changes=())
    with pytest.raises(EnvContractError, match="a task has another's"):
        check(env)


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_short_episodes_are_no_offence(limit: int) -> None:
    check(registry.make_vec("ant-multi-goal", 2, seed=0, max_steps=limit))


def test_one_environment_is_checked_too() -> None:
    check(registry.make_vec("point-open", 1, seed=0))


def test_checking_two_ants_is_quick() -> None:
    env = registry.make_vec("ant", 2, seed=0)
    start = time.process_time()
    check(env)
    assert time.process_time() - start < 1.5
