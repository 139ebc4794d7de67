"""A process that forks runs of discovery for `test_kills.py`, so that imports are paid for once.

Each line of its input is the arguments of one run as JSON: folder, `die_at` (the number of the
call to the disk at which the run kills itself, or null), `steps`, whether it goes on, and `hang`
(whether its first save is never over). It answers with the run's process id, and when that has
ended with its exit status. The file `saved` says how far a run is kept, `saving` that a save began.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from etude import checkpoint
from etude.cli import discover
from etude.config import replace
from etude.skills.discovery import Discovery, preset

SETTINGS: dict[str, Any] = {
    "agent": {"hidden": [16, 16]},
    "method": {"hidden": [16, 16]},
    "loop": {"num_envs": 4, "episode_steps": 20, "updates_per_epoch": 3, "warmup_steps": 80},
}


class Deadly(checkpoint.Disk):
    """Kills its process at one of the calls."""

    def __init__(self, at: int) -> None:
        self.left = at

    def _count(self) -> None:
        if not self.left:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1

    def write(self, path: Path, data: bytes) -> None:
        self._count()
        super().write(path, data)

    def sync(self, path: Path) -> None:
        self._count()
        super().sync(path)

    def rename(self, old: Path, new: Path) -> None:
        self._count()
        super().rename(old, new)

    def remove(self, path: Path) -> None:
        self._count()
        super().remove(path)


def run(folder: Path, steps: int, die_at: int | None, resume: bool, hang: bool) -> int:
    """A run, new or from its newest checkpoint; writes down each save that has succeeded."""
    torch.set_num_threads(1)
    one = Discovery(replace(preset("metra", "point-open"), SETTINGS | {"steps": steps}))
    written: checkpoint.Written = {}
    watched = None
    if resume:
        tree = checkpoint.load_newest(folder / "checkpoints", written)
        one.restore(tree["run"])
        watched = tree["watched"]
    if die_at is not None:
        checkpoint.disk = Deadly(die_at)
    save = discover.save

    def noted(*args: Any) -> Path:
        (folder / "saving").touch()
        time.sleep(3600 * hang)
        path = save(*args)
        (folder / "saved").write_text(str(one.steps))
        return path

    discover.save = noted
    discover.keep = lambda *_: folder  # its library is not the matter here
    often = discover.Running(out=folder, eval_every=1600, save_minutes=1e-5)
    return discover.train(one, folder, often, watched, written)


def tell(number: int) -> None:
    """Answer with a line."""
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


def main() -> None:
    """Fork a run for each line."""
    for line in sys.stdin:
        arguments = json.loads(line)
        pid = os.fork()
        if not pid:
            sys.stdin.close()
            sys.stdout = sys.stderr
            os._exit(run(**arguments | {"folder": Path(arguments["folder"])}))
        tell(pid)
        tell(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


if __name__ == "__main__":
    main()
