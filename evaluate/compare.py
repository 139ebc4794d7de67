"""Arms x seeds on one task: do the skills help, and against whom?

A row goes into `trials.csv` as soon as its trial ends, and what stands there is not run again; a
trial that fails, or whose process dies, is reported and takes no other with it. Trials that learn
can be saved, each in `trials/KEY/` until it has its row, and then go on from there.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from etude.agents.meta_state import Keeper
from etude.envs import registry
from etude.errors import EtudeError, UsageError, unknown
from etude.evaluate.arms import ARMS, COMMON, TrialSpec, run_trial
from etude.evaluate.rollouts import TASK_EPISODES, check_body
from etude.evaluate.trials import tables
from etude.evaluate.trials.pool import run_all, stopping
from etude.skills.compose import ComposeConfig
from etude.skills.library import SkillLibrary

TRIALS, CURVES = "trials.csv", "curves.csv"
TEXT = ("trial", "task", "arm", "algo", "library", "solved")  # columns that are no numbers
KEPT = "trials"  # folder of what is needed to go on with trials

Progress = Callable[[int, int, str], None]
"""Called with the trials done, all trials, and a line about the last one."""

logger = logging.getLogger("etude")


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
    arms: Sequence[str] = COMMON,
    libraries: Mapping[str, str] = MappingProxyType({}),
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
        libraries: of the arms that have one of their own: arm -> folder, run folder or name.
        seeds: of training; the episodes that judge are the same for all.
        flat_algo: algorithm of the arms without skills; None takes that of `config`, or PPO where
            that one cannot choose continuous actions.
        episodes: that judge a trial.

    Raises:
        LibraryError: the library is broken or of another body.
        UsageError: no such arm or task, a library that was never written, or none for an arm that
            has its own.
    """
    for arm in arms:
        if arm not in ARMS:
            raise unknown("arm", arm, ARMS)
        if ARMS[arm].own_library and arm not in libraries:
            raise UsageError(f'arm "{arm}" has a library of its own: say which in `libraries`.')
    algo = flat_algo or ("sac" if config.algo == "sac" else "ppo")
    first = TrialSpec("", task, "", "", "", 0, config, algo, episodes)
    first = _with_library(first, library)
    firsts = {
        arm: _with_library(first, libraries[arm]) if ARMS[arm].own_library else first
        for arm in arms
    }
    return [
        replace(firsts[arm], arm=arm, config=replace(config, seed=seed))
        for seed in seeds
        for arm in arms
        if ARMS[arm].seeded or seed == seeds[0]
    ]


def _with_library(spec: TrialSpec, library: str | Path | SkillLibrary) -> TrialSpec:
    """A trial of the same task with the skills of `library`."""
    source = str(library.path if isinstance(library, SkillLibrary) else library)
    if not isinstance(library, SkillLibrary):
        library = SkillLibrary.load(library)
    if library.path is None:
        raise UsageError(f"{library.name} is in memory only: write it, trials load it from disk.")
    check_body(library, registry.spec(spec.task))
    return replace(
        spec,
        library=source,
        set=library.set,
        library_id=library.id,
        pretraining_steps=int(library.provenance.get("steps") or 0),
    )


def compare(
    specs: Sequence[TrialSpec],
    folder: Path,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
    save_minutes: float | None = None,
    stop: Callable[[], bool] = lambda: False,
    limit: float | None = None,
    ray: bool = False,
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
        ray: run the trials on a Ray cluster, see `run_all`.

    Raises:
        Stopped: `stop()` was true; no trial goes on.
        UsageError: the folder holds tables of another version.
    """
    folder.mkdir(parents=True, exist_ok=True)
    known = {row["trial"] for row in tables.read(folder / TRIALS, TEXT)}
    left = [spec for spec in specs if spec.key not in known]
    failures, done = [], len(specs) - len(left)
    function: Callable[[TrialSpec], dict[str, Any]] = run_trial
    if save_minutes is not None:
        function = partial(_kept_trial, folder=folder / KEPT, minutes=save_minutes)
    for spec, result in run_all(left, function, workers, stop, limit, ray):
        done += 1
        if isinstance(result, BaseException):
            note = _failure(spec, result)
            failures.append((spec, note))
        else:
            curve = result.pop("curve")
            tables.append(folder / CURVES, [{"trial": spec.key, **point} for point in curve])
            tables.append(folder / TRIALS, [result])
            shutil.rmtree(folder / KEPT / spec.key, ignore_errors=True)
            note = _line(result)
        if progress:
            progress(done, len(specs), note)
    return read(specs, folder, failures)


def read(
    specs: Sequence[TrialSpec], folder: Path, failures: Sequence[tuple[TrialSpec, str]] = ()
) -> Comparison:
    """The rows and curves in `folder` that belong to `specs`."""
    rows = {row["trial"]: row for row in tables.read(folder / TRIALS, TEXT)}
    curves: dict[str, list[Mapping[str, float]]] = {}
    for point in tables.read(folder / CURVES, TEXT):
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
    return run_trial(spec, keeper=Keeper(folder / spec.key, minutes, stopping))


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
