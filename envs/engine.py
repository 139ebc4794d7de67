"""Many environments that step together on native threads: Gymnasium's `VectorEnv` over MuJoCo.

`mujoco.batch.Batch` keeps each simulation as one row of integrator state (solver warm start
included) and steps the rows on a thread pool with the GIL released; results do not depend on the
number of threads and are bit-identical to one `MjData` per simulation. Everything around it is
batched NumPy; Python loops over environments only where one ends and another begins.

Shapes: N environments, O observation, A action, D descriptor, S state row.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import mujoco
import numpy as np
from gymnasium.spaces import Box
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from mujoco.batch import Batch

from etude.checkpoint import generator_state, set_generator_state
from etude.envs.body import Body, Task, View
from etude.envs.rendering import Painter
from etude.envs.spec import EnvSpec
from etude.errors import EnvContractError, UsageError, unknown

THREADS_VARIABLE = "ETUDE_THREADS"
EVERY = slice(None)
NO_STAGE = int(mujoco.mjtStage.mjSTAGE_NONE)
# MuJoCo resets a simulation on its own when qpos, qvel or qacc is NaN or beyond 1e10
DIVERGED = slice(int(mujoco.mjtWarning.mjWARN_BADQPOS), int(mujoco.mjtWarning.mjWARN_BADQACC) + 1)

Rows = slice | np.ndarray
"""The environments that take part in a call: EVERY, or their sorted indices."""

logger = logging.getLogger("etude")


class BatchedEnv(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """A body, and perhaps a task on it, in N copies with same-step autoreset.

    An episode that ends is begun anew within the same `step`. What the last step of it looked like
    stands in the infos: `final_obs_array` (N, O) is the observation after the step *before* any
    reset, for every environment, which is what a replay stores as next observation; `descriptor`
    (N, D) belongs to it; `final_obs` with its mask `_final_obs` is Gymnasium's form of the same and
    is there when an episode has ended. Tasks with a success add `is_success` (N,).
    """

    def __init__(
        self,
        body: Body,
        task: Task | None = None,
        num_envs: int = 1,
        *,
        seed: int | None = None,
        threads: int = 0,
        max_steps: int | None = None,
        autoreset: bool = True,
        persistent: bool | None = None,
    ) -> None:
        """Build the simulations; call `reset` before `step`.

        Args:
            body: the mechanism.
            task: goals and reward on that body, or None for the body's own reward.
            num_envs: N.
            seed: environment i draws from `np_random(seed + i)`, as in Gymnasium; None: entropy.
            threads: 0 takes the ETUDE_THREADS variable, else every core this process may use; never
                more than N.
            max_steps: steps after which an episode is truncated; None: the spec's; 0: never.
            autoreset: False leaves ended episodes as they are, for a single environment.
            persistent: keep one `MjData` per simulation: more memory, faster for some bodies; None:
                as the body says.

        Raises:
            UsageError: a number is out of its range.
        """
        _at_least("num_envs", num_envs, 1)
        _at_least("max_steps", max_steps or 0, 0)
        self.env_spec: EnvSpec = (task or body).spec
        self.num_envs = num_envs
        self.max_steps = self.env_spec.max_steps if max_steps is None else max_steps
        self.autoreset = autoreset
        self.metadata = {
            "autoreset_mode": AutoresetMode.SAME_STEP if autoreset else AutoresetMode.DISABLED,
            "render_modes": ["rgb_array"],
            "render_fps": round(1 / self.env_spec.dt),
        }
        shape = (self.env_spec.obs_dim,)
        self.single_observation_space = Box(-np.inf, np.inf, shape, np.float32)
        self.single_action_space = Box(-1.0, 1.0, (self.env_spec.action_dim,), np.float32)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.rngs = [
            seeding.np_random(None if seed is None else seed + i)[0] for i in range(num_envs)
        ]
        self._body, self._task, self._body_dim = body, task, self.env_spec.body_dim
        self._allocate(_threads(threads, num_envs), persistent)

    def _allocate(self, threads: int, persistent: bool | None) -> None:
        n, body, spec = self.num_envs, self._body, self.env_spec
        if persistent is None:
            persistent = body.persistent_from is not None and n >= body.persistent_from
        model = body.model()
        if isinstance(model, mujoco.MjModel):
            self._batch = Batch(model, n, threads, persistent)
            self._painter = Painter(body.model(), body.camera)
        else:  # a world without physics brings what steps it and what draws it
            self._batch, self._painter = model.batch(n), model.painter()
        self._ctrl = self._batch.bind("ctrl")  # (N, nu)
        self._diverged = self._batch.warning[:, DIVERGED, 1]  # (N, 3) counts
        self._bound = {name: self._batch.bind(name) for name in body.outputs}
        # the simulator's own copy cannot be written, and set_state must be able to
        self._extra = {name: np.array(values) for name, values in self._bound.items()}
        self._view = View(self._batch.bind("qpos"), self._batch.bind("qvel"), self._extra)
        self._obs = np.zeros((n, spec.obs_dim), np.float32)
        self._task_state = np.zeros((n, self._task.state_dim if self._task else 0))
        self._success = np.zeros(n, dtype=bool)
        self.elapsed = np.zeros(n, dtype=np.int64)

    @property
    def threads(self) -> int:
        """Native threads that step the simulations."""
        return int(self._batch.nthread)

    # ---- the Gymnasium face

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin new episodes.

        Args:
            seed: an integer s gives environment i the generator of `s + i`, a list one seed each;
                None goes on with the generators as they are.
            options: `mask` (N,) bool (Gymnasium's `reset_mask` is the same) begins only those
                anew; `state` (N, S), rows of `get_state`, starts in their physics and task state
                with the clock at zero.

        Raises:
            UsageError: an option is unknown or has a wrong shape.
        """
        options = dict(options or {})
        everyone = np.ones(self.num_envs, dtype=bool)
        mask = self._mask(options.pop("mask", options.pop("reset_mask", everyone)))
        state = options.pop("state", None)
        if options:
            raise unknown("reset option", next(iter(options)), ("mask", "state"))
        ids = np.flatnonzero(mask)
        for i, own in enumerate(self._seeds(seed)):
            if own is not None and mask[i]:
                self.rngs[i] = seeding.np_random(own)[0]
        self._begin(ids)
        if state is not None:
            self.set_state(self._rows(state)[ids], ids)
            self.elapsed[ids] = 0
        return self._obs.copy(), self._infos()

    def step(
        self, actions: np.ndarray, active: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Advance every environment, or only the `active` (N,) ones, by one step.

        Actions are clipped to [-1, 1]. An environment that is not active keeps its observation and
        its clock, has reward 0 and no flag.

        Raises:
            EnvContractError: an action is not finite or the actions have a wrong shape.
        """
        rows = EVERY if active is None else np.flatnonzero(self._mask(active))
        action, before = self._clipped(actions, rows), self._view.rows(EVERY)
        self._advance(action, rows)
        truncated = self._put_back(before)
        terminated = np.zeros(self.num_envs, dtype=bool)
        reward = np.zeros(self.num_envs)
        view = self._view.only(rows)
        self._success[:] = False
        terminated[rows] = self._body.terminated(view)
        if self._task is None:
            reward[rows] = self._body.reward(before.only(rows), view, action)
        else:
            reward[rows], ended, self._success[rows] = self._step_task(view, rows)
            reward[rows] += self._task.dense(before.only(rows), view, action)
            terminated[rows] |= ended
        if self.max_steps:
            truncated[rows] |= self.elapsed[rows] >= self.max_steps
        self._observe(rows)
        infos = {**self._infos(), "final_obs_array": self._obs.copy()}
        done = terminated | truncated
        if self.autoreset and done.any():
            self._finish(done, infos)
        return self._obs.copy(), reward, terminated, truncated, infos

    def render(  # type: ignore[override]  # one picture on request, not a tuple of all
        self, i: int = 0, width: int = 480, height: int = 480
    ) -> np.ndarray:
        """A picture (height, width, 3) uint8 of environment `i`.

        Raises:
            UsageError: this process has no OpenGL platform to draw with.
        """
        marks = self._task.marks(self._task_state[i]) if self._task else []
        shown = self._batch.get_data(i), width, height
        return self._painter.draw(*shown, marks) if marks else self._painter.draw(*shown)

    def close_extras(self, **_: Any) -> None:
        """Free the renderer."""
        self._painter.close()

    # ---- what Gymnasium has no word for

    def descriptor(self) -> np.ndarray:
        """What coverage is measured in, (N, D), of the current states."""
        return np.array(self._body.descriptor(self._view))

    def get_state(self) -> np.ndarray:
        """Everything but the generators, (N, S): integrator, last outputs, clock, task."""
        parts = [self._batch.state, *(v.reshape(self.num_envs, -1) for v in self._extra.values())]
        return np.concatenate([*parts, self.elapsed[:, None], self._task_state], axis=1)

    def set_state(self, state: np.ndarray, ids: np.ndarray | None = None) -> np.ndarray:
        """Put all environments, or those in `ids`, into states (n, S); returns what all observe.

        A rollout from there equals, bit for bit, the one that `get_state` was taken from.

        Raises:
            UsageError: the states have a wrong shape.
        """
        rows = np.arange(self.num_envs) if ids is None else np.asarray(ids)
        state = self._rows(state, len(rows))
        widths = [self._batch.nstate, *(v[0].size for v in self._extra.values()), 1]
        physics, *extra, elapsed, task = np.split(state, np.cumsum(widths), axis=1)
        self._batch.state[rows] = physics
        for values, saved in zip(self._extra.values(), extra, strict=True):
            values[rows] = saved.reshape(len(rows), *values.shape[1:])
        self.elapsed[rows] = elapsed[:, 0]
        self._task_state[rows] = task
        self._observe(rows)
        return self._obs.copy()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs to go on exactly: the states and the generators."""
        generators = [generator_state(rng) for rng in self.rngs]
        return {"state": self.get_state(), "generators": generators}

    def load_state_dict(self, tree: Mapping[str, Any]) -> np.ndarray:
        """Continue from `state_dict`; returns the observations (N, O)."""
        for rng, state in zip(self.rngs, tree["generators"], strict=True):
            set_generator_state(rng, state)
        return self.set_state(tree["state"])

    # ---- one step, in pieces

    def _clipped(self, actions: np.ndarray, rows: Rows) -> np.ndarray:
        given = np.asarray(actions, dtype=np.float32)
        if given.shape != self.action_space.shape:
            wanted = f"not {self.action_space.shape}"
            raise EnvContractError(
                f"{self.env_spec.id}: actions have shape {given.shape}, {wanted}."
            )
        action: np.ndarray = given[rows]
        if not np.isfinite(action).all():
            env = int(np.arange(self.num_envs)[rows][~np.isfinite(action).all(axis=1)][0])
            raise EnvContractError(
                f"{self.env_spec.id}: the action of environment {env} at step "
                f"{int(self.elapsed[env])} of its episode is not finite: {given[env].tolist()}."
            )
        return action.clip(-1.0, 1.0)

    def _advance(self, action: np.ndarray, rows: Rows) -> None:
        self._ctrl[rows] = self._body.control(action)
        self._batch.step(None if isinstance(rows, slice) else rows, self._body.frame_skip)
        self._fetch(rows)
        self.elapsed[rows] += 1

    def _fetch(self, rows: Rows) -> None:
        """Take over the derived fields that the simulator has just written."""
        for name, values in self._extra.items():
            values[rows] = self._bound[name][rows]

    def _step_task(self, view: View, rows: Rows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        assert self._task is not None
        state = self._task_state[rows]
        rngs = self.rngs if isinstance(rows, slice) else [self.rngs[i] for i in rows]
        outcome = self._task.step(state, view, rngs)
        self._task_state[rows] = state
        return outcome

    def _put_back(self, before: View) -> np.ndarray:
        """Give diverged simulations the state before the step; their episodes are to be cut, (N,).

        What MuJoCo's own reset leaves behind must become neither observation nor reward.
        """
        diverged: np.ndarray = self._diverged.any(axis=1)
        if diverged.any():
            ids = np.flatnonzero(diverged)
            names = ", ".join(map(str, ids))
            logger.warning(
                "%s: environment %s diverged; its episode is truncated.", self.env_spec.id, names
            )
            self._restart(ids, before.qpos[ids], before.qvel[ids])
        return diverged

    def _observe(self, rows: Rows) -> None:
        view, split = self._view.only(rows), self._body_dim
        self._obs[rows, :split] = self._body.observe(view)
        if self._task is not None:
            self._obs[rows, split:] = self._task.observe(self._task_state[rows], view)

    def _infos(self) -> dict[str, Any]:
        infos: dict[str, Any] = {"descriptor": self.descriptor()}
        if self._task is not None and self._task.has_success:
            infos["is_success"] = self._success.copy()
        return infos

    def _finish(self, done: np.ndarray, infos: dict[str, Any]) -> None:
        """Begin anew where an episode has ended, and keep its last observation in the infos."""
        final = np.full(self.num_envs, None, dtype=object)
        for i in np.flatnonzero(done):
            final[i] = infos["final_obs_array"][i]
        infos["final_obs"], infos["_final_obs"] = final, done
        self._begin(np.flatnonzero(done))

    def _begin(self, ids: np.ndarray) -> None:
        """Start new episodes, each drawn from its environment's own generator."""
        starts = []
        for i in ids:
            qpos, qvel = self._body.reset(self.rngs[i])
            if self._task is not None:
                qpos, qvel, self._task_state[i] = self._task.reset(self.rngs[i], qpos, qvel)
            starts.append((qpos, qvel))
        qpos, qvel = (np.array(part) for part in zip(*starts, strict=True))
        self._restart(ids, qpos, qvel)
        self.elapsed[ids] = 0
        self._success[ids] = False
        self._observe(ids)

    def _restart(self, ids: np.ndarray, qpos: np.ndarray, qvel: np.ndarray) -> None:
        """Fresh simulations at the given positions and velocities."""
        self._batch.reset(ids, stage=NO_STAGE)
        self._view.qpos[ids] = qpos
        self._view.qvel[ids] = qvel
        self._batch.forward(ids)
        self._fetch(ids)

    # ---- checks of what a caller passes

    def _mask(self, mask: np.ndarray) -> np.ndarray:
        mask = np.asarray(mask)
        if mask.shape != (self.num_envs,) or mask.dtype != bool or not mask.any():
            raise UsageError(
                f"a mask must hold {self.num_envs} booleans, at least one of them True; "
                f"got {mask.dtype} of shape {mask.shape}."
            )
        return mask

    def _rows(self, state: np.ndarray, count: int | None = None) -> np.ndarray:
        width = self.get_state().shape[1]
        state, n = np.asarray(state, dtype=np.float64), self.num_envs if count is None else count
        if state.shape != (n, width):
            wanted = f"states must have shape {(n, width)}"
            raise UsageError(f"{self.env_spec.id}: {wanted}, got {state.shape}.")
        return state

    def _seeds(self, seed: int | Sequence[int | None] | None) -> Sequence[int | None]:
        if seed is None:
            return [None] * self.num_envs
        if isinstance(seed, (int, np.integer)):
            return [int(seed) + i for i in range(self.num_envs)]
        if len(seed) != self.num_envs:
            raise UsageError(f"{len(seed)} seeds for {self.num_envs} environments: give one each.")
        return seed


def _at_least(name: str, value: int, low: int) -> None:
    if value < low:
        raise UsageError(f"{name} is {value}: choose {low} or more.")


def _threads(asked: int, num_envs: int) -> int:
    """Threads for `num_envs` simulations: as asked, else by the environment variable, else all."""
    _at_least("threads", asked, 0)
    named = os.environ.get(THREADS_VARIABLE) or "0"
    if not named.isdigit():
        raise UsageError(f"{THREADS_VARIABLE} is {named!r}: set it to a whole number, 0 for all.")
    pinned = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if pinned else os.cpu_count() or 1
    return min(asked or int(named) or cores, num_envs)
