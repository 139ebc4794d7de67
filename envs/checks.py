"""The rules that learning relies on, as a check to run once on a new body or task.

Each rule has cost somebody a silent failure: a reset inside a transition, a time limit stored as an
ending, a generator that is not part of the state, an observation that is not finite.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode

from etude.envs import registry
from etude.envs.engine import BatchedEnv
from etude.envs.spec import EnvSpec
from etude.errors import EnvContractError

STEPS = 8
WIDTH = 6  # arrays that a step of `_rollout` adds, the observation first
INFOS = ("descriptor", "final_obs_array")


def check(venv: BatchedEnv) -> None:
    """Go through every rule with random actions; leaves the environments newly reset.

    Raises:
        EnvContractError: names the environment and the first rule that it breaks.
    """
    _check_spec(venv)
    _check_spaces(venv)
    _check_reset(venv)
    _check_steps(venv)
    _check_seeding(venv)
    _check_states(venv)
    _check_actions(venv)
    _check_copies(venv)
    _check_set_state(venv)
    _check_mask(venv)
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


def _timeless(venv: BatchedEnv) -> np.ndarray:
    """The states without their clocks, which move on whatever else does."""
    clocks = venv.elapsed.copy()
    venv.elapsed[:] = 0
    state = venv.get_state()
    venv.elapsed[:] = clocks
    return state


def _equal(first: list[np.ndarray], second: list[np.ndarray]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def _check_spec(venv: BatchedEnv) -> None:
    spec = venv.env_spec
    _require(
        venv,
        spec.changes if spec.id != spec.body else not spec.task_fields,
        "a body has its own id as body and no task fields, a task has another's and says what it "
        "changes",
    )
    if spec.body in registry.bodies():
        body = registry.spec(spec.body)
        _require(
            venv,
            spec.fields[: len(body.fields)] == body.fields
            and (spec.action_dim, spec.dt, spec.descriptor)
            == (body.action_dim, body.dt, body.descriptor),
            f"what it says of its body is what {spec.body} has",
        )
    _require(venv, EnvSpec.from_json(spec.to_json()) == spec, "the spec survives JSON")
    if venv.autoreset:
        _require(
            venv,
            venv.metadata.get("autoreset_mode") is AutoresetMode.SAME_STEP,
            "an episode begins anew in the same step, and the metadata say so",
        )


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
    _require(venv, "descriptor" in infos, "infos hold the descriptor")
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
    _require(
        venv, venv.observation_space.contains(obs), "observations lie in the observation space"
    )


def _check_reset(venv: BatchedEnv) -> None:
    obs, infos = venv.reset(seed=0)
    _check_observation(venv, obs, infos)
    slices = venv.env_spec.slices()
    _require(
        venv,
        all(
            np.array_equal(obs[:, slices[name]][:, 0], infos["descriptor"][:, i].astype(np.float32))
            for i, name in enumerate(venv.env_spec.descriptor)
            if name in slices
        ),
        "coordinates of the descriptor are observed under the same names",
    )
    _require(venv, (venv.elapsed == 0).all(), "the clock is zero after a reset")
    _require(
        venv, np.array_equal(infos["descriptor"], venv.descriptor()), "infos hold the descriptor"
    )


def _check_steps(venv: BatchedEnv) -> None:
    flags = (venv.num_envs,)
    for action in _actions(venv):
        clock = venv.elapsed.copy()
        obs, reward, terminated, truncated, infos = venv.step(action)
        _check_observation(venv, obs, infos)
        _require(
            venv,
            isinstance(reward, np.ndarray) and np.issubdtype(reward.dtype, np.floating),
            "rewards are an array of floats",
        )
        _require(venv, reward.shape == flags and np.isfinite(reward).all(), "rewards are finite")
        _require(
            venv,
            isinstance(terminated, np.ndarray)
            and isinstance(truncated, np.ndarray)
            and terminated.dtype == truncated.dtype == bool
            and terminated.shape == truncated.shape == flags,
            "terminated and truncated are separate booleans",
        )
        done = terminated | truncated
        counted = np.where(done & venv.autoreset, 0, clock + 1)
        _require(venv, (venv.elapsed == counted).all(), "the clock counts steps")
        _require(
            venv,
            all(isinstance(infos.get(name), np.ndarray) for name in INFOS),
            f"infos hold the arrays {' and '.join(INFOS)}",
        )
        final = infos["final_obs_array"]
        _require(
            venv,
            final.dtype == np.float32 and final.shape == obs.shape and np.isfinite(final).all(),
            "final observations are finite float32, as observations are",
        )
        _require(
            venv,
            np.array_equal(infos["final_obs_array"][~done], obs[~done]),
            "where no episode ends, the final observation is the observation",
        )


def _check_actions(venv: BatchedEnv) -> None:
    """Actions stay as they were given, and beyond [-1, 1] they are clipped."""
    action = 3 * _actions(venv, 1)[0]
    found = []
    for given in (action.copy(), action.clip(-1, 1), action.copy()):
        kept = given.copy()
        venv.reset(seed=1)
        found.append(_rollout(venv, given[None]))
        _require(venv, np.array_equal(given, kept), "the caller's actions are left as they are")
    _require(venv, _equal(found[0], found[1]), "actions beyond [-1, 1] are clipped")
    action[-1, -1] = np.nan
    try:
        venv.step(action)
    except EnvContractError:
        return
    finally:
        venv.reset(seed=1)
    _require(venv, False, "an action that is not finite is refused")


def _check_copies(venv: BatchedEnv) -> None:
    """What was returned belongs to the caller: neither later steps nor the caller spoil it."""
    start, infos = venv.reset(seed=2)
    held = [start, infos["descriptor"]]
    kept = [array.copy() for array in held]
    held += _rollout(venv, _actions(venv, 2))
    kept += [array.copy() for array in held[2:]]
    _rollout(venv, _actions(venv, 3)[2:])
    _require(venv, _equal(held, kept), "what a step has returned is not written to by the next")
    runs = []
    for spoil in (False, True):
        obs, infos = venv.reset(seed=2)
        if spoil:
            obs[:], infos["descriptor"][:] = 7, 7
        runs.append(_rollout(venv, _actions(venv, 2)))
    _require(venv, _equal(*runs), "writing to what was returned does not change the environment")


def _check_seeding(venv: BatchedEnv) -> None:
    runs = []
    for seed in (3, 3, 4):
        start, _ = venv.reset(seed=seed)
        runs.append([start, *_rollout(venv, _actions(venv))])
    _require(venv, _equal(runs[0], runs[1]), "one seed gives one rollout")
    _require(venv, not np.array_equal(runs[0][0], runs[2][0]), "another seed gives another start")
    _require(
        venv,
        np.array_equal(runs[0][0][1:], runs[2][0][:-1]),
        "environment i draws from the seed plus i",
    )


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


def _check_set_state(venv: BatchedEnv) -> None:
    """`get_state` and `set_state`, of all environments and of one."""
    venv.reset(seed=5)
    before = _rollout(venv, _actions(venv, 3))[-WIDTH]
    state = venv.get_state()
    first = _rollout(venv, _actions(venv, 1))[1:]  # the observation may be that of a new episode
    seen = venv.set_state(state)
    _require(
        venv,
        np.array_equal(venv.get_state(), state)
        and np.array_equal(seen, before)
        and _equal(first, _rollout(venv, _actions(venv, 1))[1:]),
        "set_state goes back to what get_state gave",
    )
    other = venv.get_state()
    venv.set_state(state[:1], np.array([0]))
    _require(
        venv,
        np.array_equal(venv.get_state(), np.concatenate([state[:1], other[1:]])),
        "set_state changes the environments it is given",
    )
    venv.reset(seed=9, options={"state": state})
    again = venv.get_state()
    clock = (venv.elapsed == 0).all()
    venv.set_state(state)
    venv.elapsed[:] = 0
    _require(
        venv,
        clock and np.array_equal(again, venv.get_state()),
        "a reset with a state begins there, with the clock at zero",
    )


def _check_mask(venv: BatchedEnv) -> None:
    venv.reset(seed=6)
    seen = _rollout(venv, _actions(venv, 3))[-WIDTH]
    before, old, mask = venv.get_state(), _timeless(venv), np.zeros(venv.num_envs, dtype=bool)
    mask[0] = True
    obs, _ = venv.reset(seed=11, options={"mask": mask})
    _require(
        venv,
        venv.elapsed[0] == 0
        and not np.array_equal(_timeless(venv)[0], old[0])
        and np.array_equal(venv.get_state()[1:], before[1:])
        and np.array_equal(obs[1:], seen[1:]),
        "a reset with a mask begins anew those in the mask, and no other",
    )


def _check_active(venv: BatchedEnv) -> None:
    obs, _ = venv.reset(seed=7)
    before, old, active = venv.get_state(), _timeless(venv), np.zeros(venv.num_envs, dtype=bool)
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
    _require(venv, not np.array_equal(_timeless(venv)[0], old[0]), "active environments advance")


def _check_time_limit(venv: BatchedEnv) -> None:
    """The last step of an episode, reached by setting the clock forward."""
    if not venv.max_steps:
        return
    venv.reset(seed=8)
    anew = np.zeros(venv.num_envs, dtype=bool)
    for t, action in enumerate(_actions(venv)):
        venv.elapsed[:] = venv.max_steps - 1
        obs, _, terminated, truncated, infos = venv.step(action)
        _require(venv, truncated.all(), "the time limit truncates")
        # later ones may succeed by chance
        _require(venv, t or not terminated.any(), "the time limit does not terminate")
        if not venv.autoreset:
            return
        final = infos["final_obs_array"]
        _require(
            venv,
            {"final_obs", "_final_obs"} <= infos.keys()
            and infos["_final_obs"].all()
            and np.array_equal(np.stack(infos["final_obs"]), final),
            "the last observation of an episode is in the infos",
        )
        _require(venv, (venv.elapsed == 0).all(), "an episode that ends begins anew")
        anew |= (obs != final).any(axis=1)  # in a finite world a start may look like an end
    _require(venv, anew.all(), "an episode that ends begins anew in the same step")
