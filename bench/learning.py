"""`make bench-learning`: what METRA has learned after so many minutes on one core.

    python bench/learning.py                    every run that is missing, two at a time (hours)
    python bench/learning.py --only ant-cpu     these arms
    python bench/learning.py --table-only       measure nothing, draw and write anew

A finished run is a file of evaluations in results/learning/ and is never run again; a run that was
stopped goes on where it was. Each is `train.py discover` as a user would type it, with one thread
and a limit of training minutes, which do not count evaluations.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from rounds import Row, median, thread_settings
from run import PAGE, RESULTS, described, machine, table_lines, with_table

from etude.checkpoint import latest, write_text
from etude.cli.progress import Progress
from etude.evaluate import canvas, plots
from etude.evaluate.monitor import FILE, read_history

ROOT = Path(__file__).resolve().parents[1]
FINISHED = ROOT / "results" / "learning"
RUNS = ROOT / "runs" / "bench"
METRES = 20.0
History = Sequence[Mapping[str, float]]


@dataclass(frozen=True)
class Arm:
    """A command of which several seeds are run."""

    label: str
    env: str
    arguments: str
    minutes: float
    every: int
    """steps between evaluations"""

    def command(self, seed: int, out: Path) -> list[str]:
        """The arguments of train.py for one seed."""
        words = f"discover metra --env {self.env} {self.arguments} --steps 10000000"
        words += f" --minutes {self.minutes:g} --eval-every {self.every} --seed {seed}"
        return [*words.split(), "--out", str(out)]


SEEN = "--loop.unseen"  # nothing is: the preset of these curves, whose policy saw where it was
ARMS = {
    "half-cheetah-cpu": Arm("cpu preset, place seen", "half-cheetah", SEEN, 8, 16_000),
    "half-cheetah-paper": Arm("paper preset", "half-cheetah", "--preset paper", 8, 16_000),
    "ant-cpu": Arm("cpu preset, place seen", "ant", f"--method.skill-obs {SEEN}", 30, 40_000),
    "ant-paper": Arm("paper preset", "ant", "--preset paper", 30, 40_000),
}

ROWS = {
    row.id: row
    for row in (
        Row(
            "half-cheetah-cpu",
            "METRA on HalfCheetah: minutes to the first of two evaluations in a row of 20 m",
            "min",
            at_most=4,
        ),
        Row("half-cheetah-paper", "the same with the `paper` preset", "min"),
        Row(
            "ant-cpu",
            "METRA on Ant from the full state: coverage after 30 minutes (stretch: 300)",
            "cells",
            at_least=150,
        ),
        Row("ant-paper", "the same with the `paper` preset", "cells"),
    )
}


@dataclass(frozen=True)
class Arguments:
    """Train what is missing; rewrites results.json, the table and the pictures."""

    only: tuple[str, ...] = tuple(ARMS)
    """arms to run"""
    seeds: tuple[int, ...] = (0, 1, 2)
    """of each arm"""
    jobs: Annotated[int, tyro.conf.arg(aliases=["-j"])] = 2
    """runs at a time; one for each core"""
    table_only: bool = False
    """train nothing"""


def main() -> int:
    """Run what is missing; 1 if a run failed."""
    args = tyro.cli(Arguments, prog="bench/learning.py")
    wrong = [name for name in args.only if name not in ARMS]
    if wrong:
        sys.exit(f'bench: there is no arm "{wrong[0]}": choose from {", ".join(ARMS)}.')
    wanted = [(name, seed) for name in args.only for seed in args.seeds]
    missing = [] if args.table_only else [w for w in wanted if not finished(*w).is_file()]
    failures: list[str] = []
    with (
        Progress("learning", len(missing) or 1, "run") as bar,
        ThreadPoolExecutor(args.jobs) as pool,
    ):
        for i, failure in enumerate(pool.map(lambda w: train(*w), missing)):
            failures += [failure] if failure else []
            bar.to(i + 1, "")
            publish()
    publish()
    print(*failures, sep="\n", end="\n" if failures else "")
    return 1 if failures else 0


def finished(name: str, seed: int) -> Path:
    """Where the evaluations of a finished run are."""
    return FINISHED / f"{name}-s{seed}.csv"


def train(name: str, seed: int) -> str:
    """Run one seed to its end, from its last checkpoint if there is one; returns what failed."""
    folder = RUNS / f"{name}-s{seed}"
    arguments = ARMS[name].command(seed, folder)
    if latest(folder / "checkpoints"):
        arguments = ["discover", "--resume", str(folder)]
    elif folder.is_dir():
        shutil.rmtree(folder)
    command = [sys.executable, str(ROOT / "train.py"), *arguments]
    done = subprocess.run(
        command, env=thread_settings(1), capture_output=True, text=True, check=False
    )
    if done.returncode:
        return f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr.strip()[-2000:]}"
    FINISHED.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(folder / FILE, finished(name, seed))
    return ""


def publish() -> None:
    """Rows, table and pictures of what is finished."""
    found = {name: [h for _, h in sorted(histories(name).items())] for name in ARMS}
    rows = [measured(ROWS[name], runs).as_json() for name, runs in found.items() if runs]
    results: dict[str, Any] = json.loads(RESULTS.read_text("utf-8")) if RESULTS.is_file() else {}
    made = results.get("learning", {}).get("made") or machine()
    results["learning"] = {"made": made, "rows": rows}
    write_text(RESULTS, json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    by_id = {row["id"]: row for row in rows}
    text = "\n".join([*table_lines(ROWS, by_id), "", f"Measured on {described(made)}."])
    write_text(PAGE, with_table(PAGE.read_text("utf-8"), text, "learning"))
    for env, key, unit in (
        ("half-cheetah", "displacement", "mean displacement (m)"),
        ("ant", "policy_coverage", "policy coverage (1 m cells)"),
    ):
        for axis in ("minutes", "steps"):
            draw({n: r for n, r in found.items() if ARMS[n].env == env and r}, key, unit, axis)


def histories(name: str) -> dict[int, History]:
    """The evaluations of an arm's finished runs, by seed."""
    files = FINISHED.glob(f"{name}-s*.csv")
    return {int(file.stem.rpartition("-s")[2]): read_history(file) for file in files}


def measured(row: Row, runs: Sequence[History]) -> Row:
    """The row with the median over seeds."""
    arm = ARMS[row.id]
    values = [minutes_to(h, arm.minutes) if arm.env == "half-cheetah" else last(h) for h in runs]
    middle = median(values)
    note = ""
    if arm.env == "half-cheetah" and middle >= arm.minutes:
        note = f"not within {arm.minutes:g} min"
    arms = {f"{len(runs)} seed{'s' * (len(runs) > 1)}": (middle, row.unit)}
    spread = (min(values), max(values))
    return replace(row, value=None if note else middle, spread=spread, arms=arms, note=note)


def minutes_to(history: History, limit: float) -> float:
    """Training minutes to the first of two evaluations in a row of at least 20 m, or the limit."""
    for first, second in zip(history, history[1:], strict=False):
        if min(first["displacement"], second["displacement"]) >= METRES:
            return float(first["seconds"]) / 60
    return limit


def last(history: History) -> float:
    """Policy coverage of the last evaluation, when time was up."""
    return float(history[-1]["policy_coverage"])


def draw(found: Mapping[str, Sequence[History]], key: str, ylabel: str, axis: str) -> None:
    """Learning curves of one environment over minutes or steps."""
    if not found:
        return
    of = {"minutes": ("seconds", 60.0), "steps": ("steps", 1.0)}[axis]
    curves = {
        ARMS[name].label: [
            (
                np.array([row[of[0]] / of[1] for row in history]),
                np.array([row[key] for row in history]),
            )
            for history in runs
        ]
        for name, runs in found.items()
    }
    env = ARMS[next(iter(found))].env
    xlabel = "minutes of training on one core" if axis == "minutes" else "environment steps"
    figure = plots.learning_curves(curves, ylabel, f"METRA on {env}", xlabel=xlabel)
    canvas.save(figure, FINISHED / f"{env}-{axis}.png")


if __name__ == "__main__":
    sys.exit(main())
