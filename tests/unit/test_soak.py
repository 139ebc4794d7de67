"""`make soak`: what it runs exists, and it reads and writes what the tests have recorded."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
REPORT = """<testsuites><testsuite>
<testcase name="a"><properties><property name="count" value="40"/>
<property name="slowest, s" value="0.2"/></properties></testcase>
<testcase name="b"><properties><property name="count" value="2"/>
<property name="slowest, s" value="0.5"/></properties></testcase>
<testcase name="c"><failure message="no"/></testcase>
<testcase name="d"><skipped/></testcase>
</testsuite></testsuites>"""
ROW = {"tests": 4, "passed": 2, "count": 42, "slowest": 0.5, "met": True}


@pytest.fixture
def soak(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    for folder in ("bench", "tests"):
        monkeypatch.syspath_prepend(ROOT / folder)
    return importlib.import_module("soak")


def test_every_proof_exists(soak: ModuleType) -> None:
    scripts = (ROOT / "bench" / "sb3_faults.py").read_text()
    for promise in soak.PROMISES.values():
        for test in (t for t in promise.tests if t.startswith("tests/")):
            path, _, function = test.partition("::")
            assert f"def {function}" in (ROOT / path).read_text(), test
        assert f'"{promise.beside}": (' in scripts or not promise.beside
        for name in promise.counts:
            assert any(
                name in (ROOT / test.partition("::")[0]).read_text() for test in promise.tests
            ), f"no test heeds {name}"


def test_cases_are_added_up(soak: ModuleType, tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(REPORT)
    assert soak.read(report) == {k: v for k, v in ROW.items() if k != "met"}


def test_too_few_cases_do_not_keep_a_promise(soak: ModuleType) -> None:
    """However well those went that were there."""
    test = (f"{Path(__file__).relative_to(ROOT)}::test_cases_are_added_up",)
    assert soak.prove(soak.Promise("x", test), quick=False)["met"]
    assert not soak.prove(soak.Promise("x", test, goal=1), quick=False)["met"]
    assert not soak.prove(soak.Promise("x", (*test, "-k", "nothing")), quick=False)["met"]


def test_a_row_of_the_page(soak: ModuleType) -> None:
    results = {"promises": {"kills": ROW}, "stable-baselines3": {}, "made": {"kills": "a machine"}}
    rows = soak.table(results).splitlines()
    (kills,) = (row for row in rows if "test_kills" in row and "kill -9" in row)
    assert "| 42 of 200 kills, slowest 0.5 s |" in kills and kills.endswith("| yes |")
    assert sum(row.endswith("| not run |") for row in rows) == len(soak.PROMISES)
    assert rows[-1] == "kills: a machine."
    assert (ROOT / "docs" / "reliability.md").read_text().count("<!-- bench:soak -->") == 1
