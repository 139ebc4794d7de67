"""What a skill library holds, as plain data that is valid by construction.

`SetData` is one learner's skills: space, policy, encoders, frozen normaliser, a row per skill.
`Contents` is a whole library: an environment and one or several sets for its body.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from etude.errors import UsageError
from etude.skills.dynamics import SkillDynamics
from etude.skills.mlp import MLP, RawMLP
from etude.skills.spaces import Array, SkillSpace

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")  # no dot: it cannot be a module's path
MAX_FIELDS, MAX_DEPTH = 1024, 32
POLICY = "policy"  # beside the encoders' names, so none of them may be called that
ENV_OPTIONAL: dict[str, type] = {"constants": dict, "changes": list}
ENV_KEYS = {"id": str, "body": str, "action_dim": int, "dt": float, **ENV_OPTIONAL}
PARENT_KEYS = ("name", "id", "relation")


@dataclass(frozen=True, eq=False)
class SetData:
    """The skills of one learner."""

    name: str
    """Letters, digits, `.`, `_` and `-`."""
    learner: str
    """Id of the method that learnt it, for information only."""
    config: Mapping[str, Any]
    """The learner's settings, for information only."""
    space: SkillSpace
    policy: MLP
    """(normalised observation, z) -> action in [-1, 1]; its output is "tanh"."""
    encoders: Mapping[str, MLP]
    """Networks beside the policy; some names make zero-shot goals possible (`library_goals`)."""
    mean: Array
    """Frozen normaliser of the raw body fields, (O,)."""
    std: Array
    """Its standard deviations, (O,), positive."""
    skills: Sequence[Mapping[str, Any]]
    """A row per known skill: `id` (whole number, never used twice), `z`, and anything else."""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """Numbers about the whole set, such as coverage."""

    def __post_init__(self) -> None:
        for name in (self.name, *self.encoders):
            check_name("name of a set or an encoder", name)
        if POLICY in self.encoders:
            raise UsageError(f'an encoder cannot be called "{POLICY}": choose another name.')
        for key in ("mean", "std"):
            object.__setattr__(self, key, np.ascontiguousarray(getattr(self, key), np.float32))
        kinds: dict[str, type] = {"learner": str, "config": dict, "metrics": dict, "skills": list}
        for key, kind in kinds.items():
            object.__setattr__(self, key, _typed(key, plain(getattr(self, key)), kind))
        check_word("learner of a set", self.learner)
        for row in self.skills:
            if not isinstance(row, dict) or not {"id", "z"} <= row.keys():
                raise UsageError(f'set "{self.name}": a skill row needs "id" and "z", got {row}.')
            self.space.check(row["z"])
        ids = [row["id"] for row in self.skills]
        if not all(type(i) is int for i in ids) or len(set(ids)) < len(ids):
            raise UsageError(f'set "{self.name}": skill ids must be distinct whole numbers.')

    def on_raw(self, net: MLP, fields: Mapping[str, int]) -> RawMLP:
        """One of the set's networks, fed with raw body observations."""
        return RawMLP(net, fields, self.mean, self.std, self.space.dim)

    def check(self, fields: Mapping[str, int], action_dim: int) -> None:
        """Raise UsageError unless everything fits a body with these fields and actions."""
        width = sum(fields.values())
        if self.mean.shape != (width,) or self.std.shape != (width,):
            raise UsageError(
                f'set "{self.name}": the normaliser has shapes {self.mean.shape} and '
                f"{self.std.shape}, the body's fields need ({width},)."
            )
        if not (np.isfinite(self.mean).all() and np.isfinite(self.std).all()):
            raise UsageError(f'set "{self.name}": the normaliser has NaN or infinite entries.')
        if not (self.std > 0).all():
            raise UsageError(f'set "{self.name}": the normaliser\'s std must be positive.')
        wanted = action_dim * self.policy.knots
        if self.policy.sizes[-1] != wanted or self.policy.output != "tanh":
            raise UsageError(
                f'set "{self.name}": the policy gives {self.policy.sizes[-1]} '
                f"{self.policy.output} outputs, the body needs {wanted} tanh outputs."
            )
        if any(net.period > 1 for net in self.encoders.values()):
            raise UsageError(f'set "{self.name}": an encoder makes no plan of actions.')
        if self.policy.output_fields is not None:
            raise UsageError(f'set "{self.name}": the policy predicts, it does not act.')
        for net in (self.policy, *self.encoders.values()):
            (raw := self.on_raw(net, fields)).check()
            if net.output_fields is not None:
                SkillDynamics(raw)


@dataclass(frozen=True, eq=False)
class Contents:
    """A whole library in memory."""

    name: str
    env: Mapping[str, Any]
    """Specification of the environment it was learnt in, as `EnvSpec.to_json` writes it."""
    sets: Sequence[SetData]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Command, commit, versions, seed, steps, hardware: how to make it again."""
    parents: Sequence[Mapping[str, Any]] = ()
    """Libraries it was made from: their name, id, and the relation."""
    id: str = ""
    """SHA-256 of the manifest; empty for what was never written."""

    def __post_init__(self) -> None:
        check_name("library name", self.name)
        kinds: dict[str, type] = {"env": dict, "provenance": dict, "parents": list}
        for key, kind in kinds.items():
            object.__setattr__(self, key, _typed(key, plain(getattr(self, key)), kind))
        names = [s.name for s in self.sets]
        if not names or len(set(names)) < len(names):
            raise UsageError(f"a library needs one or more sets with distinct names, got {names}.")
        fields = body_fields(self.env)
        for item in self.env["fields"]:
            check_word("observation field", item["name"])
        for key, kind in ENV_KEYS.items():
            default = kind() if key in ENV_OPTIONAL else None
            _typed(f"the environment's {key}", self.env.get(key, default), kind)
        for parent in self.parents:
            for key in PARENT_KEYS:
                _typed(f"a parent's {key}", parent.get(key), str)
        for s in self.sets:
            s.check(fields, self.env["action_dim"])


def body_fields(env: Mapping[str, Any]) -> dict[str, int]:
    """Names and widths of the observation fields that skills see, in order."""
    fields, hidden = env.get("fields"), env.get("task_fields", [])
    if not isinstance(fields, list) or not isinstance(hidden, list):
        raise UsageError("the environment's specification lacks its list of fields.")
    if len(fields) > MAX_FIELDS:
        raise UsageError(f"{len(fields)} observation fields: there may be {MAX_FIELDS}.")
    found: dict[str, int] = {}
    for item in fields:
        name, dim = (item.get("name"), item.get("dim")) if isinstance(item, dict) else (None, None)
        if not isinstance(name, str) or type(dim) is not int or dim < 1 or name in found:
            text = f"{item!r:.80}"
            raise UsageError(f"observation field {text} needs a name of its own and a width >= 1.")
        found[name] = dim
    return {name: dim for name, dim in found.items() if name not in hidden}


def differences(skills: Mapping[str, Any], env: Mapping[str, Any]) -> list[str]:
    """What keeps skills made in one environment from acting in another: one line each.

    Both are given as `EnvSpec.to_json` writes them. Fields and constants that only `env` has are
    its own affair. A constant may differ if the environment declares it: one of its `changes` then
    begins with the constant's name, such as "gear 150 -> 30" ("geoms …" stands for the XML).
    """
    changes = {str(change).split()[0].strip(":,") for change in env.get("changes") or () if change}
    lines = []
    for key in ("body", "action_dim", "dt"):
        if not _same(skills.get(key), env.get(key)):
            lines.append(_line(key, skills.get(key), env.get(key)))
    theirs = body_fields(env)
    for name, dim in body_fields(skills).items():
        if dim != theirs.get(name):
            found = f"{theirs[name]} values" if name in theirs else "missing"
            lines.append(_line(f"field {name}", f"{dim} values", found))
    ours, others = (_constants(e) for e in (skills, env))
    for key in sorted(ours.keys() & others.keys()):
        declared = {key, key.split("_")[0]} | ({"geoms"} if key == "xml_sha256" else set())
        if not _same(ours[key], others[key]) and not declared & changes:
            lines.append(_line(key, ours[key], others[key]))
    return lines


def _constants(env: Mapping[str, Any]) -> dict[str, Any]:
    return {**(env.get("constants") or {}), "xml_sha256": env.get("xml_sha256")}


def _same(a: Any, b: Any) -> bool:
    numbers = isinstance(a, int | float) and isinstance(b, int | float)
    return math.isclose(a, b, rel_tol=1e-9) if numbers else bool(a == b)


def _line(what: str, ours: Any, theirs: Any) -> str:
    return f"\n  {what}: skills have {str(ours)[:60]}, the environment has {str(theirs)[:60]}"


def check_name(what: str, name: object) -> None:
    """Raise UsageError unless `name` can stand in a path and a tensor's key."""
    if not (isinstance(name, str) and NAME.fullmatch(name)):
        raise UsageError(
            f"{what} {name!r} cannot be used: "
            "choose up to 64 letters, digits, dots, dashes or underscores."
        )


def check_word(what: str, name: str) -> None:
    """Raise UsageError unless `name` is a plain word, which no tool could take for a class."""
    if not WORD.fullmatch(name):
        raise UsageError(
            f"{what} {name!r:.80} cannot be used: choose up to 64 letters, digits, dashes or "
            "underscores, without a dot."
        )


def _typed(what: str, value: Any, kind: type) -> Any:
    """`value`, if it is of this JSON type; a whole number is a float too."""
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise UsageError(f"{what} of a library must be a {kind.__name__}, got {value!r:.80}.")
    return value


def plain(value: Any, depth: int = 0) -> Any:
    """`value` as JSON data; NumPy becomes lists and numbers, NaN and infinity become None.

    Raises:
        UsageError: something that is no data, nests too deep, or has a key such as "_target_",
            with which other tools name a class to be built.
    """
    if depth > MAX_DEPTH:
        raise UsageError(f"data nested more than {MAX_DEPTH} levels cannot be stored in a library.")
    if isinstance(value, Mapping):
        found = {str(k): plain(v, depth + 1) for k, v in value.items()}
        if hidden := [k for k in found if k.startswith("_")]:
            raise UsageError(
                f"the key {hidden[0]!r:.80} cannot be stored in a library: "
                "choose one that does not begin with an underscore."
            )
        return found
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist(), depth)
    if isinstance(value, list | tuple):
        return [plain(v, depth + 1) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    raise UsageError(f"{value!r} cannot be stored in a library: give numbers, text, lists, maps.")
