"""What an environment is, as data: named observation fields, units, limits and every constant.

A spec travels inside a skill library, so that a policy learnt in one process can be matched, field
by field and constant by constant, with the environment it is asked to act in.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self


@dataclass(frozen=True)
class Field:
    """A named run of consecutive observation entries."""

    name: str
    dim: int
    hidden_from_policy: bool = False
    """The coverage metric and the learner may see it, the skill policy may not."""


@dataclass(frozen=True)
class EnvSpec:
    """The public description of a body, or of a task on a body."""

    id: str
    """Name in the registry, such as "half-cheetah"."""
    body: str
    """Id of the base body; equal to `id` for bodies that nothing was changed about."""
    fields: tuple[Field, ...]
    """The raw observation in order: body fields first, then task fields."""
    task_fields: tuple[str, ...]
    """Names of the fields that belong to the task; skills do not see them."""
    action_dim: int
    """Actions lie in [-1, 1]."""
    descriptor: tuple[str, ...]
    """Names of the coordinates that coverage is measured in, such as ("x", "y")."""
    descriptor_unit: str
    """Unit of the descriptor, such as "m"."""
    cell: float
    """Edge of a coverage cell, in descriptor units."""
    dt: float
    """Seconds per environment step."""
    max_steps: int
    """Default time limit of an episode, steps."""
    constants: Mapping[str, Any] = field(hash=False)
    """Every constant of body and task, JSON values only (tuples become lists)."""
    changes: tuple[str, ...] = ()
    """Declared changes against the base body, such as ("goal region",)."""
    xml_sha256: str = ""
    """SHA-256 of the model's XML."""
    obs_mean: tuple[float, ...] | None = None
    """Preset normaliser of the body fields; None: measure it by random rollouts."""
    obs_std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        names = [f.name for f in self.fields]
        assert len(set(names)) == len(names), f"{self.id}: two fields have one name: {names}"
        tail = tuple(names[len(names) - len(self.task_fields) :])
        assert tail == self.task_fields, f"{self.id}: task fields must come last: {names}"
        for preset in (self.obs_mean, self.obs_std):
            assert preset is None or len(preset) == self.body_dim, f"{self.id}: normaliser's length"
        plain = json.loads(json.dumps(dict(self.constants), allow_nan=False))
        object.__setattr__(self, "constants", plain)

    @property
    def obs_dim(self) -> int:
        """Entries of the whole observation."""
        return sum(f.dim for f in self.fields)

    @property
    def body_dim(self) -> int:
        """Entries of the observation that skills see: the body fields, which come first."""
        return sum(f.dim for f in self.fields if f.name not in self.task_fields)

    def slices(self) -> dict[str, slice]:
        """Where each field stands in the observation."""
        found, start = {}, 0
        for f in self.fields:
            found[f.name] = slice(start, start + f.dim)
            start += f.dim
        return found

    def to_json(self) -> dict[str, Any]:
        """The spec as a dictionary of JSON values."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return plain

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The spec that `to_json` wrote."""
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in data.items()
        }
        values["fields"] = tuple(Field(**f) for f in data["fields"])
        return cls(**values)
