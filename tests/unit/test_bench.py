"""The benchmark's arithmetic and its pages; nothing here is timed."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
BEGIN, END = "<!-- bench:throughput -->", "<!-- /bench:throughput -->"
MADE = {
    "processor": "A processor",
    "cores": 2,
    "system": "A system",
    "versions": {"python": "3.11.0", "torch": "2.13.0"},
    "commit": "0123456789abcdef",
    "created": "2026-01-01T00:00:00+00:00",
    "rounds": 5,
}


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "bench")
    return importlib.import_module("rounds")


@pytest.fixture
def run(rounds: ModuleType) -> ModuleType:
    return importlib.import_module("run")


def test_arms_take_turns_and_the_first_round_does_not_count(
    rounds: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    taken: list[str] = []

    def reader(name: str):
        def read() -> int:
            taken.append(name)
            return len(taken)

        return read

    readings = rounds.interleave({"A": reader("A"), "B": reader("B")}, 3)
    assert "".join(taken) == "ABABABAB"
    assert readings == {"A": [3, 5, 7], "B": [4, 6, 8]}
    assert capsys.readouterr().out.splitlines() == [rounds.READING] * 8


def test_the_value_is_the_median_of_the_ratios_not_the_ratio_of_the_medians(
    rounds: ModuleType,
) -> None:
    readings = {"Étude": [10.0, 40.0, 30.0], "native": [20.0, 20.0, 60.0]}
    row = rounds.compared("stepping/ant-64", readings, "Étude", "native", "steps/s")
    assert (row.value, row.spread) == (0.5, (0.5, 2.0))  # of the medians it would be 1.5
    assert row.arms == {"Étude": (30.0, "steps/s"), "native": (20.0, "steps/s")}


@pytest.mark.parametrize(
    ("bounds", "value", "goal", "met"),
    [
        ({"at_least": 2.0}, 2.0, "at least 2 x", True),
        ({"at_least": 2.0}, 1.99, "at least 2 x", False),
        ({"at_most": 1.5}, 1.5, "at most 1.5 x", True),
        ({"at_most": 1.5}, 1.51, "at most 1.5 x", False),
        ({"at_most": 1.5}, None, "at most 1.5 x", None),
        ({}, 3.0, "", None),
    ],
)
def test_goals(
    rounds: ModuleType, bounds: dict[str, float], value: float, goal: str, met: bool
) -> None:
    row = rounds.Row("a/b", "what", "x", value=value, **bounds)
    assert (row.goal, row.met, row.group) == (goal, met, "a")


def test_threads_are_set_or_left_to_the_libraries(
    rounds: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert {rounds.thread_settings(2)[name] for name in rounds.THREADS} == {"2"}
    assert not {*rounds.THREADS} & rounds.thread_settings(0).keys()


def test_merging_a_group_keeps_everything_else(rounds: ModuleType, run: ModuleType) -> None:
    def rows(value: float, *names: str):
        return [replace(rounds.ROWS[name], value=value).as_json() for name in names]

    old = run.merged({"learning": [1, 2]}, "seeds", rows(1.0, "seeds/two"), MADE)
    old = run.merged(old, "stepping", rows(1.0, "stepping/ant-64", "stepping/ant-16"), MADE)
    before = json.dumps(old)
    new = run.merged(old, "stepping", rows(2.0, "stepping/ant-64"), {**MADE, "rounds": 9})
    assert json.dumps(old) == before
    assert new["learning"] == [1, 2]
    found = {row["id"]: row["value"] for row in new["throughput"]["rows"]}
    assert found == {"stepping/ant-64": 2.0, "seeds/two": 1.0}
    assert [*found] == ["stepping/ant-64", "seeds/two"]  # the order of the table
    made = new["throughput"]["made"]
    assert (made["seeds"]["rounds"], made["stepping"]["rounds"]) == (5, 9)


def test_the_table_has_every_row_measured_or_not(rounds: ModuleType, run: ModuleType) -> None:
    done = rounds.measured(
        "stepping/ant-64", [0.9, 0.95, 1.0], {"Étude": (12345.6, "steps/s"), "native": (9.0, "s")}
    )
    missing = replace(rounds.ROWS["stepping/half-cheetah-64"], note="not measured: no C++ compiler")
    results = run.merged({}, "stepping", [done.as_json(), missing.as_json()], MADE)
    head, _, *lines = run.table(results).splitlines()
    assert head.count("|") == 7
    cells = [[*map(str.strip, line.split("|")[1:-1])] for line in lines[: len(rounds.ROWS)]]
    assert {len(row) for row in cells} == {6}
    goal, value, spread, arms, met = cells[0][1:]
    assert (goal, value, spread, met) == ("at least 0.9", "0.95", "0.9 to 1", "yes")
    assert arms == "Étude 12,350 steps/s; native 9 s"
    assert cells[1][2] == "not measured: no C++ compiler"
    assert {row[2] for row in cells[2:]} == {"not measured"}
    assert lines[len(rounds.ROWS) + 1] == (
        "stepping: A processor, 2 cores, A system; python 3.11.0, torch 2.13.0; 5 rounds; "
        "commit 0123456789, 2026-01-01T00:00:00+00:00."
    )


def test_groups_measured_together_share_a_line(rounds: ModuleType, run: ModuleType) -> None:
    results: dict[str, object] = {}
    for group in run.PARTS:
        results = run.merged(results, group, [], MADE)
    assert run.table(results).count("A processor") == 1
    assert "\nAll rows: A processor" in run.table(results)
    results = run.merged(results, "loop", [], {**MADE, "rounds": 9})
    assert run.table(results).count("A processor") == 2


def test_only_the_marked_part_of_the_page_changes(run: ModuleType) -> None:
    page = f"# A\n{BEGIN}\nold\n{END}\n\nB\n"
    once = run.with_table(page, "new")
    assert once == f"# A\n{BEGIN}\nnew\n{END}\n\nB\n"
    assert run.with_table(once, "new") == once
    for broken in ("# A\n", BEGIN, f"{END}\n{BEGIN}", page + page):
        with pytest.raises(ValueError, match="needs one"):
            run.with_table(broken, "new")


def test_the_folder_the_groups_and_the_page_agree(rounds: ModuleType, run: ModuleType) -> None:
    assert {row.group for row in rounds.ROWS.values()} == {*run.PARTS}
    page = run.PAGE.read_text("utf-8")
    assert run.with_table(page, run.table({}))
    for group in run.PARTS:
        assert (run.BENCH / f"{group}.py").is_file()
        assert f"- **{group}**: " in page
    if run.RESULTS.is_file():
        results = json.loads(run.RESULTS.read_text("utf-8"))
        rows = results.get("throughput", {}).get("rows", ())
        assert {row["id"] for row in rows} <= {*rounds.ROWS}
        table = re.search(f"{BEGIN}\n(.*)\n{END}", page, re.DOTALL)
        assert table is not None
        assert table[1] == run.table(results)


def test_a_group_runs_in_its_own_process_and_folder(
    run: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "BENCH", tmp_path)
    script = """
import json, os, sys
print("reading taken")
assert not os.listdir()
rounds, out = sys.argv[2], sys.argv[4]
json.dump([[rounds, os.environ["OMP_NUM_THREADS"]]], open(out, "w"))
"""
    (tmp_path / "replay.py").write_text(script)
    steps = run.Steps(("replay",), 3)
    assert run.run("replay", run.Part(threads=2, readings=1), 3, steps) == [["3", "2"]]
    assert (steps.taken, steps.end) == (1, 4)


def test_a_group_that_breaks_says_why(
    run: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "BENCH", tmp_path)
    (tmp_path / "replay.py").write_text("raise SystemExit('no memory')")
    with pytest.raises(subprocess.CalledProcessError) as raised:
        run.run("replay", run.Part(1, 1), 1, run.Steps(("replay",), 1))
    assert raised.value.stderr == "no memory"
