"""Medians over seeds of runs of discovery: `python results/summarise.py RUN RUN RUN [--csv FILE]`.

Reads each run's `evaluations.csv` (48 deterministic episodes of 200 steps) and prints the best of
the last three evaluations within a limit of training minutes, and the same skills untrained.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
from pathlib import Path

from etude.evaluate.metrics import policy_metrics
from etude.evaluate.monitor import FILE, read_history
from etude.evaluate.rollouts import rollout_skills
from etude.skills.library import SkillLibrary

FIGURES = ("policy_coverage", "displacement", "x_range")
COLUMNS = ("run", "seed", "steps", "updates", "minutes", *FIGURES, *(f"untrained_{f}" for f in FIGURES))


def row(run: Path, minutes: float) -> dict[str, float | str]:
    """The figures of one run."""
    library = SkillLibrary.load(run)
    history = [r for r in read_history(run / FILE) if r["seconds"] <= 60 * minutes and r["steps"]]
    if not history:
        sys.exit(f"{run} has no evaluation within {minutes} minutes")
    best = max(history[-3:], key=lambda r: r["policy_coverage"])
    seed = library.provenance["seed"]
    spec = library.env
    made = rollout_skills(library.untrained(seed), spec["id"])
    untrained = policy_metrics(made.paths, spec["cell"])
    return {
        "run": run.name,
        "seed": seed,
        "steps": best["steps"],
        "updates": best["updates"],
        "minutes": best["seconds"] / 60,
        **{f: best[f] for f in FIGURES},
        **{f"untrained_{f}": untrained[f] for f in FIGURES},
    }


def main() -> None:
    """Print a row per run and the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="training time counted")
    parser.add_argument("--csv", type=Path, help="table to write")
    args = parser.parse_args()
    rows = [row(run, args.minutes) for run in args.runs]
    middle = {c: statistics.median(float(r[c]) for r in rows) for c in COLUMNS[2:]}
    rows.append({"run": "median", "seed": "", **middle})
    for r in rows:
        print("  ".join(f"{r[c]:>9.4g}" if isinstance(r[c], (int, float)) else f"{r[c]:<24}" for c in COLUMNS))
    if args.csv:
        with args.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
