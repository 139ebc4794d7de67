"""APT, RND and disagreement against NumPy, and what they must and must not reward."""

from __future__ import annotations

from typing import Any

import ensemble_by_hand as by_hand
import numpy as np
import pytest
import torch

from etude.agents.replay import Batch
from etude.skills import learners
from etude.skills.learners._particles import Particles
from etude.skills.learners._scale import Usual
from etude.skills.learners.base import Spec
from etude.worldmodels.ensemble import EnsembleConfig

FIELDS = {"place": slice(0, 2), "speed": slice(2, 4)}
RNG = np.random.default_rng(0)


def build(name: str, **settings: Any) -> Any:
    torch.manual_seed(0)
    method = learners.get(name)
    return method(Spec(FIELDS, 4, 2), method.Config(**settings))


def batch(n: int = 32, seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    obs, next_obs = rng.normal(size=(2, n, 4)).astype(np.float32)
    action = rng.uniform(-1, 1, (n, 2)).astype(np.float32)
    parts = (obs, action, next_obs, np.ones((n, 1), np.float32))
    return Batch(*map(torch.from_numpy, parts), torch.zeros(n), torch.zeros(n))


def doubled(one: Batch) -> Batch:
    """The batch in double precision, for a learner that is."""
    return one.replace(**{k: v.double() for k, v in vars(one).items() if v is not None})


def outputs(net: torch.nn.Module, x: np.ndarray) -> np.ndarray:
    """A ReLU network in NumPy."""
    layers = [m for m in net.modules() if isinstance(m, torch.nn.Linear)]
    for i, layer in enumerate(layers):
        x = x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
        x = np.maximum(x, 0) if i < len(layers) - 1 else x
    return x


def neighbours(points: np.ndarray, k: int) -> np.ndarray:
    distance = np.linalg.norm(points[:, None] - points[None], axis=-1)
    return np.sort(distance, axis=1)[:, 1 : k + 1].mean(1)


def test_the_usual_one_is_a_running_mean() -> None:
    usual, values = Usual(0.25), [torch.tensor([2.0, 4.0]), torch.tensor([10.0, 12.0])]
    torch.testing.assert_close(usual(values[0]), torch.tensor([2 / 3, 4 / 3]))  # of the batch
    assert usual.measure(values[0]) == 3 and usual.mean == 3
    assert usual.measure(values[1]) == 11 and usual.mean == 3 + 0.25 * 8
    torch.testing.assert_close(usual(values[0]), torch.tensor([0.4, 0.8]))


def test_particles_are_those_of_numpy() -> None:
    points = RNG.normal(size=(40, 3)).astype(np.float32)
    particles = Particles(5, 0.01)
    expected = neighbours(points, 5)
    np.testing.assert_allclose(particles.spacing(torch.from_numpy(points)), expected, atol=1e-5)
    particles.measure(torch.from_numpy(points / 2))
    entropy = np.log1p(expected / (expected.mean() / 2))
    np.testing.assert_allclose(particles.entropy(torch.from_numpy(points)), entropy, atol=1e-5)


@pytest.mark.parametrize("k", [1, 12])
def test_apt_is_the_entropy_of_what_it_sees(k: int) -> None:
    learner, one = build("apt", neighbours=k, skill_obs=("place",)), batch()
    distance = neighbours(one.next_obs[:, :2].numpy(), k)
    assert learner.update(one)["skill/distance"] == pytest.approx(distance.mean(), abs=1e-5)
    expected = np.log1p(distance / distance.mean())
    np.testing.assert_allclose(learner.signal(one)[:, 0], expected, atol=1e-5)


def test_apt_prefers_who_stands_alone() -> None:
    """A state among others earns less than one alone, by what the definition says."""
    learner, one = build("apt", neighbours=3), batch(20)
    next_obs = torch.zeros(20, 4)
    next_obs[:, 0] = torch.linspace(0, 0.1, 20)
    next_obs[19] = 5
    signal = learner.signal(one.replace(next_obs=next_obs))
    assert signal.argmax() == 19 and signal[19] > 5 * signal[:19].max()


def test_rnd_is_the_error_of_the_prediction() -> None:
    learner = build("rnd", hidden=(16,), dim=8, skill_obs=("place",)).double()
    one = doubled(batch())
    one = one.replace(next_obs=4 * one.next_obs)  # some beyond the clip
    seen = np.clip(one.next_obs[:, :2].numpy(), -5, 5)
    assert (seen == 5).any()
    error = (outputs(learner.predictor, seen) - outputs(learner.target, seen)) ** 2
    expected = error.mean(1)
    np.testing.assert_allclose(learner.signal(one)[:, 0], expected / expected.mean(), rtol=1e-9)
    before = {k: v.clone() for k, v in learner.state_dict().items()}
    assert learner.update(one)["skill/prediction_error"] == pytest.approx(expected.mean(), rel=1e-9)
    moved = {k for k, v in learner.state_dict().items() if not torch.equal(v, before[k])}
    assert moved == {k for k in before if k.startswith("predictor")} | {"usual.mean"}


@pytest.mark.parametrize("name", ["rnd", "disagreement"])
def test_what_was_seen_often_earns_less_than_what_was_not(name: str) -> None:
    learner, known = build(name, hidden=(32, 32), lr=1e-3), batch(64)
    new = known.replace(obs=known.obs + 3, next_obs=known.next_obs + 3)
    for _ in range(600):
        learner.update(known)
    assert learner.signal(new).mean() > 5 * learner.signal(known).mean()


@pytest.mark.parametrize("skill_obs", [(), ("speed",)])
def test_disagreement_agrees_with_numpy(skill_obs: tuple[str, ...]) -> None:
    learner = build("disagreement", members=4, hidden=(16, 8), skill_obs=skill_obs).double()
    one, counts = doubled(batch()), np.array([0, 0, 1, 1]) if skill_obs else np.ones(4)
    x = np.concatenate((one.obs, one.action), 1)

    def agree() -> tuple[np.ndarray, np.ndarray]:
        predicted = by_hand.changes(learner.models, (6, 16, 8, 4), x)
        variance = by_hand.variance(predicted[..., counts > 0])
        np.testing.assert_allclose(learner.variance(one), variance, rtol=1e-9)
        expected = variance / variance.mean()
        np.testing.assert_allclose(learner.signal(one)[:, 0], expected, rtol=1e-9)
        return predicted, variance

    predicted, _ = agree()
    kept = by_hand.masks(x, 4, EnsembleConfig.keep)
    assert not kept.all()
    losses = by_hand.losses(predicted, (one.next_obs - one.obs).numpy(), counts, kept)
    metrics = learner.update(one)
    error = np.mean(losses) * len(counts) / counts.sum()  # of the predicted dimensions alone
    assert float(metrics["skill/model_error"]) == pytest.approx(error, rel=1e-9)
    _, variance = agree()  # measured after the update
    assert float(metrics["skill/variance"]) == pytest.approx(variance.mean(), rel=1e-9)


def test_only_what_counts_is_predicted() -> None:
    """Another change of the places alters nothing where only speeds count."""
    one = batch(64)
    other = one.next_obs.clone()
    other[:, :2] += 100
    weights = []
    for after in (one.next_obs, other):
        learner = build("disagreement", skill_obs=("speed",))
        learner.update(one.replace(next_obs=one.next_obs))
        before = learner.signal(one)
        learner.update(one.replace(next_obs=after))
        weights.append(learner.signal(one) - before)
    # members learn from shares of the data that depend on obs and action alone
    torch.testing.assert_close(weights[0], weights[1])


def test_noise_is_not_what_models_disagree_about() -> None:
    """A coordinate that nothing predicts earns little more than one that is easy (noisy TV)."""
    rng, signal = np.random.default_rng(1), {}
    for noise in (0.0, 1.0):
        learner = build("disagreement", hidden=(64,), lr=1e-3)
        for _ in range(800):
            one = batch(128, int(rng.integers(2**31)))
            noisy = torch.from_numpy(rng.normal(size=(128, 1)).astype(np.float32)) * noise
            after = torch.cat((0.9 * one.obs[:, :3], one.obs[:, 3:] + noisy), -1)
            learner.update(one.replace(next_obs=after))
        far = one.replace(obs=one.obs + 4)
        variance = learner.variance
        signal[noise] = float(variance(one).mean() / variance(far).mean())
    assert signal[1.0] < 0.2, signal
