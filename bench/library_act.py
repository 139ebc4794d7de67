"""Time of one `SkillLibrary.act` on one observation: a 2 x 256 policy for Ant (29 + 2 -> 8).

    OMP_NUM_THREADS=1 python bench/library_act.py

Goal: at most 60 us, the median of 15 repeats of 2000 calls, in CPU time, so that what else runs on
the machine counts little.
"""

from __future__ import annotations

import statistics
import tempfile
import time
import timeit
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from etude.skills.library import MLP, SetData, SkillLibrary, write
from etude.skills.spaces import Sphere

GOAL = 60.0  # us
REPEATS, CALLS = 15, 2000
SIZES = (31, 256, 256, 8)


def main() -> None:
    """Write such a library, load it, and print the time of a call and of a batched row."""
    rng = np.random.default_rng(0)
    layers = [
        (rng.standard_normal((i, o), np.float32) / np.float32(i**0.5), np.zeros(o, np.float32))
        for i, o in zip(SIZES, SIZES[1:], strict=False)
    ]
    data = SetData(
        name="bench",
        learner="none",
        config={},
        space=Sphere(2),
        policy=MLP(layers, output="tanh"),
        encoders={},
        mean=np.zeros(29, np.float32),
        std=np.ones(29, np.float32),
        skills=[],
    )
    env: dict[str, Any] = {"id": "bench", "body": "bench", "action_dim": 8, "dt": 0.05}
    env |= {"fields": [{"name": "body", "dim": 29}], "task_fields": []}
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / "lib", sets=[data], env=env, provenance={}, name="bench")
        library = SkillLibrary.load(path)
    z = library.sample(rng, 1)[0]
    for rows in (1, 64):
        obs = rng.standard_normal((rows, 29) if rows > 1 else 29)
        call = partial(library.act, obs, z)
        times = timeit.repeat(call, timer=time.process_time, number=CALLS, repeat=REPEATS)
        each = statistics.median(times) / CALLS * 1e6
        print(f"{rows:3d} rows: {each:6.1f} us a call, {each / rows:5.1f} us a row")
        if rows == 1:
            print(f"goal of {GOAL:g} us for one row: {'met' if each <= GOAL else 'MISSED'}")


if __name__ == "__main__":
    main()
