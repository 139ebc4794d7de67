"""`evaluate --mi`: libraries side by side, measured in the same way."""

from __future__ import annotations

import csv
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from etude import cli
from etude.envs import registry
from etude.evaluate.report import report_library
from etude.evaluate.skillset_mi import FOLDS, rollout_mi
from etude.skills.library import SkillLibrary, write
from etude.skills.library_data import SetData
from etude.skills.mlp import MLP
from etude.skills.spaces import Sphere

DIAYN = "point-open-diayn"
HOW = ["--episodes", "60", "--steps", "20", "--seed", "3"]


@pytest.fixture(scope="module")
def still(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library whose skills all do the same."""
    policy = MLP([(np.zeros((6, 2)), np.array([1.0, 0.0]))], output="tanh")
    data = SetData(
        name="still",
        learner="still",
        config={},
        space=Sphere(2),
        policy=policy,
        encoders={},
        mean=np.zeros(4),
        std=np.ones(4),
        skills=[],
    )
    spec, path = registry.spec("point-open"), tmp_path_factory.mktemp("libraries") / "still"
    return write(path, sets=[data], env=spec.to_json(), provenance={}, name="still")


def test_one_table_with_the_same_measure_for_each(
    still: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "deep" / "mi.csv"
    assert cli.main(["evaluate", "--mi", str(still), DIAYN, *HOW, "--csv", str(file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    how = {"episodes": 60, "steps": 20, "seed": 3, "folds": FOLDS}
    found = {
        name: rollout_mi(SkillLibrary.load(name), "point-open", **how) for name in (DIAYN, still)
    }
    assert lines[0].startswith("| library | learner | z | nats [95%] | distinguishable skills |")
    for line, (name, mi) in zip(lines[2:4], found.items(), strict=True):  # the most telling first
        interval = f"{mi.nats:.2f} [{mi.low:.2f}, {mi.high:.2f}]"
        assert line.startswith(f"| {name} | ") and f"| {interval} | {mi.size:.1f} |" in line
    assert found[DIAYN].nats > 1 and found[still].nats <= 3 * found[still].error + 1e-9
    assert "f = x, y after 20 steps of point-open, 60 episodes of each library, seed 3" in lines[-1]
    with file.open(newline="") as table:
        rows = {row["library"]: row for row in csv.DictReader(table)}
    for name, mi in found.items():
        row = rows[str(name)]
        assert (float(row["nats"]), float(row["low"]), float(row["high"])) == (
            mi.nats,
            mi.low,
            mi.high,
        )
        assert (row["env"], row["features"], row["episodes"]) == ("point-open", "x, y", "60")
    assert (rows[DIAYN]["learner"], rows[DIAYN]["z"]) == ("diayn", "discrete 8")


def test_other_features(capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--fields", "x_velocity", "y_velocity", *HOW]
    assert cli.main(["evaluate", "--mi", DIAYN, *args]) == 0
    mi = rollout_mi(
        SkillLibrary.load(DIAYN),
        "point-open",
        ("x_velocity", "y_velocity"),
        episodes=60,
        steps=20,
        seed=3,
        folds=FOLDS,
    )
    text = capsys.readouterr().out
    assert f"{mi.nats:.2f} [" in text and "f = x_velocity, y_velocity after" in text


MISTAKES = {
    "none": ([], "evaluate --mi needs libraries"),
    "another body": ([DIAYN, "half-cheetah-diayn", *HOW], 'the body "half-cheetah"'),
    "field": ([DIAYN, "--fields", "x_velocty"], 'did you mean "x_velocity"'),
    "episodes": ([DIAYN, "--episodes", "10"], "episodes = 10 is out of range"),
    "library": (["no-such-thing"], 'no skill library "no-such-thing"'),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_get_one_sentence(mistake: str, capsys: pytest.CaptureFixture[str]) -> None:
    args, words = MISTAKES[mistake]
    assert cli.main(["evaluate", "--mi", *args]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("etude: ") and words in last


def test_nothing_is_measured_in_vain(capsys: pytest.CaptureFixture[str]) -> None:
    """Every library is checked before the first is acted out."""
    assert cli.main(["evaluate", "--mi", DIAYN, "half-cheetah-diayn", *HOW]) == 2
    assert "nats" not in capsys.readouterr().err


def test_a_report_measures_when_asked(tmp_path: Path) -> None:
    library, out = SkillLibrary.load(DIAYN), tmp_path / "report"
    how: dict[str, Any] = {"provenance": {}, "episodes": 4, "steps": 20, "seed": 2}
    assert report_library(library, "point-open", out, **how)["information"] is None
    assert "What the skills tell" not in (out / "report.md").read_text()
    found = report_library(library, "point-open", out, mi_episodes=60, **how)["information"]
    mi = rollout_mi(library, "point-open", episodes=60, steps=20, seed=2, folds=FOLDS)
    assert {key: found[key] for key in asdict(mi)} == asdict(mi)
    assert (found["skills"], found["episodes"], found["steps"]) == (mi.size, 60, 20)
    assert f"{mi.nats:.3g} nats" in (out / "report.md").read_text()


def test_help_has_both_forms(capsys: pytest.CaptureFixture[str]) -> None:
    for args, word in ((["--help"], "evaluate --mi LIBRARY"), (["--mi", "--help"], "--fields")):
        with pytest.raises(SystemExit) as stop:
            cli.main(["evaluate", *args])
        assert stop.value.code == 0 and word in capsys.readouterr().out
