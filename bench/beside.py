"""What a bonus or a representation beside a learner changes, on the open point.

    OMP_NUM_THREADS=1 python bench/beside.py

DIAYN with two skills, which are soon told apart, alone and with a bonus of weight 1; METRA alone
and with policy and critics on features (`--representation mrq`); METRA whose phi sees the whole
state, alone, with them, and on features itself (`mrq-all`). *seen* is how many cells of 0.5 m
training entered, *coverage* how many the skills enter without their noise, *displacement* how far
they end from their start, m. A run that has a row is not made again.

Rows: results/beside/rows.csv.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

from etude.config import replace
from etude.evaluate.metrics import RunningCoverage, policy_metrics
from etude.evaluate.rollouts import rollout_skills
from etude.evaluate.trials import tables
from etude.skills.discovery import Discovery, preset

ENV = "point-open"
FILE = Path(__file__).resolve().parents[1] / "results" / "beside" / "rows.csv"
HEAD = ["arm", "seed", "env_steps", "seen", "coverage", "displacement", "cpu_seconds"]
TWO: dict[str, Any] = {"method": {"dim": 2}}
WHOLE: dict[str, Any] = {"method": {"skill_obs": []}}  # phi sees the velocity, too
ARMS: dict[str, tuple[str, str, dict[str, Any]]] = {  # learner, bonus, settings
    "diayn": ("diayn", "", TWO),
    "diayn + apt": ("diayn", "apt", TWO | {"bonus_weight": 1.0}),
    "diayn + rnd": ("diayn", "rnd", TWO | {"bonus_weight": 1.0}),
    "diayn + disagreement": ("diayn", "disagreement", TWO | {"bonus_weight": 1.0}),
    "metra": ("metra", "", {}),
    "metra on mrq": ("metra", "", {"representation": "mrq"}),
    "metra, whole state": ("metra", "", WHOLE),
    "metra, whole state on mrq": ("metra", "", WHOLE | {"representation": "mrq"}),
    "metra on mrq-all": ("metra", "", WHOLE | {"representation": "mrq-all"}),
}


@dataclass(frozen=True)
class Arguments:
    """Train what is missing and write a row for each run."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """of every arm"""
    steps: int = 24_000
    """environment steps of a run"""


def watched(run: Discovery) -> tuple[int, float]:
    """Cells that a run enters in training, to its end, and its seconds of CPU time."""
    counted, began = RunningCoverage(run.env_spec.cell), time.process_time()
    while not run.done:
        run.epoch()
        counted.add(run.collected)
    return counted.total, time.process_time() - began


def one(arm: str, seed: int, steps: int) -> dict[str, object]:
    """Train and measure."""
    learner, bonus, settings = ARMS[arm]
    config = replace(preset(learner, ENV, bonus=bonus), settings)
    run = Discovery(replace(config, {"seed": seed, "steps": steps}))
    seen, seconds = watched(run)
    done = policy_metrics(rollout_skills(run.snapshot(), ENV).paths, run.env_spec.cell)
    reached = int(done["policy_coverage"]), round(done["displacement"], 2)
    values = (arm, seed, run.steps, seen, *reached, round(seconds, 1))
    return dict(zip(HEAD, values, strict=True))


def main(args: Arguments) -> None:
    """Every run that has no row."""
    torch.set_num_threads(1)
    FILE.parent.mkdir(parents=True, exist_ok=True)
    known = {(row["arm"], row["seed"]) for row in tables.read(FILE, ("arm",))}
    for seed, arm in ((s, a) for s in args.seeds for a in ARMS if (a, s) not in known):
        row = one(arm, seed, args.steps)
        tables.append(FILE, [row])
        print(row, flush=True)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
