"""LPE where the answer is known: grids and rooms, beside random bits and in place of them.

    python bench/empowerment.py            five seeds of every case, two at a time
    python bench/empowerment.py --seeds 0  one of each

Each row of results/empowerment/grid.csv is a run of `train.py discover lpe` from one cell of a
5 x 5 grid, whose observation also holds eight bits that are drawn anew at every step. A plan is two
moves. J is the learner's bound with s_n from the environment, over 4,096 fresh skills; I(Z; S_n) is
what these skills are worth, from the blocks of moves they mean and the channel; the capacity is
Blahut and Arimoto's. All in nats. `slip` replaces a move by a random one with probability 0.2, and
`rooms` throws into a random one of four rooms after each. *Frozen* plans stay as they were drawn,
*divergence alone* leaves the diversity of codes out of the objective, and *reconstruction* is the
baseline of `bench/reconstruction.py`, with the same budget.
"""

from __future__ import annotations

import csv
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from reconstruction import Reconstruction

from etude.config import replace
from etude.envs import registry
from etude.envs.testbeds.worlds import four_rooms, grid
from etude.evaluate.capacity import capacity, mutual_information
from etude.skills.discovery import Discovery, preset
from etude.skills.learners import lpe
from etude.skills.learners.base import Spec
from etude.skills.learners.lpe import Lpe
from etude.worldmodels.densities import categorical_information, categorical_kl

OUT = Path(__file__).resolve().parents[1] / "results" / "empowerment" / "grid.csv"
SKILLS = 4096
NEVER = 10**9
PRESET = "grid-5-bits-corner"
"""Whose settings every case has."""
WORLDS = {  # that only this comparison needs
    "grid-5-corner": lambda: grid(5, start="corner"),
    "four-rooms-stochastic-bits-corner": lambda: four_rooms(5, 8, "corner"),
}


@dataclass(frozen=True)
class Case:
    """A world, where plans start in it, and what differs from LPE with its preset."""

    env: str
    start: str = "corner"
    frozen: bool = False
    alone: bool = False
    learner: type[Lpe] = Lpe


CASES = {
    "corner": Case(PRESET),
    "corner, frozen": Case(PRESET, frozen=True),
    "corner, divergence alone": Case(PRESET, alone=True),
    "corner, no bits": Case("grid-5-corner"),
    "corner, reconstruction": Case(PRESET, learner=Reconstruction),
    "corner, slip": Case("grid-5-slip-bits-corner"),
    "centre, slip": Case("grid-5-slip-bits-centre", "centre"),
    "rooms": Case("four-rooms-stochastic-bits-corner"),
    "rooms, reconstruction": Case("four-rooms-stochastic-bits-corner", learner=Reconstruction),
}


@dataclass(frozen=True)
class Arguments:
    """Train every case and write what came of it."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """of each case"""
    cases: tuple[str, ...] = tuple(CASES)
    """names of cases"""
    jobs: Annotated[int, tyro.conf.arg(aliases=["-j"])] = 2
    """runs at a time"""


def main() -> None:
    """Run what has no row yet."""
    args = tyro.cli(Arguments, prog="bench/empowerment.py")
    rows = read()
    known = {(row["case"], int(row["seed"])) for row in rows}
    left = [(c, s) for s in args.seeds for c in args.cases if (c, s) not in known]
    OUT.parent.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(args.jobs) as pool:
        for row in pool.map(run, *zip(*left, strict=True)) if left else ():
            rows.append(row)
            write(rows)
            print({key: row[key] for key in ("case", "seed", "J", "information", "capacity")})
            sys.stdout.flush()


def read() -> list[dict[str, Any]]:
    """The rows so far."""
    if not OUT.is_file():
        return []
    with OUT.open(newline="") as file:
        return list(csv.DictReader(file))


def write(rows: list[dict[str, Any]]) -> None:
    """All rows, sorted."""
    rows.sort(key=lambda row: (row["case"], int(row["seed"])))
    with OUT.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def run(case: str, seed: int) -> dict[str, Any]:
    """Train one case with one seed; its row."""
    torch.set_num_threads(1)
    registry.TESTBEDS |= WORLDS
    chosen = CASES[case]
    trained = prepare(chosen, seed)
    begin = time.process_time()
    if chosen.alone:
        with without_diversity():
            trained.run()
    else:
        trained.run()
    seconds = time.process_time() - begin
    return {"case": case, "seed": seed, **measure(trained, chosen.start), "cpu": f"{seconds:.0f}"}


def prepare(case: Case, seed: int, **settings: Any) -> Discovery:
    """The run of a case, not begun; `settings` are laid over the preset's."""
    config = replace(preset("lpe", PRESET), {"env": case.env, "seed": seed, **settings})
    if case.frozen:
        config = replace(config, {"method": {"model_first": NEVER}})
    trained = Discovery(config)
    if case.learner is not Lpe:
        spec, method = trained.env_spec, config.method
        assert isinstance(method, Lpe.Config)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            trained.learner = case.learner(
                Spec(spec.slices(), spec.obs_dim, spec.action_dim), method
            )
    return trained


@contextmanager
def without_diversity() -> Iterator[None]:
    """Train with the divergence alone."""
    kept = lpe.categorical_information
    lpe.categorical_information = lambda log_p: 0 * log_p.sum((-1, -2))
    try:
        yield
    finally:
        lpe.categorical_information = kept


def measure(trained: Discovery, start: str) -> dict[str, str]:
    """J, the information of the skills, and the most there could be, in nats."""
    learner = trained.learner
    assert isinstance(learner, Lpe)
    bound, error, plans = measured(trained, learner)
    body: Any = registry.build(trained.config.env)[0]
    channel = body.channel(start, learner.period)
    used = np.zeros(len(channel))
    moves = np.stack([body.decode(step) for step in plans.swapaxes(0, 1)], axis=1)  # (M, n)
    blocks = moves @ (len(body.actions) ** np.arange(learner.period)[::-1])
    np.add.at(used, blocks, 1 / len(plans))
    found = {
        "J": bound,
        "J_error": error,
        "information": mutual_information(channel, used),
        "uniform": mutual_information(channel),
        "capacity": capacity(channel).lower,
    }
    return {key: f"{value:.4f}" for key, value in found.items()}


@torch.no_grad()
def measured(trained: Discovery, learner: Lpe) -> tuple[float, float, np.ndarray]:
    """J of fresh skills in the environment, its standard error, and their plans (M, n, A)."""
    venv = registry.make_vec(trained.config.env, SKILLS, seed=99)
    obs, _ = venv.reset()
    z = trained.space.sample(np.random.default_rng(1), SKILLS)
    plans = trained.plan(obs, z, deterministic=True)
    infos: dict[str, Any] = {}
    for t in range(learner.period):
        infos = venv.step(plans[:, t])[-1]
    begin, end = (trained.normaliser(torch.as_tensor(x)) for x in (obs, infos["final_obs_array"]))
    if isinstance(learner, Reconstruction):
        told = learner.told(begin, torch.as_tensor(z, dtype=torch.float32), end)
        return told.mean().item(), told.std().item() / SKILLS**0.5, plans
    knots = torch.as_tensor(plans[:, :: learner.config.hold]).flatten(1)
    predicted = learner.log_xi(begin, knots)
    each = categorical_kl(predicted, learner.read(begin, end))
    bound = categorical_information(predicted[None]).item() - each.mean().item()
    return bound, each.std().item() / SKILLS**0.5, plans


if __name__ == "__main__":
    main()
