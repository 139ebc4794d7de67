"""Room for a run's checkpoints: asked before training, not found missing hours later."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import numpy as np

from etude import checkpoint
from etude.cli.progress import say
from etude.errors import UsageError
from etude.skills.discovery import Discovery

PROBE = ".probe"
PROBE_BYTES = 2**20
ADAM = 3
"""A weight is kept with two moments, which an optimiser has only after its first step."""
SPARE = 1.2
"""For what is not counted: settings, visited states, logs, the library."""


def checkpoint_bytes(run: Discovery) -> int:
    """About what a run's checkpoints take at their largest: those kept, and the replay's rows once.

    The rows stand in files that the checkpoints share; everything else is in each of them.
    """
    replay, steps = run.replay, run.config.steps
    rows = 0 if run.dataset else min(replay.capacity, steps)
    row = sum(replay.widths) * np.dtype(np.float32).itemsize
    parts = (run.agent, run.learner, run.bonus, run.representation)
    nets = [module.state_dict() for module in parts if module]
    each = ADAM * sum(value.nbytes for net in nets for value in net.values())
    each += run.collected.nbytes + rows * np.dtype(np.int32).itemsize  # where its episode ends
    return int(SPARE * (checkpoint.KEPT * each + rows * row))


def check_room(folder: Path, needed: int) -> None:
    """Write, sync and delete a file in the run folder, and warn if `needed` bytes may not fit.

    What the folder holds already, of a run that goes on, counts as room.

    Raises:
        UsageError: nothing can be written there.
    """
    probe = folder / PROBE
    try:
        checkpoint.disk.make(folder)
        try:
            checkpoint.disk.write(probe, bytes(PROBE_BYTES))
        finally:
            with contextlib.suppress(OSError):  # the first error says more
                checkpoint.disk.remove(probe)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise UsageError(
            f"{folder} cannot be written to ({error.strerror}), and checkpoints need about "
            f"{_size(needed)} there: choose another folder, or make room in this one."
        ) from None
    held = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if free + held < needed:
        say(
            f"warning: {folder} has room for {_size(free + held)}, and the checkpoints of this run "
            f"may take {_size(needed)}: make room while it trains, or choose another folder."
        )


def _size(count: int) -> str:
    unit, name = (1e9, "GB") if count >= 1e9 else (1e6, "MB")
    return f"{count / unit:.1f} {name}"
