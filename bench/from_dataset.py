"""Goals reached by what was learned from other people's data, without a step of one's own.

    OMP_NUM_THREADS=1 python bench/from_dataset.py

The data are uniform actions, each held for ten steps, half of the episodes from states reached
before (48,000 steps). HILP and QRL learn distances and a policy from them, 10,000 updates, and
then answer the 50 goals of the task zero-shot. *correlation* is that of learned distances with
the time it takes along the corridor, between the cells of the U; the *line* is that of straight
lines with it.

As at a command line:

    python train.py discover rnd --env point-maze-u --steps 48000 --loop.random-steps 48000 \\
        --loop.warmup-steps 48000 --loop.hold 10 --loop.visited-starts 0.5 --save-dataset walks
    python train.py discover qrl --env point-maze-u --steps 320000 --dataset walks --out runs/qrl
    python train.py compose runs/qrl/library --task point-maze-u-goal --controller zero-shot

Rows: results/from_dataset/rows.csv. A run that has a row is not made again.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from arena import goals
from torch import Tensor

from etude.config import replace
from etude.evaluate.trials import tables
from etude.skills.dataset import write
from etude.skills.discovery import Discovery, preset
from etude.skills.learners.hilp import Hilp
from etude.skills.learners.qrl import Qrl

FILE = Path(__file__).resolve().parents[1] / "results" / "from_dataset" / "rows.csv"
RANDOM, UPDATES, PER_EPOCH = 48_000, 10_000, 100
CORRIDOR = [(-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1)]
"""Cells of the U from end to end, a metre apart."""
PAIRS = np.array(list(combinations(range(len(CORRIDOR)), 2)))
Row = dict[str, object]


@dataclass(frozen=True)
class Arguments:
    """Train what is missing and write a row for each run."""

    envs: tuple[str, ...] = ("point-open", "point-maze-u")
    """worlds"""
    learners: tuple[str, ...] = ("hilp", "qrl")
    """which"""
    seeds: tuple[int, ...] = (0, 1, 2)
    """of data and learner"""
    updates: int = UPDATES
    """gradient steps of a run"""
    out: Path = FILE
    """the table"""


def random_data(env: str, seed: int, path: Path) -> None:
    """Uniform actions, as a dataset at `path`."""
    loop: dict[str, Any] = {"random_steps": RANDOM, "warmup_steps": RANDOM, "hold": 10}
    loop |= {"visited_starts": 0.5, "updates_per_epoch": 1}
    settings = {"seed": seed, "steps": RANDOM, "loop": loop}
    run = Discovery(replace(preset("rnd", env), settings))
    run.run()
    write(path, run.replay, run.env_spec, run.space, {"command": "bench/from_dataset.py"})


def learned(env: str, learner: str, seed: int, data: Path, updates: int = UPDATES) -> Discovery:
    """A run of the learner's preset on the dataset at `data`."""
    config = preset(learner, env)
    epoch = config.loop.num_envs * config.loop.episode_steps
    settings = {"seed": seed, "dataset": str(data), "steps": epoch * updates // PER_EPOCH}
    run = Discovery(replace(config, {**settings, "loop": {"updates_per_epoch": PER_EPOCH}}))
    run.run()
    return run


@torch.no_grad()
def correlation(distance: Callable[[Tensor, Tensor], Tensor], run: Discovery) -> float:
    """Of learned distances between cells of the U with the way along the corridor."""
    obs = torch.zeros(len(CORRIDOR), run.env_spec.obs_dim)
    obs[:, :2] = torch.tensor(CORRIDOR, dtype=torch.float32)
    seen = run.normaliser(obs)[:, run.learner.columns]
    found = distance(seen[PAIRS[:, 0]], seen[PAIRS[:, 1]])
    return float(np.corrcoef(found.numpy(), PAIRS[:, 1] - PAIRS[:, 0])[0, 1])


def line() -> float:
    """The same of straight lines."""
    cells = np.array(CORRIDOR, float)
    straight = np.linalg.norm(cells[PAIRS[:, 0]] - cells[PAIRS[:, 1]], axis=1)
    return float(np.corrcoef(straight, PAIRS[:, 1] - PAIRS[:, 0])[0, 1])


def one(env: str, learner: str, seed: int, updates: int) -> Row:
    """Collect, learn and measure."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        random_data(env, seed, data)
        began = time.process_time()
        run = learned(env, learner, seed, data, updates)
        seconds = time.process_time() - began
        reached = goals(run)
    row: Row = {"env": env, "learner": learner, "seed": seed, "updates": run.updates}
    row |= {"goals": reached, "correlation": "", "line": ""}
    if env == "point-maze-u":
        own = run.learner
        assert isinstance(own, Hilp | Qrl)
        distance = own.metric if isinstance(own, Qrl) else _hilbert(own)
        row |= {"correlation": round(correlation(distance, run), 3), "line": round(line(), 3)}
    return row | {"cpu_seconds": round(seconds, 1)}


def _hilbert(learner: Hilp) -> Callable[[Tensor, Tensor], Tensor]:
    phi = learner.phi[0]
    return lambda a, b: (phi(a) - phi(b)).norm(dim=-1)


def main(args: Arguments) -> None:
    """Every run that has no row."""
    torch.set_num_threads(1)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    rows = tables.read(args.out, ("env", "learner"))
    known = {(row["env"], row["learner"], row["seed"]) for row in rows}
    wanted = [(e, n, s) for s in args.seeds for e in args.envs for n in args.learners]
    for env, learner, seed in wanted:
        if (env, learner, seed) not in known:
            row = one(env, learner, seed, args.updates)
            tables.append(args.out, [row])
            print(row, flush=True)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
