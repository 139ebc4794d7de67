"""CIC against NumPy, and against the optimum it must reach."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from etude.agents.networks import linear_layers
from etude.agents.replay import Batch
from etude.errors import UsageError
from etude.skills.learners.base import Spec
from etude.skills.learners.cic import Cic

B, O = 16, 5
FIELDS = {"place": slice(0, 2), "rest": slice(2, 5)}


def make(seed: int = 0, **settings: Any) -> Cic:
    torch.manual_seed(seed)
    small = {"hidden": (32,), "dim": 3, "neighbours": 4}
    return Cic(Spec(FIELDS, O, 2), Cic.Config(**{**small, **settings}))


def transitions(obs: Any, next_obs: Any, z: Any) -> Batch:
    n = len(z)
    arrays = (np.asarray(x, np.float32) for x in (obs, np.zeros((n, 2)), next_obs, z))
    return Batch(*map(torch.from_numpy, arrays), torch.zeros(n), torch.zeros(n))


def batch_for(learner: Cic, seed: int = 1) -> Batch:
    rng = np.random.default_rng(seed)
    return transitions(*rng.normal(size=(2, B, O)), learner.space.sample(rng, B))


def forward(net: Any, x: np.ndarray) -> np.ndarray:
    (w, b), (v, c) = linear_layers(net)
    return np.maximum(x @ w.astype(np.float64) + b, 0) @ v + c


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def reference(learner: Cic, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """Mean distance to the k nearest others and contrast c, each (B,), pair by pair."""
    config = learner.config
    s, s2 = (x.numpy()[:, : learner.seen_dim] for x in (batch.obs, batch.next_obs))
    after = forward(learner.state, s2)
    made = forward(learner.transition, np.concatenate((forward(learner.state, s), after), 1))
    meant = unit(forward(learner.skill, batch.skill.numpy()))
    score = np.exp(meant @ unit(made).T / config.temperature)
    contrast = np.log(np.diag(score) / score.mean(1))
    particles = after if config.reward == "released" else made
    distance = np.empty(len(s))
    for i, own in enumerate(particles):
        others = np.sort(np.linalg.norm(np.delete(particles, i, 0) - own, axis=1))
        distance[i] = others[: config.neighbours].mean()
    return distance, contrast


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"reward": "released"},
        {"reward": "split"},
        {"reward": "split", "skill_obs": ("place",), "temperature": 0.1, "neighbours": 2},
        {"neighbours": 1000},
    ],
)
def test_update_and_signal_agree_with_numpy(settings: dict[str, Any]) -> None:
    learner = make(**settings)
    for seed in range(3):  # the running mean of distances, and of it the ruler of the signal
        batch = batch_for(learner, seed)
        distance, contrast = reference(learner, batch)
        old = float(learner.particles.usual.mean)
        metrics = learner.update(batch)
        assert float(metrics["skill/contrast"]) == pytest.approx(contrast.mean(), abs=1e-5)
        assert float(metrics["skill/distance"]) == pytest.approx(distance.mean(), abs=1e-5)
        usual = old + 0.01 * (distance.mean() - old) if seed else distance.mean()
        assert float(learner.particles.usual.mean) == pytest.approx(usual, abs=1e-5)
    distance, contrast = reference(learner, batch)
    expected = np.log(1 + distance / usual)
    expected += contrast if learner.config.reward == "split" else 0
    np.testing.assert_allclose(learner.signal(batch).numpy()[:, 0], expected, atol=1e-5)


def test_the_momentum_and_the_learning_rate_are_used() -> None:
    learner = make(momentum=1.0, lr=0.125)
    before = learner.state[0].weight.detach().clone()
    for seed in range(2):
        metrics = learner.update(batch_for(learner, seed))
        assert float(learner.particles.usual.mean) == pytest.approx(
            float(metrics["skill/distance"])
        )
    once = make(lr=0.125)
    once.update(batch_for(once))
    moved = (once.state[0].weight.detach() - before).abs().max()
    assert float(moved) == pytest.approx(0.125, abs=1e-4)


def test_the_signal_before_any_update_is_finite_and_asking_changes_nothing() -> None:
    learner = make()
    batch = batch_for(learner)
    first = learner.signal(batch)
    assert torch.isfinite(first).all() and float(learner.particles.usual.mean) == 0
    torch.testing.assert_close(first, learner.signal(batch), rtol=0, atol=0)


def test_contrast_reaches_what_the_temperature_allows() -> None:
    """Two skills that their transitions give away: at best log 2 less what the softmax leaves."""
    learner = make(dim=2, hidden=(32,), lr=1e-2, temperature=0.5)
    z = np.array([[1.0, 1.0], [-1.0, -1.0]])
    batch = transitions(np.zeros((2, O)), np.pad(z, ((0, 0), (0, O - 2))), z)
    for _ in range(300):
        metrics = learner.update(batch)
    best = math.log(2) - math.log1p(math.exp(-2 / 0.5))  # unit vectors, opposite
    assert float(metrics["skill/contrast"]) == pytest.approx(best, abs=1e-3)


def test_contrast_is_nothing_where_transitions_tell_nothing() -> None:
    learner = make(lr=1e-2)
    rng = np.random.default_rng(0)
    same = np.ones((64, O))
    for _ in range(20):
        metrics = learner.update(transitions(same, same, learner.space.sample(rng, 64)))
    assert float(metrics["skill/contrast"]) == pytest.approx(0, abs=1e-5)


def test_an_outlier_earns_most() -> None:
    """The entropy of particles: who is farthest from the others, whatever its skill."""
    learner = make(reward="released", skill_obs=("place",))
    rng = np.random.default_rng(0)
    obs = rng.normal(size=(B, O)) * 0.01
    obs[3, :2] += 5
    batch = transitions(obs, obs, learner.space.sample(rng, B))
    assert int(learner.signal(batch).argmax()) == 3


def test_an_unknown_reward_is_refused() -> None:
    with pytest.raises(UsageError, match="published"):
        make(reward="published")
