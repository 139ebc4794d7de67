"""Skills as actions, for many environments at once: a stable-baselines3 `VecEnv`.

Every decision holds one command per environment for up to k steps; an environment whose episode
ends earlier waits for the others, so nothing crosses a reset and every environment makes one
decision per call. What lies between command and action is a `LowLevel`: the skills of a library, or
nothing at all (`PrimitiveLevel`: the flat baseline for k = 1, action repeat for k > 1). A decision
also ends where its skill says so in the library (`etude.skills.predicates`), and may hold for a
random or a chosen time instead of k steps (`etude.skills.durations`).

A decision of tau steps earns R = sum_{i < tau} gamma^i r_i and is followed by gamma^tau V(s'), see
`etude.agents.smdp`. `smdp="per_decision"` is what most published hierarchies do instead: rewards
are summed as they are and discounted once per decision, so its values cannot be compared with
those of a flat agent.

Shapes: N environments, n of them, O observation, C command, A action, M choices to mask.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np
from gymnasium import Wrapper, spaces
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices

from etude import checkpoint
from etude.agents.finite import check_observations, check_rewards
from etude.envs.engine import BatchedEnv
from etude.envs.spec import EnvSpec
from etude.errors import UsageError
from etude.skills.acting import Acting, Planner
from etude.skills.controllers.base import Scaling
from etude.skills.decision import ENDED_BY, TRUNCATED, Decision
from etude.skills.durations import Duration, generator
from etude.skills.env import MASKS, NO_HER
from etude.skills.field_maps import FieldMap
from etude.skills.library import SkillLibrary
from etude.skills.predicates import Conditions
from etude.skills.spaces import Discrete

Discounting = Literal["exact", "per_decision"]


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
    fallback: int | None = None
    """id of the skill that is held in place of one that may not begin; None: that is an error"""

    @classmethod
    def for_spec(
        cls, library: SkillLibrary, spec: EnvSpec, fallback: int | None = None
    ) -> LibraryLevel:
        """The library's skills in an environment, which is compared with theirs.

        Raises:
            LibraryError: it is not what the skills were made for; lists the differences.
        """
        return cls(library, FieldMap.for_spec(spec.to_json(), library).columns, fallback)

    @cached_property
    def conditions(self) -> Conditions | None:
        """When the skills may begin and when they end by themselves; None: any time, and never."""
        return Conditions.of(self.library, self.fallback)

    def seen(self, obs: np.ndarray) -> np.ndarray:
        """Body observations (N, O) as the library takes them."""
        return obs if self.columns is None else obs[:, self.columns]

    def masks(self, obs: np.ndarray) -> np.ndarray:
        """Which of the n discrete skills may begin at body observations (N, O): (N, n)."""
        if self.conditions:
            return self.conditions.masks(self.seen(obs))
        return np.ones((len(obs), self.library.space.dim), bool)

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
        return self.library.plan(self.seen(obs), command)


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

    With `every_step` an observation has one more entry, the steps a decision has lasted as a share
    of the longest one (0 where a skill is chosen), and `skill` has `within` = {obs, reward,
    discount}, the transition from each of its steps to its end, for `EveryStepReplayBuffer`.
    """

    def __init__(
        self,
        venv: BatchedEnv,
        policy: LowLevel,
        k: int | Duration,
        gamma: float,
        *,
        smdp: Discounting = "exact",
        normalise: bool = True,
        every_step: bool = False,
    ) -> None:
        self.hold = hold = k if isinstance(k, Duration) else Duration(k)
        if not 0 < gamma <= 1:
            raise UsageError(f"k = {k} and gamma = {gamma}: choose k >= 1 and gamma in (0, 1].")
        self.venv, self.policy, self.k, self.every_step = venv, policy, hold.longest, every_step
        self._library = policy if isinstance(policy, LibraryLevel) else None
        self._conditions = self._library.conditions if self._library else None
        spec = venv.env_spec
        self.scaling = Scaling.of(spec) if normalise else Scaling.identity(spec.obs_dim)
        self.env_steps = 0
        """Steps that environments have taken, waiting not counted."""
        powers = gamma ** np.arange(self.k + 1)
        exact = smdp == "exact"
        self._gamma = gamma if exact else 1.0  # of rewards within a decision
        self._weights = powers if exact else np.ones(self.k + 1)  # of the reward at step i
        self._discounts = powers if exact else np.full(self.k + 1, gamma)  # after tau steps
        self._body, self._fields = spec.body_dim, spec.slices()
        self._start = time.time()
        super().__init__(
            venv.num_envs,
            spaces.Box(-np.inf, np.inf, (spec.obs_dim + every_step,), np.float32),
            hold.action_space(policy.action_space),
        )
        self._obs = np.zeros((self.num_envs, spec.obs_dim), np.float32)  # raw
        self._returns = np.zeros(self.num_envs)
        self._lengths = np.zeros(self.num_envs, np.int64)
        self._choice, self._acting = np.zeros(0), Acting(policy)
        self._generators = [generator(None) for _ in range(self.num_envs)]

    def reset(self) -> np.ndarray:
        """Begin an episode in every environment; returns scaled observations (N, O)."""
        for i, seed in enumerate(self._seeds):
            if seed is not None:
                self._generators[i] = generator(seed)
        self._obs, _ = self.venv.reset(seed=self._seeds)
        self._reset_seeds()
        self._reset_options()
        self._returns[:] = 0
        self._lengths[:] = 0
        return self._shown(self._obs)

    def step_async(self, actions: np.ndarray) -> None:
        """Take the controller's choices; `step_wait` runs them."""
        self._choice = actions

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Hold the commands for up to k steps.

        Raises:
            NotFiniteError: a reward or an observation is NaN or infinite; names the environment
                and the step of its episode.
            UsageError: a skill was chosen where it may not begin, and there is no fallback.
        """
        command, steps = self._begin()
        made, conditions = Decision(self._obs, steps), self._conditions
        for i in range(self.k):
            before, active = self._obs, made.active
            action = self._acting(i, self._obs[:, : self._body], command, active)
            self._obs, reward, terminated, truncated, infos = self.venv.step(
                action, None if active.all() else active
            )
            check_rewards(reward, self._lengths + i)
            check_observations(infos["final_obs_array"], self._lengths + i, self._fields)
            if self.every_step:
                made.path.append((self._shown(before, i / self.k), reward))
            made.add(self._weights[i], reward, terminated, truncated, infos)
            if conditions:
                made.stop(conditions.over(self._seen(), command))
            if not made.active.any():
                break
        self.env_steps += int(made.duration.sum())
        self._returns += made.earned
        self._lengths += made.duration
        reports = self._reports(command, made)
        if made.done.any():
            self._end_episodes(reports, made)
        return self._shown(self._obs), made.value.astype(np.float32), made.done, reports

    def _begin(self) -> tuple[np.ndarray, np.ndarray | None]:
        """The commands (N, C) that were chosen, and for how many steps (N,); None: k."""
        choice, steps = self.hold.split(self._choice)
        if self.hold.mode == "random":
            steps = self.hold.draw(self._generators)
        command = self.policy.command(choice)
        if self._conditions:
            command = self._conditions.begin(self._seen(), command)
        return command, steps

    def _seen(self) -> np.ndarray:
        """Body observations as the library's predicates take them."""
        assert self._library is not None
        return self._library.seen(self._obs[:, : self._body])

    def _shown(self, obs: np.ndarray, held: float = 0.0) -> np.ndarray:
        """Raw observations (n, O) as the controller gets them, at a share `held` of a decision."""
        scaled = self.scaling(obs)
        if not self.every_step:
            return scaled
        return np.hstack([scaled, np.full((len(obs), 1), held, np.float32)])

    def action_masks(self) -> np.ndarray:
        """What may be chosen now, (N, M), for MaskablePPO; discrete skills only."""
        assert self._library is not None
        return self.hold.masks(self._library.masks(self._obs[:, : self._body]))

    def _reports(self, command: np.ndarray, made: Decision) -> list[dict[str, Any]]:
        discount = self._discounts[made.duration]
        columns = (x.tolist() for x in (made.duration, discount, made.earned, made.end))
        reports: list[dict[str, Any]] = [
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
        if self.every_step:
            within = made.within(self._gamma, self._discounts)
            for report, steps in zip(reports, within, strict=True):
                report["skill"]["within"] = steps
        return reports

    def _end_episodes(self, reports: list[dict[str, Any]], made: Decision) -> None:
        scaled, seconds = self._shown(made.final), time.time() - self._start
        for i in np.flatnonzero(made.done):
            length, total = int(self._lengths[i]), float(self._returns[i])
            reports[i]["episode"] = {"r": total, "l": length, "t": round(seconds, 6)}
            reports[i]["terminal_observation"] = scaled[i]
            reports[i]["TimeLimit.truncated"] = bool(made.end[i] == TRUNCATED)
            if made.success is not None:
                reports[i]["is_success"] = bool(made.success[i])
            self._returns[i] = self._lengths[i] = 0

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs to go on exactly between two decisions, in live arrays."""
        tree = {
            "env": self.venv.state_dict(),
            "obs": self._obs,
            "returns": self._returns,
            "lengths": self._lengths,
            "env_steps": self.env_steps,
        }
        if self.hold.mode == "random":
            tree["durations"] = [checkpoint.generator_state(rng) for rng in self._generators]
        return tree

    def load_state_dict(self, tree: Mapping[str, Any]) -> None:
        """Continue from `state_dict()` of as many environments of the same task."""
        self.venv.load_state_dict(tree["env"])
        self._obs, self._returns, self._lengths = (
            np.array(tree[name]) for name in ("obs", "returns", "lengths")
        )
        self.env_steps = int(tree["env_steps"])
        if self.hold.mode == "random":
            for rng, state in zip(self._generators, tree["durations"], strict=True):
                checkpoint.set_generator_state(rng, state)
        self._reset_seeds()  # a seed that waits for the next reset is of another run

    def close(self) -> None:
        """Free the simulator."""
        self.venv.close()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """One value of the batched environment, repeated for every environment asked for."""
        discrete = self._library and isinstance(self._library.library.space, Discrete)
        masked = attr_name == MASKS and discrete  # how MaskablePPO asks whether there are any
        value = self.action_masks if masked else getattr(self.venv, attr_name)
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
        """`action_masks`; all else is refused: the environments are rows of one simulator."""
        if method_name == MASKS:
            return [*self.action_masks()[list(self._get_indices(indices))]]
        if method_name == "compute_reward":
            raise UsageError(NO_HER)
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
