"""APS against NumPy: features, entropy, the critic's weights; a task's weights are found again."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from etude.agents.replay import Batch
from etude.config import replace
from etude.skills.controllers.reward_regression import RewardRegressionController
from etude.skills.discovery import Discovery, preset
from etude.skills.export import export
from etude.skills.learners.aps import Aps
from etude.skills.learners.base import Spec
from etude.skills.library import SkillLibrary

FIELDS = {"place": slice(0, 2), "speed": slice(2, 4)}


def aps(**settings: object) -> Aps:
    torch.manual_seed(0)
    config = Aps.Config(dim=3, hidden=(32,), **settings)  # type: ignore[arg-type]
    return Aps(Spec(FIELDS, 4, 2), config)


def batch(n: int = 40) -> Batch:
    rng = np.random.default_rng(0)
    obs, next_obs = rng.normal(size=(2, n, 4)).astype(np.float32)
    w = rng.normal(size=(n, 3)).astype(np.float32)
    w /= np.linalg.norm(w, axis=1, keepdims=True)
    parts = (obs, np.zeros((n, 2), np.float32), next_obs, w)
    return Batch(*map(torch.from_numpy, parts), torch.zeros(n), torch.zeros(n))


@pytest.mark.parametrize("k", [2, 12])
def test_signal_and_loss_are_those_of_numpy(k: int) -> None:
    learner, one = aps(neighbours=k, entropy=0.5), batch()
    points = learner.phi(one.next_obs).detach().numpy().astype(np.float64)
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    distance = np.linalg.norm(points[:, None] - points[None], axis=-1)
    apart = np.sort(distance, 1)[:, 1 : k + 1].mean(1)
    entropy = np.log1p(apart / apart.mean())
    signal = learner.signal(one)
    np.testing.assert_allclose(signal, np.c_[unit, entropy], atol=1e-5)
    w = one.skill.numpy()
    reward = (signal * learner.task_vector(one.skill)).sum(-1)
    np.testing.assert_allclose(reward, (unit * w).sum(1) + 0.5 * entropy, atol=1e-5)
    metrics = learner.update(one)
    assert metrics["skill/alignment"] == pytest.approx((unit * w).sum(1).mean(), abs=1e-5)
    assert metrics["skill/distance"] == pytest.approx(apart.mean(), rel=1e-5)


def test_features_learn_to_name_the_skill() -> None:
    learner, one = aps(lr=3e-3), batch(128)
    one = one.replace(next_obs=torch.cat((one.skill, one.next_obs[:, :1]), 1))
    for _ in range(400):
        learner.update(one)
    assert learner.update(one)["skill/alignment"] > 0.98


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> SkillLibrary:
    """Ten random linear features, correlated and of length one, of a body's 18 numbers."""
    method = {"dim": 10, "hidden": [], "skill_obs": []}
    run = Discovery(replace(preset("aps", "half-cheetah"), {"method": method}))
    return SkillLibrary.load(export(run, tmp_path_factory.mktemp("aps") / "library", {}))


def observations(library: SkillLibrary, n: int = 4096) -> np.ndarray:
    """Independent ones before and after a step, (2, n, O), as the normaliser knows them."""
    mean, std = library.data.mean, library.data.std
    noise = np.random.default_rng(0).normal(size=(2, n, len(mean)))
    return np.asarray(mean + std * noise, np.float32)


def test_a_tasks_weights_are_found_again_where_the_released_order_fails(
    library: SkillLibrary,
) -> None:
    """Rewards phi(s') . w regressed on phi; swapped arguments give a correlation, not w."""
    obs, after = observations(library)
    phi = library.encode(after).astype(np.float64)
    found, swapped = [], []
    for w in np.random.default_rng(1).normal(size=(50, 10)):
        reward = phi @ w
        controller = RewardRegressionController(library, obs, after, reward)
        found.append(cosine(controller.z, w))
        swapped.append(cosine(np.linalg.lstsq(reward[:, None], phi, rcond=None)[0][0], w))
    assert min(found) > 0.999
    assert np.mean(swapped) == pytest.approx(0.85, abs=0.03)  # docs/learners/aps.md has the figure


def test_a_library_holds_the_features_that_name_skills(library: SkillLibrary) -> None:
    obs, goal = observations(library, 64)
    phi = library.encode(goal)
    np.testing.assert_allclose(np.linalg.norm(phi, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(library.goal_skill(obs, goal), phi, atol=1e-6)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
