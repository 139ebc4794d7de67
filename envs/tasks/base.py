"""How a task describes itself: the body's spec, and what the task adds to it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from etude.envs.body import Body, Task, View
from etude.envs.spec import EnvSpec, Field

Outcome = tuple[np.ndarray, np.ndarray, np.ndarray]
"""What a step of a task returns: reward (n,), terminated (n,) bool, success (n,) bool."""
GROUND = 0.01
"""Height at which marks lie on the ground, m."""


def extend(
    body: Body,
    name: str,
    fields: Sequence[Field],
    constants: Mapping[str, Any],
    max_steps: int,
    change: str = "goal region",
) -> EnvSpec:
    """The spec of a task on `body`: fields and constants are added to the body's own.

    Args:
        body: changed or as it is; what was changed about it stays declared.
        name: id of the task.
        fields: what the task shows beside the body's fields.
        constants: every number of the task.
        max_steps: time limit of an episode.
        change: what the task itself changes, in words.
    """
    return dataclasses.replace(
        body.spec,
        id=name,
        fields=(*body.spec.fields, *fields),
        task_fields=tuple(field.name for field in fields),
        constants={**body.spec.constants, **constants},
        changes=(*body.spec.changes, change),
        max_steps=max_steps,
    )


def arrival(there: np.ndarray) -> Outcome:
    """Reward 1, the end of the episode and success where a goal (n,) is reached."""
    return there.astype(float), there, there.copy()


class FixedGoal(Task):
    """A task whose goal is always the same place: it is shown, and nothing is drawn.

    Field: goal, the place that `_goal` (D,) names.
    """

    state_dim = 0
    _goal: np.ndarray

    def reset(
        self, rng: np.random.Generator, qpos: np.ndarray, qvel: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The body begins as it does."""
        return qpos, qvel, np.zeros(0)

    def observe(self, state: np.ndarray, view: View) -> np.ndarray:
        """The goal's place, (n, D)."""
        return np.broadcast_to(self._goal, (len(state), len(self._goal)))
