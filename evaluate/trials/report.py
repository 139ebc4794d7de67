"""The report of a comparison: what each arm reached on a task, at which cost, how it learned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from etude.config import to_dict
from etude.evaluate import plots
from etude.evaluate.arms import ARMS
from etude.evaluate.compare import Comparison
from etude.evaluate.report import origin, pictures, write
from etude.evaluate.statistics import summarise
from etude.skills.library import SkillLibrary
from etude.skills.library_card import markdown_table

COSTS = ("env_steps", "pretraining_steps", "first_success", "effective_skills", "return_mean")


def report_comparison(
    comparison: Comparison, library: SkillLibrary, folder: Path, *, provenance: Mapping[str, Any]
) -> dict[str, Any]:
    """Write a report of arms on a task.

    Args:
        comparison: what `compare` returned.
        library: the skills that the arms with skills used.
        folder: gets the report and its pictures.
        provenance: command, versions, commit and machine of the comparison.

    Returns:
        What stands in `report.json`.
    """
    first = comparison.specs[0]
    share = bool(comparison.values("success_rate"))
    column = "success_rate" if share else "return_mean"
    measure = f"success rate over {first.episodes} episodes" if share else "mean return"
    values = comparison.values(column)
    figures: dict[str, Figure] = {}
    if values:
        title = f"{first.task}: do skills help?"
        figures["arms.png"] = plots.arms(values, measure, title, share=share)
    if curves := _curves(comparison, "success" if share else "episode_return"):
        figures["curves.png"] = plots.learning_curves(
            curves,
            f"{'success rate' if share else 'return'} of the last 100 episodes",
            f"Learning {first.task}",
            share=share,
            note="Training episodes, exploration included.",
        )
    arms = {
        arm: {"about": ARMS[arm].about, **asdict(summarise(seeds)), **_costs(comparison, arm)}
        for arm, seeds in values.items()
    }
    data = {
        "kind": "comparison",
        "task": first.task,
        "library": {"name": library.name, "id": library.id, "set": library.set},
        "config": to_dict(first.config),
        "flat_algo": first.flat_algo,
        "seeds": sorted({spec.config.seed for spec in comparison.specs}),
        "measure": measure,
        "share": share,
        "arms": arms,
        "trials": list(comparison.rows),
        "failures": [{"trial": s.key, "arm": s.arm, "why": why} for s, why in comparison.failures],
        "provenance": provenance,
    }
    return write(folder, data, figures, _comparison_text)


def _curves(comparison: Comparison, column: str) -> dict[str, list[plots.Curve]]:
    """The learning curves of each arm that learns."""
    found: dict[str, list[plots.Curve]] = {}
    for row in comparison.rows:
        points = [p for p in comparison.curves.get(row["trial"], ()) if p[column] is not None]
        if points:
            steps, values = (np.array([p[k] for p in points], float) for k in ("env_steps", column))
            found.setdefault(row["arm"], []).append((steps, values))
    return found


def _costs(comparison: Comparison, arm: str) -> dict[str, float | None]:
    """Medians over the seeds of an arm."""
    seeds = {column: comparison.values(column).get(arm) for column in COSTS}
    return {column: float(np.median(found)) if found else None for column, found in seeds.items()}


def _comparison_text(data: Mapping[str, Any]) -> str:
    heads = (
        "arm",
        "what it does",
        f"{data['measure']}: IQM [95% interval]",
        "median",
        "seeds",
        "return",
        "environment steps",
        "pretraining steps",
        "steps to first success",
        "skills in use (exp H)",
    )
    rows = [_arm_row(arm, found, data["share"]) for arm, found in data["arms"].items()]
    failures = [(f["arm"], f["why"]) for f in data["failures"]]
    config = {**data["config"], "seed": data["seeds"], "flat_algo": data["flat_algo"]}
    settings = {key: value for key, value in config.items() if key != "hyper"}
    missing = (
        f"## Without a result\n\n{markdown_table(('arm', 'why'), failures)}\n\n" if failures else ""
    )
    return f"""# {data["task"]}: do skills help?

Arms with skills use set `{data["library"]["set"]}` of library `{data["library"]["name"]}`
(`{data["library"]["id"][:12]}`). All arms are judged on the same episodes. Scores are
interquartile means (IQM) over seeds, where there are several with a 95% percentile bootstrap
interval; costs are medians.

{markdown_table(heads, rows)}

{pictures(data["pictures"])}

{missing}{origin("Settings", settings)}
{origin("How this was made", data["provenance"])}
Every trial is a row of `trials.csv`, every learning curve is in `curves.csv`.
"""


def _arm_row(arm: str, found: Mapping[str, Any], share: bool) -> tuple[Any, ...]:
    form = "{:.0%}" if share else "{:.3g}"
    iqm, low, high, middle = (form.format(found[k]) for k in ("iqm", "low", "high", "median"))
    costs = [
        "–" if found[key] is None else f"{found[key]:,.0f}"
        for key in ("env_steps", "pretraining_steps", "first_success")
    ]
    used = found["effective_skills"]
    score = f"{iqm} [{low}, {high}]" if found["n"] > 1 else iqm
    head = (arm, found["about"], score, middle, found["n"], found["return_mean"])
    return *head, *costs, "–" if used is None else used
