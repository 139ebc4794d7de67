"""`compose LIBRARY --task TASK`: train a meta-controller on frozen skills, and compare it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from etude.cli import runs
from etude.cli.progress import Progress
from etude.config import Config, Range, to_dict
from etude.envs import registry
from etude.errors import UsageError, unknown
from etude.evaluate import canvas, compare, plots
from etude.evaluate.arms import ARMS
from etude.evaluate.report import MARKDOWN, report_comparison
from etude.evaluate.rollouts import check_body, rollout_task
from etude.logger import Logger
from etude.skills.compose import ComposeConfig, Trained, compose
from etude.skills.library import SkillLibrary, zoo_names


@dataclass(frozen=True)
class Comparing(Config):
    """What the controller is compared with, and where the results go."""

    out: Path | None = None
    """run folder to create (default: runs/TASK-LIBRARY)"""
    baselines: Literal["none", "all"] | tuple[str, ...] = "none"
    """arms beside the controller: none, all, or names (see above)"""
    seeds: Annotated[int, Range(1, 100)] = 1
    """seeds of every arm: SEED, SEED + 1, …"""
    workers: Annotated[int, Range(0, 256)] | None = None
    """trials that run at once, one core each (default: all cores; 0: in this process)"""


@dataclass(frozen=True)
class Arguments:
    """Train a meta-controller that holds one of the library's skills for k steps at a time."""

    config: Annotated[ComposeConfig, tyro.conf.arg(name="")] = field(default_factory=ComposeConfig)
    comparing: Annotated[Comparing, tyro.conf.arg(name="")] = field(default_factory=Comparing)


def main(argv: Sequence[str]) -> int:
    """Run the command with its arguments."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("library", nargs="?")
    first.add_argument("--task")
    known, rest = first.parse_known_args(list(argv))
    if "--help" in rest or "-h" in rest:
        print(_names())
    elif known.library is None or known.task is None:
        raise UsageError(
            "compose needs a library and a task: for example "
            "`compose half-cheetah-metra --task half-cheetah-goal`; --help lists the options."
        )
    args = tyro.cli(Arguments, args=rest, prog="compose LIBRARY --task TASK")
    if known.task not in registry.tasks():
        raise unknown("task", known.task, registry.tasks())
    library = SkillLibrary.load(known.library)
    check_body(library, registry.spec(known.task))
    names = arms(args.comparing.baselines)
    torch.set_num_threads(1)
    made = runs.provenance(["compose", *argv])
    out = args.comparing.out or Path("runs") / f"{known.task}-{library.name}"
    folder = runs.new_folder(out)
    runs.write_json(folder / "config.json", {"compose": to_dict(args.config), "provenance": made})
    if len(names) == 1 and args.comparing.seeds == 1:
        return _one(library, known.task, args.config, folder, made)
    seeds = [args.config.seed + i for i in range(args.comparing.seeds)]
    specs = compare.plan(library, known.task, args.config, arms=names, seeds=seeds)
    found = run(specs, folder, args.comparing.workers)
    report_comparison(found, library, folder, provenance=made)
    print((folder / MARKDOWN).read_text())
    print(f"report       {folder / MARKDOWN}")
    return 0


def arms(chosen: str | tuple[str, ...]) -> list[str]:
    """Names of the arms of a comparison, the controller's first."""
    if chosen == "none":
        return ["hierarchical"]
    if chosen == "all":
        return list(ARMS)
    names = (chosen,) if isinstance(chosen, str) else chosen
    for name in names:
        if name not in ARMS:
            raise unknown("baseline", name, ["all", "none", *ARMS])
    return list(dict.fromkeys(["hierarchical", *names]))


def run(
    specs: Sequence[compare.TrialSpec], folder: Path, workers: int | None = None
) -> compare.Comparison:
    """Run the trials of a comparison behind a progress bar."""
    with Progress(f"arms on {specs[0].task}", len(specs), "trial") as progress:
        return compare.compare(
            specs, folder, workers=workers, progress=lambda done, of, note: progress.to(done, note)
        )


def train(library: SkillLibrary, task: str, config: ComposeConfig, folder: Path) -> Trained:
    """Train one controller behind a progress bar, with its logs and weights in `folder`."""
    log = Logger(folder)
    try:
        with Progress(f"{config.algo} over skills on {task}", config.env_steps) as progress:

            def show(steps: int, latest: Any) -> None:
                rate = latest.get("meta/success_rate")
                note = "" if rate is None else f"success {rate:.0%}"
                progress.to(min(steps, config.env_steps), note)

            trained = compose(library, task, config, log=log, progress=show)
    finally:
        log.close()
    trained.save(folder)
    return trained


def _one(
    library: SkillLibrary, task: str, config: ComposeConfig, folder: Path, made: dict[str, Any]
) -> int:
    """Train one controller, judge it on the fixed episodes, draw and report."""
    trained = train(library, task, config, folder)
    done = rollout_task(task, trained.level, trained.controller, config.k)
    if len(done.env_spec.descriptor) > 1:
        canvas.save(plots.journeys(done, library.space), folder / "journeys.png")
    rate = "" if done.success_rate is None else f"success {done.success_rate:.0%}, "
    print(f"{task}: {rate}return {done.returns.mean():.3g} over {len(done.returns)} fixed episodes")
    runs.write_json(
        folder / "report.json",
        {
            "task": task,
            "library": {"name": library.name, "id": library.id},
            "success_rate": done.success_rate,
            "return_mean": float(done.returns.mean()),
            "steps_mean": float(done.lengths.mean()),
            "training": trained.stats.to_json(),
            "provenance": made,
        },
    )
    print(f"controller   {folder / 'controller'}\nTensorBoard  tensorboard --logdir {folder}")
    return 0


def _names() -> str:
    """What can be composed with what; shown above the options."""
    lines = ["usage: compose LIBRARY --task TASK [--algo ppo|sac|dqn] [--baselines all] [options]"]
    lines += ["", f"tasks      {', '.join(registry.tasks())}"]
    lines += [
        f"libraries  {', '.join(zoo_names()) or 'none installed'}, or a path",
        "",
        "baselines",
    ]
    lines += [f"  {name:<14} {arm.about}" for name, arm in ARMS.items()]
    return "\n".join([*lines, ""])
