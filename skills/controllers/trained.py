"""A controller that has been trained: a policy network with the scaling it was trained under."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from etude.skills.controllers.base import Scaling


class Policy(Protocol):
    """The part of a stable-baselines3 policy or model that acting needs."""

    def predict(
        self, observation: np.ndarray, *, deterministic: bool = False
    ) -> tuple[np.ndarray, Any]:
        """Choices of N environments, and a recurrent state that is not used."""


class TrainedController:
    """Chooses commands with a trained policy.

    Args:
        policy: an SB3 policy; feed-forward.
        command: what a choice stands for, `LowLevel.command` of the level it was trained on.
        scaling: of the observations it was trained on.
        deterministic: take the likeliest choice instead of drawing one.
    """

    def __init__(
        self,
        policy: Policy,
        command: Callable[[np.ndarray], np.ndarray],
        scaling: Scaling,
        *,
        deterministic: bool = True,
    ) -> None:
        self._policy, self._command, self.scaling = policy, command, scaling
        self.deterministic = deterministic

    def reset(self, obs: np.ndarray) -> None:
        """Nothing is remembered between decisions."""

    def act(self, obs: np.ndarray) -> np.ndarray:
        """The commands (N, C): skills of a library, or primitive actions."""
        choice, _ = self._policy.predict(self.scaling(obs), deterministic=self.deterministic)
        return self._command(choice)
