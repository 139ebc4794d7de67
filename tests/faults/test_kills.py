"""Runs that are killed, interrupted and resumed end exactly as one that was left alone.

`ETUDE_KILLS=200 ETUDE_SIGNALS=50 pytest -m slow tests/faults/test_kills.py` soaks.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest

from etude import checkpoint

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("ETUDE_KILLS", "6"))
SIGNALS = int(os.environ.get("ETUDE_SIGNALS", "3"))
STEPS = 4 * 20 * 60
both_signals = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
Record = Callable[[str, object], None]


class Zygote:
    """`victim.py`, ready to fork."""

    def __init__(self, log: Path) -> None:
        self.log = log  # what the runs say
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("victim.py"))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                env=os.environ | {"OMP_NUM_THREADS": "1", "ETUDE_THREADS": "1"},
            )

    def start(self, folder: Path, **arguments: Any) -> int:
        """Fork a run; its process id."""
        defaults = {"folder": str(folder), "steps": STEPS, "die_at": None, "hang": False}
        line = json.dumps(defaults | {"resume": (folder / "saved").exists()} | arguments)
        print(line, file=stream(self.process.stdin), flush=True)
        pid = int(stream(self.process.stdout).readline())
        assert pid > 1, "an answer to an earlier run, whose test did not wait for it"
        return pid

    def wait(self) -> int:
        """Exit status of the run."""
        return int(stream(self.process.stdout).readline())

    @property
    def ended(self) -> bool:
        """Whether the answer of `wait` is there."""
        return bool(select.select([stream(self.process.stdout)], [], [], 0)[0])

    def said(self) -> str:
        """The end of what the runs have said."""
        return self.log.read_text(errors="replace")[-2000:]


def stream(file: IO[str] | None) -> IO[str]:
    assert file is not None
    return file


@pytest.fixture(scope="module")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    one = Zygote(tmp_path_factory.mktemp("zygote") / "log.txt")
    yield one
    stream(one.process.stdin).close()
    stream(one.process.stdout).close()
    assert one.process.wait(30) == 0


def leaves(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Every leaf of a tree but the clocks, arrays and rows as bytes."""
    if isinstance(tree, dict):
        return {k: v for n, t in tree.items() for k, v in leaves(t, f"{prefix}/{n}").items()}
    if prefix.endswith("/seconds"):
        return {}
    if isinstance(tree, checkpoint.Rows):
        tree = tree.read(tree.begin, tree.end)
    return {prefix: np.asarray(tree).tobytes() if hasattr(tree, "__array__") else tree}


def final(folder: Path) -> dict[str, Any]:
    """The last checkpoint, evaluations and metrics, without times."""
    found = leaves(checkpoint.load_newest(folder / "checkpoints"))
    for name, skipped in (("evaluations.csv", 2), ("metrics.csv", 1)):
        rows = [line.split(",") for line in (folder / name).read_text().splitlines()]
        found[name] = [row[:skipped] + row[skipped + 1 :] for row in rows if "time/fps" not in row]
    return found


def wait_until(condition: Callable[[], bool]) -> None:
    """Poll for up to five minutes."""
    end = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def send(pid: int, number: int) -> None:
    """A signal to a run that may have ended by now."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def saves(folder: Path) -> int:
    """A number that changes with every save that has succeeded."""
    path = folder / "saved"
    return path.stat().st_mtime_ns if path.exists() else 0


def kept(folder: Path) -> int:
    """Steps of the last save that has succeeded, or -1."""
    text = (folder / "saved").read_text() if (folder / "saved").exists() else ""
    return int(text or -1)


def wait_for_a_save(zygote: Zygote, folder: Path, before: int, rng: random.Random) -> None:
    """Until the run has saved, and up to 0.3 s more: in an episode, an update, the next save."""
    wait_until(lambda: saves(folder) != before or zygote.ended)
    assert saves(folder) != before, f"it ended without a save: {zygote.said()}"
    time.sleep(rng.random() * 0.3)


@pytest.fixture(scope="module")
def undisturbed(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("whole")
    zygote.start(folder)
    assert zygote.wait() == 0
    return final(folder)


def test_killed_runs_go_on_exactly(
    zygote: Zygote, undisturbed: dict[str, Any], tmp_path: Path, record_property: Record
) -> None:
    """Half of the kills come at a random call of a save, half at a random time."""
    rng = random.Random(1)
    run, killed = 0, 0
    while killed < KILLS:
        folder, ended = tmp_path / str(run), False
        folder.mkdir()
        while not ended and killed < KILLS:
            aimed = killed % 2 == 0
            before = saves(folder)
            pid = zygote.start(folder, die_at=rng.randrange(200) if aimed else None)
            if not aimed:
                wait_for_a_save(zygote, folder, before, rng)
                send(pid, signal.SIGKILL)
            status = zygote.wait()
            assert status in (0, -signal.SIGKILL), zygote.said()
            ended = status == 0
            killed += not ended
            if kept(folder) >= 0:
                tree = checkpoint.load_newest(folder / "checkpoints")
                assert tree["run"]["counters"]["steps"] >= kept(folder), "a save was lost"
        if not ended:
            zygote.start(folder)
            assert zygote.wait() == 0
        assert final(folder) == undisturbed
        run += 1
    record_property("count", killed)


@both_signals
def test_a_signal_saves_and_ends_in_time(
    number: signal.Signals,
    zygote: Zygote,
    undisturbed: dict[str, Any],
    tmp_path: Path,
    record_property: Record,
) -> None:
    """Within episodes, updates or evaluations; the exit code is 128 + the signal's number."""
    rng, seconds, run = random.Random(int(number)), list[float](), 0
    while len(seconds) < SIGNALS:
        folder, code = tmp_path / str(run), 128 + number
        folder.mkdir()
        while code and len(seconds) < SIGNALS:
            before = saves(folder)
            pid = zygote.start(folder)
            wait_for_a_save(zygote, folder, before, rng)
            before, start = saves(folder), time.monotonic()
            send(pid, number)
            code = zygote.wait()
            # after the last step the handlers are gone, and the signal ends a run that is kept
            assert code in (0, 128 + number, -number)
            if code == 128 + number:
                seconds.append(time.monotonic() - start)
                assert saves(folder) != before, "it ended without a save"
        if code:
            zygote.start(folder)
            assert zygote.wait() == 0
        assert final(folder) == undisturbed
        run += 1
    record_property("count", len(seconds))
    record_property("slowest, s", max(seconds))
    assert max(seconds) < 5


@both_signals
def test_the_second_signal_ends_at_once(
    number: signal.Signals, zygote: Zygote, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    """Even a save that hangs; what was saved before is whole."""
    rng = random.Random(int(number))
    pid = zygote.start(tmp_path)
    wait_for_a_save(zygote, tmp_path, 0, rng)
    send(pid, signal.SIGKILL)
    zygote.wait()
    (tmp_path / "saving").unlink()
    pid = zygote.start(tmp_path, hang=True)
    wait_until((tmp_path / "saving").exists)
    send(pid, number)
    time.sleep(0.2)
    os.kill(pid, 0)  # it is still there: it waits for its save
    start = time.monotonic()
    send(pid, number)
    assert zygote.wait() == 128 + number and time.monotonic() - start < 1
    zygote.start(tmp_path)
    assert zygote.wait() == 0
    assert final(tmp_path) == undisturbed
