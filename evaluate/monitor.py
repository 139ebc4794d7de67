"""Watches a run of discovery: coverage every so many steps, numbers and a picture for TensorBoard.

Evaluation has its own environments and generators and takes deterministic actions, so a run learns
the same with and without it.

At some evaluations the monitor also measures how many nats the skills tell (`skill/mi_nats`, see
`etude.evaluate.skillset_mi`), and checks a learner that claims to know: one that logs
`skill/bound` says that its skills tell no less of where a plan of theirs leads. Claim and
measurement are both lower bounds. So a claim above the measurement is a suspicion (`skill/alarm`),
and only one above what no skills can exceed (`etude.evaluate.capacity.limit`) is an error.
"""

from __future__ import annotations

import csv
import io
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from etude.checkpoint import write_text
from etude.envs import registry
from etude.envs.engine import BatchedEnv
from etude.errors import ImpossibleError, UsageError
from etude.evaluate.capacity import limit
from etude.evaluate.metrics import RunningCoverage, policy_metrics
from etude.evaluate.rollouts import EPISODES, STEPS, Skills, rollout_skills
from etude.evaluate.skillset_mi import FOLDS, LEAST, PARTS, WIDTH, SkillsetMI, rollout_mi
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
CLAIMED = ("claimed", "confirmed", "confirmed_low", "confirmed_high", "alarm")
INFORMATION = ("mi_nats", "mi_low", "mi_high", "mi_entropy", "mi_episodes", *CLAIMED)
"""Columns that only some rows fill in."""
COUNTS = ("steps", "updates", "mi_episodes", "alarm")
CLAIM = "skill/bound"
"""Metric of a learner that says how many nats its skills tell at least."""
CLAIMS = 20
"""Epochs that a claim is averaged over."""
MI_EPISODES, MI_COST = 480, 5
"""Episodes to measure information with, at most one step in them for so many of practice."""
CHECKED = 10_000
"""Episodes to check a claim about plans with: a plan is short, and few of them confirm little."""
FIGURES = {
    "mi_nats": "what the skills tell (skill/mi_nats)",
    "claimed": f"what the learner claims of its skills ({CLAIM})",
    "confirmed": "what a plan tells of its end (skill/confirmed)",
}
SURE = 3
"""Standard errors that a difference must have."""


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
    def metrics(self) -> Mapping[str, float]:
        """What the learner said of the last epoch."""

    @property
    def done(self) -> bool:
        """Whether this was the last epoch."""

    def snapshot(self) -> Skills:
        """The skills as they are now."""


class Monitor:
    """A callback of discovery that evaluates every `every_steps` steps and after the last epoch.

    `history` holds a row per evaluation (`COLUMNS`, and some of `INFORMATION`); coverage is in
    cells, displacement and x_range in units of the descriptor, seconds are seconds of training,
    information is in nats.
    """

    def __init__(
        self,
        env_id: str,
        every_steps: int,
        logger: Logger | None = None,
        folder: Path | None = None,
        episodes: int = EPISODES,
        mi_episodes: int = 0,
        skill_obs: Sequence[str] = (),
    ) -> None:
        """Watch a run.

        Args:
            env_id: environment to evaluate in.
            every_steps: steps between two evaluations.
            logger: gets `skill/*` and the picture `skill/trajectories`.
            folder: of the run; gets `evaluations.csv`, whose earlier rows are kept.
            episodes: per evaluation.
            mi_episodes: to measure information with, at the last evaluation and whenever the run
                has practised `MI_COST` times as many steps; fewer in a short run, where that is
                the limit, too; 0: never.
            skill_obs: fields that the learner tells skills apart by, which a claim is about; empty:
                the whole observation.

        Raises:
            UsageError: a number too small, or no such environment.
        """
        if every_steps < 1 or episodes < 1:
            raise UsageError(
                f"every_steps = {every_steps}, episodes = {episodes}: choose 1 or more of each."
            )
        if mi_episodes and mi_episodes < LEAST:
            raise UsageError(f"mi_episodes = {mi_episodes}: choose {LEAST} or more, or 0 for none.")
        self.env_id, self.every_steps, self.episodes = env_id, every_steps, episodes
        self.mi_episodes, self.skill_obs = mi_episodes, skill_obs
        self._claims: deque[float] = deque(maxlen=CLAIMS)
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
        """Count what the last epoch visited; note what the learner claims."""
        self.coverage.add(discovery.collected)
        if CLAIM in discovery.metrics:
            self._claims.append(discovery.metrics[CLAIM])

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
            ImpossibleError: a figure of information exceeds what is possible; the row is written.
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
            **self._information(discovery, skills, stop),
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
        self._refuse_the_impossible(discovery, skills, row)
        return row

    def _information(
        self, discovery: Run, skills: Skills, stop: Callable[[], bool]
    ) -> dict[str, float]:
        """`INFORMATION`, where it is time to measure it."""
        now, spacing = discovery.steps, MI_COST * self.mi_episodes * STEPS
        last = max((int(row["steps"]) for row in self.history if "mi_nats" in row), default=0)
        episodes = min(self.mi_episodes, now // (MI_COST * STEPS))
        if episodes < LEAST or not (discovery.done or now // spacing > last // spacing):
            return {}
        venv = self._venv
        assert venv is not None
        found = rollout_mi(skills, venv, episodes=episodes, steps=STEPS, folds=FOLDS, stop=stop)
        row = {
            "mi_nats": found.nats,
            "mi_low": found.low,
            "mi_high": found.high,
            "mi_entropy": found.entropy,
            "mi_episodes": episodes,
        }
        if not self._claims:
            return row
        found = self._confirmed(skills, episodes, stop)
        claimed, error = self._claim()
        return {
            **row,
            "claimed": claimed,
            "confirmed": found.nats,
            "confirmed_low": found.low,
            "confirmed_high": found.high,
            "alarm": int(claimed > found.nats + SURE * math.hypot(error, found.error)),
        }

    def _confirmed(self, skills: Skills, episodes: int, stop: Callable[[], bool]) -> SkillsetMI:
        """What is measured where a claim is made: at the end of a plan, of what the learner sees.

        Of the whole observation, or of the descriptor alone, which is easier to read: the larger.
        """
        assert self._venv is not None
        body = [f.name for f in self.spec.fields if f.name not in self.spec.task_fields]
        found = []
        for fields in (self.skill_obs,) if self.skill_obs else (None, body):
            how: dict[str, int] = {"episodes": episodes, "steps": STEPS, "folds": FOLDS}
            if skills.period > 1:
                how = {"episodes": CHECKED, "steps": skills.period}
            found.append(rollout_mi(skills, self._venv, fields, stop=stop, **how))
        return max(found, key=lambda one: one.nats)

    def _claim(self) -> tuple[float, float]:
        """Mean of the last claims and its standard error, nats."""
        claims = np.array(self._claims)
        return float(claims.mean()), float(claims.std() / math.sqrt(len(claims)))

    def _refuse_the_impossible(self, run: Run, skills: Skills, row: Mapping[str, float]) -> None:
        """Raise where a figure is above what no skills can tell, by more than its error."""
        space, plan = skills.space, skills.period if skills.period > 1 else 0
        first = plan == run.collected.shape[1] - 1  # an episode of practice is a single plan
        figures = []
        if "mi_nats" in row:
            figures.append(("mi_nats", _error(row, "mi"), limit(space, self.env_id)))
        if "claimed" in row:
            figures.append(("claimed", self._claim()[1], limit(space, self.env_id, plan, first)))
            there = limit(space, self.env_id, plan, first=True)
            figures.append(("confirmed", _error(row, "confirmed"), there))
        for name, error, most in figures:
            if row[name] - SURE * error > most.nats:
                raise ImpossibleError(
                    f"{FIGURES[name]} is {row[name]:.3g} nats at step {run.steps:,}, and no skills "
                    f"can tell more than {most.nats:.3g} ({most.why}): that number is wrong."
                )

    def last(self) -> dict[str, float]:
        """The newest row of `history` without its counters; empty before the first evaluation."""
        row = self.history[-1] if self.history else {}
        return {key: value for key, value in row.items() if key not in COLUMNS[:3]}

    def summary(self) -> str:
        """The newest numbers in a few words, for a progress bar."""
        if not self.history:
            return ""
        row, unit = self.history[-1], self.spec.descriptor_unit
        told = f", {row['mi_nats']:.2f} nats" if "mi_nats" in row else ""
        return (
            f"coverage {row['policy_coverage']:.0f} cells, {row['displacement']:.1f} {unit}{told}"
        )

    def checkpoint(self) -> dict[str, Any]:
        """What the rest of the watching depends on, as a tree."""
        return {
            "coverage": self.coverage.checkpoint(),
            "evaluations": len(self.history),
            "logged": self._logger.rows if self._logger else 0,
            "claims": list(self._claims),
        }

    def restore(self, tree: Mapping[str, Any]) -> None:
        """Take over a tree made by `checkpoint`; what was evaluated later is forgotten."""
        self.coverage.restore(tree["coverage"])
        self.history = self.history[: tree["evaluations"]]
        self._claims = deque(tree.get("claims", ()), CLAIMS)  # older checkpoints have none


def information(row: Mapping[str, float]) -> SkillsetMI:
    """What was measured for a row of `history` that has it."""
    nats, low, high, entropy = (row[f"mi_{key}"] for key in ("nats", "low", "high", "entropy"))
    rows = int(row["mi_episodes"]) // PARTS * FOLDS
    return SkillsetMI(nats, low, high, entropy, entropy - nats, rows)


def _error(row: Mapping[str, float], name: str) -> float:
    """Standard error of a figure of a row, from its interval."""
    return (row[f"{name}_high"] - row[f"{name}_low"]) / WIDTH


def write_history(path: Path, history: list[dict[str, float]]) -> None:
    """Write evaluations as CSV, as a whole."""
    file = io.StringIO()
    writer = csv.DictWriter(file, COLUMNS + INFORMATION, lineterminator="\n")
    writer.writeheader()
    for row in history:
        writer.writerow({key: f"{value:.10g}" for key, value in row.items()})
    write_text(path, file.getvalue())


def read_history(path: Path) -> list[dict[str, float]]:
    """Read what `write_history` wrote, now or before there was `INFORMATION`.

    Raises:
        UsageError: it is another file.
    """
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    known = COLUMNS, COLUMNS + INFORMATION
    if any(tuple(row) not in known or None in row.values() for row in rows):
        raise UsageError(f"{path} is no table of evaluations: move it away.")
    whole = dict.fromkeys(COUNTS, int)
    return [
        {k: whole.get(k, float)(v) for k, v in row.items() if v or k not in INFORMATION}
        for row in rows
    ]
