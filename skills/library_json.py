"""The JSON of a library, read as data that anybody may have written.

Stricter than Python's reader: UTF-8 only, no key twice, no NaN and no infinity (also not as
`1e999`), no number of more digits than 64 bits have. Whatever is wrong becomes one `LibraryError`
that names the file, is short enough to read and holds nothing a terminal would obey.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from etude.errors import LibraryError, UsageError

MALFORMED = (
    TypeError, ValueError, AttributeError, OverflowError, RecursionError, SafetensorError,
)  # fmt: skip  # what data of the wrong shape makes Python and safetensors raise
MAX_DIGITS = 20  # of a whole number: 64 bits
MAX_WORD = 64  # characters of a name that is looked up
MAX_MESSAGE = 600  # characters of a sentence
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever is wrong with the data of a file becomes one sentence that names the file."""
    try:
        yield
    except KeyError as error:
        raise LibraryError(f"{path} has no entry {printable(error)}.") from error
    except MALFORMED as error:
        raise LibraryError(f"{path} is malformed: {printable(error)}.") from error
    except UsageError as error:
        raise LibraryError(f"{path}: {printable(error)}") from error


def printable(text: object) -> str:
    """Text on one line, cut after `MAX_MESSAGE` characters, control characters spelt out."""
    long = str(text)
    short = long if len(long) <= MAX_MESSAGE else f"{long[:MAX_MESSAGE]} …"
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in short)


def parse(data: bytes) -> dict[str, Any]:
    """The object that `data` holds.

    Raises:
        ValueError, TypeError, RecursionError: it is not JSON as this module reads it.
    """
    text = data.decode("utf-8")
    value = json.loads(
        text,
        parse_constant=_no_constant,
        parse_float=_finite,
        parse_int=_whole,
        object_pairs_hook=_distinct,
    )
    if not isinstance(value, dict):
        raise TypeError("an object is expected")
    if SURROGATE.search(text):  # half a character: cannot be printed or written again
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    return value


def word(what: str, value: Any, allowed: Set[str] | None = None) -> str:
    """`value`, if it is a short text (and one of `allowed`); else ValueError."""
    if not isinstance(value, str) or len(value) > MAX_WORD:
        raise ValueError(f"{what} must be a text of at most {MAX_WORD} characters")
    if allowed is not None and value not in allowed:
        raise ValueError(f'unknown {what} "{value}", choose one of {", ".join(sorted(allowed))}')
    return value


def only(what: str, entry: Mapping[str, Any], known: Set[str]) -> None:
    """Raise ValueError if `entry` holds more than this format knows."""
    if extra := sorted(entry.keys() - known):
        raise ValueError(f"{what} has an unknown entry {extra[0]!r}, only {sorted(known)} are read")


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:MAX_WORD]} is too large")
    return value


def _whole(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"the number {text[:MAX_DIGITS]}… has {len(text)} digits")
    return int(text)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for i, key in enumerate(keys) if key in keys[:i])
        raise ValueError(f"the entry {twice!r} stands twice")
    return found
