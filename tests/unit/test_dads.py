"""DADS against NumPy, against the information its reward estimates, and each of its settings."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from etude.agents.replay import Batch
from etude.skills.learners.base import Spec
from etude.skills.learners.dads import Dads

B, O = 16, 5
FIELDS = {"place": slice(0, 2), "rest": slice(2, 5)}


def make(seed: int = 0, **settings: object) -> Dads:
    torch.manual_seed(seed)
    given = {"hidden": (8,), "samples": 6, "components": 3, **settings}
    return Dads(Spec(FIELDS, O, 2), Dads.Config(**given))  # type: ignore[arg-type]


def batch_of(obs: np.ndarray, next_obs: np.ndarray, z: np.ndarray) -> Batch:
    action = np.zeros((len(obs), 2))
    parts = [torch.from_numpy(x.astype(np.float32)) for x in (obs, action, next_obs, z)]
    return Batch(*parts, torch.zeros(len(obs)), torch.zeros(len(obs)))


def random_batch(learner: Dads, seed: int = 1, rows: int = B) -> Batch:
    rng = np.random.default_rng(seed)
    return batch_of(*rng.normal(size=(2, rows, O)), learner.space.sample(rng, rows))


class Reference:
    """The mixture behind a one-hidden-layer ReLU network, its likelihood and gradient, in NumPy."""

    def __init__(self, learner: Dads) -> None:
        layers = [m for m in learner.q.net if isinstance(m, torch.nn.Linear)]
        self.w = [m.weight.detach().numpy().T.astype(np.float64) for m in layers]
        self.b = [m.bias.detach().numpy().astype(np.float64) for m in layers]
        self.c = learner.config.components

    def log_q(self, seen: np.ndarray, z: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, ...]:
        """log q(x | seen, z) (B,), responsibilities (B, C), and what backpropagation needs."""
        inputs = np.concatenate((seen, z), 1)
        hidden = np.maximum(inputs @ self.w[0] + self.b[0], 0)
        raw = hidden @ self.w[1] + self.b[1]
        prior = np.exp(raw[:, : self.c])
        prior /= prior.sum(1, keepdims=True)
        means = raw[:, self.c :].reshape(len(x), self.c, -1)
        away = x[:, None] - means
        density = prior * np.exp(-0.5 * (away**2).sum(2)) / (2 * math.pi) ** (x.shape[1] / 2)
        total = density.sum(1)
        return np.log(total), density / total[:, None], prior, away, inputs, hidden

    def loss_and_gradient(
        self, seen: np.ndarray, z: np.ndarray, x: np.ndarray
    ) -> tuple[float, list[np.ndarray]]:
        log_q, given, prior, away, inputs, hidden = self.log_q(seen, z, x)
        for_means = -(given[..., None] * away).reshape(len(x), -1)
        raw = np.concatenate((prior - given, for_means), 1) / len(x)
        back = raw @ self.w[1].T * (hidden > 0)
        return float(-log_q.mean()), [inputs.T @ back, hidden.T @ raw, back.sum(0), raw.sum(0)]

    def reward(self, seen: np.ndarray, z: np.ndarray, x: np.ndarray, others: np.ndarray):
        own = self.log_q(seen, z, x)[0]
        each = [self.log_q(seen, np.tile(o, (len(x), 1)), x)[0] for o in others]
        mean = (np.exp(own) + np.exp(each).sum(0)) / (len(others) + 1)
        return own - np.log(mean)


def views(learner: Dads, batch: Batch) -> tuple[np.ndarray, ...]:
    """What the model sees, z, and the change, before it is scaled."""
    s, s2, z = (x.numpy().astype(np.float64) for x in (batch.obs, batch.next_obs, batch.skill))
    chosen = slice(0, 2) if learner.config.skill_obs else slice(None)
    seen = {"none": s[:, :0], "chosen": s[:, chosen], "all": s}[learner.config.model_obs]
    return seen, z, (s2 - s)[:, chosen]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"skill_obs": ("place",), "model_obs": "none"},
        {"skill_obs": ("place",), "model_obs": "chosen", "dim": 3},
        {"skill_obs": ("place",), "model_obs": "all", "components": 1, "samples": 9, "lr": 0.01},
    ],
)
def test_update_and_signal_agree_with_numpy(settings: dict[str, object]) -> None:
    learner = make(**settings)
    reference, batch = Reference(learner), random_batch(learner)
    seen, z, change = views(learner, batch)
    mean, std = change.mean(0), change.std(0)  # the first batch settles the scale
    x = (change - mean) / std
    loss, gradient = reference.loss_and_gradient(seen, z, x)
    metrics = learner.update(batch)
    assert float(metrics["skill/dynamics_loss"]) == pytest.approx(loss, abs=1e-5)
    assert float(metrics["skill/change"]) == pytest.approx(std.mean(), abs=1e-5)
    for part, g in zip((*reference.w, *reference.b), gradient, strict=True):
        part -= learner.config.lr * g / (np.abs(g) + 1e-8)  # the first step of Adam
    layers = [m for m in learner.q.net if isinstance(m, torch.nn.Linear)]
    for i, layer in enumerate(layers):
        np.testing.assert_allclose(layer.weight.detach().numpy().T, reference.w[i], atol=1e-5)
        np.testing.assert_allclose(layer.bias.detach().numpy(), reference.b[i], atol=1e-5)

    fresh = random_batch(learner, 2)
    seen, z, change = views(learner, fresh)
    expected = reference.reward(seen, z, (change - mean) / std, learner.others.numpy())
    signal = learner.signal(fresh)
    assert signal.shape == (B, 1) and not signal.requires_grad
    np.testing.assert_allclose(signal.numpy()[:, 0], expected, atol=1e-5)


def test_the_scale_is_the_mean_of_all_batches_and_then_moves() -> None:
    learner = make(momentum=0.25)
    rng = np.random.default_rng(0)
    seen, mean, square = [], np.zeros(O), np.zeros(O)
    for i in range(8):
        batch = random_batch(learner, seed=int(rng.integers(1000)))
        seen.append((batch.next_obs - batch.obs).numpy().astype(np.float64))
        share = max(1 / (i + 1), 0.25)
        mean += share * (seen[-1].mean(0) - mean)
        square += share * ((seen[-1] ** 2).mean(0) - square)
        learner.update(batch)
        if i == 3:
            np.testing.assert_allclose(learner.scale.mean, np.concatenate(seen).mean(0), atol=1e-6)
            np.testing.assert_allclose(learner.scale.std, np.concatenate(seen).std(0), atol=1e-6)
    np.testing.assert_allclose(learner.scale.mean, mean, atol=1e-6)
    np.testing.assert_allclose(learner.scale.std, np.sqrt(square - mean**2), atol=1e-6)


def test_the_scale_does_not_move_while_rewards_are_computed() -> None:
    learner = make()
    learner.update(random_batch(learner))
    before = {k: v.clone() for k, v in learner.state_dict().items()}
    first = learner.signal(random_batch(learner, 5))
    assert all(torch.equal(v, before[k]) for k, v in learner.state_dict().items())
    torch.testing.assert_close(first, learner.signal(random_batch(learner, 5)), rtol=0, atol=0)


def test_dead_coordinates_pay_nothing_for_their_noise() -> None:
    """Noise of 1e-6 that follows the skill: invisible under the floor, all there is without it."""
    paid = {}
    for floor in (1e-3, 1e-9):
        learner, rng = make(min_std=floor, dim=1, lr=1e-2, samples=64), np.random.default_rng(0)
        for _ in range(300):
            z = learner.space.sample(rng, 128)
            obs = np.zeros((128, O))
            batch = batch_of(obs, obs + 1e-6 * z, z)
            learner.update(batch)
        paid[floor] = float(learner.signal(batch).mean())
    assert abs(paid[1e-3]) < 0.01 and paid[1e-9] > 0.3


# ---- the estimator, where the information is known


def exact(noise: float, samples: int) -> Dads:
    """The true density of delta = z + N(0, noise^2), in units in which its deviation is 1."""
    torch.manual_seed(0)
    config = Dads.Config(dim=1, hidden=(), samples=samples, components=1, model_obs="none")
    learner = Dads(Spec({"x": slice(0, 1)}, 1, 1), config)
    learner.scale.mean.zero_()
    learner.scale.square.fill_(noise**2)
    with torch.no_grad():
        learner.q.net[0].weight.copy_(torch.tensor([[0.0], [1 / noise]]))  # logit, mean
        learner.q.net[0].bias.zero_()
    return learner


def mean_reward(noise: float, samples: int, draws: int = 700) -> tuple[float, float]:
    """Mean and standard error of the reward over `draws` sets of other skills, 80 rows each."""
    learner, rng = exact(noise, samples), np.random.default_rng(samples)
    means = []
    for _ in range(draws):
        z = learner.space.sample(rng, 80)
        delta = z + noise * rng.normal(size=z.shape)
        means.append(float(learner.signal(batch_of(np.zeros_like(z), delta, z)).mean()))
        learner.others = learner.drawn()
    return float(np.mean(means)), float(np.std(means) / np.sqrt(draws))


@pytest.mark.parametrize(
    ("noise", "samples", "expected"),
    [
        *((1.0, 16, 0.132), (1.0, 100, 0.139), (1.0, 500, 0.140)),
        *((0.25, 16, 0.825), (0.25, 100, 0.878), (0.25, 500, 0.885)),
        *((0.1, 16, 1.501), (0.1, 100, 1.643), (0.1, 500, 1.665)),
    ],
)
def test_the_mean_reward_nears_the_information_from_below(
    noise: float, samples: int, expected: float
) -> None:
    """I(Z; delta) is 0.144, 0.886 and 1.667 nats; the estimate is lower, the less so the more L."""
    found, error = mean_reward(noise, samples)
    assert error < 0.015
    assert found == pytest.approx(expected, abs=4 * error + 1e-3)


@pytest.mark.parametrize("effect", [0.0, 1.0])
def test_what_is_learned_pays_what_the_best_model_of_unit_variance_pays(effect: float) -> None:
    """delta = effect z + N(0, 1/4): of 0.42 nats, 0.34, for it is wider than the noise."""
    learner, rng = make(dim=1, hidden=(32,), lr=3e-3, samples=64), np.random.default_rng(0)

    def batch(rows: int) -> tuple[Batch, np.ndarray, np.ndarray]:
        z, obs = learner.space.sample(rng, rows), rng.normal(size=(rows, O))
        delta = np.zeros((rows, O))
        delta[:, :1] = effect * z + 0.5 * rng.normal(size=z.shape)
        return batch_of(obs, obs + delta, z), z[:, 0], delta[:, 0]

    for _ in range(600):
        learner.update(batch(256)[0])
    fresh, z, delta = batch(8000)
    deviation = math.sqrt(effect**2 / 3 + 0.25)
    others = learner.others.numpy()[:, 0]
    own, each = (-0.5 * ((delta - effect * w) / deviation) ** 2 for w in (z, others[:, None]))
    best = own - np.log((np.exp(own) + np.exp(each).sum(0)) / 65)
    assert best.mean() == pytest.approx(0.34 * effect, abs=0.03)
    assert float(learner.signal(fresh).mean()) == pytest.approx(best.mean(), abs=0.01)
