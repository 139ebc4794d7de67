"""Runs of discovery that are stopped and go on from the disk."""

from __future__ import annotations

from pathlib import Path

from etude import checkpoint
from etude.config import to_dict
from etude.skills.discovery import Discovery, read_config


def stopped(run: Discovery, asked: int, folder: Path) -> Discovery:
    """The run as it is read back, once it has been asked `asked` times and then was told to stop.

    It has its settings from what a run folder keeps of them, and has not gone on.
    """
    times = iter(range(asked))
    while run.epoch(stop=lambda: next(times, None) is None):
        pass
    path = checkpoint.save(folder, "stopped", run.checkpoint())
    again = Discovery(read_config(to_dict(run.config)))
    again.restore(checkpoint.load(path))
    return again
