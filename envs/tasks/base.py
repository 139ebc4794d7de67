"""How a task describes itself: the body's spec, and what the task adds to it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from etude.envs.body import Body
from etude.envs.spec import EnvSpec, Field


def extend(
    body: Body,
    name: str,
    fields: Sequence[Field],
    constants: Mapping[str, Any],
    max_steps: int,
) -> EnvSpec:
    """The spec of a task on `body`: fields and constants are added to the body's own."""
    return dataclasses.replace(
        body.spec,
        id=name,
        fields=(*body.spec.fields, *fields),
        task_fields=tuple(field.name for field in fields),
        constants={**body.spec.constants, **constants},
        changes=("goal region",),
        max_steps=max_steps,
    )
