"""Two discovery runs at once: environment steps per second of both together against one alone.

Each run (METRA on Ant, one thread) is a process of its own that waits for its turn, so that neither
imports nor the first epochs are timed. Both together take as long as the slower one.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import IO

from loop import warm_run
from rounds import Row, compared, interleave, script, thread_settings

EPOCHS = 2  # in a reading
RUNS = 2
WORKER = "--worker"


def work(seed: int) -> None:
    """Be one run: an answer when it is warm, then one for each line that asks for epochs."""
    run = warm_run(seed)
    print("warm", flush=True)
    for _ in sys.stdin:
        before = run.steps
        for _ in range(EPOCHS):
            run.epoch()
        print(run.steps - before, flush=True)


class Worker:
    """A run in another process."""

    def __init__(self, seed: int) -> None:
        command = [sys.executable, __file__, WORKER, str(seed)]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=thread_settings(1),
        )

    def ask(self) -> None:
        """Let it run its epochs."""
        self._pipe(self.process.stdin).write("go\n")
        self._pipe(self.process.stdin).flush()

    def answer(self) -> str:
        """Wait until it has done so."""
        line = self._pipe(self.process.stdout).readline()
        if not line:
            raise RuntimeError("a run ended early")
        return line.strip()

    def close(self) -> None:
        """Let it end."""
        self._pipe(self.process.stdin).close()
        self.process.wait()

    @staticmethod
    def _pipe(pipe: IO[str] | None) -> IO[str]:
        assert pipe is not None
        return pipe


def together(workers: Sequence[Worker]) -> float:
    """Environment steps per second of all these runs, from their start to the last one's end."""
    start = time.perf_counter()
    for worker in workers:
        worker.ask()
    steps = sum(int(worker.answer()) for worker in workers)
    return steps / (time.perf_counter() - start)


def measure(rounds: int) -> list[Row]:
    """One alone, both, one alone, both, …"""
    workers = [Worker(seed) for seed in range(RUNS)]
    try:
        for worker in workers:
            worker.answer()
        arms = {"alone": partial(together, workers[:1]), "both": partial(together, workers)}
        readings = interleave(arms, rounds)
    finally:
        for worker in workers:
            worker.close()
    return [compared("seeds/two", readings, "both", "alone", "steps/s")]


if __name__ == "__main__":
    if WORKER in sys.argv:
        work(int(sys.argv[-1]))
    else:
        script(measure)
