"""The command line as a user meets it: help, runs, resume, Ctrl-C, and one sentence per mistake."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from etude import cli
from etude.cli import runs
from etude.skills.library import SkillLibrary

ROOT = Path(__file__).resolve().parents[2]
QUICK = [
    *("--agent.hidden", "16", "16", "--method.hidden", "16", "--loop.num-envs", "4"),
    *("--loop.episode-steps", "20", "--loop.updates-per-epoch", "2", "--loop.warmup-steps", "80"),
]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of discovery."""
    out = tmp_path_factory.mktemp("runs") / "point"
    args = ["discover", "diayn", "--env", "point-open", "--steps", "400", "--out", str(out)]
    assert cli.main([*args, "--eval-every", "160", *QUICK]) == 0
    return out


@pytest.mark.parametrize("args", [["--help"], []])
def test_help_names_what_there_is(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(args) == 0
    text = capsys.readouterr().out
    for word in ("demo", "discover", "compose", "evaluate", "metra", "half-cheetah-goal"):
        assert word in text


@pytest.mark.parametrize("command", ["demo", "discover", "compose", "evaluate"])
def test_each_command_explains_its_options(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert "--out" in text and "--seed" in text


def test_a_run_folder_is_complete(run_folder: Path) -> None:
    names = {p.name for p in run_folder.iterdir()}
    assert {"config.json", "metrics.csv", "evaluations.csv", "tb", "checkpoints"} <= names
    assert {"library", "report.md", "report.json", "trajectories.png"} <= names
    config = json.loads((run_folder / "config.json").read_text())
    assert config["discover"]["loop"]["num_envs"] == 4
    assert "discover diayn --env point-open" in config["provenance"]["command"]
    library = SkillLibrary.load(run_folder)
    assert library.learner == "diayn" and library.provenance["steps"] == 400
    assert len(library.skills) == 8 and "distance" in library.skills[0]
    keys = (run_folder / "metrics.csv").read_text()
    for tag in ("train/actor_loss", "skill/q_loss", "skill/policy_coverage", "time/fps"):
        assert tag in keys


def test_evaluate_and_compose_take_a_run_folder(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report"
    few = ["--episodes", "8", "--mi-episodes", "60"]
    assert cli.main(["evaluate", str(run_folder), "--out", str(out), *few]) == 0
    text = capsys.readouterr().out
    assert "policy_coverage" in text and "distinguishable skills" in text
    assert json.loads((out / "report.json").read_text())["library"]["name"] == "point-open-diayn"
    assert (out / "trajectories.png").stat().st_size < 200_000


def test_compose_trains_on_a_task_and_compares(tmp_path: Path) -> None:
    runs = tmp_path / "maze"
    args = ["discover", "metra", "--env", "point-maze-u", "--steps", "160", "--out", str(runs)]
    assert cli.main([*args, *QUICK]) == 0
    out = tmp_path / "one"
    task = ["compose", str(runs), "--task", "point-maze-u-goal", "--env-steps", "2000"]
    assert cli.main([*task, "--k", "10", "--out", str(out)]) == 0
    assert (out / "controller" / "policy").exists() and (out / "journeys.png").exists()
    assert "success_rate" in json.loads((out / "report.json").read_text())
    out = tmp_path / "many"
    arms = ["--baselines", "random-action", "random-skill", "--workers", "0", "--seeds", "2"]
    assert cli.main([*task, *arms, "--out", str(out)]) == 0
    rows = (out / "trials.csv").read_text().splitlines()
    assert len(rows) == 1 + 3 * 2
    assert "random-skill" in (out / "report.md").read_text()


MISTAKES = {
    "command": (["dicsover"], 'unknown command "dicsover": did you mean "discover"'),
    "learner": (["discover", "metr", "--env", "ant"], 'learner "metr": did you mean "metra"'),
    "env": (["discover", "metra", "--env", "ants"], 'environment "ants": did you mean "ant"'),
    "preset": (
        ["discover", "metra", "--env", "ant", "--preset", "papr"],
        'did you mean "paper"',
    ),
    "range": (
        ["discover", "metra", "--env", "ant", "--agent.gamma", "1.5"],
        "gamma = 1.5 is out of range",
    ),
    "nothing to discover": (["discover"], "discover needs a learner and an environment"),
    "library": (
        ["compose", "no-such-library", "--task", "half-cheetah-goal"],
        "no-such-library",
    ),
    "resume": (["discover", "--resume", "nowhere"], "nowhere is not a run folder"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gets_one_sentence_and_code_2(
    mistake: str, capsys: pytest.CaptureFixture[str]
) -> None:
    args, words = MISTAKES[mistake]
    assert cli.main(args) == 2
    error = capsys.readouterr().err
    assert words in error and error.startswith("etude: ")
    assert len(error.strip().splitlines()) == 1 and "Traceback" not in error


def test_unknown_task_and_foreign_library(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["compose", str(run_folder), "--task", "half-cheeta-goal"]) == 2
    assert 'did you mean "half-cheetah-goal"' in capsys.readouterr().err
    args = ["compose", str(run_folder), "--task", "half-cheetah-goal", "--out", str(tmp_path / "x")]
    assert cli.main(args) == 2
    error = capsys.readouterr().err
    assert "point-open" in error and "half-cheetah" in error
    assert not (tmp_path / "x").exists()


def test_an_existing_run_folder_is_left_alone(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(p.name for p in run_folder.iterdir())
    assert cli.main(["discover", "metra", "--env", "point-open", "--out", str(run_folder)]) == 2
    error = capsys.readouterr().err
    assert "exists already" in error and "--resume" in error
    assert sorted(p.name for p in run_folder.iterdir()) == before


def test_a_finished_run_is_not_resumed(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["discover", "--resume", str(run_folder)]) == 2
    assert "is finished" in capsys.readouterr().err


def test_a_file_of_values_stands_between_preset_and_options(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = {"steps": 80, "agent": {"hidden": [8], "gamma": 0.9}, "loop": {"warmup_steps": 20}}
    file, out = tmp_path / "small.json", tmp_path / "run"
    file.write_text(json.dumps(values))
    args = ["discover", "diayn", "--env", "point-open", "--config", str(file), "--out", str(out)]
    assert cli.main([*args, *QUICK, "--agent.gamma", "0.8"]) == 0
    made = json.loads((out / "config.json").read_text())["discover"]
    assert made["steps"] == 80 and made["agent"]["gamma"] == 0.8
    file.write_text('{"env": "ant"}')
    assert cli.main(args) == 2
    assert 'says "env", which the command line does' in capsys.readouterr().err
    assert cli.main(["discover", "--resume", str(out), "--config", str(file)]) == 2
    assert "leave it out" in capsys.readouterr().err


def test_a_second_run_in_the_same_folder_is_refused(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with runs.lock(run_folder):
        assert cli.main(["discover", "--resume", str(run_folder)]) == 2
    assert str(os.getpid()) in capsys.readouterr().err


def test_ctrl_c_saves_and_the_printed_command_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, str(ROOT / "train.py"), "discover"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    steps = ["--steps", "40000", "--eval-every", "0", "--out", str(out)]
    process = subprocess.Popen(
        [*command, "metra", "--env", "point-open", *steps, *QUICK],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while (
        not (out / "metrics.csv").exists() or not (out / "metrics.csv").read_text().count("\n") > 5
    ):
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert f"python train.py discover --resume {out}" in errors
    assert "Traceback" not in errors and not (out / "library").exists()
    done = subprocess.run(
        [*command, "--resume", str(out)], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "going on from step" in done.stderr
    assert SkillLibrary.load(out).provenance["steps"] == 40_000


def test_a_tiny_demo_leaves_everything_it_prints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "demo"
    sizes = ["--steps", "9600", "--task-steps", "9600", "--workers", "0"]
    assert cli.main(["demo", *sizes, "--out", str(out)]) == 0
    text = capsys.readouterr().out
    for name in ("skills.png", "journeys.png", "arms.png", "library", "report.md"):
        assert (out / name).exists() and str(out / name) in text
    rows = (out / "trials.csv").read_text().splitlines()
    arms = {row.split(",")[2] for row in rows[1:]}
    assert arms == {
        *("hierarchical", "flat", "flat-long", "action-repeat"),
        *("untrained", "random-skill", "random-action", "best-skill", "zero-shot"),
    }
    assert all(arm in text for arm in arms)
    made = SkillLibrary.load(out).provenance
    assert made["steps"] == 9600 and made["updates"] > 0


def test_run_folders_are_numbered(tmp_path: Path) -> None:
    from etude.cli.runs import next_free

    assert next_free(tmp_path / "demo").name == "demo-1"
    (tmp_path / "demo-1").mkdir()
    assert next_free(tmp_path / "demo").name == "demo-2"
