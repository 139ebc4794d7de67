"""Configuration as frozen dataclasses whose ranges stand beside the fields and are checked once.

A subclass of `Config` annotates a field with `Annotated[float, Range(0, 1)]`; constructing it with
a value outside, or of another type, raises `UsageError`. `to_dict` and `from_dict` carry a
configuration through JSON, `load` reads one from a file. Files are data: nothing in them is run.
"""

from __future__ import annotations

import dataclasses
import json
import math
import numbers
import re
import reprlib
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, TypeVar, get_args, get_origin

from etude.errors import UsageError, nearest

MAX_BYTES = 1_000_000
"""Size of a configuration file."""
MAX_DEPTH = 20
"""Tables and lists inside each other in a configuration file."""
LONG_KEY = re.compile(
    r"""(?<![\w-])(?:(?:[\w-]++|"(?:[^"\\\n]|\\.)*+"|'[^'\n]*+')\s*+[.]\s*+){20}"""
)
"""A dotted key of more parts than that (in TOML)."""
MAX_WHOLE = 2**63 - 1
"""Largest whole number, either side of zero: what 64 bits and TOML can hold."""


@dataclass(frozen=True)
class Range:
    """Allowed interval of a number; an `open` end is excluded."""

    low: float = float("-inf")
    high: float = float("inf")
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return bool(above and below)

    def __str__(self) -> str:
        left, right = "(" if self.open_low else "[", ")" if self.open_high else "]"
        return f"{left}{self.low:g}, {self.high:g}{right}"


@dataclass(frozen=True)
class Config:
    """Base of every configuration: frozen, and checked at construction."""

    def __post_init__(self) -> None:
        for name, hint in _hints(type(self)).items():
            object.__setattr__(self, name, _fit(name, getattr(self, name), hint))


C = TypeVar("C", bound=Config)


def _hints(cls: type[Config]) -> dict[str, Any]:
    """The annotation of every setting."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls)}


def to_dict(config: Config) -> dict[str, Any]:
    """The configuration as plain data (nested dictionaries, lists, numbers, strings)."""
    return {f.name: _plain(getattr(config, f.name)) for f in dataclasses.fields(config)}


def _plain(value: Any) -> Any:
    if isinstance(value, Config):
        return to_dict(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def from_dict(cls: type[C], data: Mapping[str, Any]) -> C:
    """Build `cls` from plain data; missing keys keep their defaults.

    Raises:
        UsageError: a key that `cls` does not have (with the nearest one), a value of another type,
            or one out of range.
    """
    return replace(cls(), data)


def replace(config: C, data: Mapping[str, Any], path: str = "") -> C:
    """A copy of `config` with the (possibly nested) values of `data`; raises as `from_dict`.

    `path` stands before the names in errors: `agent.` for what is in the table `agent`.
    """
    hints, values = _hints(type(config)), dict[str, Any]()
    given: Any = data  # whatever a file holds
    if not isinstance(given, Mapping):
        name = path.rstrip(".") or type(config).__qualname__
        raise UsageError(f"{name} = {show(given)} has the wrong type: give a table of settings.")
    for key, value in given.items():
        if key not in hints:
            raise _unknown_setting(config, str(key), path)
        old = getattr(config, key)
        if isinstance(old, Config) and not isinstance(value, Config):
            values[key] = replace(old, value, f"{path}{key}.")
        else:
            values[key] = _fit(f"{path}{key}", value, hints[key])
    return dataclasses.replace(config, **values)


def load(path: Path) -> dict[str, Any]:
    """The data in a `.toml` or `.json` file, for `replace` or `from_dict` to check.

    Raises:
        UsageError: there is no such file, it is too large or nested too deeply, or no valid TOML
            or JSON.
    """
    parse = {".toml": _parse_toml, ".json": _parse_json}.get(path.suffix.lower())
    if parse is None:
        raise UsageError(f"{path} is no configuration: give a .toml or .json file.")
    deep = f"{path} is nested too deeply: at most {MAX_DEPTH} tables and lists in each other."
    try:
        if not path.is_file():
            raise UsageError(f"{path} is not a file: give the path of a .toml or .json file.")
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            raise UsageError(f"{path} is too large: a configuration has at most {MAX_BYTES} bytes.")
        data = parse(raw.decode("utf-8"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}): make it readable.") from None
    except ValueError as error:
        form = path.suffix[1:].upper()
        raise UsageError(f"{path} is not valid {form}: {shorten(str(error), 200)}.") from None
    except RecursionError:
        raise UsageError(deep) from None
    if not isinstance(data, dict):
        raise UsageError(f"{path} holds no settings: its outermost value must be an object.")
    if _depth(data) > MAX_DEPTH:
        raise UsageError(deep)
    return data


def _parse_json(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_no_twins, parse_constant=_no_constant)


def _parse_toml(text: str) -> Any:
    """TOML, unless a key has so many parts that the parser would take minutes over it."""
    if LONG_KEY.search(text):
        raise RecursionError
    return tomllib.loads(text)


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [key for key, _ in pairs]
        raise ValueError(f"{next(k for k in names if names.count(k) > 1)!r} is given twice")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")


def _depth(data: Any) -> int:
    """How many tables and lists stand in each other."""
    depth, level = 0, [data]
    while level := [node for node in level if isinstance(node, (dict, list))]:
        depth += 1
        level = [x for node in level for x in (node.values() if isinstance(node, dict) else node)]
    return depth


# ---- one value against its annotation


def _fit(name: str, value: Any, hint: Any) -> Any:
    """`value` as the annotation wants it: lists as tuples, whole numbers as floats where asked.

    Raises:
        UsageError: it is of another type, not among the choices, or out of range.
    """
    kind, parts = get_origin(hint), get_args(hint)
    if kind is Annotated:
        limits = [extra for extra in hint.__metadata__ if isinstance(extra, Range)]
        if limits and isinstance(value, float) and not math.isfinite(value):
            raise _outside(name, value, f"finite value in {limits[0]}")
        value = _fit(name, value, parts[0])
        for limit in limits:
            _within(name, value, limit)
        return value
    if kind in (typing.Union, types.UnionType):
        return _fit_any(name, value, hint)
    if kind is Literal:
        return _fit_choice(name, value, parts)
    if kind is tuple:
        return _fit_items(name, value, hint)
    if hint in (int, float):
        return _fit_number(name, value, hint)
    if hint is Path and isinstance(value, str) and "\0" not in value:
        return Path(value)
    if isinstance(hint, type) and not isinstance(value, hint):
        raise _wrong(name, value, hint)
    return value


def _within(name: str, value: Any, limit: Range) -> None:
    for number in value if isinstance(value, tuple) else (value,):
        if number is not None and number not in limit:
            raise _outside(name, number, f"value in {limit}")


def _fit_any(name: str, value: Any, hint: Any) -> Any:
    """The value as the first part of a union that takes it."""
    parts = [part for part in get_args(hint) if part is not types.NoneType]
    if value is None and len(parts) < len(get_args(hint)):
        return None
    if len(parts) == 1:
        return _fit(name, value, parts[0])
    for part in parts:
        try:
            return _fit(name, value, part)
        except UsageError:
            continue
    raise _wrong(name, value, hint)


def _fit_choice(name: str, value: Any, choices: tuple[Any, ...]) -> Any:
    for choice in choices:
        if type(choice) is type(value) and choice == value:
            return choice
    close = nearest(value, map(str, choices)) if isinstance(value, str) else ""
    listed = ", ".join(map(str, choices))
    raise UsageError(f"{name} = {show(value)} is unknown:{close} choose one of {listed}.")


def _fit_items(name: str, value: Any, hint: Any) -> tuple[Any, ...]:
    parts: tuple[Any, ...] = get_args(hint)
    if not isinstance(value, (list, tuple)):
        raise _wrong(name, value, hint)
    if len(parts) == 2 and parts[1] is Ellipsis:
        parts = (parts[0],) * len(value)
    if len(parts) != len(value):
        raise _wrong(name, value, hint)
    return tuple(
        _fit(f"{name}[{i}]", item, part)
        for i, (item, part) in enumerate(zip(value, parts, strict=True))
    )


def _fit_number(name: str, value: Any, hint: type[int] | type[float]) -> int | float:
    """A finite float or a whole number of 64 bits; a truth value and a text are neither."""
    kind = numbers.Integral if hint is int else numbers.Real
    if isinstance(value, bool) or not isinstance(value, kind):
        raise _wrong(name, value, hint)
    if isinstance(value, numbers.Integral) and abs(int(value)) > MAX_WHOLE:
        limit = Range(-MAX_WHOLE, MAX_WHOLE)
        raise _outside(name, value, f"value in {limit}")
    if not math.isfinite(value):
        raise _outside(name, value, "finite number")
    number: Any = value
    return int(number) if hint is int else float(number)


def _outside(name: str, value: Any, allowed: str) -> UsageError:
    return UsageError(f"{name} = {show(value)} is out of range: choose a {allowed}.")


def _wrong(name: str, value: Any, hint: Any) -> UsageError:
    return UsageError(f"{name} = {show(value)} has the wrong type: give {_allowed(hint)}.")


def _allowed(hint: Any) -> str:
    """What an annotation allows, in words."""
    kind, parts = get_origin(hint), get_args(hint)
    if kind is Annotated:
        limits = [str(extra) for extra in hint.__metadata__ if isinstance(extra, Range)]
        return " in ".join([_allowed(parts[0]), *limits])
    if kind is tuple and parts[-1] is Ellipsis:
        return f"a list, each item {_allowed(parts[0])}"
    if kind is tuple:
        return f"a list of {len(parts)}: {', '.join(map(_allowed, parts))}"
    if kind is Literal:
        return f"one of {', '.join(map(str, parts))}"
    if parts:
        return " or ".join(map(_allowed, parts))
    words: dict[Any, str] = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "a text",
    }
    more: dict[Any, str] = {Path: "a path", types.NoneType: "nothing"}
    return (words | more).get(hint, f"a {getattr(hint, '__qualname__', hint)}")


def _unknown_setting(config: Config, key: str, path: str) -> UsageError:
    names = sorted(_hints(type(config)))
    inside = (
        f' did you mean "{path}{name}.{key}"?'
        for name in names
        if isinstance(part := getattr(config, name), Config) and key in _hints(type(part))
    )
    close = next(inside, nearest(key, names))
    kind, known = type(config).__qualname__, ", ".join(names)
    return UsageError(
        f'unknown setting "{shorten(repr(key)[1:-1])}" of {kind}:{close} choose one of {known}.'
    )


# ---- values in sentences


class _Repr(reprlib.Repr):
    """`repr` that is never long, also of numbers with more digits than Python prints."""

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if abs(x) < 10**20 else f"a number of {x.bit_length()} bits"


def show(value: Any) -> str:
    """A value for an error message: as Python writes it, on one line and not long."""
    return shorten(" ".join(_Repr().repr(value).split()))


def shorten(text: str, length: int = 80) -> str:
    """At most `length` characters of a text, on one line."""
    line = " ".join(_printable(text).split())
    return line if len(line) <= length else f"{line[: length - 1]}…"


def _printable(text: Iterable[str]) -> str:
    return "".join(c if c.isprintable() else " " for c in text)
