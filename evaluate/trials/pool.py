"""Jobs in processes of their own, one thread each: one that fails takes no other with it.

Processes are this machine's, or those of a Ray cluster, whose machines must see the same files.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
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
from functools import partial
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from typing import Any, TypeVar

from etude.errors import Stopped, UsageError

SPAWN = multiprocessing.get_context("spawn")  # forking a process with threads may hang it
POLL, GRACE = 0.2, 2.5  # seconds between two looks at `stop`, and until a job is killed after it
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "ETUDE_THREADS")

_end: Event | threading.Event | None = None  # set when the jobs of this process are to end
J = TypeVar("J")
R = TypeVar("R")


def run_all(
    jobs: Sequence[J],
    function: Callable[[J], R],
    workers: int | None,
    stop: Callable[[], bool] = lambda: False,
    limit: float | None = None,
    ray: bool = False,
) -> Iterator[tuple[J, R | BaseException]]:
    """Run `function(job)` for every job; yields each job with its result, or its error, at its end.

    Each worker is a pool of one process, so that it is known whose process has died.

    Args:
        jobs: picklable, as the results.
        function: importable by name.
        workers: processes; 0 stays in this process; with `ray`, None takes all of the cluster.
        stop: asked several times a second.
        limit: seconds after which a job's process is killed; it yields a TimeoutError.
        ray: run the jobs on the Ray cluster of RAY_ADDRESS, or on one that is started here.

    Raises:
        Stopped: `stop()` was true; jobs that asked `stopping` had time to end by themselves.
        UsageError: Ray is not installed.
    """
    if ray:
        there = _cluster()
        function = partial(_on_ray, function=function, limit=limit)
        return _run(jobs, function, workers or there, True, stop, None)
    workers = cores() if workers is None else workers
    return _run(jobs, function, workers, workers == 0, stop, limit)


def _run(
    jobs: Sequence[J],
    function: Callable[[J], R],
    workers: int,
    threads: bool,
    stop: Callable[[], bool],
    limit: float | None,
) -> Iterator[tuple[J, R | BaseException]]:
    """`run_all` in processes, or in threads that wait for what runs elsewhere."""
    waiting, idle = deque(jobs), list[Executor]()
    running: dict[Future[R], tuple[Executor, J]] = {}
    before, clock = set(multiprocessing.active_children()), _Clock(limit)
    end = threading.Event() if threads else SPAWN.Event()
    with _one_thread():
        try:
            while waiting or running:
                if stop():
                    raise Stopped
                while waiting and len(running) < max(1, workers):
                    executor = idle.pop() if idle else _worker(end)
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
                executor.shutdown(wait=threads and workers > 0, cancel_futures=True)
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


def _worker(end: Event | threading.Event) -> Executor:
    if isinstance(end, threading.Event):
        return ThreadPoolExecutor(1, initializer=_heed, initargs=(end,))
    return ProcessPoolExecutor(1, SPAWN, _begin, (end,))


def _cluster() -> int:
    """Join the Ray cluster of RAY_ADDRESS, or start one here; its cores."""
    try:
        ray = importlib.import_module("ray")
    except ImportError:
        raise UsageError(
            "--ray needs Ray: pip install 'etude-rl[cluster]', or leave it out."
        ) from None
    if not ray.is_initialized():
        here = {} if os.environ.get("RAY_ADDRESS") else {"include_dashboard": False}
        settings = {"env_vars": dict.fromkeys(THREADS, "1")}
        ray.init(log_to_driver=False, logging_level="error", runtime_env=settings, **here)
    return int(ray.cluster_resources()["CPU"])


def _on_ray(job: J, function: Callable[[J], R], limit: float | None) -> R:
    """In a thread of this process: run the job on a core of the cluster and wait for it."""
    ray = importlib.import_module("ray")
    task = ray.remote(num_cpus=1, max_retries=0)(_with_one_thread).remote(function, job)
    began = time.monotonic()
    while not ray.wait([task], timeout=POLL)[0]:
        if stopping():
            ray.cancel(task)  # as Ctrl-C, upon which a run is saved
            raise Stopped
        if limit and time.monotonic() - began > limit:
            ray.cancel(task, force=True)
            raise TimeoutError(f"it took longer than {limit:g} s and was ended")
    try:
        result: R = ray.get(task)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:
        raise BrokenProcessPool(str(error)) from None
    return result


def _with_one_thread(function: Callable[[J], R], job: J) -> R:
    import torch

    torch.set_num_threads(1)
    return function(job)


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


def stopping() -> bool:
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


def cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
