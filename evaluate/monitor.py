"""Watches a run of discovery: coverage every so many steps, numbers and a picture for TensorBoard.

Evaluation has its own environments and generators and takes deterministic actions, so a run learns
the same with and without it.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from etude.checkpoint import write_text
from etude.envs import registry
from etude.envs.engine import BatchedEnv
from etude.errors import UsageError
from etude.evaluate.metrics import RunningCoverage, policy_metrics
from etude.evaluate.rollouts import EPISODES, STEPS, Skills, rollout_skills
from etude.logger import Logger

FILE = "evaluations.csv"
COLUMNS = (
    "steps",
    "updates",
    "seconds",
    "policy_coverage",
    "queue_coverage",
    "total_coverage",
    "displacement",
    "x_range",
)
COUNTS = ("steps", "updates")


class Run(Protocol):
    """What a monitor sees of `etude.skills.discovery.Discovery`."""

    steps: int
    """environment steps so far"""
    updates: int
    """gradient steps so far"""
    seconds: float
    """training time so far, evaluation not counted"""
    collected: np.ndarray
    """descriptors of the last epoch's episodes, (N, T+1, D)"""

    @property
    def done(self) -> bool:
        """Whether this was the last epoch."""

    def snapshot(self) -> Skills:
        """The skills as they are now."""


class Monitor:
    """A callback of discovery that evaluates every `every_steps` steps and after the last epoch.

    `history` holds a row per evaluation (`COLUMNS`); coverage is in cells, displacement and x_range
    in units of the descriptor, seconds are seconds of training.
    """

    def __init__(
        self,
        env_id: str,
        every_steps: int,
        logger: Logger | None = None,
        folder: Path | None = None,
        episodes: int = EPISODES,
    ) -> None:
        """Watch a run.

        Args:
            env_id: environment to evaluate in.
            every_steps: steps between two evaluations.
            logger: gets `skill/*` and the picture `skill/trajectories`.
            folder: of the run; gets `evaluations.csv`, whose earlier rows are kept.
            episodes: per evaluation.

        Raises:
            UsageError: a number below 1, or no such environment.
        """
        if every_steps < 1 or episodes < 1:
            raise UsageError(
                f"every_steps = {every_steps}, episodes = {episodes}: choose 1 or more of each."
            )
        self.env_id, self.every_steps, self.episodes = env_id, every_steps, episodes
        self.spec = registry.spec(env_id)
        self.coverage = RunningCoverage(self.spec.cell)
        self.history: list[dict[str, float]] = []
        self._logger = logger
        self._venv: BatchedEnv | None = None
        self._file = folder / FILE if folder else None
        if self._file and self._file.is_file():
            self.history = read_history(self._file)

    def on_epoch(self, discovery: Run) -> None:
        """Count what was visited; evaluate when it is time."""
        self.count(discovery)
        if self.due(discovery):
            self.evaluate(discovery)

    def count(self, discovery: Run) -> None:
        """Count what the last epoch visited."""
        self.coverage.add(discovery.collected)

    def due(self, discovery: Run) -> bool:
        """Whether the run, between two epochs, is to be evaluated before it goes on."""
        now = discovery.steps  # a resumed run may start before the last evaluation it once made
        self.history = [row for row in self.history if row["steps"] <= now]
        if not self.history and not now:
            return True
        last = int(self.history[-1]["steps"]) if self.history else 0
        crossed = now // self.every_steps > last // self.every_steps
        return crossed or (discovery.done and last < now)

    def evaluate(
        self, discovery: Run, stop: Callable[[], bool] = lambda: False
    ) -> dict[str, float]:
        """Measure the present skills; returns the new row of `history`.

        Raises:
            Stopped: `stop()` became true meanwhile; nothing was written.
        """
        if self._venv is None:
            self._venv = registry.make_vec(self.env_id, self.episodes, max_steps=STEPS)
        skills = discovery.snapshot()
        made = rollout_skills(skills, self._venv, stop=stop)
        values = {
            **policy_metrics(made.paths, self.spec.cell),
            "queue_coverage": float(self.coverage.queue),
            "total_coverage": float(self.coverage.total),
        }
        row = {
            "steps": discovery.steps,
            "updates": discovery.updates,
            "seconds": discovery.seconds,
            **values,
        }
        self.history.append(row)
        if self._file:
            write_history(self._file, self.history)
        if self._logger:
            from etude.evaluate import (
                plots,
            )  # a second of imports that a bare history can do without

            tags = {f"skill/{key}": value for key, value in values.items()}
            self._logger.scalars(discovery.steps, tags)
            title = f"Skills of {self.env_id} after {discovery.steps:,} steps"
            figure = plots.trajectories(made, skills.space, title)
            self._logger.figure(discovery.steps, "skill/trajectories", figure)
        return row

    def last(self) -> dict[str, float]:
        """The newest row of `history` without its counters; empty before the first evaluation."""
        row = self.history[-1] if self.history else {}
        return {key: value for key, value in row.items() if key not in COLUMNS[:3]}

    def summary(self) -> str:
        """The newest numbers in a few words, for a progress bar."""
        if not self.history:
            return ""
        row, unit = self.history[-1], self.spec.descriptor_unit
        return f"coverage {row['policy_coverage']:.0f} cells, {row['displacement']:.1f} {unit}"

    def checkpoint(self) -> dict[str, Any]:
        """What the rest of the watching depends on, as a tree."""
        return {
            "coverage": self.coverage.checkpoint(),
            "evaluations": len(self.history),
            "logged": self._logger.rows if self._logger else 0,
        }

    def restore(self, tree: Mapping[str, Any]) -> None:
        """Take over a tree made by `checkpoint`; what was evaluated later is forgotten."""
        self.coverage.restore(tree["coverage"])
        self.history = self.history[: tree["evaluations"]]


def write_history(path: Path, history: list[dict[str, float]]) -> None:
    """Write evaluations as CSV, as a whole."""
    file = io.StringIO()
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in history:
        writer.writerow({key: f"{value:.10g}" for key, value in row.items()})
    write_text(path, file.getvalue())


def read_history(path: Path) -> list[dict[str, float]]:
    """Read what `write_history` wrote.

    Raises:
        UsageError: it is another file.
    """
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if any(tuple(row) != COLUMNS or None in row.values() for row in rows):
        raise UsageError(f"{path} is no table of evaluations: move it away.")
    whole = dict.fromkeys(COUNTS, int)
    return [{key: whole.get(key, float)(value) for key, value in row.items()} for row in rows]
