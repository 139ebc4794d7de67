"""`demo`: the whole path on a laptop: discover, keep, compose, compare, report."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from etude.cli import compose, discover, runs
from etude.config import Config, Range, to_dict
from etude.errors import Stopped
from etude.evaluate import canvas, plots
from etude.evaluate.compare import plan
from etude.evaluate.report import MARKDOWN
from etude.evaluate.rollouts import rollout_skills, rollout_task
from etude.evaluate.trials.report import report_comparison
from etude.skills.compose import ComposeConfig
from etude.skills.discovery import Discovery, preset
from etude.skills.library import SkillLibrary

LEARNER, ENV, TASK = "metra", "point-maze-large", "point-maze-large-goal"
ARMS = (
    "hierarchical",
    "flat-long",  # the longest first, so that no core waits for it at the end
    "flat",
    "action-repeat",
    "untrained",
    "random-skill",
    "random-action",
    "best-skill",
    "zero-shot",
)


@dataclass(frozen=True)
class Demo(Config):
    """METRA discovers skills without a reward in a MuJoCo point maze; they become a library; a PPO
    meta-controller reaches a far sparse goal with them; baselines get the same steps."""

    steps: Annotated[int, Range(1)] = 320_000
    """environment steps of discovery, without any reward"""
    task_steps: Annotated[int, Range(1)] = 200_000
    """environment steps of every arm on the task"""
    k: Annotated[int, Range(1)] = 25
    """steps a skill (or a repeated action) is held"""
    seed: Annotated[int, Range(0)] = 0
    """seed of everything"""
    workers: Annotated[int, Range(0, 256)] | None = None
    """baselines trained at once, one core each (default: all cores)"""
    out: Path | None = None
    """run folder (default: runs/demo-N, the next free one)"""


def main(argv: Sequence[str]) -> int:
    """Run the demo."""
    demo = tyro.cli(Demo, args=list(argv), prog="demo")
    torch.set_num_threads(1)
    folder = runs.new_folder(demo.out or runs.next_free(Path("runs") / "demo"))
    stop = runs.Stop()
    try:
        with runs.lock(folder):
            return show(demo, folder, runs.provenance(["demo", *argv]), stop)
    except Stopped:
        print(f"stopped; what there is lies in {folder}")
        return 128 + stop.requested


def show(demo: Demo, folder: Path, made: dict[str, Any], stop: runs.Stop) -> int:
    """The three parts and what came of them; returns the exit code."""
    start = time.monotonic()
    config = dataclasses.replace(preset(LEARNER, ENV), seed=demo.seed, steps=demo.steps)
    runs.write_json(folder / "config.json", {"discover": to_dict(config), "provenance": made})

    print(f"1/3  {LEARNER} practises in {ENV}, without a reward")
    watch = discover.Running(eval_every=max(demo.steps // 4, 1), save_minutes=0)
    code = discover.train(Discovery(config), folder, watch)
    if code:
        return code
    library = SkillLibrary.load(folder / "library")
    skills = canvas.save(
        plots.trajectories(rollout_skills(library, ENV), library.space), folder / "skills.png"
    )

    print(f"2/3  PPO learns which skill to hold, {demo.k} steps at a time")
    control = ComposeConfig(k=demo.k, env_steps=demo.task_steps, num_envs=32, seed=demo.seed)
    trained = compose.train(library, TASK, control, folder)
    done = rollout_task(TASK, trained.level, trained.controller, demo.k)
    journeys = canvas.save(plots.journeys(done, library.space), folder / "journeys.png")

    print("3/3  the same steps without skills, with random ones, with untrained ones")
    specs = plan(library, TASK, control, arms=ARMS, seeds=[demo.seed])
    found = compose.run(specs, folder, stop, demo.workers)
    report_comparison(found, library, folder, provenance=made)

    print("\n" + table(found.rows))
    print(f"\nThe whole demo took {(time.monotonic() - start) / 60:.1f} minutes.\n")
    for what, path in (
        ("pictures", f"{skills}, {journeys}, {folder / 'arms.png'}"),
        ("TensorBoard", f"tensorboard --logdir {folder}"),
        ("library", folder / "library"),
        ("report", folder / MARKDOWN),
    ):
        print(f"{what:<12} {path}")
    return 0


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """Success, steps on the task and steps of practice of each arm."""
    lines = [f"{'arm':<15} {'success':>8} {'task steps':>11} {'practice':>9} {'k':>4}"]
    lines += [
        f"{row['arm']:<15} {row['success_rate']:>8.0%} {row['env_steps']:>11,} "
        f"{row['pretraining_steps']:>9,} {row['k']:>4}"
        for row in rows
    ]
    return "\n".join(lines)
