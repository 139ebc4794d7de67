"""A save that fails, or is killed, at each of its calls to the disk; and damage to its files."""

from __future__ import annotations

import errno
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from etude import checkpoint
from etude.errors import CheckpointError

VALUES = np.arange(60.0)
CASES = int(os.environ.get("ETUDE_CASES", "150"))


class Killed(BaseException):
    """The process ends here: nothing that follows in it runs."""


class FailingDisk(checkpoint.Disk):
    """Counts the calls and lets the one numbered `at` fail; a failing write leaves half a file."""

    def __init__(self, at: int, failure: BaseException) -> None:
        self.at, self.failure, self.calls = at, failure, 0

    def _now(self) -> bool:
        self.calls += 1
        return self.calls - 1 == self.at

    def write(self, path: Path, data: bytes) -> None:
        if self._now():
            path.write_bytes(data[: len(data) // 2])
            raise self.failure
        super().write(path, data)

    def _call(self, method: Callable[..., None], *args: Path) -> None:
        if self._now():
            raise self.failure
        method(*args)

    def sync(self, path: Path) -> None:
        self._call(super().sync, path)

    def make(self, path: Path) -> None:
        self._call(super().make, path)

    def rename(self, old: Path, new: Path) -> None:
        self._call(super().rename, old, new)

    def remove(self, path: Path) -> None:
        self._call(super().remove, path)


def tree(step: int) -> dict[str, Any]:
    """What a run saves after `step` rows: the number, an array, and the newest 30 rows."""
    rows = checkpoint.Rows(max(0, step - 30), step, lambda a, b: VALUES[a:b])
    return {"step": step, "array": np.full(4, float(step)), "log": rows}


def check(back: dict[str, Any]) -> int:
    """Whether a tree is one that was saved; its step."""
    step = int(back["step"])
    np.testing.assert_array_equal(back["array"], np.full(4, float(step)))
    rows = back["log"]
    np.testing.assert_array_equal(rows.read(rows.begin, rows.end), VALUES[max(0, step - 30) : step])
    return step


FAILURES = [
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EROFS, "Read-only file system"),
    OSError(errno.EIO, "Input/output error"),
    Killed(),
]


@pytest.mark.parametrize("failure", FAILURES, ids=["full", "read-only", "broken", "killed"])
def test_a_save_that_fails_at_any_call_loses_at_most_itself(
    failure: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at, failed = 0, True
    while failed:
        folder, written = tmp_path / str(at), checkpoint.Written()
        for step in (10, 20, 35):
            checkpoint.save(folder, f"{step:06d}", tree(step), written)
        disk = FailingDisk(at, failure)
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "disk", disk)
            try:
                checkpoint.save(folder, f"{48:06d}", tree(48), written)
                failed = False
            except (OSError, Killed):
                assert disk.calls == at + 1
        found = check(checkpoint.load_newest(folder))
        assert found in ((35, 48) if failed else (48,)), f"call {at}"
        # it goes on: in the same process after an error, in a new one after a kill
        again = checkpoint.Written() if isinstance(failure, Killed) else written
        checkpoint.load_newest(folder, again if isinstance(failure, Killed) else None)
        checkpoint.save(folder, f"{60:06d}", tree(60), again)
        assert check(checkpoint.load_newest(folder)) == 60
        assert not [p for p in folder.iterdir() if p.name.startswith(".")], "no litter"
        at += 1
    assert at > 20


def test_every_truncation_and_bit_flip_is_refused_by_name(tmp_path: Path) -> None:
    """`ETUDE_CASES` random ones; each within a second, none loads, whichever file it hits."""
    path = checkpoint.save(tmp_path, "1", tree(40))
    files = [p for p in tmp_path.rglob("*") if p.is_file() and p.name != checkpoint.LATEST]
    assert {p.suffix for p in files} == {".safetensors", ".json"} and len(files) == 4
    rng = random.Random(0)
    for case in range(CASES):
        file = rng.choice(files)
        good = file.read_bytes()
        place = rng.randrange(len(good))
        flipped = bytes([good[place] ^ (1 << rng.randrange(8))])
        bad = good[:place] if case % 2 else good[:place] + flipped + good[place + 1 :]
        file.write_bytes(bad)
        start = time.monotonic()
        with pytest.raises(CheckpointError) as caught:
            checkpoint.load(path)
        assert file.name in str(caught.value) and time.monotonic() - start < 1
        file.write_bytes(good)
    assert check(checkpoint.load(path)) == 40
