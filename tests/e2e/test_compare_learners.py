"""`compare learners`: rows once and for ever, a table at common minutes and at common steps."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from etude import cli
from etude.evaluate import plots
from etude.evaluate.trials import learners as side_by_side
from etude.evaluate.trials import tables
from etude.evaluate.trials.learners import CURVES, TABLE, TEXT, TRIALS, Trial, plan
from etude.skills import learners
from etude.skills.library import SkillLibrary

ROOT = Path(__file__).resolve().parents[2]


def arguments(folder: Path, **more: object) -> list[str]:
    asked = {"learners": "metra", "envs": "point-open", "seeds": 1, "minutes": 0.02, **more}
    words = [word for k, v in asked.items() for word in (f"--{k}", *str(v).split())]
    return ["compare", "learners", *words, "--out", f"{folder}/out", "--runs", f"{folder}/runs"]


def rows(folder: Path, name: str = TRIALS) -> list[dict[str, str]]:
    with (folder / "out" / name).open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_learner_is_planned_seed_by_seed() -> None:
    trials = plan(learners.ids(), ["point-open", "half-cheetah"], range(2))
    assert len(trials) == 2 * 2 * len(learners.ids())
    assert {t.seed for t in trials[: len(trials) // 2]} == {0}
    assert {t.minutes for t in trials if t.env == "half-cheetah"} == {10.0}
    assert len({t.key for t in trials}) == len(trials)


def test_a_row_is_of_its_settings() -> None:
    one = Trial("metra", "point-open", 0, 1.0)
    others = [
        Trial("metra", "point-open", 0, 2.0),
        Trial("metra", "point-open", 1, 1.0),
        Trial("diayn", "point-open", 0, 1.0),
        Trial("metra", "point-open", 0, 1.0, "paper"),
    ]
    assert one.key == Trial("metra", "point-open", 0, 1.0).key
    assert len({t.key for t in (one, *others)}) == 5


def test_finished_trials_are_rows_and_do_not_run_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    two = arguments(tmp_path, learners="metra diayn", workers=2)
    assert cli.main(two) == 0
    found = rows(tmp_path)
    assert sorted(row["learner"] for row in found) == ["diayn", "metra"]
    for row in found:
        assert int(row["updates"]) > 0 and float(row["policy_coverage"]) > 0
        assert float(row["discriminability"]) > 0
        points = [p for p in rows(tmp_path, CURVES) if p["trial"] == row["trial"]]
        assert int(points[-1]["steps"]) == int(row["steps"])
    by_learner = {row["learner"]: row for row in found}
    assert float(by_learner["metra"]["zero_shot"]) > float(by_learner["diayn"]["zero_shot"]) >= 0
    table = (tmp_path / "out" / TABLE).read_text()
    assert table in capsys.readouterr().out and "2 of 2 trials done" in table
    assert {p.name for p in (tmp_path / "out").glob("*.png")} >= {
        "point-open-metra.png",
        "point-open-diayn.png",
        "point-open-coverage-minutes.png",
        "point-open-displacement-steps.png",
    }
    _the_information_of_a_report_is_in_its_row(tmp_path)
    before = (tmp_path / "out" / TRIALS).read_bytes()
    assert cli.main(two) == 0
    assert (tmp_path / "out" / TRIALS).read_bytes() == before


def _the_information_of_a_report_is_in_its_row(folder: Path) -> None:
    (trial,) = plan(["metra"], ["point-open"], [0], 0.02)
    path = folder / "runs" / trial.key / "report.json"
    report = json.loads(path.read_text())
    assert report["information"] is None, "so short a run measures none"
    report["information"] = {"nats": 1.5, "low": 1.25, "high": 1.75}
    path.write_text(json.dumps(report))
    row, _ = side_by_side.measure(trial, path.parent)
    assert (row["mi_nats"], row["mi_low"], row["mi_high"]) == (1.5, 1.25, 1.75)


@pytest.mark.slow
def test_a_trial_that_fails_takes_no_other_with_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file stands where one run folder should be; its row comes when that is put right."""
    bad, _ = plan(["metra"], ["point-open"], range(2), 0.02)
    (tmp_path / "runs" / bad.key).mkdir(parents=True)
    blocked = tmp_path / "runs" / f"{bad.key}.log"
    blocked.mkdir()
    assert cli.main(arguments(tmp_path, seeds=2, workers=1)) == 1
    assert bad.key in capsys.readouterr().err
    assert [row["seed"] for row in rows(tmp_path)] == ["1"]
    blocked.rmdir()
    assert cli.main(arguments(tmp_path, seeds=2, workers=1)) == 0
    assert [row["seed"] for row in rows(tmp_path)] == ["1", "0"]


@pytest.mark.slow
def test_a_stopped_comparison_goes_on(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "train.py"), *arguments(tmp_path, minutes=0.5, workers=1)]
    process = subprocess.Popen(command, env=os.environ, stderr=subprocess.PIPE, text=True)
    (trial,) = plan(["metra"], ["point-open"], [0], 0.5)
    metrics = tmp_path / "runs" / trial.key / "metrics.csv"
    end = time.monotonic() + 120
    while not metrics.is_file() and time.monotonic() < end:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + signal.SIGTERM and "the same command goes on" in said
    assert (
        list((metrics.parent / "checkpoints").iterdir())
        and not (tmp_path / "out/trials.csv").exists()
    )
    assert subprocess.run(command, check=False, timeout=300).returncode == 0
    assert len(rows(tmp_path)) == 1
    assert "going on from step" in metrics.parent.with_suffix(".log").read_text()
    curve = [int(point["steps"]) for point in tables.read(tmp_path / "out" / CURVES, TEXT)]
    assert max(np.diff(curve)) < 2 * 8_000, "watched as often as before"


def test_skills_that_answer_no_goals_have_no_zero_shot_return() -> None:
    library = SkillLibrary.load("half-cheetah-lpe")
    assert side_by_side._zero_shot(library, "half-cheetah") == ("half-cheetah-goal", None)


def test_the_table_reads_curves_at_common_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second learner made twice the steps in the same minutes."""
    trials = plan(["metra", "diayn"], ["half-cheetah"], [0], 1.0)
    for trial, steps, cells in zip(trials, (1000, 2000), (50.0, 80.0), strict=True):
        row: dict[str, Any] = dict.fromkeys(HEAD, 0.0)
        row |= {k: getattr(trial, k) for k in ("learner", "env", "seed", "minutes", "preset")}
        row |= {"trial": trial.key, "steps": steps, "policy_coverage": cells, "zero_shot": None}
        row |= {"zero_shot_task": "", "library": ""}
        curve = [
            {"trial": trial.key, "steps": at, "minutes": at / steps, "displacement": 0.0}
            | {"policy_coverage": cells * at / steps}
            for at in (0, steps // 2, steps)
        ]
        tables.append(tmp_path / CURVES, curve)
        tables.append(tmp_path / TRIALS, [row])
    drawn: list[list[str]] = []
    curves = plots.learning_curves
    monkeypatch.setattr(
        plots, "learning_curves", lambda c, *a, **k: drawn.append(list(c)) or curves(c, *a, **k)
    )
    text = side_by_side.report(tmp_path, [*trials, *plan(["metra"], ["ant"], [0])])
    assert "2 of 3 trials done" in text and "after 1,000 steps" in text and "## ant" not in text
    assert ["diayn", "metra"] in drawn, "the best coverage first"
    lines = [line for line in text.splitlines() if line.startswith(("| diayn", "| metra"))]
    assert lines[0].startswith("| diayn | all | – | 80 | 40 |")  # the best first
    assert lines[1].startswith("| metra | all | x | 50 | 50 |")


def test_the_picture_is_that_of_the_first_seed_whenever_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(side_by_side, "measure", lambda trial, run: ({"trial": trial.key}, []))
    out, run = tmp_path / "out", tmp_path / "run"
    run.mkdir()
    for seed, minutes in ((1, 1.0), (0, 1.0), (1, 2.0), (0, 2.0)):
        (run / "trajectories.png").write_text(f"seed {seed}, {minutes:g} min")
        side_by_side.record(out, Trial("metra", "point-open", seed, minutes), run)
        shown = (out / "point-open-metra.png").read_text()
        if (seed, minutes) == (1, 2.0):
            assert shown == "seed 0, 1 min"
        else:
            assert shown == f"seed {seed}, {minutes:g} min"


def test_a_trial_that_goes_on_is_watched_as_often(tmp_path: Path) -> None:
    (trial,) = plan(["metra"], ["half-cheetah"], [0])
    often = ["--eval-every", "16000"]
    for command in (trial.command(tmp_path), trial.command(tmp_path, resume=True)):
        at = command.index(often[0])
        assert command[at : at + 2] == often and str(tmp_path) in command


def test_rows_of_other_settings_are_left_out(tmp_path: Path) -> None:
    assert tables.read(tmp_path / TRIALS, TEXT) == []
    assert side_by_side.report(tmp_path, plan(["metra"], ["ant"], [0])).startswith("0 of 1")


HEAD = (
    *("trial", "learner", "env", "preset", "seed", "minutes", "steps", "updates"),
    *("policy_coverage", "displacement", "x_range", "discriminability", "chance"),
    *("mi_nats", "mi_low", "mi_high", "zero_shot", "zero_shot_task", "library"),
)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (["compare", "learnrs"], 'did you mean "learners"'),
        (["compare", "learners", "--envs", "antt"], 'did you mean "ant"'),
        (["compare", "learners", "--learners", "metr"], 'did you mean "metra"'),
    ],
)
def test_wrong_names_are_one_sentence(
    wrong: list[str], sentence: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert cli.main([*wrong, *(["--out", str(tmp_path)] if len(wrong) > 2 else [])]) == 2
    assert sentence in capsys.readouterr().err
