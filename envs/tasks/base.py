"""How a task describes itself: the body's spec, and what the task adds to it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from etude.envs.body import Body
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
