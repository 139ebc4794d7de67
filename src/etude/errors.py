"""The errors a user can meet: one clear sentence each, with the value, what is allowed, the fix.

The command line turns each of them into that sentence on stderr and exit code 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any


class EtudeError(Exception):
    """Base of every error that is meant to be read by a user."""


class UsageError(EtudeError):
    """A value, name or path given by the user cannot be used."""


class LibraryError(EtudeError):
    """A skill library is missing, damaged, of another format, or made for another environment."""


class CheckpointError(EtudeError):
    """A checkpoint is missing or damaged."""


class DatasetError(EtudeError):
    """A dataset is missing, damaged, of another format, or made in another environment."""


class EnvContractError(EtudeError):
    """An environment breaks a rule that learning relies on."""


class NotFiniteError(EtudeError):
    """NaN or infinity at a border; training on it would only hide where it came from."""

    evidence: Mapping[str, Any] | None = None
    """what led to it, as a tree of arrays that a checkpoint can hold"""


class ImpossibleError(EtudeError):
    """A figure exceeds what any skills can reach: the method or the measurement is at fault."""


class Stopped(Exception):
    """The user asked to stop, and what was going on is left unfinished."""


def nearest(value: str, allowed: Iterable[str]) -> str:
    """`did you mean "x"? ` for the allowed name nearest to `value`, or an empty string."""
    close = difflib.get_close_matches(value, list(allowed), n=1, cutoff=0.5)
    return f' did you mean "{close[0]}"?' if close else ""


def unknown(kind: str, value: str, allowed: Iterable[str]) -> UsageError:
    """The error for an unknown name: says the value, the nearest name and every allowed one."""
    names = sorted(allowed)
    return UsageError(
        f'unknown {kind} "{value}":{nearest(value, names)} choose one of {", ".join(names)}.'
    )
