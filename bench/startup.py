"""How long `import etude` takes, and `train.py discover` from its process's start to a step.

The first step is the first call of `BatchedEnv.step`, in the check of a new environment; the first
step of training comes after the untrained skills were evaluated and stands beside it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path

from rounds import Row, interleave, measured, medians, script

TRAIN = Path(__file__).resolve().parents[1] / "train.py"
STARTED = "BENCH_STARTED"  # s since the epoch
IMPORT = """
import time
start = time.perf_counter()
import etude
print(time.perf_counter() - start)
"""
# runs train.py, prints the time until the first step and until the first step of training, ends
FIRST_STEP = """
import os, runpy, sys, time
sys.argv = sys.argv[1:]
from etude.envs.engine import BatchedEnv
from etude.skills.discovery import Discovery
step, collect, seen = BatchedEnv.step, Discovery.collect, []

def timed_step(self, *args, **options):
    now = time.time() - float(os.environ["BENCH_STARTED"])
    if not seen:
        seen.append(now)
    if "training" in seen:
        print("first steps", seen[0], now, flush=True)
        os._exit(0)
    return step(self, *args, **options)

def timed_collect(self, *args):
    seen.append("training")
    return collect(self, *args)

BatchedEnv.step, Discovery.collect = timed_step, timed_collect
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def python(code: str, *args: str) -> str:
    """What a new interpreter prints that runs this code."""
    env = os.environ | {STARTED: repr(time.time())}
    command = [sys.executable, "-c", code, *args]
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def imported() -> tuple[float, ...]:
    """Time of `import etude` in a new process, s."""
    return (float(python(IMPORT)),)


def first_steps(folder: Path, names: Iterator[int]) -> tuple[float, ...]:
    """Time from the start of the process to its first step, and to that of training, s."""
    options = ["--env", "ant", "--steps", "4800", "--out", str(folder / str(next(names)))]
    printed = python(FIRST_STEP, str(TRAIN), "discover", "metra", *options)
    line = next(x for x in printed.splitlines() if x.startswith("first steps"))
    return tuple(map(float, line.split()[-2:]))


def measure(rounds: int) -> list[Row]:
    """Both rows."""
    with tempfile.TemporaryDirectory() as folder:
        first = partial(first_steps, Path(folder), count())
        arms: dict[str, Callable[[], tuple[float, ...]]] = {"import": imported, "first": first}
        taken = interleave(arms, rounds)
    imports = [seconds for (seconds,) in taken["import"]]
    of_all, of_training = zip(*taken["first"], strict=True)
    beside = medians({"first step of training": of_training}, "s")
    return [
        measured("startup/import", imports, {}),
        measured("startup/first-step", of_all, beside),
    ]


if __name__ == "__main__":
    script(measure)
