"""Choreographer in the open arena and in a maze: what its skills reach, and composing in a dream.

    python bench/choreographer.py                    all that has no row yet (an hour on one core)

`skills.csv`: on `point-open`, from 40,000 steps online, or 1,200 updates from a dataset of random
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
    with (OUT / f"{part}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda row: (row["arm"], int(row["seed"]))))


def discover(arm: str, seed: int) -> dict[str, Any]:
    """Learn skills in the open arena, and measure them."""
    changes: dict[str, Any] = {"seed": seed}
    if arm == "dataset":
        changes |= {"dataset": str(random_dataset("point-open", seed)), "steps": STEPS}
    run = trained("point-open", changes)
    return {**measure(run), "seconds": f"{run.seconds:.0f}"}


def trained(env: str, changes: dict[str, Any]) -> Discovery:
    """A run of the preset to its end."""
    run = Discovery(replace(preset("choreographer", env), changes))
    run.run()
    return run


def random_dataset(env: str, seed: int) -> Path:
    """What random actions find, as `discover --loop.random-steps --save-dataset` leaves it."""
    path = RUNS / f"random-{env}-{seed}"
    if not path.is_dir():
        loop: dict[str, Any] = {"random_steps": RANDOM_STEPS, "warmup_steps": RANDOM_STEPS}
        loop |= {"hold": 10, "visited_starts": 0.5, "updates_per_epoch": 1}
        run = trained(env, {"seed": seed, "steps": RANDOM_STEPS, "loop": loop})
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
    sets = {"tiles": paths.reshape(-1, 2), "end_tiles": paths[:, -1], "code_tiles": place}
    inside = {key: np.clip(np.floor(places), -5, 4) for key, places in sets.items()}
    return {
        **{key: len(np.unique(places, axis=0)) for key, places in inside.items()},
        "reach": f"{np.median(reach):.3f}",
        "reach_90": f"{np.quantile(reach, 0.9):.3f}",
        "updates": run.updates,
    }


def library() -> SkillLibrary:
    """The skills that are composed."""
    path, data = RUNS / "library-point-maze-u", random_dataset("point-maze-u", 0)
    if not path.is_dir():
        run = trained("point-maze-u", {"dataset": str(data), "steps": STEPS})
        export(run, path, {"command": "bench/choreographer.py"})
    return SkillLibrary.load(path)


def downstream(arm: str, seed: int) -> dict[str, Any]:
    """Compose the maze's skills until the far goal is reached reliably."""
    skills, begin = library(), time.process_time()
    level = LibraryLevel.for_spec(skills, registry.spec(TASK))
    curve: list[tuple[int, float]] = []

    def judged(controller: Controller, steps: int) -> bool:
        made = rollout_task(TASK, level, controller, chosen.k)
        curve.append((steps, made.success_rate or 0.0))
        return curve[-1][1] >= SOLVED

    chosen = ImaginationController(skills, registry.spec(TASK), seed)
    if arm == "imagination":
        watch = lambda steps: judged(chosen.judged(), steps)  # noqa: E731
        first = adapt(chosen, skills, TASK, BUDGET[arm], seed=seed, watch=watch)
    else:
        config = ComposeConfig(k=chosen.k, env_steps=BUDGET[arm], seed=seed)
        callback = Watch(judged, level)
        first = compose(skills, TASK, config, callbacks=[callback]).stats.first_success
    return {
        "first_reward": first or "",
        "solved": next((steps for steps, rate in curve if rate >= SOLVED), ""),
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
