"""Mutation testing without dependencies: changes one thing in a file and sees whether tests notice.

    python tests/mutate.py src/etude/config.py --tests tests/unit/test_config.py --sample 40

Every mutant is a copy of one file in a package of links to all others, put first on the path; the
checkout is not touched. A mutant is killed when the tests fail or take too long, else it survives:
then a test is missing, or the mutant means the same as the original.
"""

from __future__ import annotations

import argparse
import ast
import copy
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("agents", "skills", "worldmodels", "envs", "evaluate", "zoo")
FLIPPED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
SWAPPED: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
Change = tuple[str, Callable[[ast.AST], ast.AST]]


@dataclass(frozen=True)
class Mutant:
    """One changed source text."""

    line: int
    what: str
    text: str


def changes(node: ast.AST) -> Iterator[Change]:
    """What can be done to a node: a description, and a function on a copy of the node."""
    if isinstance(node, ast.Compare):
        for i, old in enumerate(node.ops):
            new = FLIPPED[type(old)]
            yield f"{type(old).__name__} -> {new.__name__}", _with_operator(i, new)
    elif isinstance(node, (ast.BinOp, ast.AugAssign)) and type(node.op) in SWAPPED:
        other = SWAPPED[type(node.op)]
        yield f"{type(node.op).__name__} -> {other.__name__}", _with(op=other())
    elif isinstance(node, ast.BoolOp):
        op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield f"{type(node.op).__name__} -> {type(op).__name__}", _with(op=op)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield "not removed", lambda n: n.operand  # type: ignore[attr-defined]
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield f"{node.value} -> {not node.value}", _with(value=not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        yield f"{node.value} -> {node.value + 1}", _with(value=node.value + 1)
    elif isinstance(node, ast.Return) and not _is_none(node.value):
        yield "return None", _with(value=ast.Constant(None))
    elif isinstance(node, ast.Raise):
        yield "raise -> pass", lambda _: ast.Pass()


def _with(**values: object) -> Callable[[ast.AST], ast.AST]:
    def change(node: ast.AST) -> ast.AST:
        for name, value in values.items():
            setattr(node, name, value)
        return node

    return change


def _with_operator(i: int, new: type[ast.cmpop]) -> Callable[[ast.AST], ast.AST]:
    def change(node: ast.AST) -> ast.AST:
        assert isinstance(node, ast.Compare)
        node.ops[i] = new()
        return node

    return change


def _is_none(value: ast.expr | None) -> bool:
    return value is None or (isinstance(value, ast.Constant) and value.value is None)


class _Replace(ast.NodeTransformer):
    """Applies a change to the node that is the `index`-th of a walk."""

    def __init__(self, target: ast.AST, change: Callable[[ast.AST], ast.AST]) -> None:
        self.target, self.change = target, change

    def visit(self, node: ast.AST) -> ast.AST:
        return self.change(node) if node is self.target else self.generic_visit(node)


def mutants(text: str) -> list[Mutant]:
    """Every mutant of a source text, in the order of its lines."""
    tree = ast.parse(text)
    found = []
    for index, node in enumerate(ast.walk(tree)):
        for number, (what, _) in enumerate(changes(node)):
            other = copy.deepcopy(tree)
            target = next(n for i, n in enumerate(ast.walk(other)) if i == index)
            change = list(changes(target))[number][1]
            mutated = ast.unparse(ast.fix_missing_locations(_Replace(target, change).visit(other)))
            found.append(Mutant(node.lineno, what, mutated))  # type: ignore[attr-defined]
    return sorted(found, key=lambda mutant: mutant.line)


def overlay(folder: Path, source: Path, text: str) -> None:
    """A package `etude` in `folder`: links to everything, and `text` in the place of `source`."""
    inside = source.relative_to(ROOT / "src/etude" if source.is_relative_to(ROOT / "src") else ROOT)
    package = folder / "etude"
    package.mkdir()
    entries = [*(ROOT / "src/etude").iterdir(), *(ROOT / name for name in FOLDERS)]
    for part in inside.parts:
        for entry in entries:
            if entry.name not in ("__pycache__", part):
                (package / entry.name).symlink_to(entry)
        if part == inside.name:
            (package / part).write_text(text)
            return
        (parent,) = (entry for entry in entries if entry.name == part)
        package, entries = package / part, list(parent.iterdir())
        package.mkdir()


def passes(source: Path, text: str, tests: Sequence[str], limit: float) -> bool:
    """Whether the tests pass within `limit` seconds with `text` in the place of `source`."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        overlay(Path(folder), source, text)
        # no byte code: two mutants of one second and size would share it
        extra = {"PYTHONPATH": folder, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
        options = ["-x", "-q", "-p", "no:cacheprovider", "--basetemp", f"{folder}/tmp"]
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", *options, *tests],
            cwd=ROOT,
            env={**os.environ, **extra},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            return process.wait(limit) == 0
        except subprocess.TimeoutExpired:
            return False
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0 when every mutant was killed, 1 when some survived, 2 when nothing was tried."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("source", type=Path, help="the file to change")
    parser.add_argument("--tests", nargs="+", required=True, help="tests that should notice")
    parser.add_argument("--sample", type=int, default=0, help="mutants to try (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sample")
    parser.add_argument("--jobs", type=int, default=1, help="mutants tried at once")
    parser.add_argument("--limit", type=float, default=120, help="seconds of one run of the tests")
    args = parser.parse_args(argv)
    source = args.source.resolve()
    text = source.read_text()
    found = mutants(text)
    if not passes(source, ast.unparse(ast.parse(text)), args.tests, args.limit):
        return _say("the tests fail, or take too long, without any mutant", 2)
    if args.sample and args.sample < len(found):
        found = random.Random(args.seed).sample(found, args.sample)
    with ThreadPoolExecutor(args.jobs) as pool:
        lived = list(pool.map(lambda m: passes(source, m.text, args.tests, args.limit), found))
    survivors = [mutant for mutant, alive in zip(found, lived, strict=True) if alive]
    for mutant in sorted(survivors, key=lambda m: m.line):
        _say(f"survived  {args.source}:{mutant.line}  {mutant.what}")
    killed = len(found) - len(survivors)
    score = killed / len(found) if found else 1.0
    return _say(f"killed {killed} of {len(found)} mutants: {score:.0%}", 1 if survivors else 0)


def _say(line: str, code: int = 0) -> int:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
    return code


if __name__ == "__main__":
    sys.exit(main())
