"""A run whose watchers have gone, pipe and terminal alike, saves and goes on as any other."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from etude import checkpoint
from etude.cli.progress import Progress, say

ROOT = Path(__file__).resolve().parents[2]
QUICK = "--steps 400000 --eval-every 0 --agent.hidden 8 8 --method.hidden 8 8 --loop.num-envs 4"
EPOCH = "--loop.episode-steps 20 --loop.updates-per-epoch 2 --loop.warmup-steps 80"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_stopped_run_saves_though_nobody_reads_it(number: int, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = f"discover metra --env point-open {QUICK} {EPOCH} --out {out}".split()
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    rows, deadline = out / "metrics.csv", time.monotonic() + 120
    while not rows.exists() or "time/fps" not in rows.read_text():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.stdout.close()
    process.stderr.close()
    process.send_signal(number)
    assert process.wait(60) == 128 + number
    assert checkpoint.load_newest(out / "checkpoints")["run"]["counters"]["steps"] > 0


def test_progress_survives_a_closed_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    os.close(read)
    with open(write, "w", buffering=1) as gone:
        monkeypatch.setattr(sys, "stderr", gone)
        say("nobody reads this")
        with Progress("title", 10) as progress:
            progress.to(10)
        monkeypatch.undo()
        with pytest.raises(BrokenPipeError):
            gone.write("a line\n")
        os.dup2(os.open(os.devnull, os.O_WRONLY), write)  # so that closing it succeeds
