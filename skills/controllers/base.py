"""What a controller is: something that looks at a task and names the skills to use next.

A controller sees raw observations, task fields included, of N environments at once, and is asked
again whenever a skill has been held for its k steps.

Shapes: N environments, O observation, Z skill.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from etude.envs.spec import EnvSpec
from etude.errors import UsageError

GOAL = "goal"  # the task field that holds a place, in descriptor coordinates
REACH = ("goal_reach", "goal_spread")  # constants of a task that say how far goals lie, m


class Controller(Protocol):
    """A policy over skills."""

    def reset(self, obs: np.ndarray) -> None:
        """Begin episodes at raw observations (N, O)."""

    def act(self, obs: np.ndarray) -> np.ndarray:
        """The skills (N, Z) to hold next, at raw observations (N, O)."""


def goal_and_place(env_spec: EnvSpec, who: str) -> tuple[slice, list[int]]:
    """Columns of the task's goal, and of the body's place in the same coordinates.

    Raises:
        UsageError: the task has no goal that the controller called `who` could go to.
    """
    at = env_spec.slices()
    places = [name for name in env_spec.descriptor if name in at]
    if GOAL not in env_spec.task_fields or at[GOAL].stop - at[GOAL].start != len(places):
        raise UsageError(
            f'the {who} controller needs a field "{GOAL}" with {", ".join(env_spec.descriptor)},'
            f' which "{env_spec.id}" does not have: choose a task with a goal.'
        )
    return at[GOAL], [at[name].start for name in places]


@dataclass(frozen=True)
class Scaling:
    """A fixed affine map of raw observations to numbers of order one, for learnt controllers.

    Body fields take the environment's preset normaliser. Places do not: presets are measured near
    the start (0.4 m for a half-cheetah whose goals lie 100 m away), so wherever a task says how far
    its goals lie, that distance is the unit of the body's position. Goals are scaled as the
    position is, so that equal places get equal numbers; other task fields stay as they are.
    """

    mean: np.ndarray  # (O,)
    std: np.ndarray  # (O,)

    def __call__(self, obs: np.ndarray) -> np.ndarray:
        """Scaled observations, float32, of raw ones (…, O)."""
        return np.asarray((obs - self.mean) / self.std, np.float32)

    @classmethod
    def identity(cls, dim: int) -> Scaling:
        """Leaves observations of length `dim` as they are."""
        return cls(np.zeros(dim, np.float32), np.ones(dim, np.float32))

    @classmethod
    def of(cls, spec: EnvSpec) -> Scaling:
        """The scaling for an environment."""
        scaling = cls.identity(spec.obs_dim)
        mean, std, at = scaling.mean, scaling.std, spec.slices()
        if spec.obs_mean is not None and spec.obs_std is not None:
            mean[: spec.body_dim], std[: spec.body_dim] = spec.obs_mean, spec.obs_std
        reach = [float(spec.constants[name]) for name in REACH if name in spec.constants]
        for j, name in enumerate(spec.descriptor):
            if name not in at:
                continue
            std[at[name]] = max([*reach, *std[at[name]]])
            if GOAL in at:
                mean[at[GOAL]][j], std[at[GOAL]][j] = mean[at[name]][0], std[at[name]][0]
        return scaling
