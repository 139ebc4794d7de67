"""`make soak`: the long tiers of the tests, every promise of docs/reliability.md with its figures.

    python tests/soak.py                   everything, at most an hour on two cores
    python tests/soak.py --only kills      these promises; the other rows stay as they are
    python tests/soak.py --quick           small counts; nothing is written

Each promise is a run of pytest in a process of its own. A test records how many cases it has proved
(`record_property`); the figure is their sum, and without such records the number of tests passed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from etude.checkpoint import write_text

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PAGE = ROOT / "results" / "reliability.json", ROOT / "docs" / "reliability.md"
BENCH = ROOT / "bench"
sys.path.insert(0, str(BENCH))  # its scripts are no package
run: Any = importlib.import_module("run")
OTHERS, OVERHEAD = "stable-baselines3", "overhead"
HEAD = """\
| promise | goal | Étude | stable-baselines3, Gymnasium | proof | met |
|---|---|---|---|---|---|"""
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "ETUDE_THREADS"), "1")
NOTHING = {"tests": 0, "passed": 0, "count": 0, "slowest": None}
Tree = Mapping[str, Any]


@dataclass(frozen=True)
class Promise:
    """What holds, and the tests that would fail if it did not."""

    what: str
    tests: tuple[str, ...]
    goal: int = 0
    """cases to prove; 0: every test passes, however many there are"""
    unit: str = "cases"
    each: bool = False
    """a test is a case"""
    counts: Mapping[str, str] = field(default_factory=dict)
    """what makes the tests long"""
    beside: str = ""
    """row of bench/sb3_faults.py"""
    within: int = 900
    """seconds after which it is stopped"""


CONTRACT, FAULTS, UNIT = "tests/contract", "tests/faults", "tests/unit"
PROMISES: dict[str, Promise] = {
    "resume": Promise(
        "stopped between epochs, in mid-episode or between updates, a run goes on bit for bit",
        (f"{CONTRACT}/test_resume.py::test_a_stopped_run_ends_as_one_that_never_stopped",),
        unit="resumed runs",
        each=True,
        beside="resume",
    ),
    "kills": Promise(
        "`kill -9`, half of them during a save: at most one interval lost, then bit-equal",
        (f"{FAULTS}/test_kills.py::test_killed_runs_go_on_exactly",),
        goal=200,
        unit="kills",
        counts={"ETUDE_KILLS": "200"},
        within=1800,
    ),
    "signals": Promise(
        "Ctrl-C and SIGTERM: saved and out in 5 s, then bit-equal; the second ends at once",
        (
            f"{FAULTS}/test_kills.py::test_a_signal_saves_and_ends_in_time",
            f"{FAULTS}/test_kills.py::test_the_second_signal_ends_at_once",
        ),
        goal=50,
        unit="signals",
        counts={"ETUDE_SIGNALS": "25"},
        beside="signal",
    ),
    "compose": Promise(
        "`compose` and comparisons resume, too",
        (f"{FAULTS}/test_compose_resume.py",),
        counts={"ETUDE_KILLS": "10"},
    ),
    "full-disk": Promise(
        "disk full, read-only or broken at any call of a save: the old one stays, training goes on",
        (f"{FAULTS}/test_checkpoint_faults.py",),
        unit="failing calls",
        beside="full",
    ),
    "damage": Promise(
        "libraries and checkpoints cut, or a bit flipped: refused by name in 1 s and 32 MiB",
        (f"{FAULTS}/test_corruption.py", f"{FAULTS}/test_library_damage.py"),
        goal=5000,
        unit="damaged files",
        counts={"ETUDE_CASES": "2500"},
        beside="damage",
    ),
    "hostile": Promise(
        "hostile libraries: refused, and nothing is imported, run, fetched or read outside",
        (f"{FAULTS}/test_hostile.py::test_a_hostile_library_is_refused_and_runs_nothing",),
        goal=40,
        unit="libraries",
        each=True,
        beside="code",
    ),
    "not-finite": Promise(
        "NaN or infinity at a border of discovery: stops in that step, naming border and place",
        (f"{FAULTS}/test_not_finite.py",),
        beside="not_finite",
    ),
    "workers": Promise(
        "workers of a comparison raise, are killed, hang or lose their parent: no process, no "
        "shared memory left, other trials go on",
        (f"{FAULTS}/test_workers.py",),
        goal=150,
        unit="faults",
        counts={"ETUDE_FAULTS": "150"},
        beside="workers",
        within=1800,
    ),
    "round-trip": Promise(
        "what is saved comes back bit for bit; a library acts as the agent it was made from",
        (f"{UNIT}/test_checkpoint.py", f"{CONTRACT}/test_learners.py", f"{UNIT}/test_library.py"),
    ),
    "seed": Promise(
        "the same seed in another process gives the same bits, another seed does not",
        (f"{CONTRACT}/test_resume.py::test_a_seed_means_the_same_in_every_process",),
    ),
    "unsafe-code": Promise(
        "no pickle, `eval` or `exec` in the sources; torch unpickles tensors alone",
        (f"{CONTRACT}/test_layout.py", "-k", "unsafe_code"),
    ),
    "settings": Promise(
        "settings of a wrong type or range, unknown or impossible together: refused by name",
        (f"{UNIT}/test_bad_config.py", f"{UNIT}/test_config.py"),
        beside="settings",
    ),
    "environments": Promise(
        "an environment that breaks a rule is refused at the start, naming the rule",
        (f"{CONTRACT}/test_broken_envs.py", f"{CONTRACT}/test_envs.py"),
    ),
    "resets": Promise(
        "no transition crosses a reset; only `terminated` stops bootstrapping",
        (f"{UNIT}/test_replay.py", f"{UNIT}/test_vec_env.py", f"{UNIT}/test_smdp.py"),
    ),
    "old-libraries": Promise(
        "libraries of every released format load and act as when they were written",
        (f"{CONTRACT}/test_golden.py", f"{CONTRACT}/test_zoo.py"),
    ),
    "new-libraries": Promise(
        "a newer format, a missing or an unknown entry: refused as a whole",
        (f"{FAULTS}/test_hostile.py", "-k", "newer or entry or target or unknown"),
    ),
    "long-runs": Promise(
        "saves cost what is new; a long run takes no more memory or files than a short one",
        (f"{FAULTS}/test_soak_memory.py",),
    ),
    "lock": Promise(
        "a second run in a folder is refused at once; a dead one's lock is taken over",
        (f"{FAULTS}/test_lock.py",),
    ),
    "replay": Promise(
        "the replay in any order of calls equals a list of all that was added",
        (f"{UNIT}/test_replay_machine.py::test_any_order_of_calls",),
        counts={"ETUDE_EXAMPLES": "500"},
    ),
    "equations": Promise(
        "rewards, losses and gradients equal an independent NumPy reference",
        (
            *(f"{UNIT}/test_{name}.py" for name in ("metra", "delta_phi", "csf", "diayn", "visr")),
            *(f"{UNIT}/test_{name}.py" for name in ("cic", "becl", "aps", "exploration", "hilp")),
            *(f"{UNIT}/test_{name}.py" for name in ("qrl", "contrastive", "goal_box", "dads")),
            *(f"{UNIT}/test_{name}.py" for name in ("lpe", "sac_reference", "kernels")),
        ),
    ),
    "learning": Promise(
        "every learner finds skills on the point, five of five seeds",
        (f"{CONTRACT}/test_learning.py",),
        within=1800,
    ),
}


def main() -> int:
    """Prove the promises, two at a time, then measure what wants the machine alone."""
    args = arguments()
    results: dict[str, Any] = json.loads(RESULTS.read_text("utf-8")) if RESULTS.is_file() else {}
    results = {"made": {}, "promises": {}, OTHERS: {}} | results
    made = run.described(run.machine())
    proved = [name for name in args.only if name in PROMISES]
    with ThreadPoolExecutor(args.jobs) as pool:
        rows = pool.map(lambda name: prove(PROMISES[name], args.quick), proved)
        for name, row in zip(proved, rows, strict=True):
            results["promises"][name] = row
            say(line(name, row, results), *row["broken"])
            keep(results, name, made, args.quick)
    if OVERHEAD in args.only:
        results["promises"][OVERHEAD] = overhead(args.quick)
        say(line(OVERHEAD, results["promises"][OVERHEAD], results))
        keep(results, OVERHEAD, made, args.quick)
    if OTHERS in args.only:
        results[OTHERS] = script("sb3_faults.py")
        keep(results, OTHERS, made, args.quick)
    say(table(results))
    return int(not all(row["met"] for row in results["promises"].values()))


def say(*lines: str) -> None:
    """To the terminal."""
    sys.stdout.write("".join(f"{text}\n" for text in lines))
    sys.stdout.flush()


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description="Prove every promise of docs/reliability.md.")
    names = [*PROMISES, OVERHEAD, OTHERS]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME")
    parser.add_argument("--quick", action="store_true", help="small counts; writes nothing")
    parser.add_argument("--jobs", type=int, default=2, help="promises at a time (default: 2)")
    return parser.parse_args()


def prove(promise: Promise, quick: bool) -> dict[str, Any]:
    """Run a promise's tests, slow ones too; what they have counted and what broke."""
    settings = {} if quick else dict(promise.counts)
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        python = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-m", "slow or not slow"]
        python += ["-o", "junit_family=xunit1", f"--junitxml={report}"]
        try:
            done = subprocess.run(
                [*python, *promise.tests],
                cwd=ROOT,
                env=os.environ | ONE_THREAD | settings,
                capture_output=True,
                text=True,
                timeout=promise.within,
                check=False,
            )
            text, status = done.stdout, done.returncode
        except subprocess.TimeoutExpired:
            text, status = f"not done after {promise.within} s", 1
        found = read(report) if report.is_file() else NOTHING
    enough = found["passed"] and (quick or found["count"] >= promise.goal)
    broken = [] if status == 0 and enough else [text[-2000:]]
    return {**found, "settings": settings, "broken": broken, "met": not broken}


def read(report: Path) -> dict[str, Any]:
    """How many tests ran and passed, the sum of what they counted, the longest of their times."""
    tests, passed, count, slowest = 0, 0, 0, []
    for case in ElementTree.parse(report).iter("testcase"):
        tests += 1
        passed += not any(case.find(kind) is not None for kind in ("failure", "error", "skipped"))
        for entry in case.iter("property"):
            if entry.get("name") == "count":
                count += int(entry.get("value", "0"))
            elif entry.get("name") == "slowest, s":
                slowest.append(float(entry.get("value", "0")))
    return {
        "tests": tests,
        "passed": passed,
        "count": count,
        "slowest": max(slowest, default=None),
    }


def overhead(quick: bool) -> dict[str, Any]:
    """The share of an epoch that the checks for NaN and infinity take."""
    rows = script("finite.py", "--rounds", "2" if quick else "10")
    row = next(r for r in rows if r["id"] == "finite/inside")
    return {"share": row["value"], "broken": [], "met": row["met"]}


def script(name: str, *args: str) -> Any:
    """What a script of bench/ writes."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "out.json")
        python = [sys.executable, str(BENCH / name), *args, "--out", str(out)]
        subprocess.run(
            python, cwd=folder, env=os.environ | ONE_THREAD, stdout=subprocess.DEVNULL, check=True
        )
        return json.loads(out.read_text("utf-8"))


def keep(results: dict[str, Any], name: str, made: str, quick: bool) -> None:
    """Write the results and the table of the page, unless the counts were small."""
    if quick:
        return
    results["made"][name] = made
    write_text(RESULTS, json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    write_text(PAGE, run.with_table(PAGE.read_text("utf-8"), table(results), "soak"))


def table(results: Tree) -> str:
    """Every promise as Markdown, then what the figures were made on."""
    rows = results["promises"]
    lines = [HEAD, *(line(name, rows.get(name), results) for name in (*PROMISES, OVERHEAD))]
    made: dict[str, list[str]] = {}
    for name, text in results["made"].items():
        made.setdefault(text, []).append(name)
    for text, names in made.items():
        lines += ["", f"{', '.join(names)}: {text}."]
    return "\n".join(lines)


def line(name: str, row: Tree | None, results: Tree) -> str:
    """One promise as a row of the table."""
    if name == OVERHEAD:
        what, goal, proof, beside = (
            "the checks for NaN and infinity: share of an epoch",
            "at most 1 %",
            ("`bench/finite.py`"),
            "",
        )
        value = "" if row is None else f"{row['share']:.2%}"
    else:
        promise = PROMISES[name]
        files = dict.fromkeys(t.partition("::")[0] for t in promise.tests if t.startswith("tests/"))
        proof = ", ".join(f"`{Path(file).stem}`" for file in files)
        what, beside = promise.what, str(results[OTHERS].get(promise.beside, ""))
        goal = f"{promise.goal:,} {promise.unit}" if promise.goal else "every test"
        value = "" if row is None else figure(promise, row)
    met = "not run" if row is None else "yes" if row["met"] else "no"
    return f"| {' | '.join((what, goal, value, beside, proof, met))} |".replace("  ", " ")


def figure(promise: Promise, row: Tree) -> str:
    """What the tests have counted."""
    if not row["count"]:
        return f"{row['passed']} tests passed"
    goal = row["tests"] if promise.each else promise.goal
    of = f" of {goal:,}" if goal else ""
    slow = f", slowest {row['slowest']:.1f} s" if row["slowest"] is not None else ""
    return f"{row['count']:,}{of} {promise.unit}{slow}"


if __name__ == "__main__":
    sys.exit(main())
