"""Room for checkpoints: folders that refuse, and estimates against what is really written."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from etude import checkpoint
from etude.cli.disk import PROBE, check_room, checkpoint_bytes
from etude.config import replace
from etude.errors import UsageError
from etude.skills.discovery import Discovery, preset

SMALL = {
    "agent": {"hidden": [32, 32]},
    "method": {"hidden": [32, 32]},
    "loop": {"num_envs": 4, "episode_steps": 50, "updates_per_epoch": 2, "warmup_steps": 0},
}


def test_a_folder_with_room_is_left_as_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text("{}")
    check_room(tmp_path, 1000)
    check_room(tmp_path / "new" / "run", 1000)
    assert [p.name for p in sorted(tmp_path.rglob("*"))] == ["config.json", "new", "run"]
    assert capsys.readouterr() == ("", "")


def test_the_probe_reaches_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is as large as a small checkpoint, and synced: a full disk may say so only then."""
    sizes: list[int] = []
    sync = checkpoint.disk.sync

    def noted(path: Path) -> None:
        sizes.append(path.stat().st_size)
        sync(path)

    monkeypatch.setattr(checkpoint.disk, "sync", noted)
    check_room(tmp_path, 0)
    assert sizes == [2**20]


FAILURES = (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO)


@pytest.mark.parametrize("number", FAILURES)
@pytest.mark.parametrize("call", ["make", "write", "sync"])
def test_a_disk_that_refuses_is_refused_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(checkpoint.disk, call, refuse)
    with pytest.raises(UsageError) as caught:
        check_room(tmp_path, 2_340_000_000)
    text = str(caught.value)
    assert str(tmp_path) in text and os.strerror(number) in text and "2.3 GB" in text
    assert "choose another folder" in text and text.endswith(".") and "\n" not in text
    assert not (tmp_path / PROBE).exists()


def test_a_probe_that_stays_hides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint.disk, "write", full)
    monkeypatch.setattr(checkpoint.disk, "remove", refuse)
    with pytest.raises(UsageError, match="No space left"):
        check_room(tmp_path, 0)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device that is full")
def test_a_device_that_is_really_full(tmp_path: Path) -> None:
    (tmp_path / PROBE).symlink_to("/dev/full")
    with pytest.raises(UsageError, match="No space left on device"):
        check_room(tmp_path, 0)
    assert list(tmp_path.iterdir()) == [] and Path("/dev/full").exists()


def test_a_file_in_the_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    with pytest.raises(UsageError, match=r"run cannot be written to \(File exists\)"):
        check_room(tmp_path / "run", 0)


def test_too_little_room_is_a_warning_with_both_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=999_900_000))
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "a").write_bytes(bytes(100_000))
    check_room(tmp_path, 1_000_000_000)
    assert capsys.readouterr().err == "", "what the run has written may be written again"
    check_room(tmp_path, 1_000_000_001)
    warning = capsys.readouterr().err
    assert warning.startswith("warning: ") and warning.count("\n") == 1
    assert "room for 1.0 GB" in warning and "may take 1.0 GB" in warning
    (tmp_path / "rows" / "a").unlink()
    check_room(tmp_path, 1_000_000_000)
    assert "room for 999.9 MB" in capsys.readouterr().err


@pytest.mark.parametrize("capacity", [400, 100_000])
def test_the_estimate_is_what_two_checkpoints_take(tmp_path: Path, capacity: int) -> None:
    """Of a finished run: more than what is on the disk, and at most half as much again."""
    loop = {**SMALL["loop"], "replay_capacity": capacity}
    config = replace(preset("metra", "point-open"), {**SMALL, "loop": loop, "steps": 2000})
    run = Discovery(config)
    estimate, written = checkpoint_bytes(run), checkpoint.Written()
    while not run.done:
        run.epoch()
        if run.steps in (1000, 2000) or run.done:
            checkpoint.save(tmp_path, f"{run.steps:06d}", run.checkpoint(), written)
    held = sum(p.stat().st_size for p in tmp_path.rglob("*") if p.is_file())
    assert len(checkpoint.whole(tmp_path)) == 2
    assert held < estimate < 1.5 * held
    assert checkpoint_bytes(run) == estimate, "the same for a run that goes on"


def test_the_estimate_grows_with_what_is_kept() -> None:
    def estimate(steps: int, capacity: int, width: int) -> int:
        data = {
            "steps": steps,
            "agent": {"hidden": [width, width]},
            "loop": {**SMALL["loop"], "replay_capacity": capacity},
        }
        return checkpoint_bytes(Discovery(replace(preset("metra", "point-open"), data)))

    base = estimate(10_000, 10_000, 16)
    assert estimate(20_000, 10_000, 16) == base, "the replay holds no more"
    assert estimate(10_000, 20_000, 16) == base, "no more is collected"
    assert estimate(5_000, 10_000, 16) < base < estimate(10_000, 10_000, 64)
    row = (4 + 2 + 4 + 2 + 1 + 1) * 4
    more = estimate(20_000, 20_000, 16) - base
    assert more == pytest.approx(1.2 * 10_000 * (row + 2 * 4), rel=1e-4)
