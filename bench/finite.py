"""What the checks for NaN and infinity cost, METRA on Ant, one thread, updates and steps together.

The time inside the checks is the median of a call times the number of calls, so that a call during
which somebody else had the core counts as one that was left alone; it is set against the epoch's
time by the clock of the process, which stands still for others. Beside it, epochs with the checks
and epochs with empty functions in their place take turns; the difference of two epochs is noisier
than what is looked for.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import numpy as np
from loop import warm_run
from rounds import Row, interleave, median, medians, ratios, script

from etude.skills import discovery
from etude.skills.discovery import Discovery

GOAL = 0.01
WHAT = "METRA on Ant, 1 thread: checks for NaN and infinity, share of an epoch"


def nothing(*_: Any) -> None:
    """In place of a check."""


class Clock:
    """Takes the time of each call of some functions."""

    def __init__(self) -> None:
        self.calls: dict[str, list[float]] = {}

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function under the clock."""
        calls = self.calls.setdefault(function.__name__, [])

        @wraps(function)
        def call(*args: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args)
            finally:
                calls.append(time.perf_counter() - start)

        return call

    @property
    def seconds(self) -> float:
        """What all calls take, each as long as the middle one of its function."""
        return sum(len(calls) * median(calls) for calls in self.calls.values())


def epoch(
    run: Discovery, check_observations: Callable[..., Any], check_update: Callable[..., Any]
) -> float:
    """Time of an epoch with these checks, s of the processor."""
    run.__dict__["_check"] = check_update
    discovery.check_observations = check_observations
    start = time.process_time()
    run.epoch()
    return time.process_time() - start


def measure(rounds: int) -> list[Row]:
    """The share by the clock inside the checks, and by the difference of epochs."""
    run = warm_run(seed=0)
    checks = discovery.check_observations, run._check

    def clocked() -> tuple[float, float]:
        clock = Clock()
        wall = epoch(run, *map(clock.timed, checks))
        return wall, clock.seconds

    arms: dict[str, Callable[[], Any]] = {
        "checked": partial(epoch, run, *checks),
        "unchecked": partial(epoch, run, nothing, nothing),
        "clocked": clocked,
    }
    taken = interleave(arms, rounds)
    walls, seconds = zip(*taken["clocked"], strict=True)
    shares = ratios(seconds, walls)
    differences = [share - 1 for share in ratios(taken["checked"], taken["unchecked"])]
    readings = {name: taken[name] for name in ("checked", "unchecked")}
    return [
        Row(
            "finite/inside",
            f"{WHAT}, by the time inside them",
            at_most=GOAL,
            value=median(shares),
            spread=(min(shares), max(shares)),
            arms=medians({"epoch": walls, "checks": seconds}, "s"),
        ),
        Row(
            "finite/difference",
            f"{WHAT}, by the difference of epochs",
            value=median(differences),
            spread=(min(differences), max(differences)),
            arms={
                **medians(readings, "s"),
                "standard error": (float(np.std(differences) / len(differences) ** 0.5), ""),
            },
        ),
    ]


if __name__ == "__main__":
    script(measure)
