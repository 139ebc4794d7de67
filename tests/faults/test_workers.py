"""Faults of the processes that run trials: nothing is lost but the trial, and nothing is left.

`ETUDE_FAULTS=150 pytest tests/faults/test_workers.py` soaks. A census after each test counts
processes, zombies and segments of shared memory.
"""

from __future__ import annotations

import functools
import gc
import operator
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from etude.evaluate.trials.pool import BrokenProcessPool, run_all

FAULTS = int(os.environ.get("ETUDE_FAULTS", "6"))
SHARED = Path("/dev/shm")
Record = Callable[[str, object], None]

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the census needs /proc"),
    pytest.mark.slow,
]

PARENT = """
import functools, operator, sys, time
from etude.evaluate.trials.pool import run_all
if __name__ == "__main__":
    jobs = [functools.partial(time.sleep, 3600) for _ in range(int(sys.argv[1]))]
    list(run_all(jobs, operator.call, len(jobs)))
"""


def processes() -> dict[int, int]:
    """Every process with its parent; zombies, too, but those that wait for process 1."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        # the name stands in brackets and may hold anything
        state, parent, *_ = read(str(path)).rpartition(")")[2].split() or ("Z", "1")
        if (state, parent) != ("Z", "1"):
            found[int(path.parent.name)] = int(parent)
    return found


def below(root: int) -> set[int]:
    """Process ids of all descendants but multiprocessing's resource tracker, which is kept."""
    parents, found, more = processes(), set[int](), {root}
    while more:
        more = {pid for pid, parent in parents.items() if parent in more}
        found |= more
    return {pid for pid in found if "resource_tracker" not in command(pid)}


def command(pid: int) -> str:
    return read(f"/proc/{pid}/cmdline")


def read(path: str) -> str:
    """What the system says of a process; nothing if that is gone or another user's."""
    try:
        return Path(path).read_text()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return ""


def shared() -> set[str]:
    """Segments of shared memory and semaphores, without those that strangers use."""
    gc.collect()  # a pool lets go of its semaphores when it is collected
    mine = below(os.getpid()) | {os.getpid()}
    used = "".join(read(f"/proc/{pid}/maps") for pid in processes().keys() - mine)
    names = {path.name for path in SHARED.iterdir()} if SHARED.is_dir() else set()
    return {name for name in names if name not in used and "loky" not in name}  # not ours


def gone(pids: set[int], within: float) -> bool:
    """Whether none of these processes is left after some seconds."""
    end = time.monotonic() + within
    while time.monotonic() < end:
        if not pids & processes().keys():
            return True
        time.sleep(0.02)
    return False


FAULT: dict[str, Callable[[int], Any]] = {
    "raises": lambda i: functools.partial(int, f"job {i}"),
    "is killed": lambda _: functools.partial(signal.raise_signal, signal.SIGKILL),
}


@pytest.mark.parametrize("fault", FAULT)
def test_a_fault_takes_no_other_trial_and_leaves_nothing(
    fault: str, record_property: Record
) -> None:
    """Bad and good jobs in turn; each result belongs to its job."""
    count = -(-FAULTS // 3)
    before, segments = below(os.getpid()), shared()
    jobs = [job for i in range(count) for job in (FAULT[fault](i), functools.partial(pow, 2, i))]
    found = {}
    for job, result in run_all(jobs, operator.call, 2):
        found[jobs.index(job)] = result
    assert len(found) == 2 * count
    for i in range(count):
        error = found[2 * i]
        if fault == "raises":
            assert isinstance(error, ValueError) and f"'job {i}'" in str(error)
        else:
            assert isinstance(error, BrokenProcessPool)
        assert found[2 * i + 1] == 2**i
    assert gone(below(os.getpid()) - before, 30), "a worker is left"
    assert shared() <= segments
    record_property("count", count)


def test_workers_end_with_their_parent(tmp_path: Path, record_property: Record) -> None:
    """Workers that hang, up to five of each parent; the parent has no time to tell them."""
    script, segments = tmp_path / "parent.py", shared()
    script.write_text(PARENT)
    for round_, workers in enumerate(rounds(-(-FAULTS // 6))):
        number = (signal.SIGKILL, signal.SIGTERM)[round_ % 2]
        with subprocess.Popen([sys.executable, str(script), str(workers)]) as parent:
            try:
                wait_for(lambda p=parent, n=workers: len(at_work(p.pid)) == n)
                children = below(parent.pid)
                parent.send_signal(number)
                assert parent.wait(30) == -number
            finally:
                parent.kill()
        assert gone(children, 30), "a worker is left"
    assert shared() <= segments
    record_property("count", -(-FAULTS // 6))


def test_hanging_workers_end_when_nobody_waits_any_more(record_property: Record) -> None:
    """An error where the results are read, or a generator that is dropped, ends them all."""
    before, segments = below(os.getpid()), shared()
    for workers in rounds(-(-FAULTS // 6)):
        jobs = [functools.partial(time.sleep, 3600)] * workers
        reader = run_all([functools.partial(pow, 2, 5), *jobs], operator.call, workers)
        assert next(reader)[1] == 32
        wait_for(lambda b=before, n=workers: len(at_work(os.getpid()) - b) == n)
        reader.close()
        assert gone(below(os.getpid()) - before, 30), "a worker is left"
    assert shared() <= segments
    record_property("count", -(-FAULTS // 6))


def rounds(count: int) -> list[int]:
    """`count` workers, at most five at a time."""
    return [min(5, count - done) for done in range(0, count, 5)]


def at_work(parent: int) -> set[int]:
    """The workers below a parent that have begun: they have started the thread that watches it."""
    return {p for p in below(parent) if threads(p) > 1 and "spawn_main" in command(p)}


def threads(pid: int) -> int:
    path = Path(f"/proc/{pid}/task")
    return len(list(path.iterdir())) if path.exists() else 0


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_job_past_its_limit_is_ended_and_named(record_property: Record) -> None:
    """Also in a process that has done another job before; the quick ones get their results."""
    before, segments = below(os.getpid()), shared()
    quick = [functools.partial(pow, 2, i) for i in range(3)]
    hanging = [functools.partial(time.sleep, 3600) for _ in range(2)]
    jobs = [*quick[:2], *hanging, quick[2]]
    found = dict(run_all(jobs, operator.call, 2, limit=6.0))
    assert [found[job] for job in quick] == [1, 2, 4]
    for job in hanging:
        assert isinstance(found[job], TimeoutError)
        assert str(found[job]) == "it took longer than 6 s and was ended"
    assert gone(below(os.getpid()) - before, 5)
    assert shared() <= segments
    record_property("count", len(hanging))


def test_the_census_sees_what_is_left() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    assert child.pid in below(os.getpid()) and not gone({child.pid}, 0.1)
    child.kill()
    time.sleep(0.2)
    assert not gone({child.pid}, 0.1), "a zombie counts"
    child.wait()
    assert gone({child.pid}, 0.1)
    segments = shared()
    file = SHARED / f"etude-{os.getpid()}"
    file.touch()
    assert shared() - segments == {file.name}
    file.unlink()
