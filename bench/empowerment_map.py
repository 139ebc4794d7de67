"""How many skills each cell of a grid has, as LPE learns it and as it is.

    python bench/empowerment_map.py            three seeds
    python bench/empowerment_map.py --seeds 0  one

Each run is `train.py discover lpe --env grid-5-slip-bits`: a 5 x 5 grid where a move is replaced by
a random one with probability 0.2, beside eight random bits; plans of two moves, from any cell. The
learnt map is `Lpe.empowerment`, averaged over bits; the exact one is the capacity of each cell's
channel. Writes map.csv, with the rank correlation (Spearman) of every seed, and map.png.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro

from etude.config import replace
from etude.envs import registry
from etude.envs.testbeds.body import Testbed
from etude.evaluate import canvas, plots
from etude.evaluate.capacity import empowerment
from etude.skills.discovery import Discovery, preset
from etude.skills.learners.lpe import Lpe

ENV = "grid-5-slip-bits"
OUT = Path(__file__).resolve().parents[1] / "results" / "empowerment"
VIEWS = 64
"""Draws of the bits that a cell's value is averaged over."""


@dataclass(frozen=True)
class Arguments:
    """Learn the map and compare it with the exact one."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """of the runs; those with a column in map.csv are not run again"""


def main() -> None:
    """Train, write and draw."""
    args = tyro.cli(Arguments, prog="bench/empowerment_map.py")
    torch.set_num_threads(1)
    body = registry.build(ENV)[0]
    assert isinstance(body, Testbed)
    columns = read() or {"exact": empowerment(body, 2)}
    for seed in args.seeds:
        if f"seed {seed}" not in columns:
            trained = Discovery(replace(preset("lpe", ENV), {"seed": seed}))
            trained.run()
            columns[f"seed {seed}"] = learnt(trained, body)
            write(columns, body)
            print(f"seed {seed}: {agreement(columns)[f'seed {seed}']:.3f}", flush=True)
    draw(columns, body)


@torch.no_grad()
def learnt(trained: Discovery, body: Testbed) -> np.ndarray:
    """E(s0) (S,) of each state, averaged over bits, nats."""
    assert isinstance(trained.learner, Lpe)
    states = body.table.states
    bits = np.random.default_rng(0).integers(2, size=(states * VIEWS, body.bits))
    seen = np.concatenate([np.repeat(body.table.seen, VIEWS, axis=0), bits], axis=1)
    obs = trained.normaliser(torch.as_tensor(seen, dtype=torch.float32))
    return np.asarray(trained.learner.empowerment(obs).view(states, VIEWS).mean(1).numpy())


def agreement(columns: dict[str, np.ndarray]) -> dict[str, float]:
    """Rank correlation of every column with the exact one."""
    ranks = {name: ranked(np.round(values, 9)) for name, values in columns.items()}
    return {name: float(np.corrcoef(r, ranks["exact"])[0, 1]) for name, r in ranks.items()}


def ranked(values: np.ndarray) -> np.ndarray:
    """Ranks (S,), equal ones shared."""
    less = (values[:, None] > values).sum(1)
    same = (values[:, None] == values).sum(1)
    return np.asarray(less + (same + 1) / 2)


def read() -> dict[str, np.ndarray]:
    """The columns so far."""
    if not (OUT / "map.csv").is_file():
        return {}
    with (OUT / "map.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["x"]]
    names = [name for name in rows[0] if name not in ("x", "y")]
    return {name: np.array([float(row[name]) for row in rows]) for name in names}


def write(columns: dict[str, np.ndarray], body: Testbed) -> None:
    """A row per cell, and one without a cell for the rank correlations."""
    OUT.mkdir(parents=True, exist_ok=True)
    with (OUT / "map.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["x", "y", *columns])
        for place, values in zip(
            body.table.places, zip(*columns.values(), strict=True), strict=True
        ):
            writer.writerow([*place.astype(int), *(f"{value:.4f}" for value in values)])
        writer.writerow(["", "", *(f"{value:.4f}" for value in agreement(columns).values())])


def draw(columns: dict[str, np.ndarray], body: Testbed) -> None:
    """Exact and learnt side by side; of several seeds the mean is shown."""
    mean = np.mean([values for name, values in columns.items() if name != "exact"], axis=0)
    together = agreement({"exact": columns["exact"], "mean": mean})["mean"]
    found = [value for name, value in agreement(columns).items() if name != "exact"]
    print(f"mean over {len(found)} seeds: {together:.3f}")
    side = round(body.table.states**0.5)
    figure = plots.heat_maps(
        {
            "exact (Blahut and Arimoto)": columns["exact"].reshape(side, side),
            "learnt (LPE)": mean.reshape(side, side),
        },
        "nats",
        "Empowerment of each cell, two moves ahead",
        "A 5 x 5 grid whose moves slip with probability 0.2, beside eight random bits; mean over "
        f"seeds with rank correlation {', '.join(f'{value:.2f}' for value in found)}; of the mean "
        f"{together:.2f}.",
    )
    canvas.save(figure, OUT / "map.png")


if __name__ == "__main__":
    main()
