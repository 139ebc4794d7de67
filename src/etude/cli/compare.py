"""`compare learners` and `compare tasks`: tables that grow by a row for every trial that ends."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Annotated

import tyro

from etude import checkpoint, cli
from etude.cli import runs
from etude.cli.progress import Progress, say
from etude.config import Config, Range
from etude.envs import registry
from etude.errors import EtudeError, Stopped, unknown
from etude.evaluate.arms import ARMS
from etude.evaluate.compare import compare, read
from etude.evaluate.report import JSON
from etude.evaluate.trials import learners as side_by_side
from etude.evaluate.trials import tasks as suite
from etude.evaluate.trials.learners import Trial
from etude.evaluate.trials.pool import run_all, stopping
from etude.skills import learners

ABOUT = """usage: compare learners|tasks [options]

learners  every learner in every environment, for the same minutes of one core, over seeds
tasks     controllers over a library, and without one, on downstream tasks, for the same steps

When a trial ends, it is a row of OUT/trials.csv and is never run again, whatever stops the command;
a trial that was stopped goes on from its checkpoint; one that fails takes no other with it.
`compare learners --help` and `compare tasks --help` list the options.
"""


@dataclass(frozen=True)
class Learners(Config):
    """Which learners, where, for how long; the table is OUT/table.md."""

    learners: tuple[str, ...] = ()
    """files in skills/learners/ (default: all)"""
    envs: tuple[str, ...] = ("half-cheetah", "ant")
    """environments to practise in"""
    seeds: Annotated[int, Range(1, 100)] = 3
    """seeds of each: 0, 1, …"""
    minutes: Annotated[float, Range(0)] = 0.0
    """training time of a trial on one core (0: half-cheetah 10, ant 30, others 5)"""
    preset: str = "cpu"
    """flavour of the presets: cpu or paper"""
    out: Path = Path("results/learners")
    """folder of tables and pictures"""
    runs: Path = Path("runs/learners")
    """folder of the run folders"""
    workers: Annotated[int, Range(1, 256)] | None = None
    """trials that run at once, one core each (default: all cores)"""
    ray: bool = False
    """run the trials on the Ray cluster of RAY_ADDRESS, or on one started here; its machines must
    see the same files"""
    table_only: bool = False
    """train nothing, write table and pictures anew"""


@dataclass(frozen=True)
class Tasks(Config):
    """Which tasks and arms, for how many steps; the table is OUT/table.md."""

    tasks: tuple[str, ...] = ()
    """of the suite (default: all of it)"""
    arms: tuple[str, ...] = ()
    """ways to solve a task, see `compose --help` (default: all, with PPO and SAC as flat ones)"""
    library: str = ""
    """folder or name of one library for all tasks (default: each task's own in the zoo)"""
    seeds: Annotated[int, Range(0, 100)] = 0
    """seeds of each arm: 0, 1, … (0: the suite's, 5 where trials are short, else 3)"""
    env_steps: Annotated[int, Range(0)] = 0
    """environment steps of a trial (0: the suite's)"""
    out: Path = Path("results/tasks")
    """folder of tables and pictures"""
    save_minutes: Annotated[float, Range(0)] = 5.0
    """minutes between checkpoints of a trial; 0 = only when interrupted"""
    trial_minutes: Annotated[float, Range(0)] = 0.0
    """minutes after which a trial is given up; 0 = never"""
    workers: Annotated[int, Range(0, 256)] | None = None
    """trials that run at once, one core each (default: all cores; 0: in this process)"""
    ray: bool = False
    """run the trials on the Ray cluster of RAY_ADDRESS, or on one started here; its machines must
    see the same files"""
    table_only: bool = False
    """train nothing, write table and pictures anew"""


def main(argv: Sequence[str]) -> int:
    """Run the command with its arguments."""
    if not argv or argv[0] in ("-h", "--help"):
        print(ABOUT)
        return 0
    if argv[0] == "learners":
        return compare_learners(tyro.cli(Learners, args=argv[1:], prog="compare learners"))
    if argv[0] == "tasks":
        return compare_tasks(tyro.cli(Tasks, args=argv[1:], prog="compare tasks"))
    raise unknown("comparison", argv[0], ("learners", "tasks"))


def compare_learners(asked: Learners) -> int:
    """Run the trials that have no row yet; returns the exit code."""
    names = asked.learners or learners.ids()
    for env in asked.envs:
        if env not in registry.bodies():
            raise unknown("environment", env, registry.bodies())
    trials = side_by_side.plan(names, asked.envs, range(asked.seeds), asked.minutes, asked.preset)
    asked.out.mkdir(parents=True, exist_ok=True)
    code = 0
    if not asked.table_only:
        with runs.lock(asked.out):
            code = _run(trials, asked)
    print(side_by_side.report(asked.out, trials))
    print(f"table        {asked.out / side_by_side.TABLE}")
    return code


def compare_tasks(asked: Tasks) -> int:
    """Run the trials that have no row yet; returns the exit code."""
    for names, known, kind in ((asked.tasks, suite.SUITE, "task"), (asked.arms, ARMS, "arm")):
        for name in names:
            if name not in known:
                raise unknown(kind, name, known)
    specs = suite.plan_suite(
        asked.tasks or tuple(suite.SUITE),
        asked.arms or suite.WAYS,
        range(asked.seeds),
        _absolute(asked.library),
        **({"env_steps": asked.env_steps} if asked.env_steps else {}),
    )
    asked.out.mkdir(parents=True, exist_ok=True)
    found = read(specs, asked.out)
    if not asked.table_only:
        stop = runs.Stop()
        try:
            with runs.lock(asked.out), stop, Progress("tasks", len(specs), "trial") as progress:
                found = compare(
                    specs,
                    asked.out.resolve(),
                    workers=asked.workers,
                    progress=lambda done, of, note: progress.to(done, note),
                    save_minutes=asked.save_minutes,
                    stop=stop,
                    limit=60 * asked.trial_minutes or None,
                    ray=asked.ray,
                )
        except Stopped:
            say("stopped; the same command goes on")
            return 128 + stop.requested
    print(suite.report(asked.out, found))
    print(f"table        {asked.out / suite.TABLE}")
    return int(bool(found.failures))


def _absolute(library: str) -> str:
    """A path that other processes can read, unless it is a name."""
    return str(Path(library).resolve()) if library and Path(library).exists() else library


def _run(trials: Sequence[Trial], asked: Learners) -> int:
    known = side_by_side.finished(asked.out)
    left = [trial for trial in trials if trial.key not in known]
    done, failed = len(trials) - len(left), 0
    with runs.Stop() as stop, Progress("learners", len(trials), "trial") as progress:
        try:
            job = partial(learn, parent=asked.runs.resolve())
            for trial, result in run_all(left, job, asked.workers, stop, ray=asked.ray):
                done += 1
                if isinstance(result, BaseException):
                    failed += 1
                    say(f"{trial.key} has no result: {result}")
                    continue
                row = side_by_side.record(asked.out, trial, result)
                note = f"{trial.learner}, seed {trial.seed}: {row['policy_coverage']:.0f} cells"
                progress.to(done, note)
        except Stopped:
            say("stopped; the same command goes on")
            return 128 + stop.requested
    return int(failed > 0)


def learn(trial: Trial, parent: Path) -> Path:
    """Run a trial, or go on with it, in a folder of `parent`; returns that folder.

    Raises:
        EtudeError: it failed; the log beside the folder says how.
        Stopped: it was stopped, and is saved.
    """
    folder = parent / trial.key
    parent.mkdir(parents=True, exist_ok=True)
    command = trial.command(folder)
    if (folder / JSON).is_file():  # it had ended, and its row was not yet written
        return folder
    if checkpoint.latest(folder / "checkpoints"):
        command = trial.command(folder, resume=True)
    elif folder.exists():
        shutil.rmtree(folder)  # it ended before its first checkpoint
    log = folder.with_suffix(".log")
    _heed_stop()
    with log.open("a") as file, redirect_stdout(file), redirect_stderr(file):
        code = cli.main(command)
    if code > 128:
        raise Stopped
    if code:
        raise EtudeError(f"discover ended with {code}; {log} says why.")
    return folder


@cache
def _heed_stop() -> None:
    """From now on this process gets SIGTERM, upon which a run is saved, when all are to stop."""

    def wait() -> None:
        while not stopping():
            time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()
