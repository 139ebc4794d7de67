"""What share of a discovery epoch is physics and matrix products, METRA on Ant, one thread.

Everything else is overhead that a faster library could save. The strict share divides the self
time of `Batch.step` and of the products, as torch's profiler sees it, by the wall time of the same
profiled epoch. The profiler lengthens each small operation, so the strict share is too low; the
plain one divides the same self time by the wall time of an epoch without the profiler.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from rounds import Row, interleave, measured, medians, ratios, script
from torch.profiler import ProfilerActivity, profile, record_function

from etude.skills.discovery import Discovery, preset

WARM = 3  # the first collects only, the second learns for the first time
PHYSICS = "physics"
PRODUCTS = {
    f"aten::{name}"
    for name in ("mm", "addmm", "_addmm_activation", "bmm", "baddbmm", "mv", "addmv", "dot")
}


def warm_run(seed: int) -> Discovery:
    """A run of METRA on Ant that is past its first updates."""
    torch.set_num_threads(1)
    run = Discovery(replace(preset("metra", "ant"), seed=seed))
    for _ in range(WARM):
        run.epoch()
    return run


def name_physics(run: Discovery) -> None:
    """Let the profiler see the native step of the simulations as an operation of its own."""
    batch: Any = run.venv._batch
    native = batch.step

    def step(*args: Any) -> Any:
        with record_function(PHYSICS):
            return native(*args)

    batch.step = step


def plain(run: Discovery) -> tuple[float, ...]:
    """Wall time of an epoch, s."""
    start = time.perf_counter()
    run.epoch()
    return (time.perf_counter() - start,)


def profiled(run: Discovery) -> tuple[float, ...]:
    """Wall time of an epoch under the profiler; of it physics; of it products, s."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        (wall,) = plain(run)
    own = {event.key: event.self_cpu_time_total / 1e6 for event in profiler.key_averages()}
    return wall, own[PHYSICS], sum(own.get(name, 0.0) for name in PRODUCTS)


def measure(rounds: int) -> list[Row]:
    """The strict share and the plain one."""
    run = warm_run(seed=0)
    name_physics(run)
    taken = interleave({"plain": partial(plain, run), "profiled": partial(profiled, run)}, rounds)
    unprofiled = [wall for (wall,) in taken["plain"]]
    walls, physics, products = zip(*taken["profiled"], strict=True)
    readings = {"plain epoch": unprofiled, "profiled epoch": walls}
    arms = medians(readings | {"physics": physics, "products": products}, "s")
    useful = [sum(pair) for pair in zip(physics, products, strict=True)]
    shares = [min(share, 1.0) for share in ratios(useful, unprofiled)]
    return [
        measured("loop/profiled", ratios(useful, walls), arms),
        measured("loop/plain", shares, arms),
    ]


if __name__ == "__main__":
    script(measure)
