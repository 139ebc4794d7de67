"""Skill dynamics in a library, and the planner that needs nothing else."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from etude.config import replace
from etude.envs import registry
from etude.errors import LibraryError, UsageError
from etude.evaluate import compare
from etude.evaluate.arms import run_trial
from etude.evaluate.rollouts import rollout_task
from etude.skills import library_files
from etude.skills.compose import ComposeConfig
from etude.skills.controllers.planner import PlannerConfig, PlannerController
from etude.skills.controllers.random import RandomController
from etude.skills.discover_config import preset
from etude.skills.discovery import Discovery
from etude.skills.dynamics import DYNAMICS, SkillDynamics
from etude.skills.export import export
from etude.skills.learners.base import Spec
from etude.skills.learners.dads import Dads
from etude.skills.library import SkillLibrary, write
from etude.skills.library_data import Contents, SetData
from etude.skills.mlp import MLP
from etude.skills.spaces import Cube, Discrete, SkillSpace, Sphere
from etude.skills.vec_env import LibraryLevel

BODY, TASK = "point-open", "point-open-goal"
SPEC = registry.spec(BODY)
STEP = 0.12  # m that the disc moves in a step under a full command
MEAN, STD = np.array([0.5, -1, 0, 2], np.float32), np.array([2, 3, 0.5, 1], np.float32)


def a_set(space: SkillSpace | None = None, **nets: MLP) -> SetData:
    """Skills that walk along z, with the given networks beside them."""
    weight = np.concatenate((np.zeros((4, 2)), 3 * np.eye(2)))
    policy = MLP([(weight, np.zeros(2))], output="tanh")
    return SetData("main", "dads", {}, space or Cube(2), policy, nets, MEAN, STD, [])


def library_of(data: SetData) -> SkillLibrary:
    return SkillLibrary(Contents("walk", SPEC.to_json(), [data]))


def walking() -> MLP:
    """Dynamics with one component: x and y move by STEP z, in units of the normaliser."""
    weight = np.zeros((2, 1 + 2 + 2), np.float32)
    weight[:, 1:3] = np.diag(STEP / STD[:2])
    return MLP([(weight, np.zeros(5))], input_fields=(), output_fields=("x", "y"))


def learned(**settings: object) -> Dads:
    """A learner with a scale of its own and an untrained model with three components."""
    torch.manual_seed(1)
    fields = SPEC.slices()
    config = Dads.Config(**{"hidden": (8,), "components": 3, **settings})  # type: ignore[arg-type]
    learner = Dads(Spec(fields, 4, 2), config)
    x = learner.scale.mean.shape
    learner.scale.mean.copy_(torch.linspace(-0.2, 0.3, *x))
    learner.scale.square.copy_(learner.scale.mean**2 + torch.linspace(0.1, 0.4, *x) ** 2)
    return learner


# ---- dynamics in a library


@pytest.mark.parametrize(
    "settings",
    [
        {"skill_obs": ("x", "y"), "model_obs": "none"},
        {"skill_obs": ("y_velocity", "x"), "model_obs": "chosen"},
        {"skill_obs": ("x",), "model_obs": "all", "components": 1},
        {"dim": 3},
    ],
)
def test_the_library_predicts_what_the_learner_does(
    settings: dict[str, object], tmp_path: Path
) -> None:
    learner = learned(**settings)
    data = a_set(learner.space, **learner.export())
    data = dataclasses.replace(
        data, policy=MLP([(np.zeros((4 + learner.space.dim, 2)), np.zeros(2))], output="tanh")
    )
    path = write(tmp_path / "a", sets=[data], env=SPEC.to_json(), provenance={}, name="a")
    dynamics = SkillDynamics(SkillLibrary.load(path).encoders[DYNAMICS])
    chosen = [SPEC.slices()[name].start for name in dynamics.fields]
    assert dynamics.columns.tolist() == chosen

    rng = np.random.default_rng(0)
    raw, z = rng.normal(size=(6, 4)).astype(np.float32), learner.space.sample(rng, 6)
    change = rng.normal(size=(6, len(chosen)))
    made = dynamics.changes(raw, z)
    obs = torch.from_numpy((raw - MEAN) / STD)
    with torch.no_grad():
        dist = learner.q(obs[:, learner.view], torch.from_numpy(z))
        scaled = learner.scale(torch.from_numpy(change / STD[chosen]).float())
        unit = learner.scale.std.numpy() * STD[chosen]
        log_q = dist.log_prob(scaled).numpy() - np.log(unit).sum()
        mean = (dist.logits.softmax(-1).unsqueeze(-1) * dist.means).sum(-2)
        mean = learner.scale.mean.numpy() * STD[chosen] + mean.numpy() * unit
    each = -0.5 * ((change[:, None] - made.means) / made.std[:, None]) ** 2
    each = each.sum(2) - np.log(made.std * math.sqrt(2 * math.pi)).sum(1, keepdims=True)
    share = made.logits - np.log(np.exp(made.logits).sum(1, keepdims=True))
    np.testing.assert_allclose(np.log(np.exp(share + each).sum(1)), log_q, atol=1e-4)
    np.testing.assert_allclose(made.mean, mean, atol=1e-5)
    after = dynamics.step(raw, z)
    np.testing.assert_allclose(after[:, chosen], raw[:, chosen] + mean, atol=1e-5)
    rest = [i for i in range(4) if i not in chosen]
    np.testing.assert_array_equal(after[:, rest], raw[:, rest])


def test_only_libraries_with_dynamics_are_of_format_1_2(tmp_path: Path) -> None:
    for name, data, schema in (("a", a_set(dynamics=walking()), "1.2"), ("b", a_set(), "1.0")):
        path = write(tmp_path / name, sets=[data], env=SPEC.to_json(), provenance={}, name=name)
        index = json.loads((path / library_files.INDEX).read_text())
        assert index["schema"] == schema
        assert [*index["sets"][0]["encoders"]] == [*data.encoders]
    again = library_files.write(tmp_path / "c", library_files.read(tmp_path / "a"))
    for path in (tmp_path / "a").iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes()


def other(**changes: Any) -> Callable[[], SetData]:
    return lambda: a_set(dynamics=dataclasses.replace(walking(), **changes))


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (
            other(output_fields=("x", "y", "x_velocity")),
            r"5 outputs .* of 3 entries: .* C \(1 \+ 3\)",
        ),
        (other(output_fields=()), "no dynamics of 0 entries"),
        (other(weights=[(np.zeros((2, 2)), np.zeros(2))]), "2 outputs are no dynamics of 2"),
        (other(output_fields=("x", "z")), 'unknown observation field "z"'),
        (lambda: dataclasses.replace(a_set(), policy=walking()), "needs 2 tanh outputs"),
        (
            lambda: dataclasses.replace(
                a_set(), policy=dataclasses.replace(a_set().policy, output_fields=("x",))
            ),
            "the policy predicts, it does not act",
        ),
    ],
)
def test_dynamics_that_fit_nothing_are_refused(make: Callable[[], SetData], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        library_of(make())


def test_the_untrained_control_has_untrained_dynamics() -> None:
    fresh = SkillDynamics(library_of(a_set(dynamics=walking())).untrained(0).encoders[DYNAMICS])
    made = fresh.changes(np.zeros((2, 4)), np.eye(2))
    assert (made.std > 0).all() and np.abs(made.mean - STEP * np.eye(2)).max() > 0.01


# ---- the planner


def planner(
    data: SetData | None = None, task: str = TASK, k: int = 10, seed: int = 0, **settings: Any
) -> PlannerController:
    library = library_of(data or a_set(dynamics=walking()))
    return PlannerController(library, registry.spec(task), k, seed, PlannerConfig(**settings))


def at(place: Any, goal: Any) -> np.ndarray:
    """Observations (N, 6) of the task, at rest."""
    rows = np.zeros((len(place), 6), np.float32)
    rows[:, :2], rows[:, 4:] = place, goal
    return rows


@pytest.mark.parametrize("horizon", [1, 3])
def test_it_goes_to_the_goal_and_stops_there(horizon: int) -> None:
    obs = at([[0, 0], [1, 1], [-2, 0], [3, -3]], [[4, 4], [1, -4], [-1.5, 0.2], [3, -3]])
    controller = planner(horizon=horizon, spread=1.0)
    controller.reset(obs)
    first = controller.act(obs)
    assert first.shape == (4, 2) and controller.act(obs).dtype == np.float32
    np.testing.assert_allclose(first[0], [1, 1], atol=0.15)
    np.testing.assert_allclose(first[1], [0, -1], atol=0.25)
    assert np.abs(first[3]).max() < 0.15  # it is there
    for _ in range(12):
        obs[:, :2] += 10 * STEP * controller.act(obs)
    assert np.linalg.norm(obs[:, :2] - obs[:, 4:], axis=1).max() < 0.3


def test_it_chooses_skills_of_the_library_s_own_space() -> None:
    obs = at([[0, 0]], [[3, 4]])
    controller = planner(a_set(Sphere(2), dynamics=walking()))
    controller.reset(obs)
    np.testing.assert_allclose(controller.act(obs), [[0.6, 0.8]], atol=0.1)
    assert Sphere(2).contains(controller.act(obs))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"horizon": 4, "smoothing": 0.3, "refinements": 2},
        {"candidates": 7, "gamma": 0.5, "spread": 0.2, "refinements": 3},
    ],
)
def test_it_refines_as_numpy_does(settings: dict[str, Any]) -> None:
    """Every number of two decisions, the second from what the first has left."""
    c, k = PlannerConfig(**settings), 3
    rng, obs = np.random.default_rng(5), at([[0, 0], [2, 1]], [[1, -3], [2.2, 1]])
    plans = [np.zeros((c.horizon, 2)) for _ in obs]
    controller = planner(k=k, seed=5, **settings)
    controller.reset(obs)
    for _ in range(2):
        chosen = controller.act(obs)
        for _ in range(c.refinements):
            drawn = rng.normal(0, c.spread, (c.candidates, len(obs), c.horizon, 2))
            for n, row in enumerate(obs.astype(np.float64)):
                weights, tried = [], []
                for j in range(c.candidates):
                    before, sequence = np.zeros(2), []
                    for h in range(c.horizon):
                        before = c.smoothing * drawn[j, n, h] + (1 - c.smoothing) * before
                        sequence.append(np.clip(plans[n][h] + before * (j > 0), -1, 1))
                    place, cost = row[:2].copy(), 0.0
                    for z in sequence:
                        for _ in range(k):
                            place += STEP * z
                            cost += math.dist(place, row[4:])
                    tried.append(np.array(sequence))
                    weights.append(math.exp(-c.gamma * cost / (k * c.horizon)))
                plans[n] = np.average(tried, 0, weights)
        np.testing.assert_allclose(chosen, [plan[0] for plan in plans], atol=1e-5)
        plans = [np.concatenate((plan[1:], plan[-1:])) for plan in plans]


def test_a_reset_forgets_and_a_seed_repeats() -> None:
    obs = at([[0, 0]] * 3, [[1, 1], [0.2, 0], [-3, 2]])
    first, same, another = planner(), planner(), planner(seed=1)
    for controller in (first, same, another):
        controller.reset(obs)
    chosen = first.act(obs)
    np.testing.assert_array_equal(chosen, same.act(obs))
    assert not np.array_equal(chosen, another.act(obs))
    first.reset(obs[:1])
    assert first.act(obs[:1]).shape == (1, 2)


def test_what_cannot_be_planned_is_refused() -> None:
    speeds = dataclasses.replace(walking(), output_fields=("x_velocity", "y_velocity"))
    one_hot = a_set(Discrete(2), dynamics=walking())
    for given, match in (
        ({"data": a_set()}, 'set "main" of library walk has no encoder "dynamics"'),
        ({"task": BODY}, 'planner controller needs a field "goal" with x, y'),
        ({"data": a_set(dynamics=speeds)}, "predict x_velocity, y_velocity, the goal is in x, y"),
        ({"data": one_hot}, "are discrete: choose continuous ones"),
    ):
        with pytest.raises(UsageError, match=match):
            planner(**given)  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    data = a_set(dynamics=walking())
    env, provenance = SPEC.to_json(), {"steps": 5000}
    return write(tmp_path / "walk", sets=[data], env=env, provenance=provenance, name="walk")


def test_the_arm_of_a_comparison_finds_the_goals_without_a_step_of_training(folder: Path) -> None:
    def row(arm: str, seed: int = 0) -> dict[str, Any]:
        config = ComposeConfig(k=10)
        plan = compare.plan(folder, TASK, config, arms=[arm], seeds=[seed], episodes=30)
        return run_trial(plan[0])

    made = row("planner")
    assert made["success_rate"] == 1.0 and row("random-skill")["success_rate"] < 0.5
    assert (made["env_steps"], made["decisions"], made["k"]) == (0, 0, 10)
    assert (made["pretraining_steps"], made["library"] != "none") == (5000, True)
    assert row("planner")["steps_mean"] == made["steps_mean"] != row("planner", 1)["steps_mean"]


def test_the_arm_says_why_it_is_not_possible(tmp_path: Path) -> None:
    path = write(tmp_path / "b", sets=[a_set()], env=SPEC.to_json(), provenance={}, name="b")
    (spec,) = compare.plan(path, TASK, ComposeConfig(), arms=["planner"], seeds=[0])
    with pytest.raises(UsageError, match='no encoder "dynamics"'):
        run_trial(spec)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"kind": "mlp"}, "unknown entry 'output_fields'"),
        ({"output_fields": ["x", "x"]}, "predicts a field twice"),
        ({"output_fields": []}, "no dynamics of 0 entries"),
        ({"output_fields": "x" * 65}, "no dynamics of|unknown observation field|twice"),
        ({"output_fields": ["x" * 65, "y"]}, "at most 64"),
        ({"output_fields": None}, "dynamics"),
        ({"output_fields": 3}, "malformed"),
    ],
)
def test_a_damaged_head_of_dynamics_is_refused(
    folder: Path, changes: dict[str, Any], match: str
) -> None:
    files, _ = library_files.verify(folder)
    index = json.loads(files[library_files.INDEX])
    index["sets"][0]["encoders"][DYNAMICS].update(changes)
    (folder / library_files.INDEX).write_text(json.dumps(index))
    sizes = json.loads((folder / library_files.MANIFEST).read_text())
    data = (folder / library_files.INDEX).read_bytes()
    digest = library_files.hashlib.sha256(data).hexdigest()
    sizes["files"][library_files.INDEX] = {"size": len(data), "sha256": digest}
    (folder / library_files.MANIFEST).write_text(json.dumps(sizes))
    with pytest.raises(LibraryError, match=match):
        SkillLibrary.load(folder)


# ---- the whole way


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_skills_of_dads_reach_goals_of_the_open_arena_by_planning(
    seed: int, tmp_path: Path
) -> None:
    """Without a step of training downstream; random skills of the same library do not."""
    run = Discovery(replace(preset("dads", BODY), {"seed": seed, "steps": 24_000}))
    run.run()
    library = SkillLibrary.load(export(run, tmp_path / "library", {"command": "test"}))
    level, task = LibraryLevel(library), registry.spec(TASK)
    for k in (10, 25):
        made = rollout_task(TASK, level, PlannerController(library, task, k, seed), k)
        chance = rollout_task(TASK, level, RandomController(library, task, seed), k)
        assert made.success_rate is not None and chance.success_rate is not None
        assert made.success_rate >= 0.8 > 0.4 > chance.success_rate
