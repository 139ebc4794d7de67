"""`evaluate LIBRARY`: measure and draw skills, and write a report of them.

`evaluate --mi LIBRARY …`: how many nats the skills of several libraries tell, in one table.
"""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from etude.checkpoint import write_text
from etude.cli import runs
from etude.cli.progress import say
from etude.config import Config, Range
from etude.envs import registry
from etude.errors import UsageError
from etude.evaluate import monitor
from etude.evaluate.report import MARKDOWN, report_library
from etude.evaluate.rollouts import EPISODES, STEPS, check_body
from etude.evaluate.skillset_mi import EPISODES as MI_EPISODES
from etude.evaluate.skillset_mi import FOLDS, LEAST, rollout_mi
from etude.skills.library import SkillLibrary, zoo_names
from etude.skills.library_card import markdown_table


@dataclass(frozen=True)
class Arguments(Config):
    """Measure coverage, displacement and discriminability of skills; draw where they lead."""

    env: str | None = None
    """environment with the same body (default: the one the library was learnt in)"""
    set: str | None = None
    """which of the library's sets (default: its first)"""
    out: Path | None = None
    """folder of the report to create (default: runs/evaluate-NAME-N, the next free one)"""
    episodes: Annotated[int, Range(1, 10_000)] = EPISODES
    """episodes that coverage is counted over (METRA: 48)"""
    steps: Annotated[int, Range(1)] = STEPS
    """steps of an episode (METRA: 200)"""
    mi_episodes: Annotated[int, Range(0)] = MI_EPISODES
    """episodes to measure with how many nats the skills tell; 0 = as the run last did, if so"""
    seed: Annotated[int, Range(0)] = 0
    """seed of skills and starts"""


@dataclass(frozen=True)
class Information(Config):
    """Compare how many nats skills tell of where they lead: with the same features of the end, the
    same network and as many episodes. A lower bound on their mutual information."""

    env: str | None = None
    """environment of all of them (default: the one the first library was learnt in)"""
    fields: tuple[str, ...] = ()
    """observation fields that are the features (default: the environment's descriptor)"""
    episodes: Annotated[int, Range(LEAST)] = MI_EPISODES
    """episodes of each library, each with a fresh skill; more make the bound tighter"""
    steps: Annotated[int, Range(1)] = STEPS
    """steps of an episode"""
    csv: Path | None = None
    """file to write the table to, as well"""
    seed: Annotated[int, Range(0)] = 0
    """seed of skills, starts and network"""


def main(argv: Sequence[str]) -> int:
    """Run the command with its arguments."""
    if "--mi" in argv:
        return compare_information([word for word in argv if word != "--mi"])
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("library", nargs="?")
    known, rest = first.parse_known_args(list(argv))
    if "--help" in rest or "-h" in rest:
        print(
            "usage: evaluate LIBRARY [options]\n"
            "       evaluate --mi LIBRARY [LIBRARY …] [options]\n\n"
            f"libraries  {', '.join(zoo_names())}, or a path\n"
        )
    elif known.library is None:
        raise UsageError("evaluate needs a library: a path, a run folder, or a name of the zoo.")
    args = tyro.cli(Arguments, args=rest, prog="evaluate LIBRARY")
    library = SkillLibrary.load(known.library, args.set)
    out = args.out or runs.next_free(Path("runs") / f"evaluate-{library.name}")
    folder = runs.new_folder(out)
    data = report_library(
        library,
        args.env or library.env["id"],
        folder,
        provenance=runs.provenance(["evaluate", *argv]),
        history=_history(Path(known.library)),
        episodes=args.episodes,
        steps=args.steps,
        mi_episodes=args.mi_episodes,
        seed=args.seed,
    )
    print(summary(data))
    print(f"report       {folder / MARKDOWN}")
    return 0


def compare_information(argv: Sequence[str]) -> int:
    """Measure each library in the same way and print one table."""
    count = next((i for i, word in enumerate(argv) if word.startswith("-")), len(argv))
    args = tyro.cli(Information, args=list(argv[count:]), prog="evaluate --mi LIBRARY …")
    if not count:
        raise UsageError("evaluate --mi needs libraries: paths, run folders, or names of the zoo.")
    libraries = [SkillLibrary.load(name) for name in argv[:count]]
    env = args.env or libraries[0].env["id"]
    for library in libraries:
        check_body(library, registry.spec(env))
    rows = []
    for name, library in zip(argv, libraries, strict=False):
        found = rollout_mi(
            library,
            env,
            args.fields or None,
            episodes=args.episodes,
            steps=args.steps,
            seed=args.seed,
            folds=FOLDS,
        )
        say(f"{name}: {found.nats:.3f} nats")
        space = f"{library.space.kind} {library.space.dim}"
        origin = {"library": name, "learner": library.learner, "z": space}
        rows.append({**origin, **asdict(found), "skills": found.size})
    features = ", ".join(args.fields or registry.spec(env).descriptor)
    print(information_table(rows))
    print(
        f"\nA lower bound on I(Z; f | start) with 95% intervals: f = {features} after {args.steps} "
        f"steps of {env}, {args.episodes:,} episodes of each library, seed {args.seed}. H(Z) of "
        "continuous skills is differential."
    )
    if args.csv:
        how = {"env": env, "features": features, "episodes": args.episodes, "steps": args.steps}
        text = io.StringIO()
        writer = csv.DictWriter(text, [*rows[0], *how, "seed"], lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, **how, "seed": args.seed} for row in rows)
        args.csv.parent.mkdir(parents=True, exist_ok=True)
        write_text(args.csv, text.getvalue())
    return 0


def information_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Libraries and what their skills tell, the most telling first, in Markdown."""
    heads = ("library", "learner", "z", "nats [95%]", "distinguishable skills", "H(Z)", "held out")
    lines = [
        (
            *(row[key] for key in ("library", "learner", "z")),
            f"{row['nats']:.2f} [{row['low']:.2f}, {row['high']:.2f}]",
            f"{row['skills']:.1f}",
            f"{row['entropy']:.2f}",
            row["rows"],
        )
        for row in sorted(rows, key=lambda row: -row["nats"])
    ]
    return markdown_table(heads, lines)


def report(path: Path, folder: Path, provenance: Mapping[str, Any]) -> Path:
    """Write the report of a library just made into its run folder."""
    library = SkillLibrary.load(path)
    report_library(
        library, library.env["id"], folder, provenance=provenance, history=_history(folder)
    )
    return folder / MARKDOWN


def summary(data: Mapping[str, Any]) -> str:
    """The figures of a report in a few lines."""
    numbers, units = data["metrics"], data["units"]
    lines = [f"{key:<18} {value:.4g} {units.get(key, '')}" for key, value in numbers.items()]
    apart = data["discriminability"]
    if apart:
        lines.append(
            f"discriminability   {apart['accuracy']:.3f} (chance {apart['chance']:.3f}; "
            f"{apart['method']}, held-out episodes)"
        )
    if told := data["information"]:
        lines.append(
            f"information        {told['nats']:.3f} nats [{told['low']:.3f}, {told['high']:.3f}], "
            f"{told['skills']:.3g} distinguishable skills"
        )
    return "\n".join(lines)


def _history(run: Path) -> list[dict[str, float]]:
    """The evaluations of a run folder; empty for any other place."""
    file = run / monitor.FILE
    return monitor.read_history(file) if file.is_file() else []
