"""The benchmark of a single goal: what its arms are told and paid, and that a row is made."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from etude.agents.contrastive import Contrastive
from etude.agents.replay import Batch
from etude.agents.sac import SAC

ROOT = Path(__file__).resolve().parents[2]
MAZE = "point-maze-u"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "bench")
    found = importlib.import_module("single_goal")
    monkeypatch.setattr(found, "RANDOM", 300)
    small = {"random_steps": 300, "warmup_steps": 300, "updates_per_epoch": 3}
    monkeypatch.setattr(found, "LOOP", found.LOOP | small)
    monkeypatch.setattr(found, "AGENT", found.AGENT | {"hidden": [16, 16], "dim": 4})
    return found


def test_an_episode_comes_to_the_goal_where_one_of_its_places_is_near(bench: ModuleType) -> None:
    goal, half = bench.place(MAZE), bench.PointMazeGoal.half_width
    paths = np.tile(goal + 2.0, (4, 3, 1))
    paths[0, 1] = goal + 0.9 * half
    paths[1, 1] = goal + [0.9 * half, 1.1 * half]  # in x only
    paths[2, 2] = goal
    assert bench.there(MAZE, paths).tolist() == [True, False, True, False]


def test_crl_is_told_the_place_of_the_goal_and_sac_is_not(bench: ModuleType) -> None:
    run, skill = bench.prepared(MAZE, "crl", 0, 4_800)
    assert isinstance(run.agent, Contrastive)
    obs = torch.zeros(1, run.env_spec.obs_dim)
    obs[0, :2] = torch.as_tensor(bench.place(MAZE))
    told = run.learner.encode(run.normaliser(obs))
    np.testing.assert_allclose(told[0], skill, rtol=1e-5)
    run, skill = bench.prepared(MAZE, "sac", 0, 4_800)
    assert isinstance(run.agent, SAC) and (skill == 0).all()


def test_two_kinds_of_sac_are_asked_for_their_entropies(bench: ModuleType) -> None:
    wanted = {arm: bench.prepared(MAZE, arm, 0, 4_800)[0].agent for arm in bench.ENTROPY}
    assert wanted["sac"].target_entropy == -2.0  # -|A|, Haarnoja et al. 2018
    assert wanted["sac-random"].target_entropy == 0.0


def test_sac_is_paid_at_the_goal_alone(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = bench.prepared(MAZE, "sac", 0, 4_800)
    goal, half = bench.place(MAZE), bench.PointMazeGoal.half_width
    places = np.zeros((3, run.env_spec.obs_dim), np.float32)
    places[:, :2] = goal + np.array([[0.0, 0.9 * half], [0.0, 1.1 * half], [-2.0, 0.0]])
    next_obs = run.normaliser(torch.as_tensor(places))
    paid: list[tuple[Batch, torch.Tensor]] = []
    monkeypatch.setattr(SAC, "update", lambda self, batch, signal, _: paid.append((batch, signal)))
    batch = Batch(
        obs=next_obs,
        action=torch.zeros(3, 2),
        next_obs=next_obs,
        skill=torch.ones(3, 2),
        terminated=torch.zeros(3),
        time=torch.zeros(3),
    )
    run.agent.update(batch, torch.zeros(3, 1), torch.ones(3, 1))
    ((given, reward),) = paid
    assert reward.squeeze(1).tolist() == given.terminated.tolist() == [1.0, 0.0, 0.0]
    assert (given.skill == 0).all()


@pytest.mark.parametrize("arm", ["crl", "sac-random"])
def test_a_row_is_made_of_a_run(bench: ModuleType, arm: str) -> None:
    row = bench.one(MAZE, arm, 0, 4_800)
    assert list(row) == bench.HEAD
    assert (row["env_steps"], row["updates"]) == (4_800, 6)
    assert (row["hits"] == 0) == (row["first"] == "")
    assert 0 <= row["left"] <= row["left_random"] and row["cells"] > 1
