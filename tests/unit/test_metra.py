"""METRA against NumPy, and against the optimum it must reach."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from etude.agents.replay import Batch
from etude.skills.learners.base import Spec
from etude.skills.learners.metra import Metra

B, O = 16, 5
FIELDS = {"place": slice(0, 2), "rest": slice(2, 5)}


def make(seed: int = 0, **settings: Any) -> Any:
    torch.manual_seed(seed)
    return Metra(Spec(FIELDS, O, 2), Metra.Config(**{"hidden": (8,), **settings}))


def batch_for(learner: Metra, seed: int = 1) -> Batch:
    rng = np.random.default_rng(seed)
    obs, next_obs = rng.normal(size=(2, B, O)).astype(np.float32)
    z = learner.space.sample(rng, B)
    parts = [torch.from_numpy(x) for x in (obs, np.zeros((B, 2), np.float32), next_obs, z)]
    return Batch(*parts, torch.zeros(B), torch.zeros(B))


class Reference:
    """phi as a one-hidden-layer ReLU network, its loss and its gradient, written out in NumPy."""

    def __init__(self, learner: Metra) -> None:
        layers = [m for m in learner.phi if isinstance(m, torch.nn.Linear)]
        self.w = [m.weight.detach().numpy().T.astype(np.float64) for m in layers]
        self.b = [m.bias.detach().numpy().astype(np.float64) for m in layers]

    def phi(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        hidden = np.maximum(x @ self.w[0] + self.b[0], 0)
        return hidden @ self.w[1] + self.b[1], hidden

    def loss_and_gradient(
        self, s: np.ndarray, s2: np.ndarray, m: np.ndarray, dual: float, slack: float
    ) -> tuple[float, list[np.ndarray], float]:
        (p, h), (p2, h2) = self.phi(s), self.phi(s2)
        step = p2 - p
        constraint = np.minimum(slack, 1 - (step**2).sum(1))
        loss = -np.mean((step * m).sum(1) + dual * constraint)
        active = (1 - (step**2).sum(1) < slack)[:, None]
        g = -(m - dual * 2 * step * active) / len(s)  # d loss / d step
        gradient = [np.zeros_like(x) for x in (*self.w, *self.b)]
        for sign, x, hidden in ((1, s2, h2), (-1, s, h)):
            gradient[1] += hidden.T @ (sign * g)
            gradient[3] += (sign * g).sum(0)
            back = (sign * g) @ self.w[1].T * (hidden > 0)
            gradient[0] += x.T @ back
            gradient[2] += back.sum(0)
        return float(loss), gradient, float(constraint.mean())


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"skills": "discrete", "dim": 3},
        {"skill_obs": ("place",)},
        {"lr": 1e-2, "dual_lr": 0.1, "dual_init": 0.7, "slack": 0.1},
    ],
)
def test_update_and_signal_agree_with_numpy(settings: dict[str, Any]) -> None:
    learner = make(**settings)
    config, reference, batch = learner.config, Reference(learner), batch_for(learner)
    z, s, s2 = (x.numpy().astype(np.float64) for x in (batch.skill, batch.obs, batch.next_obs))
    if config.skill_obs:
        s, s2 = s[:, :2], s2[:, :2]
    n = config.dim
    m = (z - 1 / n) * n / (n - 1) if config.skills == "discrete" else z
    loss, gradient, constraint = reference.loss_and_gradient(
        s, s2, m, config.dual_init, config.slack
    )
    metrics = learner.update(batch)
    assert float(metrics["skill/phi_loss"]) == pytest.approx(loss, abs=1e-5)

    def adam(g: np.ndarray) -> np.ndarray:  # the first step of Adam: g / (|g| + 1e-8)
        return g / (np.abs(g) + 1e-8)

    for part, g in zip((*reference.w, *reference.b), gradient, strict=True):
        part -= config.lr * adam(g)
    layers = [x for x in learner.phi if isinstance(x, torch.nn.Linear)]
    found = [x.weight.grad.numpy().T for x in layers] + [x.bias.grad.numpy() for x in layers]
    for mine, g in zip(found, gradient, strict=True):
        np.testing.assert_allclose(mine, g, atol=1e-5)
    assert float(learner.log_lambda.grad) == pytest.approx(constraint, abs=1e-5)
    for i, layer in enumerate(layers):
        np.testing.assert_allclose(layer.weight.detach().numpy().T, reference.w[i], atol=1e-5)
        if layer is not layers[-1]:  # the last bias cancels in phi(s') - phi(s): it has no gradient
            np.testing.assert_allclose(layer.bias.detach().numpy(), reference.b[i], atol=1e-5)
    log_dual = np.log(config.dual_init) - config.dual_lr * adam(np.array(constraint))
    assert float(learner.log_lambda.detach()) == pytest.approx(float(log_dual), abs=1e-5)

    signal = ((reference.phi(s2)[0] - reference.phi(s)[0]) * m).sum(1)
    np.testing.assert_allclose(learner.signal(batch).numpy()[:, 0], signal, atol=1e-5)


def test_signal_is_the_same_when_asked_twice_and_carries_no_gradient() -> None:
    learner = make()
    batch = batch_for(learner)
    first = learner.signal(batch)
    assert first.shape == (B, 1) and not first.requires_grad
    torch.testing.assert_close(first, learner.signal(batch), rtol=0, atol=0)


def test_the_dual_variable_grows_while_steps_are_too_long_and_stays_bounded() -> None:
    learner = make(dual_lr=1.0)
    with torch.no_grad():
        for p in learner.phi.parameters():
            p.mul_(20)
    batch = batch_for(learner)
    before = float(learner.log_lambda.detach())
    learner.update(batch)
    assert float(learner.log_lambda.detach()) > before
    for _ in range(20):
        learner.update(batch)
        with torch.no_grad():
            for p in learner.phi.parameters():
                p.mul_(2)
    assert float(learner.log_lambda.detach()) <= 10.0


def test_mean_squared_step_reaches_one_where_steps_carry_the_skill() -> None:
    """Steps along z in the plane: the optimum is phi(s) = s / step with mean |step|^2 = 1."""
    learner = make(hidden=(32,), lr=1e-2, dual_lr=1e-2, skill_obs=("place",))
    rng = np.random.default_rng(0)
    for _ in range(600):
        z = learner.space.sample(rng, 128)
        obs = rng.normal(size=(128, O)).astype(np.float32)
        next_obs = obs.copy()
        next_obs[:, :2] += 0.25 * z
        parts = [torch.from_numpy(x) for x in (obs, np.zeros((128, 2), np.float32), next_obs, z)]
        batch = Batch(*parts, torch.zeros(128), torch.zeros(128))
        length = float(learner.update(batch)["skill/squared_step"])
    assert length == pytest.approx(1.0, abs=0.05)
    assert float(learner.signal(batch).mean()) > 0.95


def test_goal_skill_points_from_here_to_there() -> None:
    learner = make(dim=3)
    batch = batch_for(learner)
    way = (learner.encode(batch.next_obs) - learner.encode(batch.obs)).detach()
    z = learner.goal_skill(batch.obs, batch.next_obs)
    torch.testing.assert_close(z, way / way.norm(dim=-1, keepdim=True))
    discrete = make(skills="discrete", dim=3)
    one_hot = discrete.goal_skill(batch.obs, batch.next_obs)
    way = discrete.encode(batch.next_obs) - discrete.encode(batch.obs)
    assert (one_hot.argmax(-1) == way.argmax(-1)).all() and (one_hot.sum(-1) == 1).all()
