"""Hostile libraries are refused with file and cause, fast, in little memory, and run nothing."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("hostile.py")
CASES = runpy.run_path(str(SCRIPT))["CASES"]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What loading each case did, in a process with an audit hook and bounded memory."""
    folder = tmp_path_factory.mktemp("hostile")
    python = [sys.executable, str(SCRIPT), str(folder), "--load"]
    done = subprocess.run(python, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


def test_there_are_enough_of_them() -> None:
    assert len(CASES) >= 40


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_library_is_refused_and_runs_nothing(
    name: str, outcomes: dict[str, Any], record_property: Callable[[str, object], None]
) -> None:
    file, cause, _ = CASES[name]
    outcome = outcomes[name]
    assert outcome["kind"] == "LibraryError", outcome
    assert f"{Path(name, file)}" in outcome["text"] and re.search(cause, outcome["text"])
    assert len(outcome["text"]) < 1000 and outcome["text"].isprintable()
    limit = 5 if "COVERAGE_RUN" in os.environ else 1  # s; tracing slows the long ones down
    assert outcome["events"] == [] and outcome["seconds"] < limit
    record_property("count", 1)


def test_a_good_library_passes_the_same_watch(outcomes: dict[str, Any]) -> None:
    assert (outcomes["good"]["kind"], outcomes["good"]["events"]) == ("", [])


def test_the_watch_sees_what_it_forbids(outcomes: dict[str, Any]) -> None:
    kinds = {event.split()[0] for event in outcomes["guilty"]["events"]}
    assert {"open", "compile", "exec", "import"} <= kinds
    if sys.platform == "linux":
        assert outcomes["greedy"]["kind"] == "MemoryError"
