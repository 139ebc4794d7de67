"""Exact discounting of decisions that last several steps, for stable-baselines3.

A decision taken in s holds for tau environment steps. It earns R = sum_{i < tau} gamma^i r_i, and
what follows is worth gamma^tau V(s') (Sutton, Precup and Singh 1999, "Between MDPs and semi-MDPs").
SB3 knows one gamma per decision, which is wrong whenever an episode ends inside a decision. Here
every decision carries its own discount, reported by the environment as
`info["skill"] = {"duration": tau, "discount": gamma^tau}`:

- SAC, TD3 and DQN multiply the bootstrap by a batch's `discounts` if there are any (SB3 >= 2.7,
  made for n-step returns), as do TQC, QR-DQN and CrossQ of sb3-contrib; `SMDPReplayBuffer` fills
  them in, and `EveryStepReplayBuffer` learns from every step of a decision.
- PPO and A2C read a rollout buffer; `SMDPRolloutBuffer` estimates advantages with one discount per
  decision, handed over by `DurationCallback` (SB3 calls callbacks just before it fills the buffer).
  For MaskablePPO of sb3-contrib, `maskable_rollout_buffer` does the same with masks.

Shapes: T decisions of a rollout, N environments, B batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer, RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

from etude.checkpoint import Rows
from etude.errors import CheckpointError, UsageError
from etude.logger import Logger

Infos = Iterable[Mapping[str, Any]]
COLUMNS = (  # of a replay buffer, (T, N, ...) each
    *("observations", "next_observations", "actions", "rewards", "dones", "timeouts", "discounts"),
)
NUMBERS = (int, float, np.integer, np.floating)  # what a log can show
PIECE = 2**10  # decisions read from a checkpoint at a time


class SMDPReplayBuffer(ReplayBuffer):
    """A replay buffer that keeps gamma^tau of every decision; for SAC, TD3, DQN."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.optimize_memory_usage:
            raise UsageError(
                "SMDPReplayBuffer keeps both observations: drop optimize_memory_usage."
            )
        self.discounts = np.zeros_like(self.rewards)  # (T, N)
        self.total = 0
        """Decisions of each environment that were ever added."""

    def add(
        self,
        obs: np.ndarray,
        next_obs: np.ndarray,
        action: np.ndarray,
        reward: np.ndarray,
        done: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        """Store one decision of every environment."""
        self.discounts[self.pos] = skill_entries(infos, "discount")
        super().add(obs, next_obs, action, reward, done, infos)
        self.total += 1

    def state_dict(self) -> dict[str, Any]:
        """The decisions that are still there, as logs of rows of the live arrays."""
        begin = max(0, self.total - self.buffer_size)
        rows = {name: Rows(begin, self.total, self._reader(name)) for name in COLUMNS}
        return {"size": self.buffer_size, "total": self.total, "rows": rows}

    def load_state_dict(self, tree: Mapping[str, Any]) -> None:
        """Continue from `state_dict()` of a buffer of the same sizes.

        Raises:
            CheckpointError: it kept another number of decisions.
        """
        if tree["size"] != self.buffer_size:
            raise CheckpointError(
                f"the saved replay keeps {tree['size']} decisions of each environment, this one "
                f"{self.buffer_size}: resume with the settings of the run."
            )
        for name in COLUMNS:
            for first, rows in tree["rows"][name].pieces(PIECE):
                getattr(self, name)[np.arange(first, first + len(rows)) % self.buffer_size] = rows
        self.total = int(tree["total"])
        self.pos, self.full = self.total % self.buffer_size, self.total >= self.buffer_size

    def _reader(self, name: str) -> Callable[[int, int], np.ndarray]:
        def read(begin: int, end: int) -> np.ndarray:
            column: np.ndarray = getattr(self, name)
            return column[np.arange(begin, end) % self.buffer_size]

        return read

    def _get_samples(
        self, batch_inds: np.ndarray, env: VecNormalize | None = None
    ) -> ReplayBufferSamples:
        # SB3 seeds torch's generator with the model's seed, so runs repeat.
        at = batch_inds, torch.randint(self.n_envs, (len(batch_inds),)).numpy()
        ends = self.dones[at] * (1 - self.timeouts[at])
        rewards = self._normalize_reward(self.rewards[at], env)
        columns = (ends[:, None], rewards[:, None], self.discounts[at][:, None])  # (B, 1) each
        rows = (
            self._normalize_obs(self.observations[at], env),
            self.actions[at],
            self._normalize_obs(self.next_observations[at], env),
        )
        return ReplayBufferSamples(*(self.to_torch(np.asarray(x)) for x in (*rows, *columns)))


class EveryStepReplayBuffer(SMDPReplayBuffer):
    """A replay buffer with a transition from every step of a decision to its end.

    What the skill earns from step j on is as good a sample as what it earns from the first, so a
    decision of tau steps gives tau transitions with discounts gamma^(tau - j) (HSD-3: Gehring et
    al. 2021, "Hierarchical Skills for Efficient Exploration", arXiv:2110.10809). The observation
    holds how far the decision has got; the policy is only asked at its beginning.

    The environment must be made with `every_step`; `buffer_size` counts transitions of all.

    Deviation: SB3 improves the policy at all observations of a batch, so also where it is not
    asked; HSD-3 does at the beginnings only.
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        device: torch.device | str = "auto",
        n_envs: int = 1,
        **kwargs: Any,
    ) -> None:
        # Decisions differ in their number of steps, so all environments share one column.
        super().__init__(buffer_size, observation_space, action_space, device, 1, **kwargs)

    def add(
        self,
        obs: np.ndarray,
        next_obs: np.ndarray,
        action: np.ndarray,
        reward: np.ndarray,
        done: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        """Store all steps of one decision of every environment."""
        within = skill_entries(infos, "within")
        steps = [len(path["reward"]) for path in within]
        at = (self.total + np.arange(sum(steps))) % self.buffer_size
        width = self.actions.shape[-1]
        cut = np.array([info.get("TimeLimit.truncated", False) for info in infos])
        for column, name in (
            (self.observations, "obs"),
            (self.rewards, "reward"),
            (self.discounts, "discount"),
        ):
            column[at, 0] = np.concatenate([path[name] for path in within])
        for column, rows in (
            (self.next_observations, next_obs),
            (self.actions, np.asarray(action).reshape(-1, width)),
            (self.dones, done),
            (self.timeouts, cut if self.handle_timeout_termination else np.zeros_like(cut)),
        ):
            column[at, 0] = np.repeat(rows, steps, axis=0)
        self.total += sum(steps)
        self.pos, self.full = self.total % self.buffer_size, self.total >= self.buffer_size


class SMDPRolloutBuffer(RolloutBuffer):
    """A rollout buffer whose advantages use gamma^tau of every decision; for PPO and A2C.

    It needs a `DurationCallback` in `learn`.
    """

    discounts: np.ndarray  # (T, N)

    def reset(self) -> None:
        """Forget the rollout."""
        super().reset()
        self.discounts = np.zeros_like(self.rewards)
        self._announced: tuple[np.ndarray, np.ndarray] | None = None

    def announce(self, rewards: np.ndarray, discounts: np.ndarray) -> None:
        """Take the rewards and discounts (N,) of the decisions that `add` is about to bring."""
        self._announced = rewards.copy(), discounts

    def add(
        self,
        obs: np.ndarray,
        action: np.ndarray,
        reward: np.ndarray,
        episode_start: np.ndarray,
        value: torch.Tensor,
        log_prob: torch.Tensor,
        **masks: Any,
    ) -> None:
        """Store one decision of every environment, with its masks where there are any."""
        if self._announced is None:
            raise UsageError(
                "SMDPRolloutBuffer knows no durations: pass DurationCallback() to learn."
            )
        earned, discounts = self._announced
        self._announced = None
        self.discounts[self.pos] = discounts
        # Where a time limit cut the episode, SB3 has added gamma V(final observation) with the
        # model's one gamma; the decision was cut too, so it is its own discount that counts.
        reward = earned + (reward - earned) * (discounts / self.gamma)
        super().add(obs, action, reward, episode_start, value, log_prob, **masks)

    def compute_returns_and_advantage(self, last_values: torch.Tensor, dones: np.ndarray) -> None:
        """GAE (Schulman et al. 2016) with delta_t = R_t + gamma^tau_t V_{t+1} - V_t."""
        going_on = 1 - np.vstack([self.episode_starts[1:], dones])  # (T, N)
        next_values = np.vstack([self.values[1:], last_values.flatten().numpy(force=True)])
        carried = self.discounts * going_on
        deltas = self.rewards + carried * next_values - self.values
        advantage = np.zeros(self.n_envs, dtype=np.float32)
        for t in reversed(range(self.buffer_size)):
            advantage = deltas[t] + self.gae_lambda * carried[t] * advantage
            self.advantages[t] = advantage
        self.returns = self.advantages + self.values


@cache
def maskable_rollout_buffer() -> type[SMDPRolloutBuffer]:
    """The `SMDPRolloutBuffer` of sb3-contrib's MaskablePPO.

    Raises:
        UsageError: sb3-contrib is not installed; it is an extra.
    """
    try:
        from sb3_contrib.common.maskable.buffers import MaskableRolloutBuffer
    except ModuleNotFoundError as missing:
        raise UsageError(
            "MaskablePPO is part of sb3-contrib, which is not installed: "
            "pip install 'etude-rl[contrib]'."
        ) from missing

    class MaskableSMDPRolloutBuffer(SMDPRolloutBuffer, MaskableRolloutBuffer):  # type: ignore[misc]
        """Discounts and masks of every decision."""

    return MaskableSMDPRolloutBuffer


class DurationCallback(BaseCallback):
    """Tells an `SMDPRolloutBuffer` rewards and discounts of the decisions that come next."""

    def _init_callback(self) -> None:
        buffer = getattr(self.model, "rollout_buffer", None)
        if not isinstance(buffer, SMDPRolloutBuffer):
            raise UsageError(
                f"DurationCallback needs a rollout buffer of class SMDPRolloutBuffer, but "
                f"{type(self.model).__name__} has {type(buffer).__name__}: "
                f"build it with rollout_buffer_class=SMDPRolloutBuffer."
            )
        self._buffer = buffer

    def _on_step(self) -> bool:
        discounts = skill_entries(self.locals["infos"], "discount").astype(np.float32)
        self._buffer.announce(self.locals["rewards"], discounts)
        return True


class EnvStepsCallback(BaseCallback):
    """Counts environment steps, logs them as `time/env_steps`, and stops at a budget of them.

    SB3's own counters (`num_timesteps`, `total_timesteps`) count decisions.
    """

    def __init__(self, budget: int | None = None) -> None:
        super().__init__()
        self.budget = budget
        self.env_steps = 0

    def _on_step(self) -> bool:
        self.env_steps += int(skill_entries(self.locals["infos"], "duration").sum())
        self.logger.record("time/env_steps", self.env_steps)
        return self.budget is None or self.env_steps < self.budget

    def state_dict(self) -> dict[str, Any]:
        """The count."""
        return {"env_steps": self.env_steps}

    def load_state_dict(self, tree: Mapping[str, Any]) -> None:
        """Go on counting from `state_dict()`."""
        self.env_steps = int(tree["env_steps"])


class EnvStepsWriter(KVWriter):
    """Sends what SB3 records to our log, over environment steps instead of decisions."""

    def __init__(self, log: Logger, counter: EnvStepsCallback) -> None:
        self._log, self._counter = log, counter
        self._start, self._from = time.monotonic(), counter.env_steps

    def write(
        self,
        key_values: dict[str, Any],
        key_excluded: dict[str, tuple[str, ...]],
        step: int = 0,
    ) -> None:
        """Log the scalars; `step`, SB3's count of decisions, is replaced."""
        steps = self._counter.env_steps
        values = {
            key: float(value)
            for key, value in key_values.items()
            if "tensorboard" not in key_excluded[key] and isinstance(value, NUMBERS)
        }
        if "time/fps" in values:  # SB3's counts decisions
            seconds = max(time.monotonic() - self._start, 1e-9)
            values["time/fps"] = (steps - self._from) / seconds
        self._log.scalars(steps, values)

    def close(self) -> None:
        """The log belongs to whoever made it."""


def skill_entries(infos: Infos, key: str) -> np.ndarray:
    """`info["skill"][key]` of every environment, (N,)."""
    try:
        return np.array([info["skill"][key] for info in infos])
    except KeyError as missing:
        how = " with every_step=True" if key == "within" else ""
        raise UsageError(
            f"the environment reports no {missing} in its info: wrap it in SkillEnv or "
            f"SkillVecEnv{how}."
        ) from None
