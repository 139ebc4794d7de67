"""`evaluate LIBRARY`: measure and draw skills, and write a report of them."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from etude.cli import runs
from etude.config import Config, Range
from etude.errors import UsageError
from etude.evaluate import monitor
from etude.evaluate.report import MARKDOWN, report_library
from etude.evaluate.rollouts import EPISODES, STEPS
from etude.skills.library import SkillLibrary, zoo_names


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
    seed: Annotated[int, Range(0)] = 0
    """seed of skills and starts"""


def main(argv: Sequence[str]) -> int:
    """Run the command with its arguments."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("library", nargs="?")
    known, rest = first.parse_known_args(list(argv))
    if "--help" in rest or "-h" in rest:
        print(
            f"usage: evaluate LIBRARY [options]\n\nlibraries  {', '.join(zoo_names())}, or a path\n"
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
        seed=args.seed,
    )
    print(summary(data))
    print(f"report       {folder / MARKDOWN}")
    return 0


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
    return "\n".join(lines)


def _history(run: Path) -> list[dict[str, float]]:
    """The evaluations of a run folder; empty for any other place."""
    file = run / monitor.FILE
    return monitor.read_history(file) if file.is_file() else []
