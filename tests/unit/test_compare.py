"""Arms and their trials: the right budgets, a row for each, and no trial takes others along."""

from __future__ import annotations

import functools
import operator
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from etude.agents.meta import MetaConfig, Point, Stats
from etude.envs import registry
from etude.errors import LibraryError, UsageError
from etude.evaluate import arms, compare
from etude.evaluate.arms import ARMS, COMMON, TrialSpec, run_trial
from etude.evaluate.rollouts import rollout_task
from etude.evaluate.trials import pool
from etude.skills.compose import ComposeConfig
from etude.skills.controllers.best_skill import OneSkillController
from etude.skills.controllers.goal_direction import GoalDirectionController
from etude.skills.library import SkillLibrary, write
from etude.skills.library_data import SetData
from etude.skills.mlp import MLP
from etude.skills.spaces import Discrete, SkillSpace, Sphere
from etude.skills.vec_env import LibraryLevel, PrimitiveLevel

BODY, TASK = "point-maze-u", "point-maze-u-goal"
CONFIG = ComposeConfig(env_steps=8000, k=10, num_envs=4)


def compass(folder: Path, body: str = BODY, space: SkillSpace | None = None) -> Path:
    """A library whose skills are the directions of the plane, with phi = place."""
    spec, space = registry.spec(body), space or Sphere(2)
    ways = np.eye(2) if isinstance(space, Sphere) else np.array([[1, 0], [-1, 0], [0, 1.0]])
    policy = MLP([(np.vstack([np.zeros((4, 2)), 3 * ways]), np.zeros(2))], output="tanh")
    place = MLP([(np.eye(4, 2), np.zeros(2))], inputs=("obs",))
    encoders = {"phi": place} if isinstance(space, Sphere) else {}
    data = SetData("compass", "compass", {}, space, policy, encoders, np.zeros(4), np.ones(4), [])
    env = spec.to_json()
    return write(folder, sets=[data], env=env, provenance={"steps": 5000}, name="compass")


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Path:
    return compass(tmp_path_factory.mktemp("zoo") / "compass")


def spec_of(library: Path, arm: str, **changes: object) -> TrialSpec:
    return compare.plan(library, TASK, CONFIG, arms=[arm], seeds=[3], **changes)[0]


# ---- the plan


def test_the_plan_goes_seed_by_seed(library):
    specs = compare.plan(library, TASK, CONFIG, arms=["flat", "zero-shot"], seeds=[4, 5])
    # an arm without learning and without chance has one trial, whatever the seeds
    assert [(s.arm, s.config.seed) for s in specs] == [("flat", 4), ("zero-shot", 4), ("flat", 5)]
    assert {s.pretraining_steps for s in specs} == {5000}
    assert {s.library_id for s in specs} == {SkillLibrary.load(library).id}
    whole = compare.plan(library, TASK, CONFIG)
    assert len(whole) == 3 * len(COMMON) - 2
    assert len({s.key for s in whole}) == len(whole)


def test_a_trial_is_known_by_what_its_result_depends_on(library, tmp_path):
    first = spec_of(library, "flat")
    assert first.key.startswith("flat-s3-")
    moved = spec_of(compass(tmp_path / "compass"), "flat")
    assert moved.library != first.library
    assert moved.key == first.key
    others = [
        spec_of(library, "flat", episodes=7),
        spec_of(library, "flat", flat_algo="sac"),
        *compare.plan(library, TASK, ComposeConfig(gamma=0.9), arms=["flat"], seeds=[3]),
    ]
    assert len({first.key, *(s.key for s in others)}) == 4


def test_an_arm_may_have_a_library_of_its_own(library, tmp_path):
    assert [name for name in ARMS if name not in COMMON] == ["oracle", "oracle-zero-shot", "diayn"]
    second = compass(tmp_path / "second", space=Discrete(3))
    named = {"oracle": str(second)}
    plan = functools.partial(compare.plan, library, TASK, CONFIG, seeds=[3])
    first, oracle = plan(arms=["hierarchical", "oracle"], libraries=named)
    assert (first.library, oracle.library) == (str(library), str(second))
    assert oracle.library_id == SkillLibrary.load(second).id != first.library_id
    assert first.key == plan(arms=["hierarchical"])[0].key  # which others there are is no matter
    same = plan(arms=["oracle"], libraries={"oracle": str(library)})[0]
    assert same.key != oracle.key
    with pytest.raises(UsageError, match='arm "oracle" has a library of its own'):
        plan(arms=["oracle"])
    with pytest.raises(LibraryError, match='move the body "half-cheetah"'):
        plan(arms=["oracle"], libraries={"oracle": "half-cheetah-metra"})


def test_flat_arms_take_an_algorithm_for_continuous_actions(library):
    for algo, flat in (("ppo", "ppo"), ("sac", "sac"), ("dqn", "ppo"), ("maskable-ppo", "ppo")):
        plan = compare.plan(library, TASK, ComposeConfig(algo=algo), arms=["flat"])
        assert plan[0].flat_algo == flat


def test_what_cannot_be_compared_is_refused(library):
    with pytest.raises(UsageError, match='unknown arm "flatt": did you mean "flat"'):
        compare.plan(library, TASK, CONFIG, arms=["flatt"])
    with pytest.raises(UsageError, match="in memory only"):
        compare.plan(SkillLibrary.load(library).untrained(0), TASK, CONFIG)
    with pytest.raises(LibraryError, match='has the body "half-cheetah"'):
        compare.plan(library, "half-cheetah-goal", CONFIG)


# ---- the arms


def fake_training(calls: list[tuple]) -> SimpleNamespace:
    """`compose` and `flat` that train nothing and note what they were asked."""

    def trained(level: object, config: ComposeConfig) -> SimpleNamespace:
        curve = (Point(100, None, 0.0), Point(200, 0.25, 0.5))
        stats = Stats(config.env_steps, 7, 2, 0.1, 150, curve)
        still = OneSkillController(np.zeros(2, np.float32))
        return SimpleNamespace(level=level, controller=still, config=config, stats=stats)

    def compose(
        lib: SkillLibrary, task: str, config: ComposeConfig, *, keeper: None
    ) -> SimpleNamespace:
        calls.append((lib, task, config))
        return trained(LibraryLevel(lib), config)

    def flat(task: str, config: ComposeConfig, *, keeper: None) -> SimpleNamespace:
        calls.append((None, task, config))
        return trained(PrimitiveLevel(2), config)

    return SimpleNamespace(compose=compose, flat=flat)


@pytest.mark.parametrize(
    ("arm", "k", "env_steps", "cost"),
    [
        ("hierarchical", 10, 8000, 5000),
        ("untrained", 10, 8000, 0),
        ("flat", 1, 8000, 0),
        ("flat-long", 1, 13000, 0),
        ("action-repeat", 10, 8000, 0),
    ],
)
def test_every_arm_that_learns_gets_its_budget(arm, k, env_steps, cost, library, monkeypatch):
    calls: list[tuple] = []
    fake = fake_training(calls)
    monkeypatch.setattr(arms, "compose", fake.compose)
    monkeypatch.setattr(arms, "flat", fake.flat)
    row = run_trial(spec_of(library, arm, episodes=2))
    ((lib, task, config),) = calls
    assert (task, config.k, config.env_steps, config.seed) == (TASK, k, env_steps, 3)
    assert (config.num_envs, config.gamma) == (4, CONFIG.gamma)
    assert (row["arm"], row["seed"], row["k"], row["env_steps"]) == (arm, 3, k, env_steps)
    assert (row["pretraining_steps"], row["episodes"], row["first_success"]) == (cost, 2, 150)
    assert row["curve"][1] == {"env_steps": 200, "success": 0.25, "episode_return": 0.5}
    own = SkillLibrary.load(library)
    if arm == "untrained":
        assert (lib.id, row["library"]) == ("", "untrained")
        obs, z = np.ones((1, 4)), np.array([[1.0, 0.0]])
        assert np.abs(lib.act(obs, z) - own.act(obs, z)).max() > 0.1
    elif arm == "hierarchical":
        assert lib.id == own.id
        assert row["library"] == own.id[:12]
    else:
        assert lib is None
        assert (row["library"], row["effective_skills"]) == ("none", None)


def test_arms_that_do_not_learn_take_no_steps(library):
    for arm in ("random-skill", "random-action", "zero-shot"):
        row = run_trial(spec_of(library, arm, episodes=4))
        assert (row["env_steps"], row["decisions"], row["curve"]) == (0, 0, ())
        assert row["k"] == (1 if arm == "zero-shot" else 10)
        assert 0 <= row["success_rate"] <= 1
        assert [int(digit) for digit in row["solved"]].count(1) == 4 * row["success_rate"]
        assert row["pretraining_steps"] == (0 if arm == "random-action" else 5000)
        again = run_trial(spec_of(library, arm, episodes=4))
        assert {**row, "seconds": 0} == {**again, "seconds": 0}
    lib = SkillLibrary.load(library)
    pointing = GoalDirectionController(lib, registry.spec(TASK))
    made = rollout_task(TASK, LibraryLevel(lib), pointing, 1, episodes=4)
    assert row["steps_mean"] == made.lengths.mean()


def test_the_best_skill_is_chosen_within_the_budget_and_judged_elsewhere(tmp_path, monkeypatch):
    library = compass(tmp_path / "three", space=Discrete(3))
    asked = []

    def fake(task, level, controller, k, *, episodes, seed=10_000):
        z = controller.act(np.zeros((episodes, 6)))
        asked.append((z[0].tolist(), k, episodes, seed))
        lengths = np.full(episodes, 5)
        commands = np.tile(z[:, None], (1, 2, 1))
        return SimpleNamespace(
            success=np.zeros(episodes, bool),
            returns=np.full(episodes, z[0] @ [0, 3, 1]),
            lengths=lengths,
            success_rate=0.0,
            commands=commands,
        )

    monkeypatch.setattr(arms, "rollout_task", fake)
    row = run_trial(spec_of(library, "best-skill", episodes=2))
    *tried, judged = asked
    assert [z for z, *_ in tried] == np.eye(3).tolist()
    # 8000 steps pay for 8 episodes of 300 steps with each of three skills
    assert {(k, episodes, seed) for _, k, episodes, seed in tried} == {(10, 8, 23_000)}
    assert judged == ([0.0, 1.0, 0.0], 10, 2, 10_000)
    assert (row["env_steps"], row["effective_skills"]) == (3 * 8 * 5, 1.0)
    poor = compare.plan(library, TASK, ComposeConfig(env_steps=899), arms=["best-skill"])[0]
    with pytest.raises(UsageError, match="env_steps = 900 or more"):
        run_trial(poor)


def test_an_arm_that_is_not_possible_says_why(tmp_path):
    library = compass(tmp_path / "three", space=Discrete(3))
    with pytest.raises(LibraryError, match='no encoder "phi"'):
        run_trial(spec_of(library, "zero-shot", episodes=2))


def test_a_real_trial_learns_something(library):
    config = ComposeConfig(
        env_steps=600, k=10, num_envs=4, hyper=MetaConfig(rollout=16, epochs=1, batch_size=8)
    )
    (spec,) = compare.plan(library, TASK, config, arms=["hierarchical"], seeds=[0], episodes=3)
    row = run_trial(spec)
    assert 600 <= row["env_steps"] < 700
    assert row["decisions"] >= 60
    assert row["algo"] == "ppo"
    assert row["effective_skills"] >= 1


# ---- running them


def fake_row(spec: TrialSpec) -> dict[str, object]:
    if spec.arm == "flat" and spec.config.seed == 1:
        raise ValueError("no luck")
    if spec.arm == "zero-shot":
        raise LibraryError("this library has no phi.")
    point = {"env_steps": 10, "success": None, "episode_return": 0.5}
    return {
        "trial": spec.key,
        "arm": spec.arm,
        "seed": spec.config.seed,
        "success_rate": 0.5,
        "return_mean": float(spec.config.seed),
        "first_success": None,
        "library": "123456789012",
        "seconds": 1.25,
        "curve": (point, {**point, "env_steps": 20, "success": 0.5}),
    }


def test_trials_end_as_rows_and_are_not_run_twice(library, tmp_path, monkeypatch, caplog):
    ran: list[str] = []

    def trial(spec: TrialSpec) -> dict[str, object]:
        ran.append(spec.key)
        return fake_row(spec)

    monkeypatch.setattr(compare, "run_trial", trial)
    names = ["hierarchical", "flat", "zero-shot"]
    specs = compare.plan(library, TASK, CONFIG, arms=names, seeds=[0, 1])
    notes: list[tuple[int, int, str]] = []
    first = compare.compare(
        specs, tmp_path / "out", workers=0, progress=lambda *note: notes.append(note)
    )
    assert [(r["arm"], r["seed"]) for r in first.rows] == [
        ("hierarchical", 0),
        ("flat", 0),
        ("hierarchical", 1),
    ]
    assert [n[:2] for n in notes] == [(i, 5) for i in range(1, 6)]
    assert notes[0][2] == "hierarchical, seed 0: success 50% (1 s)"
    assert [(s.arm, why) for s, why in first.failures] == [
        ("zero-shot", "this library has no phi."),
        ("flat", "ValueError: no luck"),
    ]
    assert [r.levelname for r in caplog.records] == ["WARNING"]  # only what nobody expects
    row = first.rows[0]
    assert (row["success_rate"], row["first_success"], row["seconds"]) == (0.5, None, 1.25)
    assert row["library"] == "123456789012"  # text, although it looks like a number
    assert [p["success"] for p in first.curves[row["trial"]]] == [None, 0.5]
    assert first.values("return_mean") == {"hierarchical": [0.0, 1.0], "flat": [0.0]}
    assert first.values("first_success") == {}

    ran.clear()
    again = compare.compare(specs, tmp_path / "out", workers=0)
    assert len(ran) == 2  # those without a row
    assert again.rows == first.rows


def test_what_was_cut_off_is_run_again(library, tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "run_trial", fake_row)
    specs = compare.plan(library, TASK, CONFIG, arms=["hierarchical"], seeds=[0, 2])
    whole = compare.compare(specs, tmp_path, workers=0)
    table = tmp_path / compare.TRIALS
    table.write_text(table.read_text()[:-30])  # the last row was not written to its end
    found = compare.compare(specs, tmp_path, workers=0)
    assert found.rows == whole.rows
    assert found.curves == whole.curves  # its curve is there twice, and read once


def test_a_table_with_other_columns_is_not_added_to(library, tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "run_trial", fake_row)
    specs = compare.plan(library, TASK, CONFIG, arms=["hierarchical"], seeds=[0])
    (tmp_path / compare.TRIALS).write_text("trial,arm\nx,flat\n")
    with pytest.raises(UsageError, match="other columns"):
        compare.compare(specs, tmp_path, workers=0)


def test_a_process_that_dies_takes_no_trial_with_it():
    jobs = [
        functools.partial(os._exit, 3),
        functools.partial(pow, 2, 5),
        functools.partial(int, "x"),
    ]
    before = dict(os.environ)
    found = {}
    for job, result in pool.run_all(jobs, operator.call, 1):
        found[jobs.index(job)] = result
    assert found[1] == 32
    assert isinstance(found[0], pool.BrokenProcessPool)
    assert isinstance(found[2], ValueError)
    assert dict(os.environ) == before


@pytest.mark.slow
def test_trials_in_processes_of_their_own(library, tmp_path):
    specs = compare.plan(
        library, TASK, CONFIG, arms=["random-action", "zero-shot"], seeds=[0, 1], episodes=3
    )
    found = compare.compare(specs, tmp_path, workers=2)
    assert found.failures == ()
    here = {spec.key: run_trial(spec) for spec in specs}
    for row in found.rows:
        assert row["steps_mean"] == here[row["trial"]]["steps_mean"]
