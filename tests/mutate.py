"""Mutation testing without dependencies: changes one thing in a file and sees whether tests notice.

    python tests/mutate.py src/etude/config.py --tests tests/unit/test_config.py --sample 40
    python tests/mutate.py --core --sample 100

Every mutant is a copy of one file in a package of links to all others, put first on the path; the
checkout is not touched. A mutant is killed when the tests fail or take too long, else it survives:
then a test is missing, or the mutant means the same as the original.

The tests of a mutant run in a fork of a process that has imported everything but Étude, which takes
longer than most of the tests.
"""

from __future__ import annotations

import argparse
import ast
import gc
import importlib
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("agents", "skills", "worldmodels", "envs", "evaluate", "zoo")
HEAVY = (
    *("numpy", "torch", "gymnasium.vector", "mujoco", "safetensors.numpy", "stable_baselines3"),
    *("scipy.special", "matplotlib.figure", "tyro", "rich", "tqdm", "hypothesis", "pytest"),
)
FORK = multiprocessing.get_context("fork")
PATIENCE = 5  # times what the tests take without a mutant, and as many seconds more


@dataclass(frozen=True)
class Subject:
    """Files that make up one thing, and the tests that should notice a change of it."""

    sources: tuple[str, ...]
    tests: tuple[str, ...]


CORE = (
    Subject(
        ("src/etude/checkpoint.py",),
        ("tests/unit/test_checkpoint.py", "tests/faults/test_checkpoint_faults.py"),
    ),
    Subject(
        ("src/etude/config.py",),
        ("tests/unit/test_config.py", "tests/unit/test_bad_config.py"),
    ),
    Subject(
        ("agents/replay.py",),
        ("tests/unit/test_replay_machine.py", "tests/unit/test_replay.py"),
    ),
    Subject(
        ("skills/library.py", "skills/library_files.py", "skills/library_data.py"),
        (
            "tests/unit/test_library_data.py",
            "tests/unit/test_library_format.py",
            "tests/unit/test_library.py",
            "tests/faults/test_library_damage.py",
        ),
    ),
    Subject(
        ("envs/checks.py",),
        ("tests/unit/test_checks.py", "tests/contract/test_broken_envs.py"),
    ),
)
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

    source: str
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


def meaningless(tree: ast.AST) -> Iterator[ast.AST]:
    """Nodes that may as well be others: annotations, which nobody evaluates, and seeds."""
    for node in ast.walk(tree):
        parts = [getattr(node, name, None) for name in ("annotation", "returns")]
        if isinstance(node, ast.keyword) and node.arg == "seed":
            parts.append(node.value)
        for part in parts:
            yield from ast.walk(part) if part else ()


def mutants(source: str) -> list[Mutant]:
    """Every mutant of a file, in the order of its lines."""
    text = (ROOT / source).read_text()
    tree, found = ast.parse(text), []
    without = set(meaningless(tree))
    for index, node in enumerate(ast.walk(tree)):
        if node in without:
            continue
        for number, (what, _) in enumerate(changes(node)):
            other = ast.parse(text)
            target = next(n for i, n in enumerate(ast.walk(other)) if i == index)
            change = list(changes(target))[number][1]
            mutated = ast.unparse(ast.fix_missing_locations(_Replace(target, change).visit(other)))
            found.append(Mutant(source, node.lineno, what, mutated))  # type: ignore[attr-defined]
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


def passes(mutant: Mutant, tests: Sequence[str], limit: float) -> bool:
    """Whether the tests pass within `limit` seconds with the mutant in the place of its source."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        overlay(Path(folder), ROOT / mutant.source, mutant.text)
        process = FORK.Process(target=run_tests, args=(folder, tests))
        process.start()
        wait([process.sentinel], limit)
        os.killpg(process.pid, signal.SIGKILL)  # with whatever it has left behind
        process.join()
        return process.exitcode == 0


def run_tests(folder: str, tests: Sequence[str]) -> None:
    """In a process of its own: exit with what pytest says of the package in `folder`."""
    os.setsid()
    for stream in (sys.stdout, sys.stderr):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    os.environ |= {"PYTHONPATH": folder, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    sys.path.insert(0, folder)
    import pytest

    # no plugins, no explanations of what failed: both take their time to prepare
    options = ["-x", "-q", "-p", "no:cacheprovider", "--assert", "plain"]
    options += ["--basetemp", f"{folder}/tmp"]
    sys.exit(pytest.main([*options, *tests]))


def survivors(subject: Subject, sample: int, seed: int, jobs: int) -> tuple[int, int, int]:
    """How many mutants no test noticed, how many were tried, and how many there are.

    Raises:
        ValueError: the tests fail without a mutant, or do not import the mutants.
    """
    start = time.monotonic()
    for source in subject.sources:
        text = ast.unparse(ast.parse((ROOT / source).read_text()))
        if not passes(Mutant(source, 0, "none", text), subject.tests, 600):
            raise ValueError(f"the tests of {source} fail without any mutant")
    limit = PATIENCE * (1 + (time.monotonic() - start) / len(subject.sources))
    for source in subject.sources:
        if passes(Mutant(source, 0, "must die", "raise ImportError"), subject.tests, limit):
            raise ValueError(f"the tests of {source} do not import it")
    found = [mutant for source in subject.sources for mutant in mutants(source)]
    tried = random.Random(seed).sample(found, min(sample or len(found), len(found)))
    tried.sort(key=lambda mutant: (mutant.source, mutant.line))
    survived = 0
    with ProcessPoolExecutor(jobs, FORK) as pool:
        lived = pool.map(partial(passes, tests=subject.tests, limit=limit), tried)
        for mutant, passed in zip(tried, lived, strict=True):
            if passed:
                survived += 1
                _say(f"survived  {mutant.source}:{mutant.line}  {mutant.what}")
    return survived, len(tried), len(found)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0 when every mutant was killed, 1 when some survived, 2 when nothing was tried."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("source", nargs="*", help="the files to change, from the root")
    parser.add_argument("--tests", nargs="+", default=(), help="tests that should notice")
    parser.add_argument("--core", action="store_true", help="the five core files and their tests")
    parser.add_argument("--sample", type=int, default=0, help="mutants to try (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sample")
    parser.add_argument("--jobs", type=int, default=1, help="mutants tried at once")
    args = parser.parse_args(argv)
    if not (args.core or (args.source and args.tests)):
        parser.error("name files and their --tests, or --core")
    prepare()
    subjects = CORE if args.core else (Subject(tuple(args.source), tuple(args.tests)),)
    killed = total = 0
    for subject in subjects:
        try:
            survived, tried, population = survivors(subject, args.sample, args.seed, args.jobs)
        except ValueError as error:
            return _say(f"{error}", 2)
        died = tried - survived
        _score(" ".join(subject.sources), died, tried, population)
        killed, total = killed + died, total + tried
    if len(subjects) > 1:
        _say(f"all: killed {killed} of {total} mutants tried: {killed / total:.0%}")
    return 1 if killed < total else 0


def prepare() -> None:
    """Import what all mutants share, and nothing of Étude."""
    os.chdir(ROOT)
    os.environ["OMP_NUM_THREADS"] = "1"
    # no byte code: two mutants of one second and size would share it
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    sys.dont_write_bytecode = True
    for name in HEAVY:
        importlib.import_module(name)
    assert "etude" not in sys.modules
    from hypothesis import Phase, settings

    # a failure is enough, and the smallest example of it takes long to find
    settings.register_profile("mutants", phases=[Phase.explicit, Phase.generate])
    settings.load_profile("mutants")
    gc.freeze()  # or every fork would copy all of this at its first collection


def _score(what: str, killed: int, tried: int, population: int) -> None:
    of = f" ({tried} of {population} tried)" if tried < population else ""
    _say(f"{what}: killed {killed} of {tried} mutants: {killed / max(tried, 1):.0%}{of}")


def _say(line: str, code: int = 0) -> int:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
    return code


if __name__ == "__main__":
    sys.exit(main())
