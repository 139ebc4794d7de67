"""Controllers without training, from the command line down; skills that walk, nothing is learnt."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from etude import cli
from etude.cli.compose import arms
from etude.envs import registry
from etude.errors import LibraryError, UsageError
from etude.evaluate.compare import plan
from etude.evaluate.rollouts import library_for
from etude.evaluate.trials import untrained
from etude.evaluate.trials.untrained import CONTROLLERS, SEED, Given, judge
from etude.skills import library_files
from etude.skills.compose import ComposeConfig
from etude.skills.controllers.best_skill import OneSkillController
from etude.skills.controllers.practice import Practised
from etude.skills.library import MLP, SetData, SkillLibrary
from etude.skills.library_data import Contents
from etude.skills.spaces import Discrete, SkillSpace, Sphere

TASK, FOUR = "point-open-goal", Discrete(4)


@pytest.fixture
def walkers(tmp_path: Path) -> Path:
    """Four discrete skills that walk along the axes, with features, rows and no dynamics."""
    return write(tmp_path / "walkers", "point-open")


def write(path: Path, body: str, space: SkillSpace = FOUR, features: str = "phi") -> Path:
    spec, ways = registry.spec(body), np.array([[1, 0], [0, 1], [-1, 0], [0, -1]])
    width = sum(field.dim for field in spec.fields)
    weights = np.concatenate([np.zeros((width, 2)), 3 * ways])
    policy = MLP([(weights, np.zeros(2))], output="tanh")
    phi = MLP([(ways.T, np.zeros(4))], inputs=("obs",), input_fields=("x", "y"))
    rows = [{"id": i, "z": z} for i, z in enumerate(np.eye(4))]
    normaliser = np.zeros(width), np.ones(width)
    data = SetData("main", "none", {}, space, policy, {features: phi}, *normaliser, rows)
    return library_files.write(path, Contents("walkers", spec.to_json(), [data]))


def compose(library: Path, out: Path, *options: str, task: str = TASK) -> int:
    return cli.main(["compose", str(library), "--task", task, "--out", str(out), *options])


def rows_of(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((out / "trials.csv").read_text().splitlines()))


@pytest.mark.parametrize(
    ("controller", "task", "options", "steps"),
    [
        ("zero-shot", TASK, (), 0),
        ("random-skill", TASK, (), 0),
        ("best-skill", TASK, ("--env-steps", "3200"), 800),
        ("programmatic", TASK, (), 0),
        ("reward-regression", "point-nav", ("--env-steps", "1600", "--k", "5"), 1600),
    ],
)
def test_each_is_judged_with_each_seed(
    controller: str,
    task: str,
    options: tuple[str, ...],
    steps: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    library = write(tmp_path / "walkers", registry.spec(task).body)
    out = tmp_path / "out"
    asked = ("--controller", controller, "--seeds", "2", *options)
    assert compose(library, out, *asked, task=task) == 0
    rows = rows_of(out)
    assert [row["seed"] for row in rows] == ["0", "1"]
    assert {(row["task"], row["controller"], row["episodes"]) for row in rows} == {
        (task, controller, "50")
    }
    assert all(int(row["env_steps"]) >= steps for row in rows)
    report = json.loads((out / "report.json").read_text())
    assert [trial["seed"] for trial in report["trials"]] == [0, 1]
    assert controller in report["provenance"]["command"]
    assert f"{task}, {controller}, seed 1: success" in capsys.readouterr().out


def trial(library: Path, controller: str, task: str = TASK, **settings: Any) -> Any:
    seed, config = settings.get("seed", 0), ComposeConfig(**settings)
    (spec,) = plan(str(library), task, config, arms=["hierarchical"], seeds=(seed,))
    return type(spec)(**{**vars(spec), "arm": controller, "episodes": 8})


def test_zero_shot_goes_to_the_goal_and_random_skills_do_not(walkers: Path) -> None:
    rates = {
        name: judge(trial(walkers, name))["success_rate"] for name in ("zero-shot", "random-skill")
    }
    assert rates["zero-shot"] == 1.0 > rates["random-skill"]


@pytest.mark.parametrize("features", ["phi", "features"])
def test_a_reward_is_regressed_on_what_skills_do_to_phi(features: str, tmp_path: Path) -> None:
    """They move it, or lead to where it is: the library says which, and the command follows."""
    path = write(tmp_path / "lib", registry.spec("point-nav").body, Sphere(4), features)
    options = ("--controller", "reward-regression", "--env-steps", "800", "--k", "5")
    assert compose(path, tmp_path / "out", *options, task="point-nav") == 0
    spec = trial(path, "reward-regression", "point-nav", env_steps=800)
    library = SkillLibrary.load(path)
    controller: Any = CONTROLLERS["reward-regression"].make(spec, library, Given()).controller
    before, after = np.random.default_rng(0).normal(size=(2, 9, library.data.mean.size))
    moved = library.encode(after) - library.encode(before)
    expected = moved if features == "phi" else library.encode(after)
    np.testing.assert_array_equal(controller.features(before, after), expected)
    assert library.space.contains(controller.z)


def test_a_program_is_read_from_its_file(walkers: Path, tmp_path: Path) -> None:
    """Its only rule may begin nowhere, so it was read; the library's rows may begin anywhere."""
    file = tmp_path / "rules.json"
    file.write_text(json.dumps([{"skill": 3, "initiation": {"field": "y", "above": 99}}]))
    with pytest.raises(UsageError, match="no rule may begin"):
        judge(trial(walkers, "programmatic"), Given(program=file))
    assert judge(trial(walkers, "programmatic"))["episodes"] == 8


def test_the_automaton_is_the_tasks_own_or_a_pattern(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def instead(library: Any, task: str, automaton: Any, labels: Any, how: Any) -> Any:
        asked.append((automaton, sorted(labels), how.seed))
        return Practised(OneSkillController(library.space.even(1)[0]), 0.5, 77)  # type: ignore[arg-type]

    monkeypatch.setattr(untrained, "practise", instead)
    spec = trial(Path("reacher-oracle"), "automaton", "reacher-sequence", seed=3)
    rows = [judge(spec), judge(spec, Given(logic="(b | d) c"))]
    assert [row["env_steps"] for row in rows] == [77, 77]
    (own, labels, seed), (other, *_) = asked
    assert labels == ["a", "b", "c", "d"] and seed == SEED + 3000
    assert own.accepts("abc") and not own.accepts("adbc")
    assert other.accepts("dc") and not other.accepts("abc") and not other.accepts("adc")


@pytest.mark.slow
def test_a_task_in_logic_is_done_without_training() -> None:
    """A, then B, then C, never D, with directions of the fingertip: a flat agent never does it."""
    spec = trial(Path("reacher-oracle"), "automaton", "reacher-sequence")
    found = judge(type(spec)(**{**vars(spec), "episodes": 50}))
    assert found["success_rate"] >= 0.8
    assert found["env_steps"] > 100_000


def test_what_is_not_possible_is_said(
    walkers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for options, words in (
        (("--controller", "zero-shoot"), 'did you mean "zero-shot"'),
        (("--controller", "automaton"), "choose one of reacher-sequence"),
        (("--controller", "zero-shot", "--baselines", "flat"), "give one of them"),
        (("--controller", "planner"), "dynamics"),
        (("--controller", "reward-regression", "--env-steps", "160"), "the reward is the same"),
    ):
        out = tmp_path / options[1] / str(len(options))
        assert compose(walkers, out, *options) == 2, options
        assert words in capsys.readouterr().err
    with pytest.raises(UsageError, match="controller without training"):
        judge(trial(walkers, "flat"))


def test_all_baselines_are_those_that_the_library_allows(walkers: Path) -> None:
    found = arms("all", SkillLibrary.load(walkers))
    assert "planner" not in found and {"hierarchical", "zero-shot", "flat"} <= {*found}
    assert arms(("planner",), SkillLibrary.load(walkers)) == ["hierarchical", "planner"]


def test_a_library_is_opened_for_a_task_of_its_body(walkers: Path) -> None:
    assert library_for(TASK, str(walkers)).name == "walkers"
    with pytest.raises(UsageError, match='unknown task "point-open-gaol": did you mean'):
        library_for("point-open-gaol", str(walkers))
    with pytest.raises(LibraryError, match="choose an environment with the same body"):
        library_for("half-cheetah-goal", str(walkers))


def test_help_names_them(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["compose", "--help"])
    text = capsys.readouterr().out
    assert all(name in text for name in CONTROLLERS) and "--logic" in text
