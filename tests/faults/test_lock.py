"""Two runs in one folder: the second is refused, unless the first has ended, however it ended."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from etude.cli import runs
from etude.errors import UsageError

HOLD = """
import sys, pathlib
from etude.cli import runs
from etude.errors import UsageError
try:
    with runs.lock(pathlib.Path(sys.argv[1])):
        print("held", flush=True)
        sys.stdin.readline()
except UsageError as error:
    print(f"refused {error}", flush=True)
print("over", flush=True)
"""


def start(folder: Path) -> subprocess.Popen[str]:
    """Another process that holds the lock until it is sent a line."""
    command = [sys.executable, "-c", HOLD, str(folder)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, text=True, **pipes)


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def written(folder: Path, **changes: Any) -> dict[str, Any]:
    """A lock file that nobody holds."""
    found = {"pid": 2**22 + 1, "host": platform.node(), "started": "yesterday", **changes}
    (folder / runs.LOCK).write_text(json.dumps(found))
    return found


def refused(folder: Path, *words: str) -> str:
    with pytest.raises(UsageError) as caught, runs.lock(folder):
        pass
    assert all(word in str(caught.value) for word in words), str(caught.value)
    return str(caught.value)


def test_the_second_is_refused_at_once_and_the_first_goes_on(tmp_path: Path) -> None:
    first = start(tmp_path)
    assert line(first) == "held"
    content = json.loads((tmp_path / runs.LOCK).read_text())
    assert content["pid"] == first.pid and content["host"] == platform.node()
    second = start(tmp_path)
    answer = line(second)
    assert answer.startswith("refused") and f"process {first.pid} on {platform.node()}" in answer
    assert "--out" in answer
    refused(tmp_path, str(first.pid))
    assert json.loads((tmp_path / runs.LOCK).read_text()) == content
    out, errors = first.communicate("\n", timeout=60)
    assert (out, errors) == ("over\n", "")
    second.communicate(timeout=60)
    assert not (tmp_path / runs.LOCK).exists()
    with runs.lock(tmp_path):
        pass


def test_kill_9_frees_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = start(tmp_path)
    assert line(first) == "held"
    first.send_signal(signal.SIGKILL)
    first.communicate(timeout=60)
    assert (tmp_path / runs.LOCK).exists()
    with runs.lock(tmp_path):
        said = capsys.readouterr().err
        assert f"process {first.pid} on" in said and "has ended" in said and said.count("\n") == 1
        second = start(tmp_path)
        assert f"process {os.getpid()} on" in line(second)
        second.communicate(timeout=60)
    assert not list(tmp_path.iterdir())


def test_of_many_at_once_one_wins(tmp_path: Path) -> None:
    written(tmp_path)
    processes = [start(tmp_path) for _ in range(4)]
    answers = [line(p).split()[0] for p in processes]
    assert sorted(answers) == ["held", "refused", "refused", "refused"]
    for process in processes:
        process.communicate("\n" if process.poll() is None else None, timeout=60)


def test_one_process_locks_a_folder_once(tmp_path: Path) -> None:
    with runs.lock(tmp_path):
        refused(tmp_path, f"process {os.getpid()} on {platform.node()}")
        (tmp_path / "other").mkdir()
        with runs.lock(tmp_path / "other"):
            pass
    with pytest.raises(KeyError), runs.lock(tmp_path):
        raise KeyError
    assert not (tmp_path / runs.LOCK).exists()


def test_another_host_is_refused_with_the_way_out(tmp_path: Path) -> None:
    before = written(tmp_path, host="elsewhere", pid=os.getpid())
    refused(tmp_path, "on elsewhere", f"delete {tmp_path / runs.LOCK}")
    assert json.loads((tmp_path / runs.LOCK).read_text()) == before
    (tmp_path / runs.LOCK).unlink()
    with runs.lock(tmp_path):
        pass


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": "x"}', "null", "\0" * 10])
def test_a_damaged_lock_that_nobody_holds_is_taken(content: str, tmp_path: Path) -> None:
    (tmp_path / runs.LOCK).write_text(content)
    with runs.lock(tmp_path):
        assert json.loads((tmp_path / runs.LOCK).read_text())["pid"] == os.getpid()


def test_without_kernel_locks_the_process_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runs, "fcntl", None)
    with runs.lock(tmp_path):
        refused(tmp_path, f"process {os.getpid()} on")
    written(tmp_path, pid=1)  # alive, and not ours
    refused(tmp_path, "process 1 on", "--out")
    written(tmp_path)
    with runs.lock(tmp_path):
        assert "has ended" in capsys.readouterr().err
    (tmp_path / runs.LOCK).write_text("")
    refused(tmp_path, "an unknown process", f"delete {tmp_path / runs.LOCK}")


def test_a_file_removed_meanwhile_is_not_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The owner ends between our opening the file and our locking it."""
    written(tmp_path)
    take, times = runs._flock, []

    def late(file: int) -> bool | None:
        if not times:
            (tmp_path / runs.LOCK).unlink()
        times.append(file)
        return take(file)

    monkeypatch.setattr(runs, "_flock", late)
    with runs.lock(tmp_path):
        assert len(times) == 2 and (tmp_path / runs.LOCK).exists()


def test_what_cannot_be_locked_is_said(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "cannot be locked", "No such file")
    (tmp_path / runs.LOCK).symlink_to(tmp_path / "target")
    refused(tmp_path, "cannot be locked")
    assert not (tmp_path / "target").exists()
