"""`make bench`: measure throughput into bench/results.json and the table of docs/performance.md.

    python bench/run.py                    every row
    python bench/run.py stepping replay    these groups; the other rows stay as they are

A group is a script of this folder. Each runs in a process of its own with the number of arithmetic
threads that its rows name; `rounds.py` says how the rows are made.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rounds import READING, ROWS, UNMEASURED, Row, thread_settings, with_unit

from etude.checkpoint import write_text
from etude.cli.progress import Progress
from etude.cli.runs import provenance

BENCH = Path(__file__).resolve().parent
RESULTS = BENCH / "results.json"
PAGE = BENCH.parent / "docs" / "performance.md"
HEAD = """\
| measurement | goal | median | smallest to largest | absolute medians | met |
|---|---|---|---|---|---|"""
Group = Literal[
    "stepping", "decisions", "updates", "loop", "seeds", "replay", "startup", "library_act"
]
Tree = Mapping[str, Any]


@dataclass(frozen=True)
class Part:
    """One process of a group: its threads (0: the libraries' own) and its readings per round."""

    threads: int
    readings: int


PARTS: dict[Group, tuple[Part, ...]] = {
    "stepping": (Part(2, 10),),
    "decisions": (Part(1, 3),),
    "updates": (Part(2, 2), Part(1, 2)),
    "loop": (Part(1, 2),),
    "seeds": (Part(1, 2),),
    "replay": (Part(1, 2),),
    "startup": (Part(0, 2),),
    "library_act": (Part(1, 6),),
}


@dataclass(frozen=True)
class Arguments:
    """Measure throughput; rewrites bench/results.json and the table of docs/performance.md."""

    groups: Annotated[tuple[Group, ...], tyro.conf.Positional] = tuple(PARTS)
    """what to measure"""
    rounds: int = 5
    """interleaved rounds behind each median"""
    dry: bool = False
    """print the table and write nothing"""
    table_only: bool = False
    """measure nothing, only write the table anew from the results"""


def main() -> int:
    """Measure the groups in turn and keep each as soon as it is done; 1 if one broke."""
    args = tyro.cli(Arguments, prog="bench/run.py")
    if args.rounds < 1:
        sys.exit(f"bench: --rounds is {args.rounds}: choose 1 or more.")
    results: Tree = json.loads(RESULTS.read_text("utf-8")) if RESULTS.is_file() else {}
    groups = () if args.table_only else tuple(dict.fromkeys(args.groups))
    made = {**machine(), "rounds": args.rounds}
    broken = []
    steps = Steps(groups, args.rounds)
    with steps:
        for group in groups:
            try:
                rows = [
                    row for part in PARTS[group] for row in run(group, part, args.rounds, steps)
                ]
            except subprocess.CalledProcessError as error:
                broken.append(f"{group} broke:\n{error.stderr}")
                continue
            results = merged(results, group, rows, made)
            if not args.dry:
                write_text(RESULTS, json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    print(table(results), *broken, sep="\n\n")
    if not args.dry:
        write_text(PAGE, with_table(PAGE.read_text("utf-8"), table(results)))
    return 1 if broken else 0


class Steps(Progress):
    """The progress bar, in readings; each process has a stretch of it."""

    def __init__(self, groups: Sequence[Group], rounds: int) -> None:
        self.rounds, self.end, self.taken = rounds, 0, 0
        readings = sum(part.readings for group in groups for part in PARTS[group])
        super().__init__("bench", readings * (rounds + 1), "reading")

    def begin(self, part: Part) -> None:
        """A process starts, where the last one should have ended."""
        self.taken, self.end = self.end, self.end + part.readings * (self.rounds + 1)

    def tick(self, note: str) -> None:
        """It has taken a reading."""
        self.taken = min(self.taken + 1, self.end)
        self.to(self.taken, note)


def run(group: Group, part: Part, rounds: int, steps: Steps) -> list[Tree]:
    """The rows of one process.

    It works in a folder of its own, because MuJoCo leaves its log where it is; its stderr is shown
    if it fails.
    """
    steps.begin(part)
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as errors:
        out = Path(folder, "rows.json")
        command = [sys.executable, str(BENCH / f"{group}.py"), "--rounds", str(rounds)]
        command += ["--out", str(out)]
        with subprocess.Popen(
            command,
            cwd=folder,
            env=thread_settings(part.threads),
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process:
            for line in process.stdout or ():
                if line.strip() == READING:
                    steps.tick(group)
        if process.returncode:
            errors.seek(0)
            raise subprocess.CalledProcessError(
                process.returncode, command, stderr=errors.read().strip()
            )
        return list(json.loads(out.read_text("utf-8")))


def machine() -> dict[str, Any]:
    """What the figures depend on: processor, cores, system, versions, commit; and the date."""
    found = provenance([])
    try:
        system = platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        system = platform.system()
    names = ("processor", "cores", "versions", "commit", "created")
    return {"system": f"{system}, kernel {platform.release().partition('-')[0]}"} | {
        n: found[n] for n in names
    }


def merged(results: Tree, group: str, rows: Sequence[Tree], made: Tree) -> dict[str, Any]:
    """The results with a group's rows in place of its old ones, in the order of `ROWS`."""
    old = results.get("throughput", {})
    kept = [row for row in old.get("rows", ()) if row["group"] != group]
    order = [*ROWS]
    ordered = sorted([*kept, *rows], key=lambda row: order.index(row["id"]))
    return {
        **results,
        "throughput": {"made": {**old.get("made", {}), group: dict(made)}, "rows": ordered},
    }


def table(results: Tree) -> str:
    """The rows as Markdown, then what they were measured on."""
    found = results.get("throughput", {})
    rows = {row["id"]: row for row in found.get("rows", ())}
    lines = table_lines(ROWS, rows)
    groups: dict[str, list[str]] = {}
    for group, made in found.get("made", {}).items():
        groups.setdefault(described(made), []).append(group)
    for text, names in groups.items():
        who = "All rows" if len(groups) == 1 and len(names) == len(PARTS) else ", ".join(names)
        lines += ["", f"{who}: {text}."]
    return "\n".join(lines)


def table_lines(wanted: Mapping[str, Row], found: Mapping[str, Tree]) -> list[str]:
    """Head and rows of a table; what has not been found is not measured."""
    return [HEAD, *(table_line(found.get(name, row.as_json())) for name, row in wanted.items())]


def table_line(row: Tree) -> str:
    """One row as Markdown."""
    unit, spread = row["unit"], row["spread"]
    value = (row["note"] or UNMEASURED) if row["value"] is None else with_unit(row["value"], unit)
    arms = (f"{k} {with_unit(arm['median'], arm['unit'])}" for k, arm in row["arms"].items())
    cells = (
        row["what"],
        row["goal"] or "none",
        value,
        " to ".join(with_unit(v, "") for v in spread) if spread else "",
        "; ".join(arms),
        {True: "yes", False: "no", None: ""}[row["met"]],
    )
    return f"| {' | '.join(cells)} |".replace("  ", " ")


def described(made: Tree) -> str:
    """Machine, versions, commit and date in a sentence without its full stop."""
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    where = f"{made['processor']}, {made['cores']} cores, {made['system']}; {versions}"
    rounds = f"{made['rounds']} rounds; " if "rounds" in made else ""
    return f"{where}; {rounds}commit {made['commit'][:10]}, {made['created']}"


def with_table(page: str, text: str, mark: str = "throughput") -> str:
    """The page with the table between its `bench:{mark}` markers replaced.

    Raises:
        ValueError: the page has no such markers, or more than one pair.
    """
    first, last = f"<!-- bench:{mark} -->", f"<!-- /bench:{mark} -->"
    before, begin, rest = page.partition(first)
    _, end, after = rest.partition(last)
    if not end or first in after or last in after:
        raise ValueError(f"the page needs one {first} and one {last} after it")
    return f"{before}{begin}\n{text}\n{end}{after}"


if __name__ == "__main__":
    sys.exit(main())
