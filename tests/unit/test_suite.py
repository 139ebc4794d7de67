"""The suite's table, from trials whose numbers are made by hand, and the command that fills it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from etude import cli
from etude.envs import registry
from etude.errors import UsageError
from etude.evaluate.arms import ARMS
from etude.evaluate.compare import TRIALS, Comparison
from etude.evaluate.trials import bands
from etude.evaluate.trials import tasks as suite
from etude.evaluate.trials.tasks import SUITE, plan_suite, report, score

MAZE, ANT = "point-maze-large-goal", "ant-multi-goal"
HURDLES, FAR = "half-cheetah-hurdle-psd", "half-cheetah-goal"


def row(task: str, arm: str, seed: int, success: float, **more: Any) -> dict[str, Any]:
    base = {"task": task, "arm": arm, "seed": seed, "success_rate": success, "return_mean": success}
    return {**base, "pretraining_steps": 0, "first_success": None, **more}


def trials(*rows: dict[str, Any], tasks: tuple[str, ...] = (MAZE,)) -> Comparison:
    arms = tuple(dict.fromkeys(r["arm"] for r in rows))
    return Comparison(tuple(plan_suite(tasks, arms, range(3))), rows, {}, ())


def test_every_entry_is_of_the_zoo_and_of_its_task() -> None:
    specs = plan_suite()
    assert {spec.task for spec in specs} == set(SUITE) <= set(registry.tasks())
    assert {spec.arm for spec in specs} == set(ARMS) - {"flat", "flat-long", "planner"}
    assert all(spec.config.k > 1 and spec.library for spec in specs)
    assert (
        len({(s.arm, s.config.seed) for s in specs if s.task == MAZE and s.arm == "flat-ppo"}) == 5
    )
    assert {s.task for s in specs if s.arm == "diayn"} == {HURDLES}, "others have no such library"
    assert all(s.arm != "zero-shot" for s in specs if s.task == "half-cheetah-run"), "no goal"
    few = plan_suite([MAZE], ["flat"], [4], env_steps=999)
    assert [(s.arm, s.config.seed, s.config.env_steps) for s in few] == [("flat", 4, 999)]
    with pytest.raises(UsageError, match="env_steps"):
        plan_suite([MAZE], ["flat"], env_steps=-1)


def test_a_score_is_the_share_of_what_there_is_to_earn() -> None:
    assert score(row(MAZE, "flat", 0, 0.4)) == 0.4
    assert score(row(ANT, "flat", 0, 0.0, return_mean=7.5)) == 0.75  # three of four goals of 2.5
    assert score(row(HURDLES, "flat", 0, 0.0, return_mean=3.5)) == 0.5  # half of seven hurdles
    assert (
        score(row("ant-waypoints", "flat", 0, 0.0, return_mean=4.0)) == 0.8
    )  # four corners of five
    nothing = row("half-cheetah-goal", "flat", 0, 0.0, success_rate=None)
    assert score(nothing) is None
    assert score(row("half-cheetah-run", "flat", 0, 0.0)) is None, "every step is paid"


def test_the_table_says_who_is_better_and_when_a_library_has_paid(tmp_path: Path) -> None:
    found = trials(
        *(
            row(MAZE, "hierarchical", i, 0.9, pretraining_steps=300_000, first_success=20_000)
            for i in range(3)
        ),
        *(row(MAZE, "flat", i, 0.1 * i, first_success=120_000) for i in range(3)),
        row(MAZE, "flat-sac", 0, 0.0, first_success=130_000),
        *(row(MAZE, "untrained", i, 0.9) for i in range(2)),
    )
    text = report(tmp_path, found)
    assert text == (tmp_path / suite.TABLE).read_text() and text.startswith("9 of 12 trials done")
    lines = {line.split("|")[1].strip(): line for line in text.splitlines() if "|" in line}
    assert "| flat | 0.1 [0, 0.2] | 1 [1, 1] |" in text, "it always beats the flat arm"
    assert "| untrained | 0.9 [0.9, 0.9] | 0.5 [0.5, 0.5] |" in text, "and ties with this one"
    assert lines[MAZE].endswith("| 300,000 | 20,000 | 120,000 | 3.0 |")
    assert (tmp_path / "profiles.png").stat().st_size > 5000


def test_the_table_states_how_often_each_arm_learns(tmp_path: Path) -> None:
    """PPO: 10 passes over batches of 128; SAC without skills: an update for eight steps."""
    learnt = {"algo": "ppo", "k": 25, "decisions": 8_000, "env_steps": 200_000}
    flat = {"algo": "sac", "k": 1, "decisions": 200_000, "env_steps": 200_000}
    rows = [
        row(MAZE, "hierarchical", 0, 0.9, **learnt),
        row(MAZE, "flat-sac", 0, 0.0, **flat),
        row(MAZE, "best-skill", 0, 0.5, **{**learnt, "algo": "selection"}),
    ]
    text = report(tmp_path, trials(*rows))
    assert f"| updates per 1,000 steps | {MAZE} |" in text
    assert "| hierarchical | 3.12 (ppo, k = 25) |" in text  # 1000 / 25 * 10 / 128
    assert "| flat-sac | 125 (sac, k = 1) |" in text
    assert "(selection" not in text


def test_without_a_success_the_flat_arm_needs_the_whole_budget(tmp_path: Path) -> None:
    skills = row(MAZE, "hierarchical", 0, 0.9, pretraining_steps=360_000, first_success=20_000)
    text = report(tmp_path, trials(skills, row(MAZE, "flat", 0, 0.0)))
    assert "| 360,000 | 20,000 | not within the budget | at most 2.0 |" in text
    late = {**skills, "first_success": 130_000}
    text = report(tmp_path, trials(late, row(MAZE, "flat", 0, 0.1, first_success=120_000)))
    assert "| 130,000 | 120,000 | never |" in text


def test_what_a_flat_arm_would_need_is_not_guessed_before_one_has_run(tmp_path: Path) -> None:
    skills = row(MAZE, "hierarchical", 0, 0.9, pretraining_steps=360_000, first_success=20_000)
    text = report(tmp_path, trials(skills, row(MAZE, "untrained", 0, 0.0)))
    assert f"| {MAZE} | 360,000 | 20,000 | – | – |" in text


def test_tasks_that_not_all_arms_have_are_left_out_of_the_whole(tmp_path: Path) -> None:
    rows = [row(MAZE, arm, 0, 0.5) for arm in ("hierarchical", "flat")]
    rows.append(row(ANT, "hierarchical", 0, 0.0, return_mean=5.0))
    text = report(tmp_path, trials(*rows, tasks=(MAZE, ANT)))
    assert "over 1 task |" in text
    assert "| flat | 0.5 [0.5, 0.5] | – |" in text


def test_what_is_paid_by_the_piece_is_also_told_as_a_return(tmp_path: Path) -> None:
    rows = [row(MAZE, "hierarchical", 0, 0.5)]
    assert "return: IQM" not in report(tmp_path, trials(*rows))
    rows.append(row(HURDLES, "hierarchical", 0, 0.0, return_mean=2.5))
    text = report(tmp_path, trials(*rows, tasks=(MAZE, HURDLES)))
    assert f"| score: IQM [95 % interval] | {MAZE} | {HURDLES} |" in text
    assert "| hierarchical | 0.5 [0.5, 0.5] | 0.357 [0.357, 0.357] |" in text
    assert f"| return: IQM [95 % interval] | {HURDLES} |" in text
    assert "| hierarchical | 2.5 [2.5, 2.5] |" in text


def test_where_every_step_is_paid_returns_are_told_and_no_successes(tmp_path: Path) -> None:
    run = "half-cheetah-run"
    rows = [row(task, "hierarchical", 0, 0.0, return_mean=-120.5) for task in (run, MAZE)]
    rows += [row(task, "flat", 0, 0.0, return_mean=80.0) for task in (run, MAZE)]
    text = report(tmp_path, trials(*rows, tasks=(run, MAZE)))
    assert f"| return: IQM [95 % interval] | {run} |\n" in text
    assert "| hierarchical | -120 [-120, -120] |" in text
    assert "| flat | – | 0 [0, 0] |" in text, "no score of it"
    assert "over 1 task |" in text and f"| {run} | 0 |" not in text


def test_an_arm_with_a_library_of_its_own_does_not_count_in_the_whole(tmp_path: Path) -> None:
    rows = [row(MAZE, arm, 0, 0.5) for arm in ("hierarchical", "flat", "oracle")]
    rows += [row(HURDLES, arm, 0, 0.0, return_mean=7.0) for arm in ("hierarchical", "flat")]
    specs = plan_suite((MAZE, HURDLES), ("hierarchical", "flat"), [0])
    text = report(tmp_path, Comparison(tuple(specs), tuple(rows), {}, ()))
    assert "over 2 tasks |" in text and "| oracle | 0.5 [0.5, 0.5] | – |" in text
    assert text.count("| oracle |") == 1


def test_far_goals_are_told_apart_from_near_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    near = np.arange(50) < 30
    monkeypatch.setattr(bands, "shares", lambda task, library, n: np.where(near, 0.5, 2.0))
    rows = [row(FAR, "hierarchical", 0, 0.3, trial="x", solved="1" * 15 + "0" * 35)]
    text = report(tmp_path, trials(*rows, tasks=(FAR,)))
    assert "success by distance, in shares of half-cheetah-metra's reach" in text
    assert "| hierarchical | 0.5 [0.5, 0.5] | – | 0.5 [0.5, 0.5] | – | 0 [0, 0] |" in text


def test_failures_are_named(tmp_path: Path) -> None:
    (spec,) = plan_suite([MAZE], ["flat"], [0])
    text = report(tmp_path, Comparison((spec,), (), {}, ((spec, "its process died"),)))
    assert "0 of 1 trials done, 1 failed" in text and "its process died" in text


def test_the_command_runs_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = f"compare tasks --tasks {MAZE} --arms random-skill zero-shot --seeds 2 --workers 0"
    command = [*words.split(), "--out", str(tmp_path)]
    assert cli.main(command) == 0
    assert "3 of 3 trials done, 0 failed" in capsys.readouterr().out  # zero-shot has no seed
    before = (tmp_path / TRIALS).read_bytes()
    assert cli.main(command) == 0 and (tmp_path / TRIALS).read_bytes() == before
    assert cli.main([*command, "--table-only"]) == 0
    for wrong, near in (("--tasks mazes", "task"), ("--arms flatt", '"flat"')):
        assert cli.main(["compare", "tasks", *wrong.split(), "--out", str(tmp_path)]) == 2
        assert near in capsys.readouterr().err
