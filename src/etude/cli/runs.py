"""Run folders: where a command writes, what made it, and how it is stopped."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import platform
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from etude import checkpoint
from etude.cli.progress import say
from etude.errors import UsageError

try:
    fcntl: Any = importlib.import_module("fcntl")
except ImportError:  # Windows
    fcntl = None

STOPPING = [getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, n)]
LOCK = ".lock"
"""Name of the file that says which process writes into a run folder."""
PACKAGES = ("torch", "mujoco", "gymnasium", "stable-baselines3", "numpy", "etude-rl")


def new_folder(path: Path) -> Path:
    """Create a run folder; refuses one that holds anything, so that nothing is overwritten."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UsageError(
            f"{path} exists already: choose another folder with --out, "
            f"or go on with --resume {path}."
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"{path} cannot be made ({error.strerror}): choose another folder with --out."
        ) from None
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


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Keep every other run out of `folder` until the block, or the process, ends.

    The kernel holds the lock and lets go of it however the process ends; the file `.lock` says who
    has it. Where there are no kernel locks, the file alone counts, with the life of its process.

    Raises:
        UsageError: another run writes here, or one on another machine has not said that it ended.
    """
    path = folder / LOCK
    try:
        file = _locked(path)
    except OSError as error:
        raise UsageError(
            f"{folder} cannot be locked ({error.strerror}): choose a folder you may write to."
        ) from None
    try:
        yield
    finally:
        if _is(file, path):
            path.unlink()  # before the lock goes: nobody may lock a file that is then removed
        os.close(file)


def _locked(path: Path) -> int:
    """An open, locked lock file that names this process."""
    while True:
        try:
            file, mine = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644), True
        except FileExistsError:
            try:
                file, mine = os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0)), False
            except FileNotFoundError:
                continue  # its owner has just ended
        try:
            alone = _flock(file)
            if not mine or alone is False:
                _may_take_over(path, _holder(file, patient=alone is not True), alone)
            if not _is(file, path):
                os.close(file)
                continue  # its owner removed it between our opening and our locking it
            os.ftruncate(file, 0)
            me = {"pid": os.getpid(), "host": platform.node()}
            now = datetime.now(UTC).isoformat(timespec="seconds")
            os.pwrite(file, json.dumps({**me, "started": now}).encode(), 0)
        except (OSError, UsageError):
            os.close(file)
            raise
        return file


def _is(file: int, path: Path) -> bool:
    """Whether the open file is still the one at `path`."""
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False


def _flock(file: int) -> bool | None:
    """Take the kernel's lock: whether we have it now, or None where there are no such locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return None
    return True


def _holder(file: int, patient: bool) -> dict[str, Any]:
    """Who wrote the lock file; a `patient` reader waits for one that is just being written."""
    for _ in range(20 if patient else 1):
        with suppress(ValueError):
            found = json.loads(os.pread(file, 4096, 0))
            if isinstance(found, dict) and isinstance(found.get("pid"), int):
                return {"host": "an unknown host", "started": "an unknown time", **found}
        time.sleep(0.05 if patient else 0)
    return {}


def _may_take_over(path: Path, holder: Mapping[str, Any], alone: bool | None) -> None:
    """Return if the run that left the lock has ended; raise if it goes on, or may do so."""
    if not holder and alone:
        return  # it ended before it had said who it was
    who = "an unknown process"
    if holder:
        who = f"process {holder['pid']} on {holder['host']} (since {holder['started']})"
    here = holder.get("host") == platform.node()
    if alone is False or (here and alone is None and _alive(holder["pid"])):
        raise UsageError(
            f"{path.parent} is in use by {who}: wait for it, stop it, or choose another --out."
        )
    if not here:
        raise UsageError(
            f"{path.parent} is locked by {who}, which cannot be seen from {platform.node()}: "
            f"if it has ended, delete {path} and start again."
        )
    say(f"took over {path.parent} from {who}, which has ended")


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write readable JSON as a whole."""
    checkpoint.write_text(path, json.dumps(data, indent=2, sort_keys=True) + "\n")


class Stop:
    """Turns the first Ctrl-C, SIGTERM or lost terminal (SIGHUP) into a flag.

    The second one ends the process at once.

    A context; inside it, calling the object says whether somebody asked to stop.
    """

    def __init__(self) -> None:
        self.requested = 0

    def __call__(self) -> bool:
        return bool(self.requested)

    def __enter__(self) -> Stop:
        self._old = {s: signal.signal(s, self._on) for s in STOPPING}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _on(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            os._exit(128 + number)
        self.requested = number
        say("\nstopping and saving; once more ends at once")


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
