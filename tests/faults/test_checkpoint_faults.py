"""A save that fails, or is killed, at each of its calls to the disk."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from etude import checkpoint
from etude.cli import discover
from etude.config import replace
from etude.skills.discovery import Discovery, preset

VALUES = np.arange(60.0)


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


@pytest.mark.parametrize("before", [(10, 20, 35), (10, 35, 48)], ids=["new", "same-name"])
@pytest.mark.parametrize("failure", FAILURES, ids=["full", "read-only", "broken", "killed"])
def test_a_save_that_fails_at_any_call_loses_at_most_itself(
    failure: BaseException,
    before: tuple[int, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:
    at, failed = 0, True
    while failed:
        folder, written = tmp_path / str(at), checkpoint.Written()
        for step in before:  # a run that was resumed at its end saves that step once more
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
        assert found in ((before[-1], 48) if failed else (48,)), f"call {at}"
        # it goes on: in the same process after an error, in a new one after a kill
        again = checkpoint.Written() if isinstance(failure, Killed) else written
        checkpoint.load_newest(folder, again if isinstance(failure, Killed) else None)
        for step in (48, 60):
            checkpoint.save(folder, f"{step:06d}", tree(step), again)
            assert check(checkpoint.load_newest(folder)) == step
        assert not [p for p in folder.iterdir() if p.name.startswith(".")], "no litter"
        at += 1
    assert at > 15
    record_property("count", at - 1)


@pytest.mark.parametrize("failure", FAILURES[:3], ids=["full", "read-only", "broken"])
def test_training_goes_on_past_saves_that_fail(
    failure: OSError,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Every save but the first fails: a warning each, exit code 0, and the first is whole."""
    small = {"steps": 480, "agent": {"hidden": [16, 16]}}
    loop = {"num_envs": 4, "episode_steps": 20, "updates_per_epoch": 1, "warmup_steps": 80}
    run = Discovery(replace(preset("metra", "point-open"), small | {"loop": loop}))
    running = discover.Running(out=tmp_path, eval_every=10_000, save_minutes=1e-6)
    real, saved = checkpoint.disk, []

    def save(*args: Any) -> Path:
        checkpoint.disk = FailingDisk(9, failure) if saved else real
        try:
            saved.append(run.steps)
            return written(*args)
        finally:
            checkpoint.disk = real

    written = discover.save
    monkeypatch.setattr(discover, "save", save)
    monkeypatch.setattr(discover, "keep", lambda *_: tmp_path)
    assert discover.train(run, tmp_path, running) == 0
    assert run.done and len(saved) == 7
    warnings = capsys.readouterr().err
    assert warnings.count("no checkpoint was written") == 6 and failure.strerror in warnings
    tree = checkpoint.load_newest(tmp_path / "checkpoints")
    assert tree["run"]["counters"]["steps"] == saved[0]
