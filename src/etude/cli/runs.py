"""Run folders: where a command writes, what made it, and how it is stopped."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from etude import checkpoint
from etude.errors import UsageError

PACKAGES = ("torch", "mujoco", "gymnasium", "stable-baselines3", "numpy", "etude-rl")


def new_folder(path: Path) -> Path:
    """Create a run folder; refuses one that holds anything, so that nothing is overwritten."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UsageError(
            f"{path} exists already: choose another folder with --out, "
            f"or go on with --resume {path}."
        )
    path.mkdir(parents=True, exist_ok=True)
    return path


def next_free(stem: Path) -> Path:
    """`stem-1`, `stem-2`, …: the first that does not exist."""
    number = 1
    while stem.with_name(f"{stem.name}-{number}").exists():
        number += 1
    return stem.with_name(f"{stem.name}-{number}")


def provenance(argv: Sequence[str]) -> dict[str, Any]:
    """What made an artifact: command, time, versions, commit, machine."""
    return {
        "command": shlex.join(["python", "train.py", *argv]),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **_versions()},
        "commit": _commit(),
        "processor": _processor(),
        "cores": os.cpu_count(),
    }


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write readable JSON as a whole."""
    checkpoint.write_text(path, json.dumps(data, indent=2, sort_keys=True) + "\n")


class Stop:
    """Turns the first Ctrl-C or SIGTERM into a flag; the second one ends the process at once."""

    def __init__(self) -> None:
        self.requested = 0
        self._old = {s: signal.signal(s, self._on) for s in (signal.SIGINT, signal.SIGTERM)}

    def _on(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            os._exit(128 + number)
        self.requested = number
        print("\nstopping after this epoch; once more ends at once", file=sys.stderr)

    def restore(self) -> None:
        """Give the signals back."""
        for number, handler in self._old.items():
            signal.signal(number, handler)


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def _commit() -> str:
    """The checkout's commit with `+changes` when it is dirty, or "unknown"."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return "unknown"
    git = ["git", "-C", str(root)]
    try:
        head = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        )
        dirty = subprocess.run(
            [*git, "status", "--porcelain"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + ("+changes" if dirty.stdout.strip() else "")


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
