"""What keeps two suites from being used as they are, put right around them and not inside.

- MuJoCo's enums, since 3.12, no longer equal NumPy's integers from the left, and
  gymnasium-robotics 1.4.2 asks so: Fetch, the Hand and the Kitchen do not start.
- OGBench draws its tasks, starts and goals from NumPy's global generator, which `reset(seed=...)`
  does not reach.
- Both leave the XML of each maze that they make in the folder for temporary files.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import mujoco
import numpy as np

# This module exists because others draw from NumPy's global generator, so it must touch its state.
from numpy import random as global_random

ENUMS = ("mjtJoint", "mjtTrn", "mjtEq")
"""The enums that gymnasium-robotics compares with integers of a model."""


def enums_equal_integers() -> bool:
    """Whether an enum of this MuJoCo equals NumPy's integer of the same value, from the left."""
    hinge = mujoco.mjtJoint.mjJNT_HINGE
    return bool(hinge == np.int32(int(hinge)))


def give_plain_enums(module: ModuleType) -> None:
    """Let `module` see MuJoCo with enums that are integers, if it needs that and has it not yet."""
    if enums_equal_integers() or module.mujoco is not mujoco:
        return
    seen: Any = ModuleType("mujoco")
    seen.__dict__.update(vars(mujoco))
    for name in ENUMS:
        members = getattr(mujoco, name).__members__
        setattr(seen, name, SimpleNamespace(**{key: int(value) for key, value in members.items()}))
    module.mujoco = seen  # type: ignore[attr-defined]


class PrivateRandom:
    """NumPy's global generator as one environment sees it; everybody else's stays as it is."""

    def __init__(self) -> None:
        self._state: Any = None

    @property
    def seeded(self) -> bool:
        """Whether there is a state to draw from."""
        return self._state is not None

    def seed(self, seed: int) -> None:
        """Begin a stream of its own.

        Args:
            seed: in [0, 2^32).
        """
        self._state = global_random.RandomState(seed).get_state()

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """The global generator goes on with this stream inside, and where it was afterwards."""
        theirs = global_random.get_state()  # noqa: NPY002  it is put back below
        global_random.set_state(self._state)  # noqa: NPY002
        try:
            yield
        finally:
            self._state = global_random.get_state()  # noqa: NPY002
            global_random.set_state(theirs)  # noqa: NPY002


@contextlib.contextmanager
def passing_files() -> Iterator[None]:
    """Temporary files that are made inside are gone afterwards."""
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory() as folder:
        tempfile.tempdir = folder
        try:
            yield
        finally:
            tempfile.tempdir = before
