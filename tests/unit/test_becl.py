"""BeCL against NumPy, at its optimum, and with batches in which a skill stands alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from etude.agents.replay import Batch
from etude.skills.learners.base import Spec
from etude.skills.learners.becl import Becl

FIELDS = {"place": slice(0, 2), "speed": slice(2, 4)}


def becl(skills: int = 4, **settings: object) -> Becl:
    torch.manual_seed(0)
    config = Becl.Config(dim=skills, hidden=(32,), **settings)  # type: ignore[arg-type]
    return Becl(Spec(FIELDS, 4, 2), config)


def batch(label: np.ndarray, skills: int = 4) -> Batch:
    rng, n = np.random.default_rng(0), len(label)
    obs, next_obs = rng.normal(size=(2, n, 4)).astype(np.float32)
    z = np.eye(skills, dtype=np.float32)[label]
    parts = (obs, np.zeros((n, 2), np.float32), next_obs, z)
    return Batch(*map(torch.from_numpy, parts), torch.zeros(n), torch.zeros(n))


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_loss_and_reward_are_those_of_numpy(temperature: float) -> None:
    label = np.array([0, 1, 2, 0, 1, 0, 3])  # skills 2 and 3 stand alone
    learner, one = becl(temperature=temperature), batch(label)
    h = learner.encode(one.next_obs).detach().numpy().astype(np.float64)
    np.testing.assert_allclose(np.linalg.norm(h, axis=1), 1, atol=1e-5)
    matched = np.zeros(7)
    for i in range(7):
        others = [j for j in range(7) if j != i]
        whole = np.log(sum(np.exp(h[i] @ h[j] / temperature) for j in others))
        own = [h[i] @ h[j] / temperature - whole for j in others if label[j] == label[i]]
        matched[i] = np.mean(own) if own else 0
    expected = np.where(np.isin(label, (0, 1)), 6 * np.exp(matched), 0)
    np.testing.assert_allclose(learner.signal(one)[:, 0], expected, atol=1e-5)
    metrics = learner.update(one)
    assert metrics["skill/contrast_loss"] == pytest.approx(-matched.sum() / 5, abs=1e-5)
    assert metrics["skill/paired"] == pytest.approx(5 / 7)


def test_states_of_each_skill_come_to_one_point() -> None:
    """Where a skill shows in the place, features of one skill agree and others are far."""
    label = np.arange(64) % 4
    learner, one = becl(lr=3e-3), batch(label)
    place = torch.from_numpy(3 * np.stack((np.cos(label * 1.6), np.sin(label * 1.6)), 1))
    one = one.replace(next_obs=torch.cat((place.float(), one.next_obs[:, 2:] * 0.1), 1))
    start = learner.signal(one).mean()
    for _ in range(300):
        learner.update(one)
    h = learner.encode(one.next_obs).detach()
    alike = h @ h.T
    same = torch.from_numpy(label[:, None] == label[None])
    assert alike[same].mean() > 0.98 and alike[~same].mean() < -0.25  # a simplex: -1/3
    # the best for 4 skills of 16 states at T = 0.5: 63 e^2 / (15 e^2 + 48 e^(-2/3)) each
    best = 63 * np.exp(2) / (15 * np.exp(2) + 48 * np.exp(-2 / 3))
    assert learner.signal(one).mean() == pytest.approx(best, rel=0.03) and start < 0.8 * best


@pytest.mark.parametrize("size", [16, 64])
def test_a_state_that_resembles_all_alike_earns_one_whatever_the_batch(size: int) -> None:
    one = batch(np.arange(size) % 4)
    alike = one.replace(next_obs=torch.ones_like(one.next_obs))
    torch.testing.assert_close(becl().signal(alike), torch.ones(size, 1))


def test_the_length_of_features_is_an_option() -> None:
    assert becl(features=5).encode(torch.zeros(3, 4)).shape == (3, 5)
