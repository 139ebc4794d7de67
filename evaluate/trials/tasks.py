"""The suite of downstream tasks: which library goes with which task, and what came of all trials.

Every arm of a task gets the same environment steps; what a library cost stands beside them. Scores
lie between 0 and 1, so that tasks can be taken together: the share of what there is to earn where a
task has several goals, else the success rate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from etude.agents.meta_config import PRESETS, update_ratio
from etude.checkpoint import write_text
from etude.config import replace
from etude.envs import registry
from etude.evaluate import canvas, plots
from etude.evaluate.arms import ARMS, COMMON, TrialSpec
from etude.evaluate.compare import Comparison, plan
from etude.evaluate.statistics import (
    aggregate,
    performance_profile,
    probability_of_improvement,
    summarise,
)
from etude.evaluate.trials import bands
from etude.skills.compose import ComposeConfig
from etude.skills.controllers.base import GOAL
from etude.skills.library import SkillLibrary
from etude.skills.library_card import markdown_table

TABLE, FIRST = "table.md", "hierarchical"
FLAT = ("flat", "flat-ppo", "flat-sac")
WITHOUT_SKILLS = (*FLAT, "flat-long", "action-repeat")
WAYS = tuple(arm for arm in ARMS if arm not in ("flat", "flat-long", "planner"))
"""All but `flat`, which is one of two others, `flat-long`, whose budget is not that of the others
(and ten times as long), and `planner`, for which a library needs a model."""
POINTING = ("zero-shot", "oracle-zero-shot")
"""Arms that point at the goal of a task."""
COSTS = (
    *("task", "pretraining steps", f"{FIRST}: steps to the first success"),
    *("the sooner of the flat arms", "tasks until the library has paid for itself"),
)
"""Heads of the table of steps."""
Values = dict[str, dict[str, list[float]]]
"""arm -> task -> one value per seed"""


@dataclass(frozen=True)
class Entry:
    """How a task is tried unless somebody says otherwise."""

    library: str
    """name in the zoo"""
    config: ComposeConfig
    libraries: Mapping[str, str] = field(default_factory=dict)
    """of the arms that have one of their own: arm -> name in the zoo"""
    seeds: int = 3
    """seeds of each arm: 0, 1, …"""
    by_distance: bool = False
    """whether goals lie at many distances, some of them out of reach"""
    dense: bool = False
    """whether every step is paid: returns have no upper end, and nothing is a success"""


def _oracle(body: str) -> dict[str, str]:
    return {"oracle": f"{body}-oracle", "oracle-zero-shot": f"{body}-oracle"}


SUITE = {
    "point-maze-large-goal": Entry(
        "point-maze-large-metra",
        ComposeConfig(k=25, env_steps=200_000, num_envs=32),
        _oracle("point-maze-large"),
        seeds=5,
    ),
    "half-cheetah-goal": Entry(
        "half-cheetah-metra",
        ComposeConfig(algo="sac", k=25, env_steps=120_000),
        _oracle("half-cheetah"),
        by_distance=True,
    ),
    "ant-multi-goal": Entry(
        "ant-metra", ComposeConfig(algo="sac", k=25, env_steps=120_000), _oracle("ant")
    ),
    "half-cheetah-hurdle-psd": Entry(
        "half-cheetah-metra-unseen",
        ComposeConfig(k=10, env_steps=150_000),
        {**_oracle("half-cheetah"), "diayn": "half-cheetah-diayn"},
    ),
    "ant-waypoints": Entry(
        "ant-metra", ComposeConfig(algo="sac", k=10, env_steps=120_000), _oracle("ant")
    ),
    "half-cheetah-run": Entry(
        "half-cheetah-metra", ComposeConfig(algo="sac", env_steps=60_000), dense=True
    ),
    "reacher-dense": Entry(
        "reacher-metra",
        ComposeConfig(algo="sac", k=5, env_steps=60_000),
        _oracle("reacher"),
        dense=True,
    ),
}
"""Tasks in the order in which they are run; budgets keep a trial below ten minutes of one core. The
last two pay at every step: there is nothing in them for skills to win."""


def plan_suite(
    tasks: Sequence[str] = tuple(SUITE),
    arms: Sequence[str] = WAYS,
    seeds: Sequence[int] = (),
    library: str = "",
    **settings: Any,
) -> list[TrialSpec]:
    """The trials of several tasks.

    Args:
        tasks: ids of `SUITE`.
        arms: names in `ARMS`; one with a library of its own is left out where the entry has none,
            and one that points at the goal where there is none.
        seeds: of training; none takes the entry's.
        library: folder or name of one library for all of them; "" takes the entry's.
        settings: of `ComposeConfig`, in place of the entries'.

    Raises:
        LibraryError: the library is broken or of another body.
        UsageError: no such arm, or an impossible setting.
    """
    specs = []
    for task in tasks:
        entry = SUITE[task]
        specs += plan(
            library or entry.library,
            task,
            replace(entry.config, settings),
            arms=[arm for arm in arms if _possible(arm, task)],
            libraries=entry.libraries,
            seeds=seeds or range(entry.seeds),
        )
    return specs


def _possible(arm: str, task: str) -> bool:
    aims = GOAL in registry.spec(task).task_fields or arm not in POINTING
    return aims and (arm in COMMON or arm in SUITE[task].libraries)


def score(row: Mapping[str, Any]) -> float | None:
    """What a trial earned, between 0 and 1; None where nothing says how much there is to earn."""
    worth = most(row["task"])
    if worth is not None:
        return float(row["return_mean"]) / worth
    if row["task"] in SUITE and SUITE[row["task"]].dense:
        return None
    return None if row["success_rate"] is None else float(row["success_rate"])


def most(task: str) -> float | None:
    """The return of a task in which everything is earned that is paid by the piece, if any is."""
    constants = registry.spec(task).constants
    if "goal_bonus" in constants:
        return float(constants["goals"] * constants["goal_bonus"])
    if "hurdles_counted" in constants:
        return float(constants["hurdles_counted"])
    return float(len(constants["waypoints"])) if "waypoints" in constants else None


def report(folder: Path, found: Comparison) -> str:
    """Write the table and the profiles of a suite's trials; returns the table."""
    tasks = list(dict.fromkeys(spec.task for spec in found.specs))
    values = scores(found)
    parts = [
        f"{len(found.rows)} of {len(found.specs)} trials done, {len(found.failures)} failed.\n",
        _by_task("score", values, tasks),
    ]
    earned = _values(found, _earned)
    if earned:
        by_piece = [task for task in tasks if any(task in own for own in earned.values())]
        parts.append(_by_task("return", earned, by_piece))
    common = {arm: own for arm, own in values.items() if arm in COMMON}
    whole = [task for task in tasks if all(task in own for own in common.values())]
    if whole and len(common) > 1:
        together = {arm: {task: own[task] for task in whole} for arm, own in common.items()}
        parts += [_together(together), _costs(found, tasks)]
        figure = _profiles(together)
        canvas.save(figure, folder / "profiles.png")
    present = {row["task"] for row in found.rows}
    parts += [
        _by_distance(found, task) for task in tasks if SUITE[task].by_distance and task in present
    ]
    parts.append(_updates(found, tasks))
    if found.failures:
        failures = [(spec.task, spec.arm, spec.config.seed, why) for spec, why in found.failures]
        parts.append(markdown_table(("task", "arm", "seed", "why there is no result"), failures))
    text = "\n".join(parts)
    write_text(folder / TABLE, text)
    return text


def scores(found: Comparison) -> Values:
    """The scores of all trials that have one."""
    return _values(found, score)


def _values(found: Comparison, value: Callable[[Mapping[str, Any]], float | None]) -> Values:
    values: Values = {}
    for row in found.rows:
        one = value(row)
        if one is not None:
            values.setdefault(row["arm"], {}).setdefault(row["task"], []).append(one)
    return values


def _earned(row: Mapping[str, Any]) -> float | None:
    """The return of a trial whose score is not its success rate."""
    otherwise = most(row["task"]) is not None or score(row) is None
    return float(row["return_mean"]) if otherwise else None


def _by_task(what: str, values: Values, tasks: Sequence[str]) -> str:
    heads = (f"{what}: IQM [95 % interval]", *tasks)
    lines = [
        (arm, *(str(summarise(own[task])) if task in own else "–" for task in tasks))
        for arm, own in values.items()
    ]
    return markdown_table(heads, lines) + "\n"


def _updates(found: Comparison, tasks: Sequence[str]) -> str:
    """Gradient steps of each arm that learns per thousand environment steps, and by what."""
    told: dict[str, dict[str, str]] = {}
    configs = {(spec.task, spec.arm): spec.config for spec in found.specs}
    for row in found.rows:
        arm, task, algo = row["arm"], row["task"], row.get("algo")
        if algo in PRESETS:
            config = configs[task, arm]
            hyper = None if arm in WITHOUT_SKILLS else config.hyper
            ratio = update_ratio(algo, row["k"], config.num_envs, hyper)
            per_step = ratio * row["decisions"] / row["env_steps"]
            told.setdefault(arm, {})[task] = f"{1000 * per_step:.3g} ({algo}, k = {row['k']})"
    heads = ("updates per 1,000 steps", *tasks)
    lines = [(arm, *(own.get(task, "–") for task in tasks)) for arm, own in told.items()]
    return markdown_table(heads, lines) + "\n" if lines else ""


def _by_distance(found: Comparison, task: str) -> str:
    """Success of each arm for goals near and far, in shares of what the entry's library reaches."""
    rows = [row for row in found.rows if row["task"] == task]
    own = [spec for spec in found.specs if spec.task == task]
    spec = min(own, key=lambda spec: ARMS[spec.arm].own_library)
    library = SkillLibrary.load(spec.library, spec.set)
    heads, *lines = bands.table(rows, bands.shares(task, library, spec.episodes))
    heads = (f"{task}: success by distance, in shares of {library.name}'s reach", *heads[1:])
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
        own = [row for row in found.rows if row["task"] == task and not SUITE[task].dense]
        cost = [row["pretraining_steps"] for row in own if row["arm"] == FIRST]
        skills, flat = _first_success(own, (FIRST,)), _first_success(own, FLAT)
        budget = next(spec.config.env_steps for spec in found.specs if spec.task == task)
        if cost:
            line = [task, f"{cost[0]:,}", _steps(skills)]
            if any(row["arm"] in FLAT for row in own):
                line += [_steps(flat), _even(cost[0], skills, flat, budget)]
            lines.append((*line, *"––")[: len(COSTS)])  # dashes where no flat arm has run
    return markdown_table(COSTS, lines) + "\n"


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
    whole = list(next(iter(values.values())))
    n = len(whole)
    return plots.learning_curves(
        curves,
        "share of runs above",
        f"Performance profiles: {' and '.join(whole) if n < 3 else f'{n} tasks'}",
        share=True,
        note="Runs on all tasks that every arm has, by score from 0 to 1; higher is better.",
        xlabel="score",
    )
