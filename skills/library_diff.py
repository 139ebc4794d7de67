"""What differs between two libraries: environment, sets, settings, skills and tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from etude.skills.library_card import flat_row
from etude.skills.library_data import Contents, SetData
from etude.skills.spaces import Array

MAX_TEXT = 60  # characters of a value in a line
MISSING = "(none)"


def compare(a: Contents, b: Contents) -> list[str]:
    """One line per difference, empty for equal contents; names and provenance do not count."""
    lines = [*_entries("environment", a.env, b.env)]
    ours, theirs = ({s.name: s for s in contents.sets} for contents in (a, b))
    if len(ours) == len(theirs) == 1:  # two single sets are compared whatever they are called
        (first,), (second,) = ours.values(), theirs.values()
        if first.name != second.name:
            lines.append(_line("set", "name", first.name, second.name))
        return lines + [*_sets(first, second)]
    for name in dict.fromkeys([*ours, *theirs]):
        if name in ours and name in theirs:
            lines += _sets(ours[name], theirs[name])
        else:
            lines.append(
                _line("set", name, *("there" if name in s else MISSING for s in (ours, theirs)))
            )
    return lines


def tensors(data: SetData) -> dict[str, Array]:
    """Every array of a set by name: `policy/0/weight`, `phi/1/bias`, `mean`, `std`."""
    nets = {"policy": data.policy, **data.encoders}
    found = {
        f"{key}/{i}/{part}": array
        for key, net in nets.items()
        for i, layer in enumerate(net.weights)
        for part, array in zip(("weight", "bias"), layer, strict=True)
    }
    return {**found, "mean": data.mean, "std": data.std}


def _sets(a: SetData, b: SetData) -> Iterator[str]:
    """Differences of two sets."""
    where = f"set {a.name}"
    yield from _entries(f"{where}: space", a.space.to_json(), b.space.to_json())
    yield from _entries(where, {"learner": a.learner}, {"learner": b.learner})
    yield from _entries(f"{where}: config", a.config, b.config)
    yield from _entries(f"{where}: metrics", a.metrics, b.metrics)
    for key in ("policy", *dict.fromkeys([*a.encoders, *b.encoders])):
        nets = ({"policy": s.policy, **s.encoders}.get(key) for s in (a, b))
        specs = [{} if net is None else net.to_json() for net in nets]
        yield from _entries(f"{where}: {key}", *specs)
    rows = [{f"{row['id']}": row for row in s.skills} for s in (a, b)]
    for key in dict.fromkeys([*rows[0], *rows[1]]):
        yield from _entries(f"{where}: skill {key}", *(r.get(key, {}) for r in rows))
    yield from _arrays(f"{where}: tensor", tensors(a), tensors(b))


def _arrays(where: str, a: Mapping[str, Array], b: Mapping[str, Array]) -> Iterator[str]:
    """Arrays that differ: by their shape, or in how many entries and by how much at most."""
    for key in dict.fromkeys([*a, *b]):
        ours, theirs = (s.get(key) for s in (a, b))
        if ours is None or theirs is None or ours.shape != theirs.shape:
            yield _line(where, key, *(MISSING if x is None else x.shape for x in (ours, theirs)))
        elif not np.array_equal(ours, theirs):
            gap = np.abs(ours.astype(np.float64) - theirs)
            yield (
                f"{where} {key}: {np.count_nonzero(gap)} of {gap.size} entries differ, "
                f"by {gap.max():.3g} at most"
            )


def _entries(where: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[str]:
    """Values that differ, entry by entry; inner mappings as `outer.inner`."""
    ours, theirs = flat_row(a), flat_row(b)
    for key in dict.fromkeys([*ours, *theirs]):
        x, y = ours.get(key, MISSING), theirs.get(key, MISSING)
        if type(x) is not type(y) or x != y:
            yield _line(where, key, x, y)


def _line(where: str, key: str, ours: object, theirs: object) -> str:
    return f"{where} {key}: {str(ours)[:MAX_TEXT]} -> {str(theirs)[:MAX_TEXT]}"
