"""Skills as actions, for many environments at once: a stable-baselines3 `VecEnv`.

Every decision holds one command per environment for up to k steps; an environment whose episode
ends earlier waits for the others, so nothing crosses a reset and every environment makes one
decision per call. What lies between command and action is a `LowLevel`: the skills of a library, or
nothing at all (`PrimitiveLevel`: the flat baseline for k = 1, action repeat for k > 1).

A decision of tau steps earns R = sum_{i < tau} gamma^i r_i and is followed by gamma^tau V(s'), see
`etude.agents.smdp`. `smdp="per_decision"` is what most published hierarchies do instead: rewards
are summed as they are and discounted once per decision, so its values cannot be compared with
those of a flat agent.

Shapes: N environments, n of them, O observation, C command, A action.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from gymnasium import Wrapper, spaces
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices

from etude.agents.finite import check_observations, check_rewards
from etude.envs.engine import BatchedEnv
from etude.envs.spec import EnvSpec
from etude.errors import UsageError
from etude.skills.acting import Acting, Planner
from etude.skills.controllers.base import Scaling
from etude.skills.field_maps import FieldMap
from etude.skills.library import SkillLibrary

Discounting = Literal["exact", "per_decision"]
RUNNING, TERMINATED, TRUNCATED = 0, 1, 2
ENDED_BY = ("k", "terminated", "truncated")


class LowLevel(Planner, Protocol):
    """Turns a command into the actions of every step for which it is held."""

    @property
    def action_space(self) -> spaces.Space[Any]:
        """What a controller chooses from."""

    def command(self, choice: np.ndarray) -> np.ndarray:
        """The commands (N, C) that a controller's choices stand for."""


@dataclass(frozen=True, eq=False)
class LibraryLevel:
    """Commands are skills of a library."""

    library: SkillLibrary
    columns: np.ndarray | None = None
    """Entries of the body observation in the library's order; None: they are in order."""

    @classmethod
    def for_spec(cls, library: SkillLibrary, spec: EnvSpec) -> LibraryLevel:
        """The library's skills in an environment, which is compared with theirs.

        Raises:
            LibraryError: it is not what the skills were made for; lists the differences.
        """
        return cls(library, FieldMap.for_spec(spec.to_json(), library).columns)

    @property
    def action_space(self) -> spaces.Space[Any]:
        """The action space of the library's skills."""
        return self.library.space.action_space()

    def command(self, choice: np.ndarray) -> np.ndarray:
        """Skills z."""
        return self.library.space.from_action(choice)

    @property
    def period(self) -> int:
        """Steps that the library's skills plan ahead."""
        return self.library.period

    def plan(self, obs: np.ndarray, command: np.ndarray) -> np.ndarray:
        """The library's deterministic actions."""
        seen = obs if self.columns is None else obs[:, self.columns]
        return self.library.plan(seen, command)


@dataclass(frozen=True)
class PrimitiveLevel:
    """Commands are the environment's own actions."""

    action_dim: int

    @property
    def action_space(self) -> spaces.Space[Any]:
        """Actions in [-1, 1]."""
        return spaces.Box(-1.0, 1.0, (self.action_dim,), np.float32)

    def command(self, choice: np.ndarray) -> np.ndarray:
        """The choice itself."""
        return choice

    @property
    def period(self) -> int:
        """A command is one action."""
        return 1

    def plan(self, obs: np.ndarray, command: np.ndarray) -> np.ndarray:
        """The command itself."""
        return command[:, None]


class SkillVecEnv(VecEnv):
    """N environments of a task whose actions are commands held for k steps.

    Observations are scaled by `scaling`, a fixed affine map (the low level sees raw ones). Infos
    hold `skill` = {z, duration, discount, reward, ended_by} for every decision, `reward` being the
    undiscounted sum, and at the end of an episode `episode` = {r, l, t} with its true return and
    length in steps, `is_success`, `terminal_observation` and `TimeLimit.truncated`.
    """

    def __init__(
        self,
        venv: BatchedEnv,
        policy: LowLevel,
        k: int,
        gamma: float,
        *,
        smdp: Discounting = "exact",
        normalise: bool = True,
    ) -> None:
        if k < 1 or not 0 < gamma <= 1:
            raise UsageError(f"k = {k} and gamma = {gamma}: choose k >= 1 and gamma in (0, 1].")
        self.venv, self.policy, self.k = venv, policy, k
        spec = venv.env_spec
        self.scaling = Scaling.of(spec) if normalise else Scaling.identity(spec.obs_dim)
        self.env_steps = 0
        """Steps that environments have taken, waiting not counted."""
        powers = gamma ** np.arange(k + 1)
        exact = smdp == "exact"
        self._weights = powers if exact else np.ones(k + 1)  # of the reward at step i
        self._discounts = powers if exact else np.full(k + 1, gamma)  # after tau steps
        self._body, self._fields = spec.body_dim, spec.slices()
        self._start = time.time()
        super().__init__(
            venv.num_envs,
            spaces.Box(-np.inf, np.inf, (spec.obs_dim,), np.float32),
            policy.action_space,
        )
        self._obs = np.zeros((self.num_envs, spec.obs_dim), np.float32)  # raw
        self._returns = np.zeros(self.num_envs)
        self._lengths = np.zeros(self.num_envs, np.int64)
        self._choice, self._acting = np.zeros(0), Acting(policy)

    def reset(self) -> np.ndarray:
        """Begin an episode in every environment; returns scaled observations (N, O)."""
        self._obs, _ = self.venv.reset(seed=self._seeds)
        self._reset_seeds()
        self._reset_options()
        self._returns[:] = 0
        self._lengths[:] = 0
        return self.scaling(self._obs)

    def step_async(self, actions: np.ndarray) -> None:
        """Take the controller's choices; `step_wait` runs them."""
        self._choice = actions

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Hold the commands for up to k steps.

        Raises:
            NotFiniteError: a reward or an observation is NaN or infinite; names the environment
                and the step of its episode.
        """
        command = self.policy.command(self._choice)
        n = self.num_envs
        active, end = np.ones(n, bool), np.full(n, RUNNING)
        value, earned, duration = np.zeros(n), np.zeros(n), np.zeros(n, np.int64)
        final, success = np.zeros_like(self._obs), None
        for i in range(self.k):
            action = self._acting(i, self._obs[:, : self._body], command, active)
            self._obs, reward, terminated, truncated, infos = self.venv.step(
                action, None if active.all() else active
            )
            check_rewards(reward, self._lengths + i)
            check_observations(infos["final_obs_array"], self._lengths + i, self._fields)
            earned += reward
            value += self._weights[i] * reward
            duration += active
            done = terminated | truncated
            if done.any():
                end[done] = np.where(terminated[done], TERMINATED, TRUNCATED)
                final[done] = infos["final_obs_array"][done]
                if "is_success" in infos:
                    success = np.zeros(n, bool) if success is None else success
                    success[done] = infos["is_success"][done]
                active &= ~done
                if not active.any():
                    break
        self.env_steps += int(duration.sum())
        self._returns += earned
        self._lengths += duration
        reports = self._reports(command, duration, earned, end)
        if end.any():
            self._end_episodes(reports, end, final, success)
        return self.scaling(self._obs), value.astype(np.float32), end != RUNNING, reports

    def _reports(
        self, command: np.ndarray, duration: np.ndarray, earned: np.ndarray, end: np.ndarray
    ) -> list[dict[str, Any]]:
        discount = self._discounts[duration]
        columns = (x.tolist() for x in (duration, discount, earned, end))
        return [
            {
                "skill": {
                    "z": z,
                    "duration": steps,
                    "discount": factor,
                    "reward": reward,
                    "ended_by": ENDED_BY[reason],
                }
            }
            for z, steps, factor, reward, reason in zip(command, *columns, strict=True)
        ]

    def _end_episodes(
        self,
        reports: list[dict[str, Any]],
        end: np.ndarray,
        final: np.ndarray,
        success: np.ndarray | None,
    ) -> None:
        scaled, seconds = self.scaling(final), time.time() - self._start
        for i in np.flatnonzero(end):
            length, total = int(self._lengths[i]), float(self._returns[i])
            reports[i]["episode"] = {"r": total, "l": length, "t": round(seconds, 6)}
            reports[i]["terminal_observation"] = scaled[i]
            reports[i]["TimeLimit.truncated"] = bool(end[i] == TRUNCATED)
            if success is not None:
                reports[i]["is_success"] = bool(success[i])
            self._returns[i] = self._lengths[i] = 0

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs to go on exactly between two decisions, in live arrays."""
        return {
            "env": self.venv.state_dict(),
            "obs": self._obs,
            "returns": self._returns,
            "lengths": self._lengths,
            "env_steps": self.env_steps,
        }

    def load_state_dict(self, tree: Mapping[str, Any]) -> None:
        """Continue from `state_dict()` of as many environments of the same task."""
        self.venv.load_state_dict(tree["env"])
        self._obs, self._returns, self._lengths = (
            np.array(tree[name]) for name in ("obs", "returns", "lengths")
        )
        self.env_steps = int(tree["env_steps"])
        self._reset_seeds()  # a seed that waits for the next reset is of another run

    def close(self) -> None:
        """Free the simulator."""
        self.venv.close()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """One value of the batched environment, repeated for every environment asked for."""
        value = getattr(self.venv, attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Refused: the environments are rows of one simulator."""
        raise UsageError(f"cannot set {attr_name} here: set it on `venv`, for all environments.")

    def env_method(
        self,
        method_name: str,
        *method_args: Any,
        indices: VecEnvIndices = None,
        **method_kwargs: Any,
    ) -> list[Any]:
        """Refused: the environments are rows of one simulator."""
        raise UsageError(
            f"cannot call {method_name} here: call it on `venv`, for all environments."
        )

    def env_is_wrapped(
        self, wrapper_class: type[Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        """Never; but `info["episode"]` reports what SB3's Monitor would."""
        return [False for _ in self._get_indices(indices)]

    def get_images(self) -> Sequence[np.ndarray | None]:
        """A picture of every environment."""
        return [self.venv.render(i) for i in range(self.num_envs)]
