"""Arms x seeds on one task: do the skills help, and against whom?

Trials run in processes of their own, one thread each. A row goes into `trials.csv` as soon as its
trial ends, and what stands there is not run again; a trial that fails, or whose process dies, is
reported and takes no other with it. Trials that learn can be saved, each in `trials/KEY/` until it
has its row, and then go on from there.
"""

from __future__ import annotations

import csv
import logging
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, Literal, TypeVar

from etude.agents.meta_state import Keeper
from etude.checkpoint import sync
from etude.envs import registry
from etude.errors import EtudeError, Stopped, UsageError, unknown
from etude.evaluate.arms import ARMS, TrialSpec, run_trial
from etude.evaluate.rollouts import TASK_EPISODES, check_body
from etude.skills.compose import ComposeConfig
from etude.skills.library import SkillLibrary

TRIALS, CURVES = "trials.csv", "curves.csv"
TEXT = ("trial", "task", "arm", "algo", "library")  # columns that are no numbers
KEPT = "trials"  # folder of what is needed to go on with trials
SPAWN = multiprocessing.get_context("spawn")  # forking a process with threads may hang it
POLL, GRACE = 0.2, 2.5  # seconds between two looks at `stop`, and until a job is killed after it
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "ETUDE_THREADS")

Progress = Callable[[int, int, str], None]
"""Called with the trials done, all trials, and a line about the last one."""

logger = logging.getLogger("etude")
_end: Event | threading.Event | None = None  # set when the jobs of this process are to end
J = TypeVar("J")
R = TypeVar("R")


@dataclass(frozen=True)
class Comparison:
    """What came of a comparison."""

    specs: tuple[TrialSpec, ...]
    rows: tuple[Mapping[str, Any], ...]
    """of the trials that ended, in the order of `specs`; values as `run_trial` returns them"""
    curves: Mapping[str, Sequence[Mapping[str, float]]]
    """trial -> points with env_steps, success and episode_return, while it learnt"""
    failures: tuple[tuple[TrialSpec, str], ...]
    """trials without a result, and why"""

    def values(self, column: str) -> dict[str, list[float]]:
        """One value per seed of each arm; arms without any are left out."""
        found: dict[str, list[float]] = {}
        for row in self.rows:
            if row[column] is not None:
                found.setdefault(str(row["arm"]), []).append(float(row[column]))
        return found


def plan(
    library: str | Path | SkillLibrary,
    task: str,
    config: ComposeConfig,
    *,
    arms: Sequence[str] = tuple(ARMS),
    seeds: Sequence[int] = (0, 1, 2),
    flat_algo: Literal["ppo", "sac"] | None = None,
    episodes: int = TASK_EPISODES,
) -> list[TrialSpec]:
    """The trials of a comparison, seed by seed, so that an early stop leaves all arms alike.

    Args:
        library: folder, run folder or name of a library, or one that was loaded.
        task: id of the task.
        config: budget, k and algorithm of the arms with skills; its seed is replaced.
        arms: names in `ARMS`.
        seeds: of training; the episodes that judge are the same for all.
        flat_algo: algorithm of the arms without skills; None takes that of `config`, or PPO where
            that one cannot choose continuous actions.
        episodes: that judge a trial.

    Raises:
        LibraryError: the library is broken or of another body.
        UsageError: no such arm or task, or a library that was never written.
    """
    source = str(library.path if isinstance(library, SkillLibrary) else library)
    if not isinstance(library, SkillLibrary):
        library = SkillLibrary.load(library)
    if library.path is None:
        raise UsageError(f"{library.name} is in memory only: write it, trials load it from disk.")
    check_body(library, registry.spec(task))
    for arm in arms:
        if arm not in ARMS:
            raise unknown("arm", arm, ARMS)
    cost = int(library.provenance.get("steps") or 0)
    flat_algo = flat_algo or ("ppo" if config.algo == "dqn" else config.algo)
    first = TrialSpec("", task, source, library.set, library.id, cost, config, flat_algo, episodes)
    return [
        replace(first, arm=arm, config=replace(config, seed=seed))
        for seed in seeds
        for arm in arms
        if ARMS[arm].seeded or seed == seeds[0]
    ]


def compare(
    specs: Sequence[TrialSpec],
    folder: Path,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
    save_minutes: float | None = None,
    stop: Callable[[], bool] = lambda: False,
    limit: float | None = None,
) -> Comparison:
    """Run the trials that have no row in `folder/trials.csv` yet.

    Args:
        specs: from `plan`.
        folder: gets `trials.csv` and `curves.csv`.
        workers: processes; None takes one per core, 0 stays in this process.
        progress: told of every trial that ends.
        save_minutes: between checkpoints of a trial that learns; 0 = only when it is stopped;
            None: nothing is saved.
        stop: asked several times a second.
        limit: seconds after which a trial in a process of its own is given up; None: never.

    Raises:
        Stopped: `stop()` was true; no trial goes on.
        UsageError: the folder holds tables of another version.
    """
    folder.mkdir(parents=True, exist_ok=True)
    known = {row["trial"] for row in _read(folder / TRIALS)}
    left = [spec for spec in specs if spec.key not in known]
    failures, done = [], len(specs) - len(left)
    function: Callable[[TrialSpec], dict[str, Any]] = run_trial
    if save_minutes is not None:
        function = partial(_kept_trial, folder=folder / KEPT, minutes=save_minutes)
    workers = _cores() if workers is None else workers
    for spec, result in run_all(left, function, workers, stop, limit):
        done += 1
        if isinstance(result, BaseException):
            note = _failure(spec, result)
            failures.append((spec, note))
        else:
            curve = result.pop("curve")
            _append(folder / CURVES, [{"trial": spec.key, **point} for point in curve])
            _append(folder / TRIALS, [result])
            shutil.rmtree(folder / KEPT / spec.key, ignore_errors=True)
            note = _line(result)
        if progress:
            progress(done, len(specs), note)
    return read(specs, folder, failures)


def read(
    specs: Sequence[TrialSpec], folder: Path, failures: Sequence[tuple[TrialSpec, str]] = ()
) -> Comparison:
    """The rows and curves in `folder` that belong to `specs`."""
    rows = {row["trial"]: row for row in _read(folder / TRIALS)}
    curves: dict[str, list[Mapping[str, float]]] = {}
    for point in _read(folder / CURVES):
        # a trial that was cut off between its curve and its row has a second, whole curve
        points = curves.setdefault(point.pop("trial"), [])
        if points and points[-1]["env_steps"] >= point["env_steps"]:
            points.clear()
        points.append(point)
    mine = tuple(rows[spec.key] for spec in specs if spec.key in rows)
    wanted = {row["trial"] for row in mine}
    kept = {key: points for key, points in curves.items() if key in wanted}
    return Comparison(tuple(specs), mine, kept, tuple(failures))


def _kept_trial(spec: TrialSpec, folder: Path, minutes: float) -> dict[str, Any]:
    """A trial that goes on from its checkpoint, and saves itself when all are to stop."""
    return run_trial(spec, keeper=Keeper(folder / spec.key, minutes, _stopping))


def run_all(
    jobs: Sequence[J],
    function: Callable[[J], R],
    workers: int,
    stop: Callable[[], bool] = lambda: False,
    limit: float | None = None,
) -> Iterator[tuple[J, R | BaseException]]:
    """Run `function(job)` for every job; yields each job with its result, or its error, at its end.

    Each worker is a pool of one process, so that it is known whose process has died.

    Args:
        jobs: picklable, as the results.
        function: importable by name.
        workers: processes; 0 stays in this process.
        stop: asked several times a second.
        limit: seconds after which a job's process is killed; it yields a TimeoutError.

    Raises:
        Stopped: `stop()` was true; jobs that asked `_stopping` had time to end by themselves.
    """
    waiting, idle = deque(jobs), list[Executor]()
    running: dict[Future[R], tuple[Executor, J]] = {}
    before, clock = set(multiprocessing.active_children()), _Clock(limit)
    end = SPAWN.Event() if workers else threading.Event()
    with _one_thread():
        try:
            while waiting or running:
                if stop():
                    raise Stopped
                while waiting and len(running) < max(1, workers):
                    executor = idle.pop() if idle else _worker(workers, end)
                    job = waiting.popleft()
                    running[clock.start(executor, function, job)] = executor, job
                clock.kill_the_late()
                for future in wait(running, POLL, FIRST_COMPLETED).done:
                    executor, job = running.pop(future)
                    error = clock.verdict(future)
                    broken = isinstance(error, BrokenProcessPool | TimeoutError)
                    executor.shutdown() if broken else idle.append(executor)
                    yield job, future.result() if error is None else error
        finally:
            end.set()
            wait(running, GRACE)
            for executor in (*idle, *(executor for executor, _ in running.values())):
                executor.shutdown(wait=False, cancel_futures=True)
            # whoever was at work has had the time to save; to end takes Python another second
            for process in set(multiprocessing.active_children()) - before if running else ():
                process.kill()


class _Clock:
    """Knows when each job began and in which process, and kills those that take too long."""

    def __init__(self, limit: float | None) -> None:
        self._limit = limit
        self._process: dict[Executor, BaseProcess] = {}
        self._began: dict[Future[Any], tuple[float, Executor]] = {}
        self._late: set[Future[Any]] = set()

    def start(self, executor: Executor, function: Callable[[J], R], job: J) -> Future[R]:
        """Submit a job; a pool starts its process with its first one."""
        known = set(multiprocessing.active_children())
        future = executor.submit(function, job)
        for process in set(multiprocessing.active_children()) - known:
            self._process[executor] = process
        self._began[future] = time.monotonic(), executor
        return future

    def kill_the_late(self) -> None:
        """End the processes of jobs past the limit."""
        for future, (began, executor) in self._began.items():
            if self._limit and time.monotonic() - began > self._limit and executor in self._process:
                self._late.add(future)
                self._process[executor].kill()

    def verdict(self, future: Future[Any]) -> BaseException | None:
        """What went wrong with a job that has ended."""
        del self._began[future]
        error = future.exception()
        if future in self._late and isinstance(error, BrokenProcessPool):
            return TimeoutError(f"it took longer than {self._limit:g} s and was ended")
        return error


def _worker(workers: int, end: Event | threading.Event) -> Executor:
    if workers == 0:
        return ThreadPoolExecutor(1, initializer=_heed, initargs=(end,))
    return ProcessPoolExecutor(1, SPAWN, _begin, (end,))


def _begin(end: Event) -> None:
    """In a new process: one thread for torch, stops when the parent says so or is gone."""
    import torch

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _heed(end)


def _heed(end: Event | threading.Event) -> None:
    global _end
    _end = end


def _stopping() -> bool:
    """In a job of `run_all`: whether it is to end."""
    return _end is not None and _end.is_set()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let processes that are started now use one thread each, in every library."""
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _failure(spec: TrialSpec, error: BaseException) -> str:
    """Why a trial has no result, in a sentence; what is not the user's doing goes into the log."""
    if isinstance(error, EtudeError):
        return str(error)
    if isinstance(error, BrokenProcessPool):
        return "its process died: it was killed, perhaps for want of memory."
    if isinstance(error, TimeoutError):
        return f"{error}."
    logger.warning("trial %s failed", spec.key, exc_info=error)
    return f"{type(error).__name__}: {error}"


def _line(row: Mapping[str, Any]) -> str:
    rate = row["success_rate"]
    worth = f"return {row['return_mean']:.3g}" if rate is None else f"success {rate:.0%}"
    return f"{row['arm']}, seed {row['seed']}: {worth} ({row['seconds']:.0f} s)"


# ---- tables


def _append(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add rows to a CSV file and wait until the disk has them."""
    if not rows:
        return
    is_new = not path.exists()
    if not is_new and path.read_text().partition("\n")[0] != ",".join(rows[0]):
        raise UsageError(f"{path} has other columns than this version writes: take a new folder.")
    torn = not is_new and not path.read_bytes().endswith(b"\n")
    with path.open("a", newline="") as file:
        if torn:
            file.write("\n")
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerows(rows)
    sync(path)


def _read(path: Path) -> list[dict[str, Any]]:
    """The rows of a CSV file that `_append` wrote, without those that were cut off."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [
        {key: value if key in TEXT else _number(value) for key, value in row.items()}
        for row in rows
        if None not in row.values()
    ]


def _number(text: str) -> int | float | None:
    if not text:
        return None
    return int(text) if text.lstrip("-").isdigit() else float(text)
