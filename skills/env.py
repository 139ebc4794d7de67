"""SkillEnv: an environment whose actions are skills.

    env = SkillEnv(gymnasium.make("etude/AntMultiGoal-v0"), "ant-metra", k=25)
    observation, info = env.reset(seed=0)
    observation, reward, terminated, truncated, info = env.step(env.action_space.sample())

One step is one *decision*: the skill is held for k environment steps, or until it is over by the
library's `termination` predicate (`etude.skills.predicates`), or until the episode ends. With tau
steps made, a semi-Markov decision process (Sutton, Precup, Singh 1999) has

    reward  R = sum_{i < tau} gamma^i r_i      and bootstraps with      gamma^tau (1 - terminated),

where gamma is the discount of one environment step. `info["skill"]["discount"]` is gamma^tau; an
algorithm that knows only one discount is exact with gamma^k = `decision_gamma`, but for the last
decision of an episode that was cut off. Paying the plain sum under one gamma per decision, as
published hierarchies do, is another objective: `reward="sum", smdp="per_decision"`. The time to
hold may also be random or chosen (`etude.skills.durations`); then gamma^tau varies, and only an
algorithm with the buffers of `etude.agents.smdp` is exact.

Put `TimeLimit` and `Monitor` below, statistics of observations (VecNormalize) above.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from gymnasium.wrappers import TimeLimit

import etude.envs  # noqa: F401  registers our names with Gymnasium, in worker processes too
from etude.errors import LibraryError, UsageError, unknown
from etude.skills.durations import Duration, generator
from etude.skills.field_maps import Env, FieldMap, action_differences
from etude.skills.library import SkillLibrary
from etude.skills.predicates import Conditions
from etude.skills.spaces import Discrete

Reward = Literal["discounted", "sum", "mean", "last"]
Smdp = Literal["exact", "per_decision"]
ReadBody = Callable[[Any, dict[str, Any], Any], Any]
MASKS = "action_masks"  # the method that MaskablePPO asks
NO_HER = (
    "HerReplayBuffer does not know how long a decision lasted, so the rewards and discounts that "
    "it makes up for other goals would be wrong: use SMDPReplayBuffer."
)


class SkillEnv(gymnasium.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Holds a library's skill for k steps per action.

    Observations and the last step's info pass through unchanged; added to info:
    `skill` = {z, duration (steps), discount, reward (undiscounted sum), ended_by ("k", "skill",
    "terminated" or "truncated")}, and `is_success` where the environment reports `success`.
    With `every_step` observations and `skill` have what `SkillVecEnv` describes.
    """

    def __init__(
        self,
        env: Env,
        library: str | Path | SkillLibrary,
        k: int | Duration = 25,
        gamma: float = 0.99,
        reward: Reward = "discounted",
        smdp: Smdp = "exact",
        field_map: ReadBody | None = None,
        fallback: int | None = None,
        every_step: bool = False,
    ) -> None:
        """Wrap an environment.

        Args:
            env: the environment, with its time limit.
            library: a library, or where `SkillLibrary.load` finds it; give a path when the
                wrapper goes to other processes, so that each loads its own.
            k: environment steps per decision, at least 1; a `Duration` makes them random or part
                of the action.
            gamma: discount of one environment step, in (0, 1].
            reward: what a decision is paid: "discounted" (exact), "sum", "mean" or "last".
            smdp: `info["skill"]["discount"]`: "exact" gamma^tau, or gamma "per_decision".
            field_map: (obs, info, unwrapped) -> raw body observation, for an environment that
                does not name its fields; nothing but the action is then checked.
            fallback: id of the skill that is held in place of one that may not begin; None: that
                is an error.
            every_step: report the transition of every step, for `EveryStepReplayBuffer`.

        Raises:
            LibraryError: the library cannot be read, or does not fit the environment.
            UsageError: a setting is out of range.
        """
        given: dict[str, Any] = {"k": k, "gamma": gamma, "reward": reward, "smdp": smdp}
        given |= {"library": library, "fallback": fallback, "field_map": field_map}
        RecordConstructorArgs.__init__(self, every_step=every_step, _disable_deepcopy=True, **given)
        gymnasium.Wrapper.__init__(self, env)
        _check_settings(gamma, reward, smdp, every_step, env)
        loaded = library if isinstance(library, SkillLibrary) else SkillLibrary.load(library)
        self.hold = k if isinstance(k, Duration) else Duration(k)
        self.library, self.k, self.gamma = loaded, self.hold.k, float(gamma)
        self.reward_mode, self.smdp, self.every_step = reward, smdp, every_step
        self.read_body: ReadBody = field_map or FieldMap.for_env(env, loaded)
        if lines := action_differences(env, loaded):
            raise LibraryError(f"library {loaded.name} cannot act here:{''.join(lines)}")
        self.action_space = self.hold.action_space(loaded.space.action_space())
        self.observation_space = _longer(env.observation_space, every_step)
        self._conditions, self._rng = Conditions.of(loaded, fallback), generator(None)
        self._seen: tuple[Any, dict[str, Any]] | None = None
        _warn_without_time_limit(env)

    @property
    def decision_gamma(self) -> float:
        """Discount of a whole decision, gamma^k, for an algorithm on top."""
        return float(self.gamma**self.k)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""
        if seed is not None:
            self._rng = generator(seed)
        obs, info = self.env.reset(seed=seed, options=options)
        self._seen = obs, info
        return self._shown(obs), info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Hold the skill that `action` stands for until the decision or the episode ends.

        Raises:
            UsageError: the action stands for no skill, or for one that may not begin here.
        """
        (obs, info), rewards, ended_by = self._last(), [], "k"
        z, steps = self._choose(action)
        skill, path = self.library.policy(z), []
        terminated = truncated = False
        for i in range(steps):
            path.append(self._shown(obs, i))
            obs, reward, terminated, truncated, info = self.env.step(skill.act(self._body()))
            self._seen = obs, info
            rewards.append(float(reward))
            if terminated or truncated:
                ended_by = "terminated" if terminated else "truncated"
                break
            if self._conditions and self._conditions.over(self._body()[None], z[None])[0]:
                ended_by = "skill"
                break
        self._seen = None if terminated or truncated else (obs, info)
        info = dict(info)
        if "success" in info:
            info.setdefault("is_success", bool(info["success"]))
        info["skill"] = {
            "z": z,
            "duration": len(rewards),
            "discount": self.gamma ** (len(rewards) if self.smdp == "exact" else 1),
            "reward": sum(rewards),
            "ended_by": ended_by,
        }
        if self.every_step:
            info["skill"]["within"] = self._within(path, rewards)
        shown = self._shown(obs)
        return shown, self._payment(rewards), bool(terminated), bool(truncated), info

    def action_masks(self) -> np.ndarray:
        """What may be chosen now, (M,), for MaskablePPO; discrete skills only.

        Raises:
            UsageError: the skills are not discrete, or none may begin here.
        """
        if not isinstance(self.library.space, Discrete):
            raise UsageError(f"{self.library.space} has no masks: take PPO or SAC.")
        masks = np.ones((1, self.library.space.n), bool)
        if self._conditions:
            masks = self._conditions.masks(self._body()[None])
        return np.asarray(self.hold.masks(masks)[0])

    def compute_reward(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: hindsight goals (HER) do not know of decisions of several steps."""
        raise UsageError(NO_HER)

    def _last(self) -> tuple[Any, dict[str, Any]]:
        if self._seen is None:
            raise gymnasium.error.ResetNeeded("call reset() before step(), and after an episode.")
        return self._seen

    def _body(self) -> np.ndarray:
        """The raw body observation (O,), as the library takes it."""
        obs, info = self._last()
        return np.asarray(self.read_body(obs, info, self.unwrapped))

    def _choose(self, action: Any) -> tuple[np.ndarray, int]:
        """The skill (Z,) that begins and the most steps for which it is held."""
        choice, chosen = self.hold.split(np.asarray(action))
        z = self.library.space.check(self.library.space.from_action(choice))
        if self._conditions:
            z = self._conditions.begin(self._body()[None], z[None])[0]
        if chosen is not None:
            return z, int(chosen)
        drawn = self.hold.mode == "random"
        return z, int(self.hold.draw([self._rng])[0]) if drawn else self.k

    def _shown(self, obs: Any, held: int = 0) -> Any:
        """An observation as the controller gets it, `held` steps into a decision."""
        if not self.every_step:
            return obs
        space = self.observation_space
        return np.append(obs, held / self.hold.longest).astype(space.dtype)

    def _within(self, path: list[Any], rewards: list[float]) -> dict[str, np.ndarray]:
        """The transitions from each step of a decision to its end; see `SkillVecEnv`."""
        exact, left, tau = self.smdp == "exact", [0.0], len(rewards)
        for reward in reversed(rewards):
            left.append(reward + (self.gamma if exact else 1.0) * left[-1])
        after = self.gamma ** (np.arange(tau, 0, -1) if exact else np.ones(tau))
        return {"obs": np.stack(path), "reward": np.array(left[:0:-1]), "discount": after}

    def _payment(self, rewards: list[float]) -> float:
        """The reward of a decision, in the convention that was asked for."""
        match self.reward_mode:
            case "discounted":
                return sum(self.gamma**i * r for i, r in enumerate(rewards))
            case "sum":
                return sum(rewards)
            case "mean":
                return sum(rewards) / len(rewards)
            case "last":
                return rewards[-1]


def _check_settings(gamma: float, reward: str, smdp: str, every_step: bool, env: Env) -> None:
    if not 0 < gamma <= 1:
        raise UsageError(f"gamma = {gamma!r} per environment step: choose a number in (0, 1].")
    if reward not in get_args(Reward):
        raise unknown("reward of a decision", str(reward), get_args(Reward))
    if smdp not in get_args(Smdp):
        raise unknown("smdp mode", str(smdp), get_args(Smdp))
    if every_step and reward != ("discounted" if smdp == "exact" else "sum"):
        raise UsageError(
            f'every_step with reward="{reward}" and smdp="{smdp}" has no meaning: take '
            '"discounted" with "exact", or "sum" with "per_decision".'
        )
    if every_step and not (
        isinstance(env.observation_space, spaces.Box) and len(env.observation_space.shape) == 1
    ):
        raise UsageError(
            f"every_step needs observations that are vectors, not {env.observation_space}: "
            "flatten them with gymnasium.wrappers.FlattenObservation."
        )


def _longer(space: spaces.Space[Any], every_step: bool) -> spaces.Space[Any]:
    """The space, with `every_step` longer by the share of a decision that is over, in [0, 1]."""
    if not every_step:
        return space
    assert isinstance(space, spaces.Box)
    low, high = np.append(space.low, 0), np.append(space.high, 1)
    return spaces.Box(low.astype(space.dtype), high.astype(space.dtype), dtype=space.dtype.type)


def _warn_without_time_limit(env: Env) -> None:
    layer: Env = env
    while isinstance(layer, gymnasium.Wrapper):
        if isinstance(layer, TimeLimit):
            return
        layer = layer.env
    warnings.warn(
        "no TimeLimit below SkillEnv: episodes may never be cut off. Wrap the environment in "
        "gymnasium.wrappers.TimeLimit before SkillEnv, so that it counts environment steps.",
        stacklevel=3,
    )
