"""The replay's memory with a million Ant transitions, and what a batch costs from many rows.

The memory is what the full ring says it holds; how much the process grew while it was filled stands
beside it, where the system tells.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rounds import ROWS, Row, compared, interleave, script

from etude.agents.replay import Replay

OBS, ACTION, SKILL = 29, 8, 2
CAPACITY, ENVS = 1_000_000, 1000
FEW = 10_000  # rows
BATCH, CALLS = 256, 5000
MB = 1e6  # bytes


def filled(rows: int) -> Replay:
    """A replay with room for `CAPACITY` transitions that holds `rows`."""
    rng = np.random.default_rng(0)
    replay = Replay(CAPACITY, ENVS, OBS, ACTION, SKILL, seed=0)
    never = np.zeros(ENVS, bool)
    for _ in range(rows // ENVS):
        obs, after = rng.standard_normal((2, ENVS, OBS), np.float32)
        action = rng.standard_normal((ENVS, ACTION), np.float32)
        skill = rng.standard_normal((ENVS, SKILL), np.float32)
        replay.add(obs, action, after, skill, never, never)
    return replay


def resident() -> float | None:
    """Memory of this process, bytes; None where the system does not tell."""
    statm = Path("/proc/self/statm")
    if not statm.is_file():
        return None
    return int(statm.read_text().split()[1]) * float(os.sysconf("SC_PAGE_SIZE"))


def memory(replay: Replay, before: float | None, after: float | None) -> Row:
    """The row of the full replay's size."""
    arms = {"ring": (replay.nbytes / MB, "MB")}
    if before is not None and after is not None:
        arms["growth of the process"] = ((after - before) / MB, "MB")
    return replace(ROWS["replay/memory"], value=replay.nbytes / MB, arms=arms)


def sampled(replay: Replay) -> float:
    """Time of one batch, us."""
    start = time.perf_counter()
    for _ in range(CALLS):
        replay.steps(BATCH)
    return (time.perf_counter() - start) / CALLS * 1e6


def measure(rounds: int) -> list[Row]:
    """Both rows."""
    torch.set_num_threads(1)
    few = filled(FEW)
    before = resident()
    many = filled(CAPACITY)
    after = resident()
    arms = {"1e4 rows": partial(sampled, few), "1e6 rows": partial(sampled, many)}
    readings = interleave(arms, rounds)
    row = compared("replay/sample", readings, "1e6 rows", "1e4 rows", "us")
    return [memory(many, before, after), row]


if __name__ == "__main__":
    script(measure)
