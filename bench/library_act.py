"""Time of one `SkillLibrary.act` on one observation: a 2 x 256 policy for Ant (29 + 2 -> 8).

    OMP_NUM_THREADS=1 python bench/library_act.py

The median of three readings of 2000 calls per round, in CPU time, so that what else runs on the
machine counts little. A call with 64 rows stands beside it.
"""

from __future__ import annotations

import tempfile
import time
import timeit
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rounds import Row, interleave, measured, medians, script

from etude.skills.library import MLP, SetData, SkillLibrary, write
from etude.skills.spaces import Sphere

PER_ROUND, CALLS = 3, 2000
SIZES = (31, 256, 256, 8)


def library() -> SkillLibrary:
    """A library of such a policy, written and loaded."""
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
        return SkillLibrary.load(path)


def acting(skills: SkillLibrary, rows: int) -> float:
    """CPU time of one call on `rows` observations, us."""
    rng = np.random.default_rng(0)
    z = skills.sample(rng, 1)[0]
    obs = rng.standard_normal((rows, 29) if rows > 1 else 29)
    call = partial(skills.act, obs, z)
    return timeit.timeit(call, timer=time.process_time, number=CALLS) / CALLS * 1e6


def measure(rounds: int) -> list[Row]:
    """The row of one observation."""
    skills = library()
    arms = {"1 row": partial(acting, skills, 1), "64 rows": partial(acting, skills, 64)}
    readings = interleave(arms, rounds * PER_ROUND)
    one = readings.pop("1 row")
    return [measured("library_act/one", one, medians(readings, "us"))]


if __name__ == "__main__":
    script(measure)
