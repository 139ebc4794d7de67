"""Learners side by side: each in each environment, for the same minutes of one core, over seeds.

A trial is a run of discovery as a user would type it. Its row holds what its last skills are worth,
its curve what they were worth on the way, so that learners are compared after the same minutes and
after the same steps from one set of runs.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from etude.checkpoint import write_text
from etude.config import replace, to_dict
from etude.envs import registry
from etude.errors import LibraryError, UsageError
from etude.evaluate import canvas, plots
from etude.evaluate.monitor import FILE, read_history
from etude.evaluate.report import JSON
from etude.evaluate.rollouts import rollout_task
from etude.evaluate.statistics import short, summarise
from etude.evaluate.trials import tables
from etude.skills.controllers.base import GOAL
from etude.skills.controllers.goal_direction import GoalDirectionController
from etude.skills.discovery import DiscoverConfig, preset
from etude.skills.library import SkillLibrary
from etude.skills.library_card import markdown_table
from etude.skills.vec_env import LibraryLevel

TRIALS, CURVES, TABLE = "trials.csv", "curves.csv", "table.md"
TEXT = ("trial", "learner", "env", "preset", "zero_shot_task", "library")
MINUTES = {"half-cheetah": 10.0, "ant": 30.0}
"""Training time of a trial; elsewhere it is `OTHERWISE`."""
OTHERWISE = 5.0
EVALUATIONS = {"half-cheetah": 16_000, "ant": 40_000}
"""Steps between the points of a curve; elsewhere it is 8,000."""
ALL_STEPS = 10_000_000  # more than the minutes allow
ON_THE_WAY = ("policy_coverage", "displacement")

NOTE = (
    "What a learner sees is what its skills are told apart by; where that is the place alone, a\n"
    "preset says that places matter. Discriminability is that of a classifier which was fitted to\n"
    "other episodes; DIAYN's is that of its own discriminator."
)

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Trial:
    """A learner in an environment with one seed, for some minutes."""

    learner: str
    env: str
    seed: int
    minutes: float
    preset: str = "cpu"

    @property
    def config(self) -> DiscoverConfig:
        """All settings of the run."""
        settings = {"seed": self.seed, "minutes": self.minutes, "steps": ALL_STEPS}
        return replace(preset(self.learner, self.env, self.preset), settings)

    @property
    def key(self) -> str:
        """Short readable name, another one as soon as a setting is another."""
        text = json.dumps(to_dict(self.config), sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()
        return f"{self.learner}-{self.env}-s{self.seed}-{digest[:10]}"

    def command(self, out: Path, resume: bool = False) -> list[str]:
        """The arguments of `train.py` that run it into the folder `out`, or go on with it there."""
        watched = ["--eval-every", str(EVALUATIONS.get(self.env, 8_000))]
        if resume:
            return ["discover", "--resume", str(out), *watched]
        words = f"discover {self.learner} --env {self.env} --preset {self.preset}"
        words += f" --seed {self.seed} --minutes {self.minutes:g} --steps {ALL_STEPS}"
        return [*words.split(), *watched, "--out", str(out)]


def plan(
    learners: Sequence[str],
    envs: Sequence[str],
    seeds: Sequence[int],
    minutes: float = 0.0,
    preset: str = "cpu",
) -> list[Trial]:
    """The trials, seed by seed, so that an early stop leaves all learners alike.

    Raises:
        UsageError: no such learner, environment or preset.
    """
    trials = [
        Trial(learner, env, seed, minutes or MINUTES.get(env, OTHERWISE), preset)
        for seed in seeds
        for env in envs
        for learner in learners
    ]
    for trial in trials:
        _ = trial.key  # its settings are read, and refused, now
    return trials


def measure(trial: Trial, run: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The row of a finished run folder, and its curve."""
    report = json.loads((run / JSON).read_text())
    library = SkillLibrary.load(run)
    apart, counted = report["discriminability"], report.get("information")
    task, zero_shot = _zero_shot(library, trial.env)
    row = {
        "trial": trial.key,
        "learner": trial.learner,
        "env": trial.env,
        "preset": trial.preset,
        "seed": trial.seed,
        "minutes": trial.minutes,
        "steps": report["made_by"]["steps"],
        "updates": report["made_by"]["updates"],
        **report["metrics"],
        "discriminability": apart["accuracy"] if apart else None,
        "chance": apart["chance"] if apart else None,
        "mi_nats": counted["nats"] if counted else None,
        "mi_low": counted["low"] if counted else None,
        "mi_high": counted["high"] if counted else None,
        "zero_shot": zero_shot,
        "zero_shot_task": task,
        "library": library.id[:12],
    }
    curve = [
        {"trial": trial.key, "steps": at["steps"], "minutes": round(at["seconds"] / 60, 4)}
        | {key: at[key] for key in ON_THE_WAY}
        for at in read_history(run / FILE)
    ]
    return row, curve


def _zero_shot(library: SkillLibrary, env: str) -> tuple[str, float | None]:
    """The first task with a goal on a body, and the mean return of pointing at it, if known."""
    for task in registry.tasks():
        spec = registry.spec(task)
        if spec.body == env and GOAL in spec.task_fields:
            try:
                controller = GoalDirectionController(library, spec)
                done = rollout_task(task, LibraryLevel(library), controller, 1)
            except (LibraryError, UsageError):  # skills that answer no goals
                return task, None
            return task, float(done.returns.mean())
    return "", None


def record(folder: Path, trial: Trial, run: Path) -> dict[str, Any]:
    """Add a finished run to the tables in `folder`, with its picture; returns its row."""
    row, curve = measure(trial, run)
    folder.mkdir(parents=True, exist_ok=True)
    tables.append(folder / CURVES, curve)
    tables.append(folder / TRIALS, [row])
    picture = folder / f"{trial.env}-{trial.learner}.png"
    if trial.seed == 0 or not picture.exists():  # one of today's settings, whenever it is run
        shutil.copyfile(run / "trajectories.png", picture)
    return row


def finished(folder: Path) -> set[str]:
    """Keys of the trials that have a row."""
    return {row["trial"] for row in tables.read(folder / TRIALS, TEXT)}


def report(folder: Path, trials: Sequence[Trial]) -> str:
    """Write the table and the curves of the trials that have a row; returns the table."""
    wanted = {trial.key: trial.config for trial in trials}
    rows = [row for row in tables.read(folder / TRIALS, TEXT) if row["trial"] in wanted]
    points: dict[str, list[Row]] = {}
    for point in tables.read(folder / CURVES, TEXT):
        points.setdefault(point["trial"], []).append(point)
    parts = [f"{len(rows)} of {len(trials)} trials done.\n"]
    envs = list(dict.fromkeys(trial.env for trial in trials))
    ranked = sorted(rows, key=lambda row: (envs.index(row["env"]), -row["policy_coverage"]))
    names = list(dict.fromkeys(row["learner"] for row in ranked))
    for env in envs:
        own = [row for row in rows if row["env"] == env]
        if own:
            parts.append(_section(env, own, points, wanted))
            for axis in ("minutes", "steps"):
                for column in ON_THE_WAY:
                    _draw(folder, env, own, points, axis, column, names)
    text = "\n".join(parts)
    write_text(folder / TABLE, text)
    return text


def _section(
    env: str,
    rows: Sequence[Row],
    points: Mapping[str, Sequence[Row]],
    configs: Mapping[str, DiscoverConfig],
) -> str:
    """One environment: a line per learner, best coverage first."""
    spec, minutes = registry.spec(env), rows[0]["minutes"]
    steps = min(points[row["trial"]][-1]["steps"] for row in rows)
    task = rows[0]["zero_shot_task"]
    heads = (
        "learner",
        "it sees",
        "hidden from the policy",
        f"coverage after {minutes:g} min ({canvas.cell_size(spec)} cells)",
        f"coverage after {steps:,} steps",
        f"displacement ({spec.descriptor_unit})",
        "discriminability (chance)",
        "skillset information (nats)",
        f"zero-shot return on {task}" if task else "zero-shot return",
        "steps",
        "seeds",
    )
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["learner"], []).append(row)
    ordered = sorted(
        found.items(), key=lambda item: -np.median(_column(item[1], "policy_coverage"))
    )
    lines = [
        (
            learner,
            ", ".join(configs[own[0]["trial"]].method.skill_obs) or "all",
            ", ".join(configs[own[0]["trial"]].loop.unseen) or "–",
            _summary(_column(own, "policy_coverage")),
            _summary([_at(points[row["trial"]], "policy_coverage", steps) for row in own]),
            _summary(_column(own, "displacement")),
            f"{_summary(_column(own, 'discriminability'))} ({own[0]['chance'] or 0:.3g})",
            _summary(_column(own, "mi_nats")),
            _summary(_column(own, "zero_shot")),
            f"{np.median(_column(own, 'steps')):,.0f}",
            len(own),
        )
        for learner, own in ordered
    ]
    return f"## {env}\n\n{markdown_table(heads, lines)}\n\n{NOTE}\n"


def _column(rows: Iterable[Row], name: str) -> list[float]:
    return [float(row[name]) for row in rows if row[name] is not None]


def _at(points: Sequence[Row], column: str, steps: float) -> float:
    """A curve's value between its points."""
    return float(np.interp(steps, _column(points, "steps"), _column(points, column)))


def _summary(values: Sequence[float]) -> str:
    """Interquartile mean and its interval over seeds."""
    if not values:
        return "–"
    return str(summarise(values)) if len(values) > 1 else short(values[0])


def _draw(
    folder: Path,
    env: str,
    rows: Sequence[Row],
    points: Mapping[str, Sequence[Row]],
    axis: str,
    column: str,
    names: Sequence[str],
) -> None:
    """The learning curves of one environment; `names` are in the order of their colours."""
    spec = registry.spec(env)
    curves: dict[str, list[plots.Curve]] = {}
    for row in sorted(rows, key=lambda row: -_column(points[row["trial"]], column)[-1]):
        own = points[row["trial"]]
        curve = np.array(_column(own, axis)), np.array(_column(own, column))
        curves.setdefault(row["learner"], []).append(curve)
    measure = f"policy coverage ({canvas.cell_size(spec)} cells)"
    ylabel = measure if column == ON_THE_WAY[0] else f"mean displacement ({spec.descriptor_unit})"
    xlabel = "minutes of training on one core" if axis == "minutes" else "environment steps"
    figure = plots.learning_curves(curves, ylabel, f"Learners in {env}", xlabel=xlabel, names=names)
    canvas.save(figure, folder / f"{env}-{column.split('_')[-1]}-{axis}.png")
