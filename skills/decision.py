"""What happens in N environments between two choices of a controller.

Shapes: N environments, n of them, O observation; tau <= k steps of a decision.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

RUNNING, TERMINATED, TRUNCATED, OVER = range(4)
ENDED_BY = ("k", "terminated", "truncated", "skill")


class Decision:
    """The records of one decision in every environment, filled step by step."""

    def __init__(self, obs: np.ndarray, steps: np.ndarray | None) -> None:
        n = len(obs)
        self.steps = steps
        """steps to hold (N,); None: all k"""
        self.active, self.end = np.ones(n, bool), np.full(n, RUNNING)
        self.value, self.earned, self.duration = np.zeros(n), np.zeros(n), np.zeros(n, np.int64)
        self.final = np.zeros_like(obs)
        self.success: np.ndarray | None = None
        self.path: list[tuple[np.ndarray, np.ndarray]] = []
        """scaled observation before and reward of every step, if they are kept"""

    @property
    def done(self) -> np.ndarray:
        """Which episodes are over, (N,)."""
        return np.isin(self.end, (TERMINATED, TRUNCATED))

    def add(
        self,
        weight: float,
        reward: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
        infos: Mapping[str, Any],
    ) -> None:
        """Count a step of the active environments."""
        self.earned += reward
        self.value += weight * reward
        self.duration += self.active
        done = terminated | truncated
        if done.any():
            self.end[done] = np.where(terminated[done], TERMINATED, TRUNCATED)
            self.final[done] = infos["final_obs_array"][done]
            if "is_success" in infos:
                success = np.zeros(len(done), bool) if self.success is None else self.success
                success[done] = infos["is_success"][done]
                self.success = success
            self.active &= ~done
        if self.steps is not None:
            self.active &= self.duration < self.steps

    def stop(self, over: np.ndarray) -> None:
        """End it where the skill is over (N,)."""
        over = over & self.active
        self.end[over] = OVER
        self.active &= ~over

    def within(self, gamma: float, after: np.ndarray) -> list[dict[str, np.ndarray]]:
        """For every environment the SMDP transitions that begin at each of its steps.

        Step j of tau has the reward R_j = r_j + gamma R_{j+1} to the end of the decision, and as
        its discount `after` (k + 1,) of the tau - j steps that are left.
        """
        left = np.zeros((len(self.path) + 1, len(self.duration)))  # (tau + 1, N)
        for j in range(len(self.path) - 1, -1, -1):
            left[j] = self.path[j][1] + gamma * left[j + 1]
        obs = np.stack([obs for obs, _ in self.path])
        return [
            {"obs": obs[:tau, i], "reward": left[:tau, i], "discount": after[tau:0:-1]}
            for i, tau in enumerate(self.duration)
        ]
