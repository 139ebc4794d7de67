"""Runs that are killed, interrupted and resumed end exactly as one that was left alone."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest

from etude import checkpoint

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("ETUDE_KILLS", "6"))
SIGNALS = int(os.environ.get("ETUDE_SIGNALS", "3"))
STEPS = 4 * 20 * 60


class Zygote:
    """`victim.py`, ready to fork."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("victim.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "ETUDE_THREADS": "1"},
        )

    def start(self, folder: Path, **arguments: Any) -> int:
        """Fork a run; its process id."""
        defaults = {"folder": str(folder), "steps": STEPS, "die_at": None}
        line = json.dumps(defaults | {"resume": (folder / "saved").exists()} | arguments)
        print(line, file=stream(self.process.stdin), flush=True)
        return int(stream(self.process.stdout).readline())

    def wait(self) -> int:
        """Exit status of the run."""
        return int(stream(self.process.stdout).readline())


def stream(file: IO[str] | None) -> IO[str]:
    assert file is not None
    return file


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    one = Zygote()
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


def wait_until(condition: Any) -> None:
    """Poll for up to a minute."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture(scope="module")
def undisturbed(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("whole")
    zygote.start(folder)
    assert zygote.wait() == 0
    return final(folder)


def test_killed_runs_go_on_exactly(
    zygote: Zygote, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    """Half of the kills come at a random call of a save, half at a random time."""
    rng = random.Random(1)
    run, killed = 0, 0
    while killed < KILLS:
        folder, ended = tmp_path / str(run), False
        folder.mkdir()
        while not ended and killed < KILLS:
            aimed = killed % 2 == 0
            before = saved(folder)
            pid = zygote.start(folder, die_at=rng.randrange(200) if aimed else None)
            if not aimed:
                wait_until(lambda b=before, f=folder: saved(f) > b)
                time.sleep(rng.random() * 0.3)
                os.kill(pid, signal.SIGKILL)
            ended = zygote.wait() == 0
            killed += not ended
            if saved(folder) >= 0:
                tree = checkpoint.load_newest(folder / "checkpoints")
                assert tree["run"]["counters"]["steps"] >= saved(folder), "a save was lost"
        if not ended:
            zygote.start(folder)
            assert zygote.wait() == 0
        assert final(folder) == undisturbed
        run += 1


def saved(folder: Path) -> int:
    """Steps of the last save that has succeeded, or -1."""
    text = (folder / "saved").read_text() if (folder / "saved").exists() else ""
    return int(text or -1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_ends_in_time(
    number: signal.Signals, zygote: Zygote, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    """Within episodes, updates or evaluations; the exit code is 128 + the signal's number."""
    rng, signals = random.Random(int(number)), 0
    code = 128 + number
    while code == 128 + number and signals < SIGNALS:
        before = saved(tmp_path)
        pid = zygote.start(tmp_path)
        wait_until(lambda b=before: saved(tmp_path) > b)
        time.sleep(rng.random() * 0.3)
        start = time.monotonic()
        os.kill(pid, number)
        code = zygote.wait()
        assert time.monotonic() - start < 5
        signals += 1
    if code:
        zygote.start(tmp_path)
        code = zygote.wait()
    assert code == 0
    assert final(tmp_path) == undisturbed
