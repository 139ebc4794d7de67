"""The bandit over weights: its bound in closed form, and a skill set whose optimum is known."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
STD = 0.2


@pytest.fixture
def bandit(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "bench")
    return importlib.import_module("bandit")


def line(weights: np.ndarray, z: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """s_n = tanh(w z + b) + noise."""
    w, b = (weights[..., i, None, None] for i in range(2))
    return np.asarray(np.tanh(w * z + b) + STD * rng.standard_normal(z.shape))


@pytest.mark.parametrize("std", [0.1, 0.5])
def test_what_skills_tell_has_a_closed_form(bandit: ModuleType, std: float) -> None:
    """z in [-1, 1]^2 seen through noise: a linear guess misses s^2 / 3 / (1 / 3 + s^2) of it."""
    rng = np.random.default_rng(0)
    z = rng.uniform(-1, 1, (20_000, 2))
    missed = std**2 / 3 / (1 / 3 + std**2)
    expected = 2 * (math.log(2) - 0.5 * math.log(2 * math.pi * math.e * missed))
    assert bandit.told(z, z + std * rng.standard_normal(z.shape)) == pytest.approx(
        expected, abs=0.03
    )
    shuffled = bandit.told(z, rng.permutation(z))
    assert shuffled == pytest.approx(
        2 * (math.log(2) - 0.5 * math.log(2 * math.pi * math.e / 3)), abs=0.01
    )


def test_the_bandit_finds_the_best_weights(bandit: ModuleType) -> None:
    """From skills that hardly differ, far off the middle, to within 0.02 nats of the optimum."""
    rng = np.random.default_rng(1)
    world = lambda weights, z: line(weights, z, rng)  # noqa: E731
    z = rng.uniform(-1, 1, (1, 4000, 1))
    gains = np.linspace(0.1, 4, 40)
    grid = np.array([[w, b] for w in gains for b in (-0.5, -0.2, 0.0, 0.2, 0.5)])
    values = bandit.told(np.broadcast_to(z, (len(grid), 4000, 1)), world(grid, z))
    run = bandit.Bandit(world, np.array([0.1, 1.0]), 1, rng)
    first = run.step()
    for _ in range(150):
        run.step()
    found = bandit.told(z[0], world(run.weights, z[0]))
    assert first < 0.1 and values.max() > 0.9
    assert found > values.max() - 0.02
    assert abs(run.weights[1]) < 0.2
