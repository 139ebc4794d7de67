"""Environment steps per second with skills as actions: `SkillVecEnv` against vectors of `SkillEnv`.

    python bench/decisions.py --rounds 5

The task is `ant-multi-goal` with the zoo's Ant skills, held for 25 steps; choices are drawn
beforehand, and episodes end and begin as they do. `SkillVecEnv` steps 64 environments on 2 threads,
`DummyVecEnv` 8 of them one after the other, `SubprocVecEnv` one in each of 2 processes. The ratio
of every round goes to stderr.
"""

from __future__ import annotations

import sys
import time
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from rounds import Row, compared, interleave, ratios, script
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from etude.envs.registry import make_vec, spec
from etude.skills.env import SkillEnv
from etude.skills.library import SkillLibrary
from etude.skills.vec_env import LibraryLevel, SkillVecEnv

LIBRARY, TASK, ENV_ID = "ant-metra", "ant-multi-goal", "etude/AntMultiGoal-v0"
K, THREADS = 25, 2
OURS, DUMMY, SUBPROC = "SkillVecEnv of 64", "DummyVecEnv of 8", "SubprocVecEnv of 2"
ENVS = {OURS: 64, DUMMY: 8, SUBPROC: 2}
DECISIONS = {OURS: 8, DUMMY: 16, SUBPROC: 32}  # of a reading: about as long each
UNIT = "steps/s"


def single() -> gymnasium.Env[Any, Any]:
    """One environment whose actions are skills; each process loads the library by itself."""
    return SkillEnv(gymnasium.make(ENV_ID), LIBRARY, k=K)


def vectors() -> dict[str, VecEnv]:
    """The three of them, at the start of their episodes."""
    level = LibraryLevel.for_spec(SkillLibrary.load(LIBRARY), spec(TASK))
    raw = make_vec(TASK, ENVS[OURS], threads=THREADS)
    made = {
        OURS: SkillVecEnv(raw, level, K, 0.99),
        DUMMY: DummyVecEnv([single] * ENVS[DUMMY]),
        SUBPROC: SubprocVecEnv([single] * ENVS[SUBPROC], start_method="forkserver"),
    }
    for venv in made.values():
        venv.seed(0)
        venv.reset()
    return made


def stepped(venv: VecEnv, choices: np.ndarray) -> float:
    """Environment steps per second of decisions with these choices (T, N, …)."""
    start, steps = time.perf_counter(), 0
    for choice in choices:
        infos = venv.step(choice)[3]
        steps += sum(info["skill"]["duration"] for info in infos)
    return steps / (time.perf_counter() - start)


def choices(venv: VecEnv, decisions: int) -> np.ndarray:
    """Random choices (T, N, …) of a vector's controller."""
    venv.action_space.seed(0)
    count = decisions * venv.num_envs
    drawn = np.stack([venv.action_space.sample() for _ in range(count)])
    return drawn.reshape(decisions, venv.num_envs, *drawn.shape[1:])


def measure(rounds: int) -> list[Row]:
    """The rows of both comparisons."""
    made = vectors()
    arms = {
        name: partial(stepped, venv, choices(venv, DECISIONS[name])) for name, venv in made.items()
    }
    try:
        found = interleave(arms, rounds)
    finally:
        for venv in made.values():
            venv.close()
    for under in (DUMMY, SUBPROC):
        each = ", ".join(f"{ratio:.2f}" for ratio in ratios(found[OURS], found[under]))
        print(f"{OURS} / {under}, round by round: {each}", file=sys.stderr)
    return [
        compared("decisions/dummy-8", found, OURS, DUMMY, UNIT),
        compared("decisions/subproc-2", found, OURS, SUBPROC, UNIT),
    ]


if __name__ == "__main__":
    script(measure)
