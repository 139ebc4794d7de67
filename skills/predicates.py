"""Conditions on an observation, as data: when a skill may begin, and when it is over.

An option is a policy with a set of states where it may begin and a rule for when it ends (Sutton,
Precup and Singh 1999, "Between MDPs and semi-MDPs"). Both are kept as JSON in a skill's row of the
library, under `initiation` and `termination`; reading them executes nothing. A predicate is

    true, or false
    {"field": "z", "above": 0.3, "below": 1}       a field lies between bounds, each optional;
    {"field": "joints", "entry": 2, "below": 0}    an entry of a field with several
    {"near": {"x": 2, "y": -1}, "within": 0.5}     fields lie within a distance of a place
    {"all": [p, …]}, {"any": [p, …]}, {"not": p}

in the units of the raw observation. Shapes: N environments, O observation, Z skill, R rows.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from etude.errors import UsageError, unknown
from etude.skills import library_files
from etude.skills.library import SkillLibrary
from etude.skills.spaces import Discrete

Predicate = Callable[[np.ndarray], np.ndarray]
"""(N, O) -> (N,) bool."""
BEGINS, ENDS = "initiation", "termination"
SAME = 1e-5  # how far a float32 skill may lie from that of its row


def predicate(data: Any, fields: Mapping[str, int]) -> Predicate:
    """The function that a predicate describes, over observations with these fields and widths.

    Raises:
        UsageError: it is none of the forms above, or names a field that there is not.
    """
    if isinstance(data, bool):
        return lambda obs: np.full(len(obs), data)
    found = data if isinstance(data, Mapping) else {}
    match sorted(found):
        case ["all"] | ["any"] if isinstance(parts := next(iter(found.values())), list | tuple):
            inner = [predicate(part, fields) for part in parts]
            join = np.logical_and if "all" in found else np.logical_or
            empty = "all" in found
            return lambda obs: join.reduce([np.full(len(obs), empty), *(p(obs) for p in inner)])
        case ["not"]:
            negated = predicate(found["not"], fields)
            return lambda obs: ~negated(obs)
        case ["near", "within"] if isinstance(found["near"], Mapping):
            columns = [_column(name, 0, fields) for name in found["near"]]
            place = np.array([_number(value, data) for value in found["near"].values()])
            reach = _number(found["within"], data)
            return lambda obs: np.linalg.norm(obs[:, columns] - place, axis=1) <= reach
        case keys if {"field"} < {*keys} <= {"field", "entry", "above", "below"}:
            column = _column(found["field"], found.get("entry", 0), fields)
            above = _number(found.get("above", -math.inf), data)
            below = _number(found.get("below", math.inf), data)
            return lambda obs: (obs[:, column] > above) & (obs[:, column] < below)
    raise UsageError(
        f"{data!r:.80} is no predicate: give true, false, or one of field with above or below, "
        "near with within, all, any, not."
    )


def _column(name: Any, entry: Any, fields: Mapping[str, int]) -> int:
    if name not in fields:
        raise unknown("observation field of a predicate", str(name), fields)
    if type(entry) is not int or not 0 <= entry < fields[name]:
        raise UsageError(f'entry {entry!r} of field "{name}": choose 0 to {fields[name] - 1}.')
    names = [*fields]
    return sum(fields[n] for n in names[: names.index(name)]) + entry


def _number(value: Any, data: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(f"{value!r:.80} in the predicate {data!r:.80}: give a number.")
    return float(value)


@dataclass(frozen=True, eq=False)
class Conditions:
    """When the known skills of a library may begin, and when they end by themselves.

    A skill without a row, or a row without predicates, begins anywhere and never ends by itself.
    """

    rows: np.ndarray
    """skills with a predicate, (R, Z)"""
    begins: tuple[Predicate | None, ...]
    ends: tuple[Predicate | None, ...]
    skills: int | None
    """how many there are, if they are discrete"""
    fallback: np.ndarray | None = None
    """skill (Z,) that is held in place of one that may not begin; None: that is an error"""

    @classmethod
    def of(cls, library: SkillLibrary, fallback: int | None = None) -> Conditions | None:
        """Those in the rows of a library; None where no row has any.

        Raises:
            UsageError: a row's predicate is none, or no row has the id `fallback`.
        """
        found = [row for row in library.skills if BEGINS in row or ENDS in row]
        ids = {row["id"]: row["z"] for row in library.skills}
        if fallback is not None and fallback not in ids:
            raise unknown("skill id to fall back to", str(fallback), map(str, ids))
        begins, ends = (
            tuple(predicate(row[key], library.fields) if key in row else None for row in found)
            for key in (BEGINS, ENDS)
        )
        space, other = library.space, None if fallback is None else np.array(ids[fallback])
        count = space.n if isinstance(space, Discrete) else None
        rows = np.array([row["z"] for row in found])
        return cls(rows, begins, ends, count, other) if found else None

    def allowed(self, obs: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Whether skills z (N, Z) may begin at body observations (N, O): (N,)."""
        return self._hold(self.begins, obs, z, default=True)

    def over(self, obs: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Whether skills z (N, Z) that were held are over at body observations (N, O): (N,)."""
        return self._hold(self.ends, obs, z, default=False)

    def begin(self, obs: np.ndarray, z: np.ndarray) -> np.ndarray:
        """The skills (N, Z) that begin when z are chosen.

        Raises:
            UsageError: one may not begin, and there is none to fall back to.
        """
        allowed = self.allowed(obs, z)
        if allowed.all():
            return z
        if self.fallback is None:
            raise UsageError(
                f"skill {z[~allowed][0].tolist()} may not begin here: choose among what "
                "action_masks() allows (MaskablePPO does), or name a skill as fallback."
            )
        return np.where(allowed[:, None], z, self.fallback).astype(np.float32)

    def masks(self, obs: np.ndarray) -> np.ndarray:
        """Which of the n discrete skills may be chosen at observations (N, O): (N, n).

        Raises:
            UsageError: there is an observation at which none may.
        """
        assert self.skills is not None
        one_hot = np.eye(self.skills, dtype=np.float32)
        columns = [self.allowed(obs, np.tile(z, (len(obs), 1))) for z in one_hot]
        masks = np.stack(columns, axis=1)
        if self.fallback is not None:
            masks[:, int(np.argmax(self.fallback))] = True
        if not masks.any(axis=1).all():
            raise UsageError(
                "no skill may begin at some observation: name a skill as fallback, or give the "
                f"library one without `{BEGINS}`."
            )
        return masks

    def _hold(
        self, rules: tuple[Predicate | None, ...], obs: np.ndarray, z: np.ndarray, default: bool
    ) -> np.ndarray:
        result = np.full(len(obs), default)
        for row, rule in zip(self.rows, rules, strict=True):
            if rule is not None and (own := (np.abs(z - row) < SAME).all(axis=1)).any():
                result[own] = rule(obs[own])
        return result


def annotate(
    library: SkillLibrary,
    conditions: Mapping[int, Mapping[str, Any]],
    path: str | Path | None = None,
) -> SkillLibrary:
    """The library with predicates in its rows.

    Args:
        library: skills with a row each.
        conditions: for skill ids, `initiation`, `termination` or both.
        path: folder to write it to, as a version with the old one as its parent; None: in memory.

    Raises:
        UsageError: an unknown id, a key other than these two, or something that is no predicate.
    """
    rows = {row["id"]: row for row in library.skills}
    for key, given in conditions.items():
        if key not in rows:
            raise unknown(f"skill id of library {library.name}", str(key), map(str, rows))
        for name, data in given.items():
            if name not in (BEGINS, ENDS):
                raise unknown("condition of a skill", name, (BEGINS, ENDS))
            predicate(data, library.fields)
        rows[key] = {**rows[key], **given}
    old = library.contents
    own = dataclasses.replace(library.data, skills=[*rows.values()])
    parent = {"name": library.name, "id": library.id, "relation": "annotated"}
    made = dataclasses.replace(
        old,
        sets=[own if data is library.data else data for data in old.sets],
        parents=[*old.parents, parent],
    )
    if path is None:
        return SkillLibrary(dataclasses.replace(made, id=""), library.set)
    return SkillLibrary.load(library_files.write(Path(path), made), library.set)
