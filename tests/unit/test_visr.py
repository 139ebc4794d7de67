"""VISR against NumPy, and against the optimum it must reach."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from etude.agents.networks import linear_layers
from etude.agents.replay import Batch
from etude.config import replace
from etude.skills.controllers.reward_regression import RewardRegressionController
from etude.skills.discovery import Discovery, preset
from etude.skills.export import export
from etude.skills.learners.base import Spec
from etude.skills.learners.visr import Visr
from etude.skills.library import SkillLibrary

B, O = 16, 5
FIELDS = {"place": slice(0, 2), "rest": slice(2, 5)}


def make(seed: int = 0, **settings: Any) -> Visr:
    torch.manual_seed(seed)
    return Visr(Spec(FIELDS, O, 2), Visr.Config(**{"hidden": (8,), "dim": 3, **settings}))


def arrival(next_obs: Any, z: Any) -> Batch:
    n = len(z)
    arrays = (np.zeros((n, O)), np.zeros((n, 2)), next_obs, z)
    parts = [torch.from_numpy(np.asarray(x, np.float32)) for x in arrays]
    return Batch(*parts, torch.zeros(n), torch.zeros(n))


def batch_for(learner: Visr, seed: int = 1) -> Batch:
    rng = np.random.default_rng(seed)
    return arrival(rng.normal(size=(B, O)), learner.space.sample(rng, B))


def features(learner: Visr, x: np.ndarray) -> np.ndarray:
    """phi of one hidden layer, scaled to length one."""
    (w, b), (v, c) = linear_layers(learner.phi)
    out = np.maximum(x @ w.astype(np.float64) + b, 0) @ v + c
    return out / np.linalg.norm(out, axis=1, keepdims=True)


@pytest.mark.parametrize(
    "settings", [{}, {"skill_obs": ("place",), "hidden": (32,)}, {"dim": 2, "hidden": (32,)}]
)
def test_signal_and_alignment_agree_with_numpy(settings: dict[str, Any]) -> None:
    learner = make(**settings)
    batch = batch_for(learner)
    expected = features(learner, batch.next_obs.numpy()[:, : learner.seen_dim])
    signal = learner.signal(batch)
    np.testing.assert_allclose(signal.numpy(), expected, atol=1e-5)
    assert signal.shape == (B, learner.space.dim) and not signal.requires_grad
    z = batch.skill.numpy()
    np.testing.assert_array_equal(learner.task_vector(batch.skill).numpy(), z)
    metrics = learner.update(batch)
    alignment = (expected * z).sum(1).mean()
    assert float(metrics["skill/alignment"]) == pytest.approx(alignment, abs=1e-5)
    collapse = np.linalg.norm(expected.mean(0))
    assert float(metrics["skill/collapse"]) == pytest.approx(collapse, abs=1e-5)


def test_the_critic_can_learn_phi_as_long_as_it_is() -> None:
    raw, unit = make(target="raw"), make()
    batch = batch_for(raw)
    (w, b), (v, c) = linear_layers(raw.phi)
    expected = np.maximum(batch.next_obs.numpy() @ w.astype(np.float64) + b, 0) @ v + c
    np.testing.assert_allclose(raw.signal(batch).numpy(), expected, atol=1e-5)
    torch.testing.assert_close(raw.update(batch), unit.update(batch))  # phi learns the same
    torch.testing.assert_close(raw.encode(batch.obs).norm(dim=-1), torch.ones(B))


def test_the_first_step_of_phi_is_its_learning_rate() -> None:
    learner = make(lr=0.125)
    before = learner.phi[0].weight.detach().clone()
    learner.update(batch_for(learner))
    moved = (learner.phi[0].weight.detach() - before).abs().max()
    assert float(moved) == pytest.approx(0.125, abs=1e-4)


def test_reaches_one_where_states_give_the_skill_away() -> None:
    """s' = z, with noise beside it: the optimum is phi(s') = z, whose reward is one."""
    learner = make(hidden=(64,), lr=1e-2)
    rng = np.random.default_rng(0)
    for _ in range(300):
        z = learner.space.sample(rng, 128)
        batch = arrival(np.concatenate((z, rng.normal(size=(128, 2))), 1), z)
        metrics = learner.update(batch)
    assert float(metrics["skill/alignment"]) > 0.97
    assert float(metrics["skill/collapse"]) < 0.3
    torch.testing.assert_close(
        learner.goal_skill(batch.obs, batch.next_obs), batch.skill, atol=0.5, rtol=0
    )


def test_a_state_that_tells_nothing_collapses() -> None:
    """All skills end in one place: phi is one direction there, and nothing is gained."""
    learner = make(hidden=(16,), lr=1e-2)
    rng = np.random.default_rng(0)
    for _ in range(20):
        metrics = learner.update(arrival(np.ones((128, O)), learner.space.sample(rng, 128)))
    assert float(metrics["skill/collapse"]) == pytest.approx(1.0, abs=1e-5)
    assert abs(float(metrics["skill/alignment"])) < 0.2


@pytest.mark.parametrize("method", [{}, {"skill_obs": ["x", "y"]}, {"target": "raw"}], ids=str)
def test_a_reward_along_phi_gives_its_weights_back(method: dict[str, Any], tmp_path: Path) -> None:
    """From an exported library, which encodes as the learner does; no offset tilts them."""
    run = Discovery(replace(preset("visr", "point-open"), {"method": {"skill_obs": [], **method}}))
    run.normaliser.mean.copy_(torch.tensor([2.0, -1.0, 0.5, 0.0]))
    library = SkillLibrary.load(export(run, tmp_path / "library", {}))
    obs, after = 3 * np.random.default_rng(0).normal(size=(2, 4096, 4)).astype(np.float32)
    phi = library.encode(after)
    expected = run.learner.encode(run.normaliser(torch.from_numpy(after)))
    assert expected is not None
    np.testing.assert_allclose(phi, expected.detach().numpy(), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(phi, axis=1), 1, atol=1e-5)
    for w in np.random.default_rng(1).normal(size=(8, 5)):
        controller = RewardRegressionController(library, obs, after, phi @ w + 40)
        assert controller.z @ w / np.linalg.norm(w) > 0.999
        places = RewardRegressionController(library, obs, after, phi @ w, directional=False)
        np.testing.assert_allclose(places.z, controller.z, atol=1e-3)


def test_the_agent_has_a_wide_critic_without_entropy_in_its_target() -> None:
    run = Discovery(preset("visr", "point-open"))
    assert run.agent is not None
    assert run.agent.signal_dim == run.space.dim == 5 and not run.agent.entropy_in_target
