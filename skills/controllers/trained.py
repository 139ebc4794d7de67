"""A controller that has been trained: a policy network with the scaling it was trained under.

Shapes: N environments, O observation, C command, M choices to mask.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from etude.skills.controllers.base import Scaling
from etude.skills.durations import Duration


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
        hold: durations it was trained with, where they are part of a choice.
        masks: for MaskablePPO, the masks (N, M) of raw observations (N, O).
        every_step: whether its observations had a share of the decision, which is 0 here.
    """

    def __init__(
        self,
        policy: Policy,
        command: Callable[[np.ndarray], np.ndarray],
        scaling: Scaling,
        *,
        deterministic: bool = True,
        hold: Duration | None = None,
        masks: Callable[[np.ndarray], np.ndarray] | None = None,
        every_step: bool = False,
    ) -> None:
        self._policy, self._command, self.scaling = policy, command, scaling
        self._hold, self._masks, self._every_step = hold, masks, every_step
        self.deterministic = deterministic
        self.steps: np.ndarray | None = None
        """For how many steps (N,) the latest commands are to be held; None: k."""

    def reset(self, obs: np.ndarray) -> None:
        """Nothing is remembered between decisions."""

    def act(self, obs: np.ndarray) -> np.ndarray:
        """The commands (N, C): skills of a library, or primitive actions."""
        seen = self.scaling(obs)
        if self._every_step:
            seen = np.hstack([seen, np.zeros((len(seen), 1), np.float32)])
        masks = {"action_masks": self._masks(obs)} if self._masks else {}
        predict: Any = self._policy.predict  # which takes masks if it was trained with them
        choice, _ = predict(seen, deterministic=self.deterministic, **masks)
        if self._hold:
            choice, self.steps = self._hold.split(choice)
        return self._command(choice)
