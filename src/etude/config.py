"""Configuration as frozen dataclasses whose ranges stand beside the fields and are checked once.

A subclass of `Config` annotates a field with `Annotated[float, Range(0, 1)]`; constructing it with
a value outside raises `UsageError`. `to_dict` and `from_dict` carry a configuration through JSON.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, get_args, get_origin

from etude.errors import UsageError, nearest


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
        for name, hint in typing.get_type_hints(type(self), include_extras=True).items():
            value = getattr(self, name)
            for limit in _ranges(hint):
                for number in value if isinstance(value, tuple) else (value,):
                    if number is not None and number not in limit:
                        raise UsageError(
                            f"{name} = {number!r} is out of range: "
                            f"choose a value in {limit} for --{name.replace('_', '-')}."
                        )


C = TypeVar("C", bound=Config)


def _ranges(hint: Any) -> Iterator[Range]:
    """Every `Range` in an annotation, also inside a union or a tuple."""
    if get_origin(hint) is Annotated:
        yield from (extra for extra in hint.__metadata__ if isinstance(extra, Range))
        hint = get_args(hint)[0]
    for part in (
        get_args(hint) if get_origin(hint) in (tuple, typing.Union, types.UnionType) else ()
    ):
        yield from _ranges(part)


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
        UsageError: a key that `cls` does not have (with the nearest one), or a value out of range.
    """
    return replace(cls(), data)


def replace(config: C, data: Mapping[str, Any]) -> C:
    """A copy of `config` with the (possibly nested) values of `data`; raises as `from_dict`."""
    names = {f.name for f in dataclasses.fields(config)}
    values: dict[str, Any] = {}
    for key, value in data.items():
        if key not in names:
            raise UsageError(
                f'unknown setting "{key}" of {type(config).__qualname__}:{nearest(key, names)} '
                f"choose one of {', '.join(sorted(names))}."
            )
        old = getattr(config, key)
        if isinstance(old, Config):
            value = replace(old, value)
        elif isinstance(value, list):
            value = tuple(value)
        elif isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        values[key] = value
    return dataclasses.replace(config, **values)
