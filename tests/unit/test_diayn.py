"""DIAYN and the densities it uses against NumPy, its bound, and the optimum it must reach."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from etude.agents.replay import Batch
from etude.config import replace
from etude.errors import LibraryError
from etude.skills.discovery import Discovery, preset
from etude.skills.export import export
from etude.skills.learners.base import Spec
from etude.skills.learners.diayn import Diayn
from etude.skills.library import SkillLibrary, subset
from etude.worldmodels.densities import Categorical, Gaussian

B, O = 32, 4


def make(**settings: object) -> Diayn:
    torch.manual_seed(0)
    config = Diayn.Config(**{"hidden": (8,), **settings})  # type: ignore[arg-type]
    return Diayn(Spec({"place": slice(0, 2), "rest": slice(2, O)}, O, 2), config)


def batch_of(next_obs: np.ndarray, z: np.ndarray, dtype: type = np.float32) -> Batch:
    n = len(z)
    parts = (np.zeros((n, O)), np.zeros((n, 2)), next_obs, z)
    tensors = [torch.from_numpy(np.asarray(x, dtype)) for x in parts]
    return Batch(*tensors, torch.zeros(n), torch.zeros(n))


def forward(net: torch.nn.Sequential, x: np.ndarray) -> np.ndarray:
    """The network by hand, in float64."""
    layers = [m for m in net if isinstance(m, torch.nn.Linear)]
    for i, layer in enumerate(layers):
        x = x @ layer.weight.detach().numpy().T.astype(np.float64) + layer.bias.detach().numpy()
        x = np.maximum(x, 0) if i < len(layers) - 1 else x
    return x


def softplus(x: np.ndarray) -> np.ndarray:
    return np.log1p(np.exp(x))


@pytest.mark.parametrize("settings", [{}, {"skill_obs": ("place",)}, {"dim": 3}])
def test_discrete_loss_and_signal_agree_with_numpy(settings: dict[str, object]) -> None:
    learner = make(**settings)
    rng = np.random.default_rng(0)
    obs, z = rng.normal(size=(B, O)), learner.space.sample(rng, B)
    seen = obs[:, :2] if settings.get("skill_obs") else obs
    logits = forward(learner.q.net, seen)
    log_q = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    mine = (log_q * z).sum(1)
    signal = learner.signal(batch_of(obs, z)).numpy()[:, 0]
    np.testing.assert_allclose(signal, mine + math.log(learner.space.dim), atol=1e-5)
    right = (logits.argmax(1) == z.argmax(1)).mean()
    assert float(learner.accuracy(batch_of(obs, z))) == pytest.approx(right)
    metrics = learner.update(batch_of(obs, z))
    assert float(metrics["skill/q_loss"]) == pytest.approx(-mine.mean(), abs=1e-5)


@pytest.mark.parametrize("min_std", [0.2, 0.7])
def test_continuous_loss_and_signal_agree_with_scipy(min_std: float) -> None:
    learner = make(skills="continuous", dim=3, min_std=min_std).double()
    rng = np.random.default_rng(0)
    obs, z = rng.normal(size=(B, O)), learner.space.sample(rng, B)
    mean, raw = np.split(forward(learner.q.net, obs), 2, axis=1)
    std = min_std + softplus(raw)
    log_q = stats.norm.logpdf(z, mean, std).sum(1)
    batch = batch_of(obs, z, np.float64)
    signal = learner.signal(batch).numpy()[:, 0]
    np.testing.assert_allclose(signal, log_q - stats.norm.logpdf(z).sum(1), rtol=1e-9)
    metrics = learner.update(batch)
    assert float(metrics["skill/q_loss"]) == pytest.approx(-log_q.mean(), rel=1e-9)


def test_the_reward_never_exceeds_log_k_and_reaches_it_when_skills_are_told_apart() -> None:
    learner = make(dim=4, lr=1e-2)
    rng = np.random.default_rng(0)
    corners = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]])
    for _ in range(400):
        z = learner.space.sample(rng, 64)
        obs = rng.normal(size=(64, O)) * 0.1
        obs[:, :2] += corners[z.argmax(1)]
        batch = batch_of(obs, z)
        metrics = learner.update(batch)
        assert float(learner.signal(batch).max()) <= math.log(4) + 1e-6
    assert float(metrics["skill/accuracy"]) == 1.0
    assert float(learner.signal(batch).mean()) > math.log(4) - 0.02


def test_goal_skill_is_the_likeliest_skill_at_the_goal() -> None:
    learner = make(dim=3)
    goal = torch.randn(5, O)
    z = learner.goal_skill(torch.zeros(5, O), goal)
    assert (z.argmax(-1) == learner.q.net(goal).argmax(-1)).all() and (z.sum(-1) == 1).all()


@pytest.mark.parametrize("settings", [{"dim": 5}, {"skills": "continuous", "dim": 3}], ids=str)
def test_a_library_names_the_skill_that_its_discriminator_names(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    method = {**settings, "skill_obs": ("x", "y"), "hidden": (16,)}
    run = Discovery(replace(preset("diayn", "point-open"), {"method": method}))
    run.normaliser.mean.fill_(0.5)
    run.normaliser.std.fill_(3.0)
    library = SkillLibrary.load(export(run, tmp_path / "library", {}))
    obs, goal = np.random.default_rng(0).normal(size=(2, 64, 4)).astype(np.float32) * 9
    expected = run.learner.goal_skill(*(run.normaliser(torch.from_numpy(x)) for x in (obs, goal)))
    assert expected is not None and expected.unique(dim=0).shape[0] > 1
    np.testing.assert_allclose(library.goal_skill(obs, goal), expected.numpy(), atol=1e-5)
    with pytest.raises(LibraryError, match='no encoder "phi"'):
        library.encode(obs)


def test_a_part_of_a_library_names_skills_of_the_part(tmp_path: Path) -> None:
    run = Discovery(preset("diayn", "point-open"))
    whole = SkillLibrary.load(export(run, tmp_path / "whole", {}))
    part = subset(whole, [6, 1, 3], tmp_path / "part")
    goal = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32) * 9
    logits = whole.encoders["discriminator"](goal)[:, [6, 1, 3]]
    np.testing.assert_array_equal(part.goal_skill(goal, goal), np.eye(3)[logits.argmax(-1)])


def test_learning_rate_moves_the_discriminator() -> None:
    steps = []
    for lr in (1e-4, 1e-2):
        learner = make(lr=lr)
        before = learner.q.net[0].weight.detach().clone()
        rng = np.random.default_rng(0)
        learner.update(batch_of(rng.normal(size=(B, O)), learner.space.sample(rng, B)))
        steps.append(float((learner.q.net[0].weight.detach() - before).abs().max()))
    assert steps == pytest.approx([1e-4, 1e-2], rel=1e-2)


def test_gaussian_density_integrates_to_one_and_fits_a_known_one() -> None:
    torch.manual_seed(0)
    q = Gaussian(1, 1, (16,), min_std=0.05)
    x = torch.linspace(-8, 8, 4001)[:, None]
    mass = q.log_prob(torch.zeros(4001, 1), x).exp().sum() * (16 / 4000)
    assert float(mass.detach()) == pytest.approx(1.0, abs=1e-3)
    optimiser = torch.optim.Adam(q.parameters(), lr=1e-2)
    for _ in range(400):
        c = torch.rand(256, 1) * 2 - 1
        loss = -q.log_prob(c, 2 * c + 0.3 * torch.randn(256, 1)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    mean, std = q(torch.tensor([[0.5]]))
    assert float(mean.detach()) == pytest.approx(1.0, abs=0.1)
    assert float(std.detach()) == pytest.approx(0.3, abs=0.06)


def test_categorical_probabilities_sum_to_one() -> None:
    q = Categorical(2, 5, (8,))
    context = torch.randn(7, 2)
    total = sum(q.log_prob(context, torch.eye(5)[i].expand(7, 5)).exp() for i in range(5))
    torch.testing.assert_close(total, torch.ones(7))
