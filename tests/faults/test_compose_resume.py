"""`train.py compose` that is killed, interrupted and resumed ends as one that was left alone."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from etude import checkpoint, cli
from etude.cli import runs
from etude.envs import registry
from etude.skills.library import write
from etude.skills.library_data import SetData
from etude.skills.mlp import MLP
from etude.skills.spaces import Sphere

ROOT = Path(__file__).resolve().parents[2]
BODY, TASK = "point-maze-u", "point-maze-u-goal"
QUICK = ["--k", "10", "--num-envs", "4", "--hyper.hidden", "8", "--hyper.batch-size", "16"]
PPO = ["--algo", "ppo", "--hyper.rollout", "64", "--hyper.epochs", "1"]
SAC = ["--algo", "sac", "--hyper.learning-starts", "40"]
OFTEN = ["--save-minutes", "0.0005"]
KILLS = int(os.environ.get("ETUDE_KILLS", "3"))
LIMIT = 5.0  # seconds from the signal to the end


def compass(folder: Path, push: float = 3.0) -> Path:
    """A library whose skills are the directions of the plane."""
    policy = MLP([(np.vstack([np.zeros((4, 2)), push * np.eye(2)]), np.zeros(2))], output="tanh")
    data = SetData("main", "none", {}, Sphere(2), policy, {}, np.zeros(4), np.ones(4), [])
    env = registry.spec(BODY).to_json()
    return write(folder, sets=[data], env=env, provenance={}, name="compass")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compass(tmp_path_factory.mktemp("zoo") / "compass")


def arguments(library: Path, out: Path, steps: int, *options: str) -> list[str]:
    args = ["compose", str(library), "--task", TASK, "--env-steps", str(steps), *QUICK]
    return [*args, *options, "--out", str(out)]


def going_on(out: Path) -> list[str]:
    return ["compose", "--resume", str(out), *OFTEN]


def final(out: Path) -> dict[str, Any]:
    """Weights, stats, metrics and report of a finished run, without times."""
    saved = checkpoint.load(out / "controller" / "policy")
    found = {name: value.tobytes() for name, value in saved["policy"].items()}
    with (out / "metrics.csv").open() as file:
        rows = [(r["step"], r["key"], r["value"]) for r in csv.DictReader(file)]
    report = json.loads((out / "report.json").read_text())
    stats = {k: v for k, v in saved["about"]["stats"].items() if k != "seconds"}
    del report["training"], report["provenance"]
    return {**found, "rows": [r for r in rows if r[1] != "time/fps"], "stats": stats, **report}


def trials(out: Path) -> list[dict[str, str]]:
    """The table of a comparison, without times and in no order."""
    with (out / "trials.csv").open() as file:
        rows = [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]
    return sorted(rows, key=lambda row: row["trial"])


def wait_until(condition: Callable[[], bool]) -> None:
    """Poll for up to a minute and a half."""
    end = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def saves(out: Path) -> set[str]:
    """Names of the checkpoints below a run folder."""
    found = {path.parent for path in out.rglob("manifest.json")}
    return {path.name for path in found if path.name[0] != "." and path.parent.name != "controller"}


def interrupt(args: list[str], number: int, ready: Callable[[], bool]) -> tuple[int, float]:
    """Run a command here and send this process a signal; exit code, and seconds to the end."""
    sent: list[float] = []

    def send() -> None:
        wait_until(ready)
        sent.append(time.monotonic())
        os.kill(os.getpid(), number)

    threading.Thread(target=send, daemon=True).start()
    code = cli.main(args)
    assert sent, "the run was over before it could be interrupted"
    return code, time.monotonic() - sent[0]


# ---- one controller


@pytest.mark.parametrize(
    ("number", "algo", "steps"), [(signal.SIGINT, PPO, 20_000), (signal.SIGTERM, SAC, 6000)]
)
def test_a_signal_saves_and_the_printed_command_goes_on(
    number: int,
    algo: list[str],
    steps: int,
    library: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "run"
    assert cli.main(arguments(library, whole, steps, *algo)) == 0
    for args in (arguments(library, out, steps, *algo, *OFTEN), going_on(out)):
        before = saves(out)
        code, seconds = interrupt(args, number, lambda b=before: bool(saves(out) - b))
        assert code == 128 + number
        assert seconds < LIMIT
        assert f"python train.py compose --resume {out}" in capsys.readouterr().err
        assert not (out / runs.LOCK).exists() and not (out / "controller").exists()
        with (out / "metrics.csv").open("a") as file:
            file.write(f"{steps},9.9,meta/episodes,1\n")  # as after a kill later than the save
    assert cli.main(["compose", "--resume", str(out)]) == 0
    assert "going on from step" in capsys.readouterr().err
    assert final(out) == final(whole)
    assert cli.main(going_on(out)) == 2
    assert "is finished" in capsys.readouterr().err


def test_a_run_that_was_trained_is_only_judged(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    assert cli.main(arguments(library, out, 600, *PPO)) == 0
    expected = final(out)
    (out / "report.json").unlink()
    monkeypatch.setattr("etude.cli.compose.train", None)
    assert cli.main(going_on(out)) == 0
    assert final(out) == expected


@pytest.mark.slow
def test_kill_9_loses_nothing(library: Path, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "run"
    assert cli.main(arguments(library, whole, 10_000, *SAC)) == 0
    args = arguments(library, out, 10_000, *SAC, *OFTEN)
    for _ in range(KILLS):
        before = saves(out)
        process = start(args)
        wait_until(lambda b=before, p=process: bool(saves(out) - b) or p.poll() is not None)
        process.kill()
        _, errors = process.communicate()
        assert process.returncode == -signal.SIGKILL, errors
        args = going_on(out)
    process = start(args)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert "has ended" in errors  # the lock of the one that was killed
    assert final(out) == final(whole)


def start(args: list[str]) -> subprocess.Popen[str]:
    """The command in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *args],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def alive(group: int) -> list[str]:
    """Processes of a group that have not ended."""
    ps = subprocess.run(
        ["ps", "-A", "-o", "pgid=,stat="], capture_output=True, text=True, check=True
    )
    found = (line.split() for line in ps.stdout.splitlines())
    return [state for pgid, state in found if int(pgid) == group and state[0] != "Z"]


# ---- a comparison

ARMS = ["--baselines", "action-repeat", "random-skill"]


def test_a_comparison_goes_on_with_what_is_missing(
    library: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "run"
    here = ["--workers", "0"]
    assert cli.main([*arguments(library, whole, 3000, *SAC, *ARMS), *here]) == 0
    args = [*arguments(library, out, 3000, *SAC, *ARMS, *OFTEN), *here]
    code, seconds = interrupt(args, signal.SIGTERM, lambda: bool(saves(out)))
    assert (code, not (out / "trials.csv").exists()) == (143, True)
    assert seconds < LIMIT
    args = [*going_on(out), *here]
    code, _ = interrupt(args, signal.SIGINT, (out / "trials.csv").exists)
    assert code == 130
    first = (out / "trials.csv").read_text()
    assert cli.main(args) == 0
    assert (out / "trials.csv").read_text().startswith(first)  # not run again
    assert trials(out) == trials(whole)
    assert list((out / "trials").iterdir()) == []
    capsys.readouterr()
    assert cli.main(args) == 2
    assert "is finished" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_workers_save_and_end_with_the_command(number: int, library: Path, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "run"
    options = [*SAC, "--baselines", "action-repeat"]
    assert cli.main([*arguments(library, whole, 6000, *options), "--workers", "0"]) == 0
    process = start([*arguments(library, out, 6000, *options, *OFTEN), "--workers", "2"])
    wait_until(lambda: bool(saves(out)))
    begun = time.monotonic()
    os.killpg(process.pid, number)  # as Ctrl-C does, to the workers too
    _, errors = process.communicate()
    assert time.monotonic() - begun < LIMIT
    assert process.returncode == 128 + number, errors
    assert "Traceback" not in errors
    wait_until(lambda: not alive(process.pid))  # the resource tracker ends last
    assert time.monotonic() - begun < 2 * LIMIT, "an orphan"
    assert cli.main([*going_on(out), "--workers", "0"]) == 0
    assert trials(out) == trials(whole)


# ---- what is refused


@pytest.fixture(scope="module")
def begun(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped."""
    out = tmp_path_factory.mktemp("runs") / "run"
    args = arguments(library, out, 6000, *SAC, *OFTEN)
    assert interrupt(args, signal.SIGINT, lambda: bool(saves(out)))[0] == 130
    return out


def refused(args: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2 and one sentence, and nothing is changed."""
    assert cli.main(args) == 2
    error = capsys.readouterr().err
    assert words in error and error.startswith("etude: ")
    assert len(error.strip().splitlines()) == 1


def test_a_second_run_in_the_same_folder_is_refused(
    begun: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with runs.lock(begun):
        refused(["compose", "--resume", str(begun)], f"process {os.getpid()} on", capsys)


def test_the_demo_holds_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[bool] = []

    def train(run: Any, folder: Path, running: Any) -> int:
        held.append((folder / runs.LOCK).exists())
        return 143

    monkeypatch.setattr("etude.cli.discover.train", train)
    assert cli.main(["demo", "--out", str(tmp_path / "demo")]) == 143
    assert held == [True] and not (tmp_path / "demo" / runs.LOCK).exists()


def test_another_library_is_refused(
    begun: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = compass(tmp_path / "compass", 2.0)
    refused(["compose", str(other), "--resume", str(begun)], "began with library compass", capsys)


def test_the_same_library_elsewhere_is_taken(
    begun: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = compass(tmp_path / "compass")
    with runs.lock(begun):  # it comes as far as this
        refused(["compose", str(moved), "--resume", str(begun)], "is in use by", capsys)


def test_a_missing_checkpoint_is_said(
    begun: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(["compose", "--resume", str(tmp_path)], "not a run folder", capsys)
    (tmp_path / "config.json").write_text((begun / "config.json").read_text())
    refused(["compose", "--resume", str(tmp_path)], "has no checkpoint to go on from", capsys)
    (tmp_path / "config.json").write_text('{"discover": {}}')
    refused(["compose", "--resume", str(tmp_path)], "is not a run of compose", capsys)


def test_the_task_of_a_run_stays(begun: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["compose", "--resume", str(begun), "--task", "half-cheetah-goal"]
    refused(args, "--task cannot change a run", capsys)
