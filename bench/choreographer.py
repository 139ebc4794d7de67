"""Choreographer in the open arena and in a maze: what its skills reach, and composing in a dream.

    python bench/choreographer.py                    all that has no row yet (an hour on one core)
    python bench/choreographer.py --only adaptation --seeds 0 1 2

`skills.csv`: on `point-open`, from 24,000 steps online, or as many updates from a dataset of random
actions (48,000 steps, each action held for ten, half of the episodes from states reached before).
*tiles* are the cells of a 10 x 10 grid over the arena that one deterministic episode of 200 steps
of every skill passes through, of 100; *reach* is how far from the place that its code decodes to a
skill ends, the median over skills, in metres.

`adaptation.csv`: the skills of one run from such a dataset of `point-maze-u`, composed on
`point-maze-u-goal`: in imagination, and by PPO with decisions of as many steps. *solved* is the
environment steps after which 90 % of 50 episodes with other seeds succeeded for the first time,
evaluated every 1,000 steps (PPO: 2,000); empty: not within the budget.
"""

from __future__ import annotations

import csv
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from stable_baselines3.common.callbacks import BaseCallback

from etude.config import replace
from etude.envs import registry
from etude.evaluate.rollouts import rollout_skills, rollout_task
from etude.skills.compose import ComposeConfig, compose
from etude.skills.controllers.base import Controller
from etude.skills.controllers.imagination import ImaginationController, adapt
from etude.skills.controllers.trained import TrainedController
from etude.skills.dataset import write
from etude.skills.discovery import Discovery, preset
from etude.skills.export import export
from etude.skills.learners.choreographer import Choreographer
from etude.skills.library import SkillLibrary
from etude.skills.vec_env import LibraryLevel

ROOT = Path(__file__).resolve().parents[1]
OUT, RUNS = ROOT / "results" / "choreographer", ROOT / "runs" / "choreographer"
TASK, EVERY, SOLVED = "point-maze-u-goal", 2000, 0.9
BUDGET = {"imagination": 20_000, "ppo": 60_000}
STEPS, RANDOM_STEPS = 24_000, 48_000
Part = Literal["skills", "adaptation"]


@dataclass(frozen=True)
class Arguments:
    """Train what is missing and write what came of it."""

    only: tuple[Part, ...] = ("skills", "adaptation")
    """parts to run"""
    seeds: tuple[int, ...] = (0, 1, 2)
    """of every arm"""
    arms: tuple[str, ...] = ("online", "dataset", "imagination", "ppo")
    """arms to run"""


def main() -> None:
    """Run what has no row yet."""
    args = tyro.cli(Arguments, prog="bench/choreographer.py")
    torch.set_num_threads(1)
    for part in args.only:
        rows, run = read(part), {"skills": discover, "adaptation": downstream}[part]
        known = {(row["arm"], int(row["seed"])) for row in rows}
        names = ("online", "dataset") if part == "skills" else ("imagination", "ppo")
        for arm, seed in ((a, s) for s in args.seeds for a in names if a in args.arms):
            if (arm, seed) not in known:
                row = {"arm": arm, "seed": seed, **run(arm, seed)}
                rows.append(row)
                save(part, rows)
                print(row, flush=True)


def read(part: str) -> list[dict[str, Any]]:
    """The rows so far."""
    path = OUT / f"{part}.csv"
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def save(part: str, rows: list[dict[str, Any]]) -> None:
    """All rows, sorted."""
    OUT.mkdir(parents=True, exist_ok=True)
    rows.sort(key=lambda row: (row["arm"], int(row["seed"])))
    with (OUT / f"{part}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def discover(arm: str, seed: int) -> dict[str, Any]:
    """Learn skills in the open arena, and measure them."""
    changes: dict[str, Any] = {"seed": seed, "steps": STEPS}
    if arm == "dataset":
        changes["dataset"] = str(random_dataset("point-open", seed))
    run = trained("point-open", changes)
    return {**measure(run), "seconds": f"{run.seconds:.0f}"}


def trained(env: str, changes: dict[str, Any]) -> Discovery:
    """A run of the preset to its end."""
    run = Discovery(replace(preset("choreographer", env), changes))
    while not run.done:
        run.epoch()
        if run.steps % 4800 < 1600:
            print(run.steps, run.updates, measure(run), file=sys.stderr)
    return run


def random_dataset(env: str, seed: int) -> Path:
    """What random actions find, as `discover --loop.random-steps --save-dataset` leaves it."""
    path = RUNS / f"random-{env}-{seed}"
    if not path.is_dir():
        loop: dict[str, Any] = {"random_steps": RANDOM_STEPS, "warmup_steps": RANDOM_STEPS}
        loop |= {"hold": 10, "visited_starts": 0.5, "updates_per_epoch": 1}
        config = replace(preset("choreographer", env), {"seed": seed, "steps": RANDOM_STEPS})
        run = Discovery(replace(config, {"loop": loop}))
        run.run()
        RUNS.mkdir(parents=True, exist_ok=True)
        write(path, run.replay, run.env_spec, run.space, {"command": "bench/choreographer.py"})
    return path


@torch.no_grad()
def measure(run: Discovery) -> dict[str, Any]:
    """What every skill reaches in one episode."""
    learner = run.learner
    assert isinstance(learner, Choreographer)
    z = np.eye(run.space.dim, dtype=np.float32)
    paths = rollout_skills(run.snapshot(), run.config.env, z=z).paths  # (K, T + 1, 2)
    mean, std = run.normaliser.mean.numpy(), run.normaliser.std.numpy()
    decoded = learner.model.decode(learner.codebook.decode(torch.as_tensor(z))).numpy()
    place = (decoded * std + mean)[:, :2]
    reach = np.linalg.norm(paths[:, -1] - place, axis=-1)
    return {
        "tiles": tiles(paths.reshape(-1, 2)),
        "end_tiles": tiles(paths[:, -1]),
        "code_tiles": tiles(place),
        "reach": f"{np.median(reach):.3f}",
        "reach_90": f"{np.quantile(reach, 0.9):.3f}",
        "updates": run.updates,
    }


def tiles(places: np.ndarray) -> int:
    """Cells of 1 m in the arena, which has sides of 10 m, with one of the places (n, 2)."""
    inside = np.clip(np.floor(places).astype(int), -5, 4)
    return len(np.unique(inside, axis=0))


def library(env: str = "point-maze-u") -> SkillLibrary:
    """The skills that are composed."""
    path = RUNS / f"library-{env}"
    if not path.is_dir():
        RUNS.mkdir(parents=True, exist_ok=True)
        changes = {"dataset": str(random_dataset(env, 0)), "steps": STEPS}
        export(trained(env, changes), path, {"command": "bench/choreographer.py"})
    return SkillLibrary.load(path)


def downstream(arm: str, seed: int) -> dict[str, Any]:
    """Compose the maze's skills until the far goal is reached reliably."""
    skills, begin = library(), time.process_time()
    level = LibraryLevel.for_spec(skills, registry.spec(TASK))
    curve: list[tuple[int, float]] = []

    def judged(controller: Controller, k: int, steps: int) -> bool:
        made = rollout_task(TASK, level, controller, k)
        curve.append((steps, made.success_rate or 0.0))
        return curve[-1][1] >= SOLVED

    chosen = ImaginationController(skills, registry.spec(TASK), seed)
    if arm == "imagination":

        def watch(steps: int) -> bool:
            return judged(chosen.judged(), chosen.k, steps)

        first = adapt(chosen, skills, TASK, BUDGET[arm], seed=seed, watch=watch)
    else:
        config = ComposeConfig(k=chosen.k, env_steps=BUDGET[arm], seed=seed)
        callback = Watch(lambda c, steps: judged(c, chosen.k, steps), level)
        first = compose(skills, TASK, config, callbacks=[callback]).stats.first_success
    solved = next((steps for steps, rate in curve if rate >= SOLVED), "")
    return {
        "first_reward": first or "",
        "solved": solved,
        "best": max((rate for _, rate in curve), default=0.0),
        "last_steps": curve[-1][0] if curve else BUDGET[arm],
        "cpu_seconds": f"{time.process_time() - begin:.0f}",
    }


class Watch(BaseCallback):
    """Judges a controller that SB3 trains, now and then; ends when it is good."""

    def __init__(self, judged: Any, level: LibraryLevel) -> None:
        super().__init__()
        self.judged, self.level, self.next = judged, level, EVERY

    def _on_step(self) -> bool:
        venv: Any = self.training_env
        if venv.env_steps < self.next:
            return True
        self.next = venv.env_steps + EVERY
        controller = TrainedController(self.model.policy, self.level.command, venv.scaling)
        return not self.judged(controller, venv.env_steps)


if __name__ == "__main__":
    main()
