"""The suite of downstream tasks: which library goes with which task, and what came of all trials.

Every arm of a task gets the same environment steps; what a library cost stands beside them. Scores
lie between 0 and 1, so that tasks can be taken together: the share of what there is to earn where a
task has several goals, else the success rate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from etude.checkpoint import write_text
from etude.config import replace
from etude.envs import registry
from etude.evaluate import canvas, plots
from etude.evaluate.arms import ARMS, TrialSpec
from etude.evaluate.compare import Comparison, plan
from etude.evaluate.statistics import (
    aggregate,
    performance_profile,
    probability_of_improvement,
    summarise,
)
from etude.skills.compose import ComposeConfig
from etude.skills.library_card import markdown_table

TABLE, FIRST = "table.md", "hierarchical"
FLAT = ("flat", "flat-ppo", "flat-sac")
WAYS = tuple(arm for arm in ARMS if arm not in ("flat", "planner"))
"""All but `flat`, which is one of two others, and `planner`, for which a library needs a model."""
Values = dict[str, dict[str, list[float]]]
"""arm -> task -> one value per seed"""


@dataclass(frozen=True)
class Entry:
    """How a task is tried unless somebody says otherwise."""

    library: str
    """name in the zoo"""
    config: ComposeConfig


SUITE = {
    "point-maze-large-goal": Entry(
        "point-maze-large-metra", ComposeConfig(k=25, env_steps=200_000, num_envs=32)
    ),
    "half-cheetah-goal": Entry(
        "half-cheetah-metra", ComposeConfig(algo="sac", k=25, env_steps=300_000)
    ),
    "ant-multi-goal": Entry("ant-metra", ComposeConfig(algo="sac", k=25, env_steps=300_000)),
}
"""Tasks in the order in which they are run; budgets keep a trial below 20 minutes of one core."""


def plan_suite(
    tasks: Sequence[str] = tuple(SUITE),
    arms: Sequence[str] = WAYS,
    seeds: Sequence[int] = (0, 1, 2),
    library: str = "",
    **settings: Any,
) -> list[TrialSpec]:
    """The trials of several tasks.

    Args:
        tasks: ids of `SUITE`.
        arms: names in `ARMS`.
        seeds: of training.
        library: folder or name of one library for all of them; "" takes the entry's.
        settings: of `ComposeConfig`, in place of the entries'.

    Raises:
        LibraryError: the library is broken or of another body.
        UsageError: no such arm, or an impossible setting.
    """
    specs = []
    for task in tasks:
        entry = SUITE[task]
        config = replace(entry.config, settings)
        specs += plan(library or entry.library, task, config, arms=arms, seeds=seeds)
    return specs


def score(row: Mapping[str, Any]) -> float | None:
    """What a trial earned, between 0 and 1; None where nothing says how much there is to earn."""
    constants = registry.spec(row["task"]).constants
    if "goals" in constants and "goal_bonus" in constants:
        return float(row["return_mean"]) / (constants["goals"] * constants["goal_bonus"])
    return None if row["success_rate"] is None else float(row["success_rate"])


def report(folder: Path, found: Comparison) -> str:
    """Write the table and the profiles of a suite's trials; returns the table."""
    tasks = list(dict.fromkeys(spec.task for spec in found.specs))
    values = scores(found)
    parts = [
        f"{len(found.rows)} of {len(found.specs)} trials done, {len(found.failures)} failed.\n",
        _by_task(values, tasks),
    ]
    whole = [task for task in tasks if all(task in values.get(arm, {}) for arm in values)]
    if whole and len(values) > 1:
        together = {arm: {task: own[task] for task in whole} for arm, own in values.items()}
        parts += [_together(together), _costs(found, tasks)]
        figure = _profiles(together)
        canvas.save(figure, folder / "profiles.png")
    if found.failures:
        failures = [(spec.task, spec.arm, spec.config.seed, why) for spec, why in found.failures]
        parts.append(markdown_table(("task", "arm", "seed", "why there is no result"), failures))
    text = "\n".join(parts)
    write_text(folder / TABLE, text)
    return text


def scores(found: Comparison) -> Values:
    """The scores of all trials that have one."""
    values: Values = {}
    for row in found.rows:
        value = score(row)
        if value is not None:
            values.setdefault(row["arm"], {}).setdefault(row["task"], []).append(value)
    return values


def _by_task(values: Values, tasks: Sequence[str]) -> str:
    heads = ("score: IQM [95 % interval]", *tasks)
    lines = [
        (arm, *(str(summarise(own[task])) if task in own else "–" for task in tasks))
        for arm, own in values.items()
    ]
    return markdown_table(heads, lines) + "\n"


def _together(values: Values) -> str:
    """All tasks together: an arm's IQM, and how likely the first arm beats it."""
    lines = []
    for arm, own in values.items():
        better = "–"
        if arm != FIRST and FIRST in values:
            better = _interval(probability_of_improvement(values[FIRST], own))
        lines.append((arm, _interval(aggregate(own)), better))
    n = len(next(iter(values.values())))
    heads = (f"over {n} task{'s' * (n > 1)}", "score: IQM", f"probability that {FIRST} is better")
    return markdown_table(heads, lines) + "\n"


def _interval(found: tuple[float, float, float]) -> str:
    return "{:.3g} [{:.3g}, {:.3g}]".format(*found)


def _costs(found: Comparison, tasks: Sequence[str]) -> str:
    """Steps of both stages, and the tasks after which a library has paid for itself."""
    lines = []
    for task in tasks:
        own = [row for row in found.rows if row["task"] == task]
        cost = [row["pretraining_steps"] for row in own if row["arm"] == FIRST]
        skills, flat = _first_success(own, (FIRST,)), _first_success(own, FLAT)
        budget = next(spec.config.env_steps for spec in found.specs if spec.task == task)
        if cost:
            lines.append(
                (
                    task,
                    f"{cost[0]:,}",
                    *map(_steps, (skills, flat)),
                    _even(cost[0], skills, flat, budget),
                )
            )
    heads = (
        *("task", "pretraining steps", f"{FIRST}: steps to the first success"),
        *("the sooner of the flat arms", "tasks until the library has paid for itself"),
    )
    return markdown_table(heads, lines) + "\n"


def _first_success(rows: Sequence[Mapping[str, Any]], arms: Sequence[str]) -> float | None:
    """The least of the arms' medians over seeds, of those in which most seeds had a success."""
    medians = []
    for arm in arms:
        steps = [row["first_success"] for row in rows if row["arm"] == arm]
        known = [s for s in steps if s is not None]
        if 2 * len(known) > len(steps):
            medians.append(float(np.median(known)))
    return min(medians, default=None)


def _steps(value: float | None) -> str:
    return "not within the budget" if value is None else f"{value:,.0f}"


def _even(cost: int, skills: float | None, flat: float | None, budget: int) -> str:
    """Pretraining over what it saves per task; a flat agent without success needs the budget."""
    if skills is None:
        return "never"
    saved = (budget if flat is None else flat) - skills
    if saved <= 0:
        return "never"
    return f"{'at most ' * (flat is None)}{cost / saved:.1f}"


def _profiles(values: Values) -> Any:
    at = np.linspace(0, 1, 101)
    curves = {arm: [(at, performance_profile(own, at)[0])] for arm, own in values.items()}
    n = len(next(iter(values.values())))
    return plots.learning_curves(
        curves,
        "share of runs above",
        f"Performance profiles over {n} task{'s' * (n > 1)}",
        share=True,
        note="Higher is better at every score.",
        xlabel="score",
    )
