"""What every learner makes of a point in a minute of one core: in the open, or in the U.

    OMP_NUM_THREADS=1 python bench/arena.py
    OMP_NUM_THREADS=1 python bench/arena.py --env point-maze-u --seeds 0
    OMP_NUM_THREADS=1 python bench/arena.py --learners metra diayn --seeds 0

Learners of skills practise for 24,000 steps (in the U 48,000) with their `cpu` preset. *coverage*
counts the cells of 0.5 m that 48 episodes of the skills enter without noise, *untrained* those
before the first update, *ends* the cells in which they end, which are few where all skills do the
same, however far they go; *accuracy* is how often a discriminator, of learners with one, names a
skill in training; *goals* the share of 50 goals that the skills reach zero-shot, for learners
that know which skill leads to one. Learners without skills practise for twice as many; *coverage*
counts what their training entered, and *untrained* what uniform actions would have.

`pytest -m slow tests/contract/test_learning.py` makes the open ones and holds them against bars.
Rows: results/arena/ENV.csv. A run that has a row is not made again.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro
from beside import watched

from etude.config import replace
from etude.envs import registry
from etude.errors import LibraryError
from etude.evaluate.metrics import cells, coverage, displacement
from etude.evaluate.rollouts import rollout_skills, rollout_task
from etude.evaluate.trials import tables
from etude.skills import learners
from etude.skills.controllers.goal_direction import GoalDirectionController
from etude.skills.discovery import Discovery, preset
from etude.skills.export import export
from etude.skills.library import SkillLibrary
from etude.skills.vec_env import LibraryLevel

ENV = "point-open"
STEPS = {ENV: 24_000, "point-maze-u": 48_000}
FOLDER = Path(__file__).resolve().parents[1] / "results" / "arena"
HEAD = ["learner", "seed", "steps", "updates", "untrained", "coverage", "ends", "displacement"]
HEAD += ["accuracy", "goals", "cpu_seconds"]
WITH_AGENT = tuple(name for name in learners.ids() if learners.get(name).agent)
"""Methods whose plans lead apart before they have learned are measured in bench/empowerment.py."""

Row = dict[str, object]


@dataclass(frozen=True)
class Arguments:
    """Train what is missing and write a row for each run."""

    env: Literal["point-open", "point-maze-u"] = "point-open"
    """world"""
    learners: tuple[str, ...] = WITH_AGENT
    """which"""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """of each"""
    out: Path = FOLDER
    """where the tables are"""


def explores(learner: str) -> bool:
    """Whether it has no skills to tell apart."""
    return Discovery(preset(learner, ENV)).space.dim == 1


def practise(learner: str, seed: int, env: str = ENV) -> Row:
    """Train a learner of skills and measure them."""
    run = Discovery(replace(preset(learner, env), {"seed": seed, "steps": STEPS[env]}))
    cell = run.env_spec.cell
    untrained = coverage(rollout_skills(run.snapshot(), env).paths, cell)
    began = time.process_time()
    accuracy: float | None = None
    while not run.done:
        run.epoch()
        accuracy = run.metrics.get("skill/accuracy")
    seconds = time.process_time() - began
    paths = rollout_skills(run.snapshot(), env).paths
    return {
        "learner": learner,
        "seed": seed,
        "steps": run.steps,
        "updates": run.updates,
        "untrained": untrained,
        "coverage": coverage(paths, cell),
        "ends": len(cells(paths[:, -1], cell)),
        "displacement": round(float(displacement(paths).mean()), 3),
        "accuracy": accuracy,
        "goals": goals(run),
        "cpu_seconds": round(seconds, 1),
    }


def goals(run: Discovery) -> float | None:
    """Share of goals that the run's library reaches; None where it does not answer goals."""
    with tempfile.TemporaryDirectory() as folder:
        export(run, Path(folder) / "library", {})
        library = SkillLibrary.load(Path(folder) / "library")
    task = f"{run.config.env}-goal"
    try:
        controller = GoalDirectionController(library, registry.spec(task))
        done = rollout_task(task, LibraryLevel(library), controller, 1)
    except LibraryError:
        return None
    return None if done.success is None else float(np.mean(done.success))


def explore(learner: str, seed: int, env: str = ENV) -> Row:
    """Train a learner without skills, and let uniform actions have as many steps."""
    seen, seconds, steps = {}, 0.0, 2 * STEPS[env]
    for warmup in (steps, 3_000):  # the longer one leaves no update
        settings = {"seed": seed, "steps": steps, "loop": {"warmup_steps": warmup}}
        run = Discovery(replace(preset(learner, env), settings))
        seen[warmup], seconds = watched(run)
    row: Row = dict.fromkeys(HEAD)
    row |= {"learner": learner, "seed": seed, "steps": run.steps, "updates": run.updates}
    row |= {"untrained": seen[steps], "coverage": seen[3_000]}
    return row | {"cpu_seconds": round(seconds, 1)}


def main(args: Arguments) -> None:
    """Every run that has no row."""
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    table = args.out / f"{args.env}.csv"
    known = {(row["learner"], row["seed"]) for row in tables.read(table, ("learner",))}
    for seed in args.seeds:
        for learner in args.learners:
            if (learner, seed) not in known:
                measure = explore if explores(learner) else practise
                row = measure(learner, seed, args.env)
                tables.append(table, [row])
                print(row, flush=True)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
