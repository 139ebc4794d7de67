"""One file per method; its name, with `-` for `_`, is the method's id on the command line.

Notation of all files: B batch, O observation, Z skill, D width of a representation, K width of the
signal; z skill, s observation, phi representation.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil

from etude.errors import unknown
from etude.skills.learners.base import Learner


def ids() -> tuple[str, ...]:
    """The id of every learner: the files of this folder that are not `base` or `_*`."""
    names = (module.name for module in pkgutil.iter_modules(__path__))
    chosen = (n for n in names if n != "base" and not n.startswith("_"))
    return tuple(sorted(n.replace("_", "-") for n in chosen))


def get(name: str) -> type[Learner]:
    """The `Learner` subclass of id `name`; `UsageError` with the nearest id if there is none."""
    if name not in ids():
        raise unknown("learner", name, ids())
    module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    found = [
        value
        for value in vars(module).values()
        if inspect.isclass(value)
        and issubclass(value, Learner)
        and value.__module__ == module.__name__
    ]
    assert len(found) == 1, f"{module.__name__} must define exactly one Learner, not {len(found)}"
    return found[0]
