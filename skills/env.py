"""SkillEnv: an environment whose actions are skills.

    env = SkillEnv(gymnasium.make("etude/AntMultiGoal-v0"), "ant-metra", k=25)
    observation, info = env.reset(seed=0)
    observation, reward, terminated, truncated, info = env.step(env.action_space.sample())

One step is one *decision*: the skill is held for k environment steps, or until the episode ends.
With tau steps made, a semi-Markov decision process (Sutton, Precup, Singh 1999) has

    reward  R = sum_{i < tau} gamma^i r_i      and bootstraps with      gamma^tau (1 - terminated),

where gamma is the discount of one environment step. `info["skill"]["discount"]` is gamma^tau; an
algorithm that knows only one discount is exact with gamma^k = `decision_gamma`, but for the last
decision of an episode that was cut off. Paying the plain sum under one gamma per decision, as
published hierarchies do, is another objective: `reward="sum", smdp="per_decision"`.

Put `TimeLimit` and `Monitor` below, statistics of observations (VecNormalize) above.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import gymnasium
import numpy as np
from gymnasium.utils import RecordConstructorArgs
from gymnasium.wrappers import TimeLimit

import etude.envs  # noqa: F401  registers our names with Gymnasium, in worker processes too
from etude.errors import LibraryError, UsageError, unknown
from etude.skills.field_maps import Env, FieldMap, action_differences
from etude.skills.library import SkillLibrary

Reward = Literal["discounted", "sum", "mean", "last"]
Smdp = Literal["exact", "per_decision"]
ReadBody = Callable[[Any, dict[str, Any], Any], Any]


class SkillEnv(gymnasium.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Holds a library's skill for k steps per action.

    Observations and the last step's info pass through unchanged; added to info:
    `skill` = {z, duration (steps), discount, reward (undiscounted sum), ended_by ("k",
    "terminated" or "truncated")}, and `is_success` where the environment reports `success`.
    """

    def __init__(
        self,
        env: Env,
        library: str | Path | SkillLibrary,
        k: int = 25,
        gamma: float = 0.99,
        reward: Reward = "discounted",
        smdp: Smdp = "exact",
        field_map: ReadBody | None = None,
    ) -> None:
        """Wrap an environment.

        Args:
            env: the environment, with its time limit.
            library: a library, or where `SkillLibrary.load` finds it; give a path when the
                wrapper goes to other processes, so that each loads its own.
            k: environment steps per decision, at least 1.
            gamma: discount of one environment step, in (0, 1].
            reward: what a decision is paid: "discounted" (exact), "sum", "mean" or "last".
            smdp: `info["skill"]["discount"]`: "exact" gamma^tau, or gamma "per_decision".
            field_map: (obs, info, unwrapped) -> raw body observation, for an environment that
                does not name its fields; nothing but the action is then checked.

        Raises:
            LibraryError: the library cannot be read, or does not fit the environment.
            UsageError: a setting is out of range.
        """
        RecordConstructorArgs.__init__(
            self,
            library=library,
            k=k,
            gamma=gamma,
            reward=reward,
            smdp=smdp,
            field_map=field_map,
            _disable_deepcopy=True,
        )
        gymnasium.Wrapper.__init__(self, env)
        _check_settings(k, gamma, reward, smdp)
        loaded = library if isinstance(library, SkillLibrary) else SkillLibrary.load(library)
        self.library, self.k, self.gamma = loaded, int(k), float(gamma)
        self.reward_mode, self.smdp = reward, smdp
        self.read_body: ReadBody = field_map or FieldMap.for_env(env, loaded)
        if lines := action_differences(env, loaded):
            raise LibraryError(f"library {loaded.name} cannot act here:{''.join(lines)}")
        self.action_space = loaded.space.action_space()
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
        obs, info = self.env.reset(seed=seed, options=options)
        self._seen = obs, info
        return obs, info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Hold the skill that `action` stands for for k steps, or until the episode ends.

        Raises:
            UsageError: the action stands for no skill.
        """
        if self._seen is None:
            raise gymnasium.error.ResetNeeded("call reset() before step(), and after an episode.")
        z = self.library.space.check(self.library.space.from_action(action))
        (obs, info), rewards, ended_by = self._seen, [], "k"
        skill = self.library.policy(z)
        terminated = truncated = False
        for _ in range(self.k):
            body = self.read_body(obs, info, self.unwrapped)
            obs, reward, terminated, truncated, info = self.env.step(skill.act(body))
            rewards.append(float(reward))
            if terminated or truncated:
                ended_by = "terminated" if terminated else "truncated"
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
        return obs, self._payment(rewards), bool(terminated), bool(truncated), info

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


def _check_settings(k: int, gamma: float, reward: str, smdp: str) -> None:
    if not (isinstance(k, int | np.integer) and k >= 1):
        raise UsageError(f"k = {k!r} steps per decision: choose a whole number >= 1.")
    if not 0 < gamma <= 1:
        raise UsageError(f"gamma = {gamma!r} per environment step: choose a number in (0, 1].")
    if reward not in get_args(Reward):
        raise unknown("reward of a decision", str(reward), get_args(Reward))
    if smdp not in get_args(Smdp):
        raise unknown("smdp mode", str(smdp), get_args(Smdp))


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
