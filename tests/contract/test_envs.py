"""The rules of environments, over every id in the registry, and proof that breaking one is seen."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from etude.envs import registry
from etude.envs.bodies.locomotion import HalfCheetah
from etude.envs.checks import check
from etude.envs.engine import BatchedEnv
from etude.envs.registry import make_vec
from etude.envs.spec import EnvSpec
from etude.errors import EnvContractError
from etude.skills.library_data import differences

MECHANICS = ("geoms:", "gravity", "gear")
every_environment = pytest.mark.parametrize("env_id", registry.ids() + registry.testbeds())


@every_environment
def test_rules(env_id: str) -> None:
    check(make_vec(env_id, 3, seed=0))


@every_environment
def test_spec(env_id: str) -> None:
    spec = registry.spec(env_id)
    assert EnvSpec.from_json(spec.to_json()) == spec
    assert spec.id == env_id
    assert (spec.body == spec.id) == (not spec.changes)
    body = registry.spec(spec.body)
    assert spec.fields[: len(body.fields)] == body.fields
    assert spec.body_dim == body.obs_dim
    assert (spec.dt, spec.action_dim, spec.descriptor) == (
        body.dt,
        body.action_dim,
        body.descriptor,
    )
    assert spec.changes or env_id not in registry.tasks()
    assert set(body.constants) <= set(spec.constants)
    assert differences(body.to_json(), spec.to_json()) == []  # what differs is declared,
    silent = dataclasses.replace(spec, changes=())  # and would be refused if it were not
    mechanical = any(change.split()[0] in MECHANICS for change in spec.changes)
    assert bool(differences(body.to_json(), silent.to_json())) == mechanical
    assert (np.array(spec.obs_std) > 0).all()


@pytest.mark.parametrize("env_id", registry.ids())  # test beds show cells, not coordinates
def test_descriptor_is_what_the_fields_say(env_id: str) -> None:
    """Coordinates named in the descriptor are observed under the same names."""
    env = make_vec(env_id, 2, seed=0)
    obs, infos = env.reset()
    slices = env.env_spec.slices()
    for column, name in enumerate(env.env_spec.descriptor):
        seen = obs[:, slices[name]][:, 0]
        np.testing.assert_array_equal(seen, infos["descriptor"][:, column].astype(np.float32))


@every_environment
def test_threads_do_not_change_results(env_id: str) -> None:
    runs = []
    for threads in (1, 3):
        env = make_vec(env_id, 3, seed=0, threads=threads, max_steps=15)
        env.reset()
        rng = np.random.default_rng(0)
        for _ in range(20):
            env.step(rng.uniform(-1, 1, env.action_space.shape))
        runs.append(env.get_state())
    np.testing.assert_array_equal(*runs)


def test_ids_are_in_one_group_each() -> None:
    groups = (registry.bodies(), registry.tasks(), registry.testbeds())
    assert all(groups) and len(set().union(*groups)) == sum(map(len, groups))


Step = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]


class Broken(BatchedEnv):
    """A half-cheetah whose step is spoilt on the way out."""

    def spoil(self, step: Step) -> Step:
        raise NotImplementedError

    def step(self, actions: np.ndarray, active: np.ndarray | None = None) -> Step:
        return self.spoil(super().step(actions, active))


class DoublePrecision(Broken):
    def spoil(self, step: Step) -> Step:
        return step[0].astype(float), *step[1:]


class NotFinite(Broken):
    def spoil(self, step: Step) -> Step:
        step[0][0, 3] = np.nan
        return step


class TimeLimitTerminates(Broken):
    def spoil(self, step: Step) -> Step:
        obs, reward, terminated, truncated, infos = step
        return obs, reward, terminated | truncated, truncated, infos


class NoFinalObservation(Broken):
    def spoil(self, step: Step) -> Step:
        step[4]["final_obs_array"] = step[0]
        return step


class FlatDescriptor(Broken):
    def spoil(self, step: Step) -> Step:
        step[4]["descriptor"] = step[4]["descriptor"][:, 0]
        return step


class RewardsEveryone(Broken):
    def spoil(self, step: Step) -> Step:
        return step[0], step[1] + 1, *step[2:]


class NoReset(Broken):
    def spoil(self, step: Step) -> Step:
        return step[4]["final_obs_array"], *step[1:]


class Forgetful(Broken):
    """Its noise does not come from the generators that are saved."""

    def spoil(self, step: Step) -> Step:
        self.count = getattr(self, "count", 0) + 1
        return step[0], step[1] * self.count, *step[2:]


class IgnoresMask(BatchedEnv):
    def step(self, actions: np.ndarray, active: np.ndarray | None = None) -> Step:
        return super().step(actions)


class IgnoresSeed(BatchedEnv):
    def reset(self, **_: Any) -> tuple[np.ndarray, dict[str, Any]]:
        return super().reset(seed=0)


class IgnoresState(BatchedEnv):
    def load_state_dict(self, tree: Any) -> np.ndarray:
        return self._obs


@pytest.mark.parametrize(
    ("kind", "rule"),
    [
        (DoublePrecision, "float32"),
        (NotFinite, "observations are finite"),
        (TimeLimitTerminates, "does not terminate"),
        (NoFinalObservation, "last observation of an episode"),
        (NoReset, "begins anew"),
        (FlatDescriptor, "one number per named coordinate"),
        (RewardsEveryone, "left alone"),
        (IgnoresMask, "left alone"),
        (Forgetful, "one seed gives one rollout"),
        (IgnoresSeed, "another seed"),
        (IgnoresState, "restored state"),
    ],
)
def test_a_broken_rule_is_named(kind: type[BatchedEnv], rule: str) -> None:
    with pytest.raises(EnvContractError, match=f"half-cheetah breaks .*{rule}"):
        check(kind(HalfCheetah(), num_envs=3, seed=0))
