"""What bench/empowerment.py measures, on plans that are known, and its baseline."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from etude.agents.replay import Jumps
from etude.config import replace
from etude.envs import registry
from etude.envs.testbeds.worlds import COMPASS
from etude.skills.discovery import Discovery, preset
from etude.skills.learners.base import Spec
from etude.skills.learners.lpe import Lpe

ROOT = Path(__file__).resolve().parents[2]
TINY: dict[str, Any] = {
    "steps": 512,
    "method": {"hidden": (16,), "particles": 16, "codes": 8, "model_first": 1},
    "loop": {"num_envs": 64, "warmup_steps": 128, "updates_per_epoch": 2, "batch_size": 32},
}


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "bench")
    monkeypatch.setattr(registry, "TESTBEDS", dict(registry.TESTBEDS))
    return importlib.import_module("empowerment")


@pytest.mark.parametrize("case", ["corner", "rooms"])
def test_the_information_is_that_of_the_moves_that_plans_mean(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    """Every block equally often: the column `uniform`; one block alone: nothing."""
    registry.TESTBEDS |= bench.WORLDS
    trained = bench.prepare(bench.CASES[case], 0, **TINY)
    blocks = np.arange(bench.SKILLS) % 25
    plans = COMPASS[np.stack([blocks // 5, blocks % 5], axis=1)].astype(np.float32)
    monkeypatch.setattr(trained, "plan", lambda *_, **__: plans)
    found = bench.measure(trained, "corner")
    assert float(found["information"]) == pytest.approx(float(found["uniform"]), abs=1e-3)
    assert float(found["uniform"]) == pytest.approx(1.4646, abs=1e-4)
    assert float(found["capacity"]) == pytest.approx(math.log(6), abs=1e-4)
    plans = np.broadcast_to(COMPASS[[1, 3]], plans.shape).astype(np.float32)
    assert float(bench.measure(trained, "corner")["information"]) == 0


@pytest.mark.parametrize("case", ["corner", "corner, frozen", "corner, reconstruction"])
def test_a_case_trains_what_it_says(bench: ModuleType, case: str) -> None:
    registry.TESTBEDS |= bench.WORLDS
    trained = bench.prepare(bench.CASES[case], 0, **TINY)
    assert type(trained.learner) is bench.CASES[case].learner
    before = [p.clone() for p in trained.learner.pi.parameters()]
    trained.run()
    same = all(
        torch.equal(a, b) for a, b in zip(before, trained.learner.pi.parameters(), strict=True)
    )
    assert same == (case == "corner, frozen")
    found = bench.measure(trained, "corner")
    limit = float(found["capacity"]) + 3 * float(found["J_error"])
    assert float(found["J"]) <= float(found["information"]) + 3 * float(found["J_error"]) <= limit


@pytest.mark.slow
def test_the_skills_of_a_corner_are_counted(bench: ModuleType) -> None:
    """Four fifths of ln 6 nats and not more than there are, beside bits that say nothing."""
    trained = bench.prepare(bench.CASES["corner"], 0, steps=160_000)
    trained.run()
    found = {name: float(value) for name, value in bench.measure(trained, "corner").items()}
    assert found["J"] > 0.8 * math.log(6)
    assert found["J"] - 3 * found["J_error"] < found["information"] <= math.log(6) + 1e-4


def test_without_diversity_only_the_divergence_is_left(bench: ModuleType) -> None:
    trained = bench.prepare(bench.CASES["corner"], 0, **TINY)
    trained.run()
    batch = trained.learner.draw(trained.replay, 32)
    with bench.without_diversity():
        alone = trained.learner.update(batch)
    both = trained.learner.update(batch)
    assert alone["skill/diversity"] == 0 < both["skill/diversity"]
    assert alone["skill/divergence"] > 0


# ---- the baseline


def build(bench: ModuleType, **settings: Any) -> Any:
    torch.manual_seed(0)
    config = {"knots": 1, "hold": 1, "hidden": (32,), "dim": 1, "model_first": 0} | settings
    return bench.Reconstruction(Spec({"all": slice(0, 2)}, 2, 1), Lpe.Config(**config))


def test_the_posterior_of_the_baseline_is_a_density(bench: ModuleType) -> None:
    """exp(told) is q / p, whose mean over z is 1 whatever the end."""
    learner = build(bench)
    z = torch.linspace(-0.999, 0.999, 4000).unsqueeze(-1)
    obs, end = torch.zeros(4000, 2), torch.ones(4000, 2)
    with torch.no_grad():
        assert learner.told(obs, z, end).exp().mean().item() == pytest.approx(1, abs=1e-2)


def ends(action: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    """Whether the action is positive, and a random bit."""
    bits = torch.randint(0, 2, (len(action),), generator=g).float()
    return torch.stack([(action > 0).float(), bits], dim=-1)


def test_the_baseline_finds_two_skills_where_there_are_two(bench: ModuleType) -> None:
    learner, g = build(bench, lr=1e-2, policy_lr=1e-2), torch.Generator().manual_seed(1)
    obs, none = torch.zeros(256, 2), torch.zeros(256)
    for _ in range(300):
        action = torch.rand(256, 1, 1, generator=g) * 2 - 1
        end = ends(action[:, 0, 0], g)
        learner.update(Jumps(obs, action, end, torch.zeros(256, 1), none, none))
    z = torch.rand(256, 1, generator=g) * 2 - 1
    with torch.no_grad():
        plan = learner.plan(obs, z, deterministic=True)[:, 0, 0]
        entry = torch.sigmoid(learner.decoder(torch.cat((obs, plan[:, None]), -1)))
        told = learner.told(obs, z, ends(plan, g)).mean().item()
    positive = (plan > 0).float().mean().item()
    assert 0.3 < positive < 0.7
    assert math.log(2) * 0.8 < told < math.log(2) + 0.05
    assert (entry[:, 0] - (plan > 0).float()).abs().mean() < 0.15  # predicted
    assert (entry[:, 1] - 0.5).abs().mean() < 0.15  # noise stays noise


# ---- the map


@pytest.fixture
def maps(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "bench")
    return importlib.import_module("empowerment_map")


def test_the_exact_map_is_highest_in_the_middle(maps: ModuleType) -> None:
    values = maps.empowerment(registry.build(maps.ENV)[0], 2).reshape(5, 5)
    assert values[2, 2] == pytest.approx(1.40268, abs=1e-5) == values.max()
    assert values[0, 0] == pytest.approx(0.95519, abs=1e-5) == values.min()
    np.testing.assert_allclose(values, values.T, atol=1e-8)


def test_agreement_is_spearman_s(maps: ModuleType) -> None:
    exact, learnt = np.array([1.0, 2, 2, 3, 3]), np.array([0.1, 0.5, 0.2, 0.4, 0.9])
    found = maps.agreement({"exact": exact, "seed 0": learnt})
    assert found["exact"] == pytest.approx(1)
    assert found["seed 0"] == pytest.approx(spearmanr(exact, learnt)[0])


def test_the_learnt_map_asks_every_cell(maps: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """A learner that answers with the number of the cell, whatever the bits."""
    config = replace(preset("lpe", maps.ENV), TINY | {"method": {"hidden": (16,)}})
    trained, body = Discovery(config), registry.build(maps.ENV)[0]
    monkeypatch.setattr(
        trained.learner, "empowerment", lambda obs: obs[:, :25].argmax(-1) + obs[:, 25:].mean(-1)
    )
    found = maps.learnt(trained, body)
    np.testing.assert_allclose(found, np.arange(25) + 0.5, atol=0.2)


def test_the_bound_on_a_robot_is_the_one_on_a_grid(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measured by the code for robots, a grid's J is what the code for grids finds."""
    robot = importlib.import_module("empowerment_robot")
    monkeypatch.setattr(robot, "STARTS", 8)
    config = replace(preset("lpe", "grid-5-bits-corner"), TINY | {"method": {"hidden": (16,)}})
    trained = Discovery(config)
    trained.run()
    assert isinstance(trained.learner, Lpe)
    expected, error, _ = bench.measured(trained, trained.learner)
    found, spread = robot.bound_in(trained, trained.learner)
    assert abs(found - expected) < 4 * (error + spread) + 0.02
    assert found != 0
