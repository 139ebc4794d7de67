"""What the benchmarks share: the rows of the table, interleaved rounds, medians.

A machine that others use slows down and speeds up within seconds. Arms therefore take turns, A, B,
A, B, …; a ratio is taken within a round, where the noise is nearly the same for both, and a row
shows the median of the ratios.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
Arms = Mapping[str, tuple[float, str]]
"""Median and unit of what was measured, by name."""

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ETUDE_THREADS")
UNMEASURED = "not measured"
READING = "reading taken"  # the line that a script prints after each, for the progress bar


@dataclass(frozen=True)
class Row:
    """One line of the table: a measurement, its goal, and its value once there is one."""

    id: str
    what: str
    unit: str = ""
    """of value and goal; "x" means times as fast, nothing a share"""
    at_least: float | None = None
    at_most: float | None = None
    value: float | None = None
    spread: tuple[float, float] | None = None
    """smallest and largest value of a round"""
    arms: Arms = field(default_factory=dict)
    note: str = ""

    @property
    def group(self) -> str:
        """The script that measures it, and its name on the command line."""
        return self.id.partition("/")[0]

    @property
    def goal(self) -> str:
        """The goal in words; empty where there is none."""
        bound = self.at_most if self.at_least is None else self.at_least
        if bound is None:
            return ""
        return f"at {'most' if self.at_least is None else 'least'} {with_unit(bound, self.unit)}"

    @property
    def met(self) -> bool | None:
        """Whether the value reaches the goal; None if one of the two is missing."""
        if self.value is None or not self.goal:
            return None
        low = self.at_least is None or self.value >= self.at_least
        return low and (self.at_most is None or self.value <= self.at_most)

    def __str__(self) -> str:
        """The row for people, on a line or two."""
        if self.value is None:
            return f"{self.id}: {self.note or UNMEASURED}"
        low, high = self.spread or (self.value, self.value)
        text = f"{self.id}: {with_unit(self.value, self.unit)} ({low:.3g} to {high:.3g})"
        if self.met is not None:
            text += f", goal {self.goal}: {'met' if self.met else 'MISSED'}"
        arms = "; ".join(f"{name} {with_unit(*arm)}" for name, arm in self.arms.items())
        return f"{text}\n    {arms}" if arms else text

    def as_json(self) -> dict[str, Any]:
        """What results.json holds of it, numbers to four digits."""
        return {
            "id": self.id,
            "group": self.group,
            "what": self.what,
            "goal": self.goal,
            "unit": self.unit,
            "value": short(self.value),
            "spread": None if self.spread is None else [*map(short, self.spread)],
            "arms": {k: {"median": short(v), "unit": unit} for k, (v, unit) in self.arms.items()},
            "met": self.met,
            "note": self.note,
        }


NATIVE = "64 environments on 2 threads: share of a native C++ loop's steps/s"
SYNC = "16 environments on 2 threads against Gymnasium's SyncVectorEnv of 8, steps/s"
SKILLS = "Ant skills of 25 steps, SkillVecEnv of 64 on 2 threads"
UPDATE = "SAC update, batch 256, 2 x 256 units, sampling included, against stable-baselines3"

ROWS: dict[str, Row] = {
    row.id: row
    for row in (
        Row("stepping/ant-64", f"Ant, {NATIVE}", at_least=0.90),
        Row("stepping/half-cheetah-64", f"HalfCheetah, {NATIVE}", at_least=0.80),
        Row("stepping/ant-16", f"Ant, {SYNC}", "x", at_least=2.5),
        Row("stepping/half-cheetah-16", f"HalfCheetah, {SYNC}", "x", at_least=3.0),
        Row("decisions/dummy-8", f"{SKILLS} against DummyVecEnv of 8, steps/s", "x", at_least=2.5),
        Row(
            "decisions/subproc-2",
            f"{SKILLS} against SubprocVecEnv of 2, steps/s",
            "x",
            at_least=1.3,
        ),
        Row("updates/2-threads", f"{UPDATE}; 2 threads (stretch: 3 x)", "x", at_least=2.0),
        Row("updates/1-thread", f"{UPDATE}; 1 thread", "x"),
        Row(
            "loop/profiled",
            "METRA on Ant, 1 thread: share of physics and matrix products in a profiled epoch",
            at_least=0.75,
        ),
        Row("loop/plain", "the same work's share of an epoch without the profiler (at most 1)"),
        Row(
            "seeds/two",
            "METRA on Ant: two runs of 1 thread at once against one alone, steps/s of both",
            "x",
            at_least=1.8,
        ),
        Row("replay/memory", "replay of 1,000,000 Ant transitions", "MB", at_most=320),
        Row("replay/sample", "time of a batch of 256 from 1e6 rows against 1e4", "x", at_most=1.5),
        Row("startup/import", "`import etude`", "s", at_most=0.3),
        Row("startup/first-step", "`train.py discover` to its first step", "s", at_most=4.0),
        Row(
            "library_act/one", "one action of a library, 2 x 256 units, CPU time", "us", at_most=60
        ),
    )
}


def median(values: Sequence[float]) -> float:
    """The middle value."""
    return float(statistics.median(values))


def interleave(arms: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """`rounds` readings of each arm, taken in turn, after one of each that does not count."""
    readings: dict[str, list[T]] = {name: [] for name in arms}
    for _ in range(rounds + 1):
        for name, read in arms.items():
            readings[name].append(read())
            print(READING, flush=True)
    return {name: values[1:] for name, values in readings.items()}


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """The ratio within each round."""
    return [a / b for a, b in zip(over, under, strict=True)]


def medians(readings: Mapping[str, Sequence[float]], unit: str) -> dict[str, tuple[float, str]]:
    """The absolute medians of the arms."""
    return {name: (median(values), unit) for name, values in readings.items()}


def measured(row: str, values: Sequence[float], arms: Arms, note: str = "") -> Row:
    """A row of `ROWS` with the median and the spread of the rounds' values."""
    spread = (min(values), max(values))
    return replace(ROWS[row], value=median(values), spread=spread, arms=arms, note=note)


def compared(
    row: str, readings: Mapping[str, Sequence[float]], over: str, under: str, unit: str
) -> Row:
    """A row of `ROWS` whose value is the median of the ratios of two arms."""
    return measured(row, ratios(readings[over], readings[under]), medians(readings, unit))


def thread_settings(threads: int) -> dict[str, str]:
    """This process's environment with a number of arithmetic threads; 0: the libraries' own."""
    others = {name: value for name, value in os.environ.items() if name not in THREADS}
    return others | {name: str(threads) for name in THREADS if threads}


def short(value: float | None) -> float | None:
    """A number to four digits."""
    return None if value is None else float(f"{value:.4g}")


def with_unit(value: float, unit: str) -> str:
    """A number to three digits with its unit, for people."""
    number = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{number} {unit}".strip()


def script(measure: Callable[[int], list[Row]]) -> None:
    """Run one group's measurement from the command line, printing its rows or writing them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds (default: 5)")
    parser.add_argument("--out", type=Path, help="write the rows here, as JSON")
    args = parser.parse_args()
    if args.out:
        rows = [row.as_json() for row in measure(args.rounds)]
        args.out.write_text(json.dumps(rows), "utf-8")
        return
    with contextlib.redirect_stdout(io.StringIO()):  # nobody counts the readings
        found = measure(args.rounds)
    print("\n".join(map(str, found)))
