"""`compose LIBRARY --task TASK`: train a meta-controller on frozen skills, and compare it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from etude import checkpoint
from etude.agents.meta_state import Keeper
from etude.cli import runs
from etude.cli.progress import Progress, say
from etude.config import Config, Range, from_dict, to_dict
from etude.envs import registry
from etude.errors import LibraryError, Stopped, UsageError, unknown
from etude.evaluate import canvas, compare, plots
from etude.evaluate.arms import ARMS, COMMON, TrialSpec
from etude.evaluate.report import JSON, MARKDOWN
from etude.evaluate.rollouts import library_for, rollout_task
from etude.evaluate.trials import tables
from etude.evaluate.trials.report import report_comparison
from etude.evaluate.trials.untrained import CONTROLLERS, Given, judge
from etude.logger import Logger
from etude.skills.compose import FOLDER, ComposeConfig, Trained, compose, load_trained
from etude.skills.dynamics import DYNAMICS
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


@dataclass(frozen=True)
class Untrained(Config):
    """A controller that needs no training, in place of one that learns."""

    controller: str = ""
    """its name (see above); "": one that learns"""
    logic: str = ""
    """automaton: a regular expression over the task's events, such as "a b (c|d)" (default: the
    task's own)"""
    program: Path | None = None
    """programmatic: file of rules (default: the rows of the library)"""


@dataclass(frozen=True)
class Running(Config):
    """How a run is carried out and kept; does not change its results."""

    save_minutes: Annotated[float, Range(0)] = 5.0
    """minutes between checkpoints; 0 = only when interrupted"""
    workers: Annotated[int, Range(0, 256)] | None = None
    """trials that run at once, one core each (default: all cores; 0: in this process)"""
    trial_minutes: Annotated[float, Range(0)] = 0.0
    """minutes after which a trial of a comparison is given up; 0 = never"""


@dataclass(frozen=True)
class Arguments:
    """Train a meta-controller that holds one of the library's skills for k steps at a time."""

    config: Annotated[ComposeConfig, tyro.conf.arg(name="")] = field(default_factory=ComposeConfig)
    comparing: Annotated[Comparing, tyro.conf.arg(name="")] = field(default_factory=Comparing)
    untrained: Annotated[Untrained, tyro.conf.arg(name="")] = field(default_factory=Untrained)
    running: Annotated[Running, tyro.conf.arg(name="")] = field(default_factory=Running)


@dataclass(frozen=True)
class Job:
    """What is to be done in a run folder; stands in its config.json."""

    library: SkillLibrary
    task: str
    config: ComposeConfig
    arms: list[str]
    seeds: list[int]
    provenance: dict[str, Any]

    @property
    def specs(self) -> list[TrialSpec]:
        """The trials, of which a run of one controller has a single one."""
        return compare.plan(self.library, self.task, self.config, arms=self.arms, seeds=self.seeds)

    def write(self, folder: Path) -> None:
        """Write config.json, from which `read_job` makes the job again."""
        library = self.library
        where = {"path": str(Path(str(library.path)).resolve()), "set": library.set}
        settings = {
            "compose": to_dict(self.config),
            "library": {**where, "name": library.name, "id": library.id},
            "task": self.task,
            "arms": self.arms,
            "seeds": self.seeds,
            "provenance": self.provenance,
        }
        runs.write_json(folder / "config.json", settings)


def read_job(folder: Path, library: str | None = None) -> Job:
    """The job of a run folder, with its library read from where it was, or from `library`.

    Raises:
        LibraryError: it is not the library that the run began with.
        UsageError: the folder is not one of `compose`.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise UsageError(f"{folder} is not a run folder: it has no config.json.")
    made = json.loads(file.read_text())
    if "compose" not in made or "library" not in made:
        raise UsageError(f"{folder} is not a run of compose: {file} says what made it.")
    began = made["library"]
    found = SkillLibrary.load(library or began["path"], began["set"])
    if found.id != began["id"]:
        raise LibraryError(
            f"{folder} began with library {began['name']} (id {began['id']:.12}), and {found.path} "
            f"has another (id {found.id:.12}): say `compose LIBRARY --resume {folder}`."
        )
    config = from_dict(ComposeConfig, made["compose"])
    return Job(found, made["task"], config, made["arms"], made["seeds"], made["provenance"])


def main(argv: Sequence[str]) -> int:
    """Run the command with its arguments."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--task")
    first.add_argument("--resume", type=Path)
    known, rest = first.parse_known_args(list(argv))
    named = rest.pop(0) if rest and not rest[0].startswith("-") else None
    if "--help" in rest or "-h" in rest:
        print(_names())
    elif known.resume is not None:
        if known.task is not None:
            raise UsageError("--task cannot change a run that goes on: leave it out.")
        return _resume(known.resume, named, rest)
    elif named is None or known.task is None:
        raise UsageError(
            "compose needs a library and a task: for example "
            "`compose half-cheetah-metra --task half-cheetah-goal`; --help lists the options."
        )
    args = tyro.cli(Arguments, args=rest, prog="compose LIBRARY --task TASK")
    assert named is not None  # --help has ended the program by now
    library = library_for(known.task, named)
    seeds = [args.config.seed + i for i in range(args.comparing.seeds)]
    made = runs.provenance(["compose", *argv])
    names = arms(args.comparing.baselines, library)
    job = Job(library, known.task, args.config, names, seeds, made)
    kind = args.untrained.controller
    if kind and kind not in CONTROLLERS:
        raise unknown("controller without training", kind, CONTROLLERS)
    if kind and names[1:]:
        raise UsageError(
            "--controller does without training, --baselines do not: give one of them."
        )
    name = f"{job.task}-{library.name}" + (f"-{kind}" if kind else "")
    folder = runs.new_folder(args.comparing.out or Path("runs") / name)
    if kind:
        return _without_training(job, args.untrained, folder)
    with runs.lock(folder):
        job.write(folder)
        return carry_out(job, folder, args.running)


def _resume(folder: Path, library: str | None, rest: Sequence[str]) -> int:
    running = tyro.cli(Running, args=list(rest), prog="compose --resume RUN")
    job = read_job(folder, library)
    specs = job.specs
    with runs.lock(folder):
        single = len(specs) == 1
        if (folder / JSON).is_file() and (
            single or len(compare.read(specs, folder).rows) == len(specs)
        ):
            raise UsageError(f"{folder} is finished: its report is {folder / JSON}.")
        return carry_out(job, folder, running, goes_on=True)


def carry_out(job: Job, folder: Path, running: Running, goes_on: bool = False) -> int:
    """Train what is to be trained, and report; returns the exit code."""
    torch.set_num_threads(1)
    stop = runs.Stop()
    try:
        if len(job.specs) == 1:
            return _one(job, folder, running, stop, goes_on)
        return _many(job, folder, running, stop)
    except Stopped:
        say(f"stopped; go on with: python train.py compose --resume {folder}")
        return 128 + stop.requested


def arms(chosen: str | tuple[str, ...], library: SkillLibrary) -> list[str]:
    """Names of the arms of a comparison, the controller's first; "all": that the library allows."""
    if chosen == "none":
        return ["hierarchical"]
    if chosen == "all":
        return [name for name in COMMON if name != "planner" or DYNAMICS in library.encoders]
    names = (chosen,) if isinstance(chosen, str) else chosen
    for name in names:
        if name not in COMMON:
            raise unknown("baseline", name, ["all", "none", *COMMON])
    return list(dict.fromkeys(["hierarchical", *names]))


def run(
    specs: Sequence[TrialSpec],
    folder: Path,
    stop: runs.Stop,
    workers: int | None = None,
    save_minutes: float | None = None,
    trial_minutes: float = 0.0,
) -> compare.Comparison:
    """Run the trials of a comparison behind a progress bar."""
    with stop, Progress(f"arms on {specs[0].task}", len(specs), "trial") as progress:
        return compare.compare(
            specs,
            folder,
            workers=workers,
            progress=lambda done, of, note: progress.to(done, note),
            save_minutes=save_minutes,
            stop=stop,
            limit=60 * trial_minutes or None,
        )


def train(
    library: SkillLibrary,
    task: str,
    config: ComposeConfig,
    folder: Path,
    keeper: Keeper | None = None,
) -> Trained:
    """Train one controller behind a progress bar, with its logs and weights in `folder`."""
    log = Logger(folder, (keeper.env_steps or 0) if keeper else None)
    title = f"{config.algo} over skills on {task}"
    with closing(log), Progress(title, config.env_steps) as progress:

        def show(steps: int, latest: Any) -> None:
            rate = latest.get("meta/success_rate")
            note = "" if rate is None else f"success {rate:.0%}"
            progress.to(min(steps, config.env_steps), note)

        trained = compose(library, task, config, log=log, progress=show, keeper=keeper)
    trained.save(folder)
    return trained


def _one(job: Job, folder: Path, running: Running, stop: runs.Stop, goes_on: bool) -> int:
    """Train one controller, judge it on the fixed episodes, draw and report."""
    library, task, config = job.library, job.task, job.config
    if checkpoint.latest(folder / FOLDER) is None:
        keeper = Keeper(folder / "checkpoints", running.save_minutes, stop)
        if goes_on and keeper.env_steps is None:
            raise UsageError(
                f"{folder} has no checkpoint to go on from: start again with another --out."
            )
        if goes_on:
            left = f"{keeper.env_steps:,} of {config.env_steps:,}"
            say(f"going on from step {left}")
        with stop:
            trained = train(library, task, config, folder, keeper)
        if stop():
            raise Stopped
    else:  # interrupted when it was trained and not yet judged
        trained = load_trained(folder, library)
    done = rollout_task(task, trained.level, trained.controller, config.k)
    if len(done.env_spec.descriptor) > 1:
        canvas.save(plots.journeys(done, library.space), folder / "journeys.png")
    rate = "" if done.success_rate is None else f"success {done.success_rate:.0%}, "
    print(f"{task}: {rate}return {done.returns.mean():.3g} over {len(done.returns)} fixed episodes")
    report = {
        "task": task,
        "library": {"name": library.name, "id": library.id},
        "success_rate": done.success_rate,
        "return_mean": float(done.returns.mean()),
        "steps_mean": float(done.lengths.mean()),
        "training": trained.stats.to_json(),
        "provenance": job.provenance,
    }
    runs.write_json(folder / JSON, report)
    print(f"controller   {folder / FOLDER}\nTensorBoard  tensorboard --logdir {folder}")
    return 0


def _many(job: Job, folder: Path, running: Running, stop: runs.Stop) -> int:
    """Run the trials that are left, and report all of them."""
    found = run(
        job.specs, folder, stop, running.workers, running.save_minutes, running.trial_minutes
    )
    report_comparison(found, job.library, folder, provenance=job.provenance)
    print((folder / MARKDOWN).read_text())
    print(f"report       {folder / MARKDOWN}")
    return 0


def _without_training(job: Job, untrained: Untrained, folder: Path) -> int:
    """Judge a controller that needs no training, with each seed; write and print the rows."""
    given = Given(untrained.logic, untrained.program)
    specs = compare.plan(
        job.library, job.task, job.config, arms=["hierarchical"], seeds=tuple(job.seeds)
    )
    rows = [judge(replace(spec, arm=untrained.controller), given) for spec in specs]
    tables.append(folder / compare.TRIALS, rows)
    runs.write_json(folder / JSON, {"trials": rows, "provenance": job.provenance})
    for row in rows:
        rate = row["success_rate"]
        print(
            f"{job.task}, {untrained.controller}, seed {row['seed']}: "
            f"{'' if rate is None else f'success {rate:.0%}, '}return {row['return_mean']:.3g}, "
            f"{row['env_steps']:,} steps to make it ready"
        )
    print(f"report       {folder / JSON}")
    return 0


def _names() -> str:
    """What can be composed with what; shown above the options."""
    lines = ["usage: compose LIBRARY --task TASK [--algo ppo|sac|dqn] [--baselines all] [options]"]
    lines += ["       compose LIBRARY --task TASK --controller NAME [--logic PATTERN]"]
    lines += ["       compose --resume RUN [--save-minutes M] [--workers W]"]
    lines += ["", f"tasks      {', '.join(registry.tasks())}"]
    lines += [
        f"libraries  {', '.join(zoo_names()) or 'none installed'}, or a path",
        "",
        "baselines",
    ]
    lines += [f"  {name:<14} {ARMS[name].about}" for name in COMMON]
    lines += ["", "controllers without training (--controller)"]
    lines += [f"  {name:<18} {found.about}" for name, found in CONTROLLERS.items()]
    return "\n".join([*lines, ""])
