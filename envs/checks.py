"""The rules that learning relies on, as a check to run once on a new body or task.

Each rule has cost somebody a silent failure: a reset inside a transition, a time limit stored as an
ending, a generator that is not part of the state, an observation that is not finite.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.spaces import Box

from etude.envs.engine import BatchedEnv
from etude.errors import EnvContractError

STEPS = 8


def check(venv: BatchedEnv) -> None:
    """Go through every rule with random actions; leaves the environments newly reset.

    Raises:
        EnvContractError: names the environment and the first rule that it breaks.
    """
    _check_spaces(venv)
    _check_reset(venv)
    _check_steps(venv)
    _check_seeding(venv)
    _check_states(venv)
    _check_active(venv)
    _check_time_limit(venv)
    venv.reset()


def _require(venv: BatchedEnv, holds: Any, rule: str) -> None:
    if not holds:
        raise EnvContractError(f"{venv.env_spec.id} breaks a rule of environments: {rule}.")


def _actions(venv: BatchedEnv, steps: int = STEPS) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.uniform(-1, 1, (steps, venv.num_envs, venv.env_spec.action_dim)).astype(np.float32)


def _rollout(venv: BatchedEnv, actions: np.ndarray) -> list[np.ndarray]:
    """Everything that `step` returns, flat."""
    found: list[np.ndarray] = []
    for action in actions:
        obs, reward, terminated, truncated, infos = venv.step(action)
        found += [obs, reward, terminated, truncated]
        found += [infos["descriptor"], infos["final_obs_array"]]
    return found


def _equal(first: list[np.ndarray], second: list[np.ndarray]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def _check_spaces(venv: BatchedEnv) -> None:
    spec, space, control = venv.env_spec, venv.single_observation_space, venv.single_action_space
    _require(
        venv,
        isinstance(space, Box) and space.shape == (spec.obs_dim,) and space.dtype == np.float32,
        "observations are a float32 Box as wide as the fields together",
    )
    _require(
        venv,
        isinstance(control, Box)
        and control.shape == (spec.action_dim,)
        and (control.low == -1).all()
        and (control.high == 1).all(),
        "actions are a Box from -1 to 1",
    )
    _require(
        venv,
        venv.observation_space.shape == (venv.num_envs, spec.obs_dim)
        and venv.action_space.shape == (venv.num_envs, spec.action_dim),
        "batched spaces have one row per environment",
    )
    _require(venv, spec.cell > 0 and spec.dt > 0, "cell and dt are above zero")


def _check_observation(venv: BatchedEnv, obs: np.ndarray, infos: dict[str, Any]) -> None:
    place = infos["descriptor"]
    _require(venv, obs.dtype == np.float32, "observations are float32")
    _require(
        venv,
        obs.shape == (venv.num_envs, venv.env_spec.obs_dim),
        "observations are as wide as the fields together",
    )
    _require(
        venv,
        place.shape == (venv.num_envs, len(venv.env_spec.descriptor)),
        "the descriptor has one number per named coordinate",
    )
    _require(venv, np.isfinite(obs).all(), "observations are finite")
    _require(venv, np.isfinite(place).all(), "descriptors are finite")


def _check_reset(venv: BatchedEnv) -> None:
    obs, infos = venv.reset(seed=0)
    _check_observation(venv, obs, infos)
    _require(venv, (venv.elapsed == 0).all(), "the clock is zero after a reset")
    _require(
        venv, np.array_equal(infos["descriptor"], venv.descriptor()), "infos hold the descriptor"
    )


def _check_steps(venv: BatchedEnv) -> None:
    flags = (venv.num_envs,)
    for action in _actions(venv):
        obs, reward, terminated, truncated, infos = venv.step(action)
        _check_observation(venv, obs, infos)
        _require(venv, reward.shape == flags and np.isfinite(reward).all(), "rewards are finite")
        _require(
            venv,
            terminated.dtype == truncated.dtype == bool
            and terminated.shape == truncated.shape == flags,
            "terminated and truncated are separate booleans",
        )
        done = terminated | truncated
        _require(
            venv,
            np.array_equal(infos["final_obs_array"][~done], obs[~done]),
            "where no episode ends, the final observation is the observation",
        )


def _check_seeding(venv: BatchedEnv) -> None:
    runs = []
    for seed in (3, 3, 4):
        start, _ = venv.reset(seed=seed)
        runs.append([start, *_rollout(venv, _actions(venv))])
    _require(venv, _equal(runs[0], runs[1]), "one seed gives one rollout")
    _require(venv, not np.array_equal(runs[0][0], runs[2][0]), "another seed gives another start")


def _check_states(venv: BatchedEnv) -> None:
    venv.reset(seed=5)
    _rollout(venv, _actions(venv, 3))
    saved = venv.state_dict()
    first = _rollout(venv, _actions(venv))
    venv.reset(seed=6)
    venv.load_state_dict(saved)
    _require(
        venv, _equal(first, _rollout(venv, _actions(venv))), "a restored state goes on as before"
    )


def _check_active(venv: BatchedEnv) -> None:
    obs, _ = venv.reset(seed=7)
    before, active = venv.get_state(), np.zeros(venv.num_envs, dtype=bool)
    active[0] = True
    after, reward, terminated, truncated, _ = venv.step(_actions(venv, 1)[0], active)
    _require(
        venv,
        np.array_equal(after[1:], obs[1:])
        and np.array_equal(venv.get_state()[1:], before[1:])
        and not reward[1:].any()
        and not (terminated | truncated)[1:].any(),
        "environments that are not active are left alone",
    )
    _require(
        venv, not np.array_equal(venv.get_state()[0], before[0]), "active environments advance"
    )


def _check_time_limit(venv: BatchedEnv) -> None:
    """The last step of an episode, reached by setting the clock forward."""
    if not venv.max_steps:
        return
    venv.reset(seed=8)
    venv.elapsed[:] = venv.max_steps - 1
    obs, _, terminated, truncated, infos = venv.step(_actions(venv, 1)[0])
    _require(venv, truncated.all(), "the time limit truncates")
    _require(venv, not terminated.any(), "the time limit does not terminate")
    if not venv.autoreset:
        return
    final = infos["final_obs_array"]
    _require(
        venv,
        infos["_final_obs"].all() and np.array_equal(np.stack(infos["final_obs"]), final),
        "the last observation of an episode is in the infos",
    )
    _require(
        venv,
        (venv.elapsed == 0).all() and not (obs == final).all(axis=1).any(),
        "an episode that ends begins anew in the same step",
    )
