"""Acting in many environments at once with skills that may plan several steps ahead.

Shapes: N environments, n of them, O body observation, C command (such as a skill z), A action.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from etude.skills.discovery import Discovery


class Planner(Protocol):
    """Anything that turns commands into actions: a library, a run's skills, or nothing at all."""

    @property
    def period(self) -> int:
        """Steps that one plan is good for; 1 for what looks at every observation."""

    def plan(self, obs: np.ndarray, command: np.ndarray) -> np.ndarray:
        """The next actions (n, period, A) of commands (n, C) at raw observations (n, O)."""


class Acting:
    """The actions of N environments whose commands began together, asked for step by step."""

    def __init__(self, planner: Planner) -> None:
        self._planner = planner
        self._plan = np.zeros(0)

    def __call__(
        self, step: int, obs: np.ndarray, command: np.ndarray, active: np.ndarray
    ) -> np.ndarray:
        """Actions (N, A) of a step since the commands began; zero where not `active` (N,).

        Args:
            step: counted from 0, without gaps, or 0 again for new commands.
            obs: raw body observations (N, O); looked at only when a plan is used up.
            command: (N, C).
            active: which environments go on; none that has stopped begins again.
        """
        at = step % self._planner.period
        if active.all():
            if at == 0:
                self._plan = self._planner.plan(obs, command)
            return self._plan[:, at]
        if at == 0:
            part = self._planner.plan(obs[active], command[active])
            self._plan = np.zeros((len(active), *part.shape[1:]), part.dtype)
            self._plan[active] = part
        return np.where(active[:, None], self._plan[:, at], np.float32(0))


class Snapshot:
    """The skills of a run as they are now: deterministic actions from raw observations."""

    def __init__(self, discovery: Discovery) -> None:
        self.space = discovery.space
        self.spec = discovery.env_spec
        self._discovery = discovery

    @property
    def period(self) -> int:
        """Steps that the skills plan ahead."""
        return self._discovery.period

    def plan(self, obs: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Actions (N, period, A) of skills (N, Z) in raw observations (N, O)."""
        return self._discovery.plan(obs, z, deterministic=True)
