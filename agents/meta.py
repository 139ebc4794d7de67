"""stable-baselines3 algorithms that choose skills: how they are built, trained, saved and loaded.

`make_model` builds PPO, SAC, DQN or MaskablePPO with the exact discounts of `etude.agents.smdp`.
`train` counts, stops and logs in environment steps, which SB3 by itself does in decisions.
`save_policy` writes safetensors and JSON; SB3's own zip holds pickles, which break across versions
and run code when read.
"""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeAlias

import numpy as np
from gymnasium import spaces
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger as SB3Logger
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv

from etude import checkpoint
from etude.agents.meta_config import (
    MASKABLE,
    ON_POLICY,
    MetaConfig,
    check_choices,
    gradient_steps,
    rollout_shape,
    settings,
)
from etude.agents.meta_state import Keeper, Saver, fill
from etude.agents.smdp import (
    DurationCallback,
    EnvStepsCallback,
    EnvStepsWriter,
    EveryStepReplayBuffer,
    SMDPReplayBuffer,
    SMDPRolloutBuffer,
    maskable_rollout_buffer,
)
from etude.config import replace
from etude.errors import CheckpointError
from etude.logger import Logger

ALGORITHMS: dict[str, type[BaseAlgorithm]] = {"ppo": PPO, "sac": SAC, "dqn": DQN}
Policy: TypeAlias = BasePolicy  # so that nobody else needs to import SB3
Callbacks: TypeAlias = Sequence[BaseCallback]
FORMAT = 2
WINDOW = 100  # recent episodes that a success rate is the mean of (SB3's stats_window_size)


def algorithm(algo: str) -> type[BaseAlgorithm]:
    """The class of an algorithm; MaskablePPO's is in sb3-contrib, which may be missing."""
    if algo != MASKABLE:
        return ALGORITHMS[algo]
    maskable_rollout_buffer()  # says what is missing
    from sb3_contrib import MaskablePPO

    return MaskablePPO


def make_model(
    algo: str,
    venv: VecEnv,
    *,
    gamma: float,
    k: int,
    seed: int | None = None,
    hyper: MetaConfig | None = None,
    every_step: bool = False,
) -> BaseAlgorithm:
    """An untrained algorithm over a vector of SMDP environments.

    Args:
        algo: "ppo", "sac" (continuous actions), "dqn" or "maskable-ppo" (discrete actions).
        venv: environments that report `info["skill"]`, such as `SkillVecEnv`.
        gamma: discount per environment step.
        k: the most environment steps a decision may hold.
        seed: of networks, environments and actions.
        hyper: values that differ from the algorithm's preset.
        every_step: learn from every step of a decision, which `venv` must report; sac and dqn.

    Raises:
        UsageError: the algorithm cannot choose such skills or learn so, or is not installed.
    """
    chosen = settings(algo, k, hyper)
    check_choices(algo, venv.action_space, every_step)
    common: dict[str, Any] = {
        "learning_rate": chosen.learning_rate,
        "gamma": gamma**k,  # exact for whole decisions; the buffers know of shorter ones
        "seed": seed,
        "device": "cpu",  # nets this small are slower on a GPU
        "policy_kwargs": {"net_arch": list(chosen.hidden or ())},
    }
    build = _ppo if algo in ON_POLICY else _off_policy
    own = build(algo, chosen, venv.num_envs)
    if every_step:
        own["replay_buffer_class"] = EveryStepReplayBuffer
    return algorithm(algo)("MlpPolicy", venv, **common, **own)


def _ppo(algo: str, chosen: MetaConfig, num_envs: int) -> dict[str, Any]:
    masked = algo == MASKABLE
    n_steps, batch_size = rollout_shape(chosen, num_envs)
    return {
        "n_steps": n_steps,
        "batch_size": batch_size,
        "n_epochs": chosen.epochs,
        "gae_lambda": chosen.gae_lambda,
        "ent_coef": chosen.ent_coef,
        "rollout_buffer_class": maskable_rollout_buffer() if masked else SMDPRolloutBuffer,
    }


def _off_policy(algo: str, chosen: MetaConfig, num_envs: int) -> dict[str, Any]:
    shared: dict[str, Any] = {
        "batch_size": chosen.batch_size,
        "learning_starts": chosen.learning_starts,
        "buffer_size": chosen.buffer_size,
        "train_freq": 1,  # one decision in every environment, then its updates
        "gradient_steps": gradient_steps(chosen, num_envs),
        "replay_buffer_class": SMDPReplayBuffer,
    }
    if algo == "sac":
        return {**shared, "tau": chosen.tau, "ent_coef": f"auto_{chosen.ent_coef}"}
    assert chosen.target_period is not None
    return {
        **shared,
        "target_update_interval": max(chosen.target_period, num_envs),
        "exploration_fraction": chosen.exploration,
        "exploration_final_eps": chosen.exploration_final,
    }


@dataclass(frozen=True)
class Point:
    """One point of a learning curve, over the latest `WINDOW` episodes."""

    env_steps: int
    success: float | None
    """share of episodes with success; None where no task reports any"""
    episode_return: float
    """mean undiscounted return"""


@dataclass(frozen=True)
class Stats:
    """What a training run did."""

    env_steps: int
    decisions: int
    episodes: int
    seconds: float
    first_success: int | None
    """environment steps until the first success; None: there was none"""
    curve: tuple[Point, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data that `from_json` reads."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The stats that `to_json` wrote."""
        return cls(**{**data, "curve": tuple(Point(**point) for point in data["curve"])})


Progress = Callable[[int, Mapping[str, float]], None]
"""Called with the environment steps done and the latest `meta/*` numbers."""


def train(
    model: BaseAlgorithm,
    env_steps: int,
    *,
    log: Logger | None = None,
    progress: Progress | None = None,
    callbacks: Callbacks = (),
    points: int = 100,
    keeper: Keeper | None = None,
) -> Stats:
    """Train for a budget of environment steps; the curve gets about `points` points.

    With a `keeper` the run is saved, stopped and continued as that says. What `callbacks` remember
    is not saved.

    Raises:
        CheckpointError: the keeper's checkpoint is of a model of other sizes.
        Stopped: the keeper said so; the run is saved.
    """
    counter = EnvStepsCallback(env_steps)
    recorder = _Recorder(counter, max(1, env_steps // points), progress)
    savers = [Saver(keeper, {"counter": counter, "recorder": recorder})] if keeper else []
    model.set_logger(SB3Logger(None, []))
    goes_on = any(saver.restore(model) for saver in savers)
    if log:
        model.logger.output_formats.append(EnvStepsWriter(log, counter))
    durations = [DurationCallback()] if isinstance(model, OnPolicyAlgorithm) else []
    if isinstance(model, DQN):
        _explore_by_env_steps(model, counter, env_steps)
    # A decision is at least one step, so the budget in steps also bounds the decisions; the
    # counter ends the run. Logs are dumped by the recorder, in even intervals of steps.
    model.learn(
        env_steps - model.num_timesteps if goes_on else env_steps,
        callback=[*savers, *durations, counter, recorder, *callbacks],
        log_interval=None,  # type: ignore[arg-type]  # SB3's loops take it, its signatures do not
        reset_num_timesteps=not goes_on,
    )
    return Stats(
        env_steps=counter.env_steps,
        decisions=model.num_timesteps,
        episodes=recorder.episodes,
        seconds=recorder.seconds,
        first_success=recorder.first_success,
        curve=tuple(recorder.curve),
    )


def _explore_by_env_steps(model: DQN, counter: EnvStepsCallback, budget: int) -> None:
    """Let epsilon fall over environment steps: the number of decisions is not known beforehand."""
    falling = LinearSchedule(1.0, model.exploration_final_eps, model.exploration_fraction)
    model.exploration_schedule = lambda _: falling(max(0.0, 1 - counter.env_steps / budget))


class _Recorder(BaseCallback):
    """Keeps the learning curve and makes SB3 write its logs every `interval` environment steps."""

    def __init__(self, counter: EnvStepsCallback, interval: int, progress: Progress | None) -> None:
        super().__init__()
        self._counter, self._interval, self._progress = counter, interval, progress
        self._next, self._dumped = interval, 0
        self._returns: deque[float] = deque(maxlen=WINDOW)
        self._successes: deque[bool] = deque(maxlen=WINDOW)
        self._lengths: deque[int] = deque(maxlen=WINDOW)  # steps of the latest decisions
        self._start = time.monotonic()
        self.episodes = 0
        self.first_success: int | None = None
        self.curve: list[Point] = []

    @property
    def seconds(self) -> float:
        """Time since the run began, without what lay between its parts."""
        return time.monotonic() - self._start

    def state_dict(self) -> dict[str, Any]:
        """What the rest of the curve depends on."""
        return {
            "next": self._next,
            "dumped": self._dumped,
            "windows": [list(w) for w in (self._returns, self._successes, self._lengths)],
            "seconds": self.seconds,
            "episodes": self.episodes,
            "first_success": self.first_success,
            "curve": [dataclasses.asdict(point) for point in self.curve],
        }

    def load_state_dict(self, tree: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`."""
        self._next, self._dumped = tree["next"], tree["dumped"]
        self._returns, self._successes, self._lengths = (
            deque(window, maxlen=WINDOW) for window in tree["windows"]
        )
        self._start = time.monotonic() - tree["seconds"]
        self.episodes, self.first_success = tree["episodes"], tree["first_success"]
        self.curve = [Point(**point) for point in tree["curve"]]

    def _on_step(self) -> bool:
        infos = self.locals["infos"]
        if self.locals["dones"].any():
            for info in infos:
                if "episode" in info:
                    self._end_episode(info)
        self._lengths.append(infos[0]["skill"]["duration"])
        if self._counter.env_steps >= self._next:
            self._next = self._counter.env_steps + self._interval
            self.point()
        return True

    def _on_training_end(self) -> None:
        if self._dumped < self._counter.env_steps:
            self.point()

    def _end_episode(self, info: Mapping[str, Any]) -> None:
        self.episodes += 1
        self._returns.append(info["episode"]["r"])
        if "is_success" in info:
            self._successes.append(bool(info["is_success"]))
            if info["is_success"] and self.first_success is None:
                self.first_success = self._counter.env_steps

    def point(self) -> None:
        """Write the logs, and add a point to the curve once an episode has ended."""
        steps = self._dumped = self._counter.env_steps
        latest = {
            "meta/decision_steps": float(np.mean(self._lengths)),
            "meta/decisions": float(self.num_timesteps),
            "meta/episodes": float(self.episodes),
        }
        if self._returns:
            success = float(np.mean(self._successes)) if self._successes else None
            self.curve.append(Point(steps, success, float(np.mean(self._returns))))
            latest["meta/episode_return"] = self.curve[-1].episode_return
            if success is not None:
                latest["meta/success_rate"] = success
        for key, value in latest.items():
            self.logger.record(key, value)
        self.model.dump_logs()
        if self._progress:
            self._progress(steps, latest)


def save_policy(policy: Policy, folder: Path, about: Mapping[str, Any]) -> Path:
    """Write a policy's weights and what is needed to rebuild it into `folder/policy`.

    `about` is a tree of the caller's own (see `etude.checkpoint`). Optimiser and replay are not
    kept: a policy that is read back acts, or starts training anew (`load_model`).
    """
    observation, action = policy.observation_space, policy.action_space
    discrete = isinstance(action, spaces.Discrete)
    pair = action.nvec.tolist() if isinstance(action, spaces.MultiDiscrete) else []
    algo = next((n for n in ALGORITHMS if type(policy) is _policy_class(n)), MASKABLE)
    tree = {
        "format": FORMAT if pair or algo == MASKABLE else 1,  # 1 is all that the others need
        "algo": algo,
        "pair": pair,
        "observation_dim": spaces.flatdim(observation),
        "discrete": discrete,
        "action_dim": spaces.flatdim(action),
        "hidden": [int(width) for width in policy.net_arch],  # type: ignore[union-attr]
        "policy": policy.state_dict(),
        "about": dict(about),
    }
    return checkpoint.save(folder, "policy", tree)


def load_policy(folder: Path) -> tuple[Policy, dict[str, Any]]:
    """The policy that `save_policy` wrote, ready to act, and the `about` tree beside it.

    Raises:
        CheckpointError: missing, damaged, or of a newer format.
    """
    tree = _read(folder)
    observation = spaces.Box(-np.inf, np.inf, (tree["observation_dim"],), np.float32)
    size = tree["action_dim"]
    action: spaces.Space[Any]
    if tree.get("pair"):
        action = spaces.MultiDiscrete(tree["pair"])
    elif tree["discrete"]:
        action = spaces.Discrete(size)
    else:
        action = spaces.Box(-1, 1, (size,), np.float32)
    build: Any = _policy_class(tree["algo"])
    policy: Policy = build(observation, action, lambda _: 0.0, net_arch=tree["hidden"])
    fill(policy, tree["policy"], str(folder))
    policy.set_training_mode(False)
    return policy, tree["about"]


def load_model(
    folder: Path,
    venv: VecEnv,
    *,
    gamma: float,
    k: int,
    seed: int | None = None,
    hyper: MetaConfig | None = None,
) -> BaseAlgorithm:
    """A model for `venv` that starts from the weights in `folder`; arguments as `make_model`.

    Raises:
        CheckpointError: missing, damaged, of a newer format, or made for other spaces.
    """
    tree = _read(folder)
    hyper = replace(hyper or MetaConfig(), {"hidden": tuple(tree["hidden"])})
    model = make_model(tree["algo"], venv, gamma=gamma, k=k, seed=seed, hyper=hyper)
    fill(model.policy, tree["policy"], str(folder))
    return model


def _policy_class(algo: str) -> type[Policy]:
    return algorithm(algo).policy_aliases["MlpPolicy"]


def _read(folder: Path) -> dict[str, Any]:
    tree = checkpoint.load(folder / "policy")
    if tree["format"] > FORMAT:
        raise CheckpointError(
            f"{folder} has controller format {tree['format']}, this version reads up to {FORMAT}: "
            f"upgrade etude-rl."
        )
    return tree
