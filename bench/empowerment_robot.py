"""How many skills the plans of LPE are worth on a robot: by its own bound, and by anybody's.

    python train.py discover lpe --env half-cheetah --out runs/half-cheetah-lpe
    python train.py discover lpe --env half-cheetah --method.model-first 1000000000 \\
        --out runs/half-cheetah-lpe-frozen
    python bench/empowerment_robot.py runs/half-cheetah-lpe runs/half-cheetah-lpe-frozen

The second run trains the same model on plans that stay as they were drawn. J is the learner's bound
with s_n from the simulator, averaged over `STARTS` starts of as many skills each; nats are those of
`etude.evaluate.skillset_mi`, whose network sees 2,000 episodes and no code. Both are lower bounds
of I(Z; S_n | s0) for the fields that the learner was told to tell apart. Writes
results/empowerment/robot.csv.
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro

from etude import checkpoint
from etude.envs import registry
from etude.evaluate.skillset_mi import rollout_mi
from etude.skills.discover_config import read_config
from etude.skills.discovery import Discovery
from etude.skills.learners.lpe import Lpe
from etude.worldmodels.densities import categorical_information, categorical_kl

OUT = Path(__file__).resolve().parents[1] / "results" / "empowerment" / "robot.csv"
STARTS, SKILLS = 16, 512
FIRST_SEED = 1000
"""Of the starts; training has others."""


@dataclass(frozen=True)
class Arguments:
    """Measure runs of LPE on a robot."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """folders of finished runs"""
    episodes: int = 2000
    """for the estimate in nats, one fresh skill each"""


def main() -> None:
    """Measure, print, write."""
    args = tyro.cli(Arguments, prog="bench/empowerment_robot.py")
    torch.set_num_threads(1)
    rows = []
    for folder in args.runs:
        rows.append(measure(restored(folder), folder.name, args.episodes))
        print(rows[-1], flush=True)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    with OUT.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def restored(folder: Path) -> Discovery:
    """The run of a folder, as it ended."""
    run = Discovery(read_config(json.loads((folder / "config.json").read_text())["discover"]))
    run.restore(checkpoint.load_newest(folder / "checkpoints", {})["run"])
    return run


def measure(run: Discovery, name: str, episodes: int) -> dict[str, str]:
    """One row."""
    learner = run.learner
    assert isinstance(learner, Lpe)
    bound, error = bound_in(run, learner)
    fields, steps = learner.config.skill_obs, learner.period
    how = {"episodes": episodes, "steps": steps, "folds": 2}
    found = rollout_mi(run.snapshot(), run.config.env, fields, **how)
    return {
        "run": name,
        "env": run.config.env,
        "of": " ".join(fields),
        "steps": str(steps),
        "updates": str(run.updates),
        "J": f"{bound:.3f}",
        "J_error": f"{error:.3f}",
        "nats": f"{found.nats:.3f}",
        "low": f"{found.low:.3f}",
        "high": f"{found.high:.3f}",
        "episodes": str(episodes),
    }


@torch.no_grad()
def bound_in(run: Discovery, learner: Lpe) -> tuple[float, float]:
    """J with s_n from the simulator, and its standard error over starts, nats."""
    n = STARTS * SKILLS
    venv = registry.make_vec(run.config.env, n)
    first, _ = venv.reset(seed=[FIRST_SEED + i // SKILLS for i in range(n)])
    z = run.space.sample(np.random.default_rng(1), n)
    plans = run.plan(first, z, deterministic=True)  # (N, n, A)
    last = first
    for t in range(learner.period):
        last = venv.step(plans[:, t])[0]  # no episode of ours is long enough to end
    begin, end = (run.normaliser(torch.as_tensor(x)) for x in (first, last))
    knots = torch.as_tensor(plans[:, :: learner.config.hold]).flatten(1)
    predicted = learner.log_xi(begin, knots)  # (N, K)
    lost = categorical_kl(predicted, learner.read(begin, end)).view(STARTS, SKILLS)
    each = categorical_information(predicted.view(STARTS, SKILLS, -1)) - lost.mean(1)  # (G,)
    return each.mean().item(), each.std().item() / STARTS**0.5


if __name__ == "__main__":
    main()
