"""`discover LEARNER --env ENV`: practise without a reward and leave a library."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from etude import checkpoint
from etude.checkpoint import Written
from etude.cli import runs
from etude.cli.disk import check_room, checkpoint_bytes
from etude.cli.progress import Progress, say
from etude.config import Config, Range, load, replace, to_dict
from etude.envs import registry
from etude.envs.checks import check
from etude.errors import ImpossibleError, NotFiniteError, Stopped, UsageError
from etude.evaluate.metrics import effects
from etude.evaluate.monitor import MI_EPISODES, Monitor
from etude.evaluate.rollouts import rollout_skills
from etude.logger import Logger
from etude.skills import dataset, learners, presets
from etude.skills.discovery import DiscoverConfig, Discovery, preset, read_config
from etude.skills.export import export, listed

LIBRARY = "library"


@dataclass(frozen=True)
class Running(Config):
    """How a run is watched and kept; does not change what is learned."""

    out: Path | None = None
    """run folder to create (default: runs/ENV-LEARNER)"""
    eval_every: Annotated[int, Range(0)] = 100_000
    """steps between evaluations of coverage; 0 = only at the end"""
    mi_episodes: Annotated[int, Range(0)] = MI_EPISODES
    """episodes to measure how many nats the skills tell, at the last evaluation and whenever five
    times as many steps were practised (fewer episodes in a short run); 0 = never"""
    save_minutes: Annotated[float, Range(0)] = 5.0
    """minutes between checkpoints; 0 = only at the end or when interrupted"""
    threads: Annotated[int, Range(1)] = 1
    """threads of one update (one thread and a second run on the other core is faster overall)"""
    save_dataset: Path | None = None
    """folder to create at the end with the transitions that the replay then holds, from which
    `--dataset` learns; say it again with --resume"""
    device: str = "cpu"
    """where replay and updates are: cpu, cuda or cuda:N; physics stays on the CPU"""


@dataclass(frozen=True)
class Arguments:
    """Practise without a reward; leaves a run folder with TensorBoard logs and a library."""

    config: Annotated[DiscoverConfig, tyro.conf.arg(name="")] = field(
        default_factory=DiscoverConfig
    )
    running: Annotated[Running, tyro.conf.arg(name="")] = field(default_factory=Running)


def main(argv: Sequence[str]) -> int:
    """Run the command with its arguments."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--learner")
    first.add_argument("--env")
    first.add_argument("--preset", default="cpu")
    first.add_argument("--bonus")
    first.add_argument("--config", type=Path)
    first.add_argument("--resume", type=Path)
    known, rest = first.parse_known_args(list(argv))
    if rest and not rest[0].startswith("-"):
        known.learner = rest.pop(0)
    if known.resume is not None:
        for option in ("bonus", "config"):
            if getattr(known, option) is not None:
                raise UsageError(f"--{option} cannot change a run that goes on: leave it out.")
        return _resume(known.resume, rest)
    if known.learner is None or known.env is None:
        wants_help = "--help" in rest or "-h" in rest
        if not wants_help:
            raise UsageError(
                "discover needs a learner and an environment: for example "
                "`discover metra --env half-cheetah`; `discover --help` lists the options."
            )
        print(_names())
        known.learner, known.env = known.learner or "metra", known.env or "half-cheetah"
    values = {} if known.config is None else _values(known.config)
    if known.bonus is not None:
        values["bonus"] = known.bonus
    bonus = replace(DiscoverConfig(), {"bonus": values.get("bonus", "")}).bonus
    config = preset(known.learner, known.env, known.preset, bonus)
    default = Arguments(replace(config, values))
    args = tyro.cli(Arguments, default=default, args=rest, prog=f"discover {known.learner}")
    _check_dataset(args.config, args.running)
    run = Discovery(args.config, args.running.device)
    out = args.running.out or Path("runs") / f"{args.config.env}-{args.config.learner}"
    folder = runs.new_folder(out)
    made = runs.provenance(["discover", *argv])
    if run.dataset:  # of which the run makes no step
        made["dataset"] = {"id": run.dataset.id, "transitions": run.dataset.steps}
    settings = {"discover": to_dict(args.config), "provenance": made}
    torch.set_num_threads(args.running.threads)
    check_room(folder, checkpoint_bytes(run))
    with runs.lock(folder):
        runs.write_json(folder / "config.json", settings)
        return discover(run, folder, args.running)


def discover(
    run: Discovery,
    folder: Path,
    running: Running,
    watched: Mapping[str, Any] | None = None,
    written: Written | None = None,
) -> int:
    """Train, export and evaluate; returns the exit code."""
    code = train(run, folder, running, watched, written)
    if code:
        return code
    from etude.cli.evaluate import report  # a second of imports, when nobody waits for them

    if running.save_dataset:
        print(f"dataset      {running.save_dataset}")
    print(f"library      {folder / LIBRARY}\nTensorBoard  tensorboard --logdir {folder}")
    print(f"report       {report(folder / LIBRARY, folder, _made(folder))}")
    return 0


def train(
    run: Discovery,
    folder: Path,
    running: Running,
    watched: Mapping[str, Any] | None = None,
    written: Written | None = None,
) -> int:
    """Train to the end and export to `folder/library`, or to an interrupt; always saves.

    Of a run that goes on, `watched` is the checkpoint of its monitor, and `written` says which rows
    of the replay are on the disk.
    """
    written = {} if written is None else written
    logger = Logger(folder, run.steps, watched["logged"] if watched else 0)
    every = running.eval_every or run.config.steps
    seen = run.config.method.skill_obs
    monitor = Monitor(
        run.config.env, every, logger, folder, mi_episodes=running.mi_episodes, skill_obs=seen
    )
    if watched:
        monitor.restore(watched)
    else:
        monitor.history.clear()  # of a run that died before its first save
    if not run.steps:
        check(registry.make_vec(run.config.env, 2, seed=run.config.seed))
    title = f"{run.config.learner} on {run.config.env}"
    with runs.Stop() as stop, closing(logger), Progress(title, run.config.steps) as progress:
        saved = time.monotonic()
        with suppress(Stopped), kept_if_impossible(run, monitor, folder, written):
            while forward(run, monitor, logger, stop):
                progress.to(min(run.steps, run.config.steps), monitor.summary())
                if running.save_minutes and time.monotonic() - saved > 60 * running.save_minutes:
                    if_possible(save, run, monitor, folder, written)
                    saved = time.monotonic()
        if stop.requested:
            save(run, monitor, folder, written)
            say(
                f"saved at step {run.steps:,}; "
                f"go on with: python train.py discover --resume {folder}"
            )
            return 128 + stop.requested
        if_possible(save, run, monitor, folder, written)
    keep(run, folder, monitor)
    if running.save_dataset:
        dataset.write(running.save_dataset, run.replay, run.env_spec, run.space, _made(folder))
    return 0


def forward(run: Discovery, monitor: Monitor, logger: Logger, stop: runs.Stop) -> bool:
    """One epoch, and the evaluation that was due before it; whether there is more to do.

    Raises:
        Stopped: the user asked for it; the run can be saved as it is.
    """
    if run.between_epochs and monitor.due(run):
        monitor.evaluate(run, stop)
    if run.done and run.between_epochs:
        return False
    try:
        complete = run.epoch(stop)
    except NotFiniteError as error:
        if error.evidence:
            checkpoint.save(logger.folder / "crash", f"{run.updates:012d}", error.evidence)
        raise
    if not complete:
        raise Stopped
    logger.scalars(run.steps, run.metrics)
    monitor.count(run)
    return True


@contextmanager
def kept_if_impossible(
    run: Discovery, monitor: Monitor, folder: Path, written: Written
) -> Iterator[None]:
    """Save a run that the monitor stops because a figure cannot be true, and say how to go on."""
    try:
        yield
    except ImpossibleError as error:
        save(run, monitor, folder, written)
        raise ImpossibleError(
            f"{error} The run is saved; to go on without this check: "
            f"python train.py discover --resume {folder} --mi-episodes 0"
        ) from None


def if_possible(save: Callable[..., Any], *args: Any) -> None:
    """Save; a disk that refuses is a warning, and training goes on from where it is."""
    try:
        save(*args)
    except OSError as error:
        say(
            f"warning: no checkpoint was written ({error}); the last one is untouched, "
            "and the next attempt follows."
        )


def keep(run: Discovery, folder: Path, monitor: Monitor) -> Path:
    """Export the run's skills, each with what it does, to `folder/library`."""
    z = listed(run.space)
    done = rollout_skills(run.snapshot(), run.config.env, z=z)
    spec = run.env_spec
    rows = effects(done.paths, done.skills, spec.cell, spec.descriptor)
    return export(run, folder / LIBRARY, _made(folder), monitor.last(), rows)


def save(run: Discovery, monitor: Monitor, folder: Path, written: Written) -> Path:
    """Write a checkpoint of the run and of what is counted over all of it."""
    tree = {"run": run.checkpoint(), "watched": monitor.checkpoint()}
    return checkpoint.save(
        folder / "checkpoints", f"{run.steps:012d}-{run.updates:012d}", tree, written
    )


def _values(path: Path) -> dict[str, Any]:
    """The values of a TOML or JSON file, for what the preset leaves as it is."""
    values = load(path)
    for name in {"learner", "env", "preset"} & set(values):
        raise UsageError(f'{path} says "{name}", which the command line does: leave it out there.')
    return values


def _check_dataset(config: DiscoverConfig, running: Running) -> None:
    """Refuse, before training, a dataset that could not be written after it."""
    if running.save_dataset is None:
        return
    dataset.check_new(running.save_dataset)
    if config.dataset:
        raise UsageError(
            f"a run that learns from {config.dataset} collects nothing that could be saved: leave "
            "out --save-dataset."
        )


def _made(folder: Path) -> dict[str, Any]:
    """What made the run."""
    return dict(json.loads((folder / "config.json").read_text())["provenance"])


def _resume(folder: Path, rest: Sequence[str]) -> int:
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise UsageError(f"{folder} is not a run folder: it has no config.json.")
    if checkpoint.latest(folder / "checkpoints") is None:
        raise UsageError(
            f"{folder} has no checkpoint to go on from: start again with another --out."
        )
    config = read_config(json.loads(config_file.read_text())["discover"])
    running = tyro.cli(
        Running, default=Running(out=folder), args=list(rest), prog="discover --resume"
    )
    _check_dataset(config, running)
    torch.set_num_threads(running.threads)
    run = Discovery(config, running.device)
    written: Written = {}
    with runs.lock(folder):
        check_room(folder, checkpoint_bytes(run))
        tree = checkpoint.load_newest(folder / "checkpoints", written)
        run.restore(tree["run"])
        if run.done and run.between_epochs and (folder / LIBRARY).is_dir():
            raise UsageError(f"{folder} is finished: its library is in {folder / LIBRARY}.")
        say(f"going on from step {run.steps:,} of {config.steps:,}")
        return discover(run, folder, running, tree["watched"], written)


def _names() -> str:
    """What can be discovered where; shown above the options."""
    lines = [
        "usage: discover LEARNER --env ENV [--preset cpu|paper] [--bonus LEARNER] "
        "[--config FILE] [options]"
    ]
    lines += ["       discover --resume RUN", ""]
    lines += [
        "FILE is TOML or JSON with values in place of the preset's; options win over both.",
        "",
    ]
    lines.append(f"environments  {', '.join(registry.bodies())}")
    for name in learners.ids():
        tuned = "; ".join(
            f"{f}: {', '.join(e) or 'default'}" for f, e in presets.names(name).items()
        )
        lines.append(f"{name:<13} presets {tuned}")
    return "\n".join([*lines, "", "Defaults below are those of metra on half-cheetah.", ""])
