"""How many nats the plans of a robot's LPE library tell of the posture they end in.

    python train.py discover lpe --env half-cheetah --steps 200000 --out runs/half-cheetah-lpe
    python bench/empowerment_robot.py runs/half-cheetah-lpe/library

Episodes are one plan long and start where the environment does. I(Z; S_n | s0) is bounded from
below (`etude.evaluate.skillset_mi`) for the fields that the learner was told to tell apart; beside
it stand the plans that the same settings and seed began with. Writes both to
results/empowerment/robot.csv.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from etude.config import replace
from etude.evaluate.rollouts import Skills
from etude.evaluate.skillset_mi import rollout_mi
from etude.skills.discovery import Discovery, preset
from etude.skills.learners.lpe import Lpe
from etude.skills.library import SkillLibrary

OUT = Path(__file__).resolve().parents[1] / "results" / "empowerment" / "robot.csv"


@dataclass(frozen=True)
class Arguments:
    """Measure a library and the plans it began with."""

    library: Annotated[str, tyro.conf.Positional]
    """folder, or name in the zoo"""
    env: str = "half-cheetah"
    """environment it was made in"""
    episodes: int = 2000
    """one fresh skill each"""
    seed: int = 0
    """of the run that made it"""


def main() -> None:
    """Measure, print, write."""
    args = tyro.cli(Arguments, prog="bench/empowerment_robot.py")
    torch.set_num_threads(1)
    config = replace(preset("lpe", args.env), {"seed": args.seed})
    assert isinstance(config.method, Lpe.Config)
    steps = config.method.knots * config.method.hold
    untrained = Discovery(config).snapshot()
    rows = [
        measure(name, skills, config.method.skill_obs, steps, args)
        for name, skills in (("trained", SkillLibrary.load(args.library)), ("at first", untrained))
    ]
    OUT.parent.mkdir(parents=True, exist_ok=True)
    with OUT.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def measure(
    name: str, skills: Skills, fields: tuple[str, ...], steps: int, args: Arguments
) -> dict[str, str]:
    """One row."""
    found = rollout_mi(skills, args.env, fields, episodes=args.episodes, steps=steps, folds=2)
    row = {
        "plans": name,
        "of": " ".join(fields),
        "steps": str(steps),
        "nats": f"{found.nats:.3f}",
        "low": f"{found.low:.3f}",
        "high": f"{found.high:.3f}",
        "episodes": str(args.episodes),
    }
    print(row, flush=True)
    return row


if __name__ == "__main__":
    main()
