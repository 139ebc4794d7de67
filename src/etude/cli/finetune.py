"""`finetune LIBRARY --task TASK`: let skills learn on a task; leaves a new library version."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from etude.agents.meta_state import Keeper
from etude.cli import runs
from etude.cli.progress import Progress, say
from etude.config import Config, Range, from_dict, to_dict
from etude.envs import registry
from etude.errors import LibraryError, Stopped, UsageError
from etude.evaluate.report import JSON
from etude.evaluate.rollouts import TaskRollouts, library_for, rollout_task
from etude.logger import Logger
from etude.skills.compose import FOLDER, Trained, load_trained
from etude.skills.finetune import LIBRARY, FinetuneConfig, Finetuned, finetune, settle
from etude.skills.library import SkillLibrary, zoo_names


@dataclass(frozen=True)
class Running(Config):
    """How a run is kept; does not change its results."""

    save_minutes: Annotated[float, Range(0)] = 5.0
    """minutes between checkpoints; 0 = only when interrupted"""


@dataclass(frozen=True)
class Arguments:
    """Let the skills of a library learn on a task, together with the controller that chooses."""

    config: Annotated[FinetuneConfig, tyro.conf.arg(name="")] = field(
        default_factory=FinetuneConfig
    )
    running: Annotated[Running, tyro.conf.arg(name="")] = field(default_factory=Running)
    out: Path | None = None
    """run folder to create (default: runs/TASK-LIBRARY-finetuned)"""
    name: str = ""
    """name of the new version (default: the library's)"""


@dataclass(frozen=True)
class Job:
    """What is to be done in a run folder; stands in its config.json."""

    library: SkillLibrary
    task: str
    config: FinetuneConfig
    controller: Path | None
    name: str
    provenance: Mapping[str, Any]

    def write(self, folder: Path) -> None:
        """Write config.json, from which `read_job` makes the job again."""
        parent = self.library
        made = {
            "finetune": to_dict(self.config),
            "task": self.task,
            "library": {
                "path": str(Path(str(parent.path)).resolve()),
                "set": parent.set,
                "name": parent.name,
                "id": parent.id,
            },
            "controller": None if self.controller is None else str(self.controller.resolve()),
            "name": self.name,
            "provenance": self.provenance,
        }
        runs.write_json(folder / "config.json", made)


def read_job(folder: Path, library: str | None = None) -> Job:
    """The job of a run folder, with its parent read from where it was, or from `library`.

    Raises:
        LibraryError: the parent is not the one that the run began with.
        UsageError: the folder is not one of `finetune`.
    """
    file = folder / "config.json"
    made = json.loads(file.read_text()) if file.is_file() else {}
    if "finetune" not in made:
        raise UsageError(f"{folder} is no run of finetune: name the folder that one wrote.")
    began, path = made["library"], made["controller"]
    parent = SkillLibrary.load(library or began["path"], began["set"])
    if parent.id != began["id"]:
        raise LibraryError(
            f"{folder} began with library {began['name']} (id {began['id']:.12}), and "
            f"{parent.path} has another: say `finetune LIBRARY --resume {folder}`."
        )
    config = from_dict(FinetuneConfig, made["finetune"])
    controller = None if path is None else Path(path)
    return Job(parent, made["task"], config, controller, made["name"], made["provenance"])


def main(argv: Sequence[str]) -> int:
    """Run the command with its arguments."""
    known, rest, named = _first(argv)
    if "--help" in rest or "-h" in rest:
        print(_names())
        tyro.cli(Arguments, args=["--help"], prog="finetune LIBRARY --task TASK")
    if known.resume is not None:
        if known.task or known.controller:
            raise UsageError("--task and --controller stay as they are in a run that goes on.")
        return _resume(known.resume, named, rest)
    if named is None or known.task is None:
        raise UsageError(
            "finetune needs a library and a task: for example "
            "`finetune ant-metra --task ant-multi-goal`; --help lists the options."
        )
    args = tyro.cli(Arguments, args=rest, prog="finetune LIBRARY --task TASK")
    parent = library_for(known.task, named)
    config = settle(args.config, parent, known.controller)
    made = runs.provenance(["finetune", *argv])
    job = Job(parent, known.task, config, known.controller, args.name, made)
    out = args.out or Path("runs") / f"{known.task}-{parent.name}-finetuned"
    folder = runs.new_folder(out)
    with runs.lock(folder):
        job.write(folder)
        return carry_out(job, folder, args.running)


def _first(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str], str | None]:
    """The arguments that decide what is done, the others, and the library's name."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--task")
    first.add_argument("--controller", type=Path)
    first.add_argument("--resume", type=Path)
    known, rest = first.parse_known_args(list(argv))
    named = rest.pop(0) if rest and not rest[0].startswith("-") else None
    return known, rest, named


def _resume(folder: Path, library: str | None, rest: Sequence[str]) -> int:
    running = tyro.cli(Running, args=list(rest), prog="finetune --resume RUN")
    job = read_job(folder, library)
    with runs.lock(folder):
        if (folder / JSON).is_file():
            raise UsageError(f"{folder} is finished: its library is {folder / LIBRARY}.")
        return carry_out(job, folder, running, goes_on=True)


def carry_out(job: Job, folder: Path, running: Running, goes_on: bool = False) -> int:
    """Train, write the new version and judge it; returns the exit code."""
    torch.set_num_threads(1)
    stop = runs.Stop()
    keeper = Keeper(folder / "checkpoints", running.save_minutes, stop)
    if goes_on and keeper.env_steps is None:
        raise UsageError(
            f"{folder} has no checkpoint to go on from: start again with another --out."
        )
    try:
        with stop:
            made = _made(job, folder) or _train(job, folder, keeper)
    except Stopped:
        say(f"stopped; go on with: python train.py finetune --resume {folder}")
        return 128 + stop.requested
    _report(job, made, folder)
    return 0


def _made(job: Job, folder: Path) -> Finetuned | None:
    """What the run has written, if it was interrupted when that was yet to be judged."""
    if not (folder / LIBRARY).is_dir():
        return None
    if not (folder / FOLDER / "policy").is_dir():
        raise UsageError(
            f"{folder / LIBRARY} was written and its controller was not: delete it and say "
            f"`finetune --resume {folder}` again."
        )
    library = SkillLibrary.load(folder / LIBRARY, job.library.set)
    return Finetuned(library, load_trained(folder, library))


def _train(job: Job, folder: Path, keeper: Keeper) -> Finetuned:
    """Train behind a progress bar; logs, new version and controller go into `folder`."""
    config, log = job.config, Logger(folder, keeper.env_steps)
    if keeper.env_steps is not None:
        say(f"going on from step {keeper.env_steps:,} of {config.env_steps:,}")
    title = f"{job.library.name} on {job.task}"
    with closing(log), Progress(title, config.env_steps) as progress:

        def show(steps: int, latest: Mapping[str, float]) -> None:
            rate = latest.get("meta/success_rate")
            progress.to(min(steps, config.env_steps), "" if rate is None else f"success {rate:.0%}")

        found = finetune(
            job.library,
            job.task,
            config,
            controller=job.controller,
            log=log,
            progress=show,
            keeper=keeper,
        )
    return found.save(folder, job.name, **job.provenance)


def _report(job: Job, made: Finetuned, folder: Path) -> None:
    """Judge the new version, and the parent under the given controller, on the fixed episodes."""
    results = {"finetuned": _judge(made.trained)}
    if job.controller is not None:
        before = load_trained(job.controller, job.library)
        results["parent"] = _judge(dataclasses.replace(before, task=job.task))
    for who, done in results.items():
        rate = "" if done.success_rate is None else f"success {done.success_rate:.0%}, "
        print(f"{job.task}, {who}: {rate}return {done.returns.mean():.3g}")
    report = {
        "task": job.task,
        "library": {"name": made.library.name, "id": made.library.id},
        "parents": made.library.parents,
        **{who: _numbers(done) for who, done in results.items()},
        "training": made.trained.stats.to_json(),
        "provenance": job.provenance,
    }
    runs.write_json(folder / JSON, report)
    print(f"library      {folder / LIBRARY}\ncontroller   {folder / FOLDER}")
    print(f"TensorBoard  tensorboard --logdir {folder}")


def _judge(trained: Trained) -> TaskRollouts:
    return rollout_task(trained.task, trained.level, trained.controller, trained.config.k)


def _numbers(done: TaskRollouts) -> dict[str, Any]:
    return {
        "success_rate": done.success_rate,
        "return_mean": float(done.returns.mean()),
        "steps_mean": float(done.lengths.mean()),
    }


def _names() -> str:
    """What can be fine-tuned on what; shown above the options."""
    return "\n".join(
        [
            "usage: finetune LIBRARY --task TASK [--controller RUN] [options]",
            "       finetune --resume RUN [--save-minutes M]",
            "",
            "RUN, after --controller, is a run of compose: its controller and the skills learn",
            "together from where they are. Without one a new controller begins at random. The new",
            "version of the library is written into the run folder, beside the controller; the",
            "parent stays as it is, and its id stands in the new one.",
            "",
            f"tasks      {', '.join(registry.tasks())}",
            f"libraries  {', '.join(zoo_names()) or 'none installed'}, or a path",
            "",
        ]
    )
