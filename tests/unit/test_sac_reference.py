"""SAC against an independent NumPy implementation with hand-derived gradients."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from etude.agents.kernels import Stack
from etude.agents.replay import Batch
from etude.agents.sac import SAC, SACConfig

O, A, Z, B = 4, 2, 3, 6
PARTS = {"w": "weight", "b": "bias", "gain": "gain", "shift": "shift"}
Array = np.ndarray
Layers = list[dict[str, Array]]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Net:
    """One MLP with its own forward and backward pass; layers share memory with the reference."""

    def __init__(self, layers: Layers, activation: str = "relu") -> None:
        self.layers, self.tanh = layers, activation == "tanh"

    def forward(self, x: Array) -> Array:
        self.tape: list[tuple[Array, ...]] = []
        for i, layer in enumerate(self.layers):
            inputs, h = x, x @ layer["w"] + layer["b"]
            normed = inverse = h
            if "gain" in layer:
                inverse = 1 / np.sqrt(h.var(1, keepdims=True) + 1e-5)
                normed = (h - h.mean(1, keepdims=True)) * inverse
                h = normed * layer["gain"] + layer["shift"]
            if i < len(self.layers) - 1:
                h = np.tanh(h) if self.tanh else np.maximum(h, 0)
            self.tape.append((inputs, normed, inverse, h))
            x = h
        return x

    def backward(self, grad: Array) -> tuple[Layers, Array]:
        """Gradients of the parameters and of the input, for the last forward pass."""
        grads: Layers = []
        for i in reversed(range(len(self.layers))):
            layer, (inputs, normed, inverse, h) = self.layers[i], self.tape[i]
            own: dict[str, Array] = {}
            if i < len(self.layers) - 1:
                grad = grad * ((1 - h**2) if self.tanh else (h > 0))
            if "gain" in layer:
                own |= {"gain": (grad * normed).sum(0), "shift": grad.sum(0)}
                g = grad * layer["gain"]
                along = (g * normed).mean(1, keepdims=True)
                grad = inverse * (g - g.mean(1, keepdims=True) - normed * along)
            grads.insert(0, {"w": inputs.T @ grad, "b": grad.sum(0)} | own)
            grad = grad @ layer["w"].T
        return grads, grad


def members(stack: Stack, activation: str = "relu") -> list[Net]:
    """Each of the stacked networks, with copies of its parameters."""
    nets: list[Layers] = [[] for _ in range(stack.members)]
    for layer in stack.layers():
        for e, net in enumerate(nets):
            parts = {k: getattr(layer, name) for k, name in PARTS.items()}
            arrays = {k: v[e].detach().numpy().copy() for k, v in parts.items() if v is not None}
            net.append({k: v.T.copy() if k == "w" else v[0] for k, v in arrays.items()})
    return [Net(net, activation) for net in nets]


class NumpyAdam:
    """Adam (Kingma & Ba 2015) on a list of arrays, in place."""

    def __init__(self, parameters: list[Array], lr: float) -> None:
        self.parameters, self.lr, self.t = parameters, lr, 0
        self.m = [np.zeros_like(p) for p in parameters]
        self.v = [np.zeros_like(p) for p in parameters]

    def step(self, grads: list[Array]) -> None:
        self.t += 1
        for p, g, m, v in zip(self.parameters, grads, self.m, self.v, strict=True):
            m += 0.1 * (g - m)
            v += 0.001 * (g * g - v)
            corrected = np.sqrt(v / (1 - 0.999**self.t)) + 1e-8
            p -= self.lr * m / (1 - 0.9**self.t) / corrected


def flat(layers: Layers) -> list[Array]:
    return [layer[k] for layer in layers for k in ("w", "b", "gain", "shift") if k in layer]


class NumpySAC:
    """The equations of the module's docstring, one network and one sample law at a time."""

    def __init__(self, sac: SAC) -> None:
        self.c, self.entropy_in_target = sac.config, sac.entropy_in_target
        [self.actor] = members(sac.actor.net, self.c.activation)
        self.critics = members(sac.critics)
        self.targets = members(sac.targets)
        self.log_alpha = np.log([self.c.alpha0]).astype(np.float32).astype(np.float64)
        self.critic_adam = NumpyAdam([p for n in self.critics for p in flat(n.layers)], self.c.lr)
        self.actor_adam = NumpyAdam(flat(self.actor.layers), self.c.lr)
        self.alpha_adam = NumpyAdam([self.log_alpha], self.c.alpha_lr)
        self.updates = 0

    def sample(self, obs: Array, skill: Array, noise: Array) -> tuple[Array, Array, Array]:
        head = self.actor.forward(np.concatenate((obs, skill), 1))
        mean, raw = head[:, :A], head[:, A:]
        log_std = np.clip(raw, -5, 2)
        action = np.tanh(mean + np.exp(log_std) * noise)
        density = -0.5 * noise**2 - log_std - 0.5 * np.log(2 * np.pi) - np.log(1 - action**2)
        return action, density.sum(1), raw

    def target(self, b: dict[str, Array], noise: Array, alpha: float) -> Array:
        action, log_prob, _ = self.sample(b["next_obs"], b["skill"], noise)
        x = np.concatenate((b["next_obs"], b["skill"], action), 1)
        psi = [net.forward(x) for net in self.targets]
        w, y = b["w"], b["signal"].copy()
        for i in range(B):
            chosen = min((p[i] for p in psi), key=lambda v: float(v @ w[i]))
            bonus = -alpha * log_prob[i] * w[i] / (w[i] @ w[i]) if self.entropy_in_target else 0.0
            y[i] += self.c.gamma * (1 - b["terminated"][i]) * (chosen + bonus)
        return y

    def update(self, b: dict[str, Array], noises: list[Array]) -> dict[str, float]:
        alpha = float(np.exp(self.log_alpha[0]))
        y = self.target(b, noises[0], alpha)
        x = np.concatenate((b["obs"], b["skill"], b["action"]), 1)
        errors = [net.forward(x) - y for net in self.critics]
        self.critic_grads = [
            g for n, e in zip(self.critics, errors, strict=True) for g in flat(n.backward(e / B)[0])
        ]
        q = np.mean([((e + y) * b["w"]).sum(1).mean() for e in errors])
        self.critic_adam.step(self.critic_grads)
        if self.updates % self.c.actor_every == 0:
            self.actor_metrics = self.update_actor(b, noises[1], alpha)
        for target, net in zip(self.targets, self.critics, strict=True):
            for old, new in zip(flat(target.layers), flat(net.layers), strict=True):
                old += self.c.tau * (new - old)
        self.updates += 1
        return {
            "train/critic_loss": sum(0.5 * (e**2).sum(1).mean() for e in errors),
            "train/q": float(q),
            "train/ent_coef": alpha,
            "train/actor_loss": self.actor_metrics[0],
            "train/entropy": self.actor_metrics[1],
        }

    def update_actor(self, b: dict[str, Array], noise: Array, alpha: float) -> tuple[float, float]:
        action, log_prob, raw = self.sample(b["obs"], b["skill"], noise)
        x = np.concatenate((b["obs"], b["skill"], action), 1)
        qs = np.stack([(net.forward(x) * b["w"]).sum(1) for net in self.critics])
        dq = np.zeros((B, A))
        for e, net in enumerate(self.critics):
            chosen = (qs.argmin(0) == e)[:, None]
            dq += net.backward(chosen * b["w"])[1][:, -A:]
        du = (alpha * 2 * action - dq * (1 - action**2)) / B
        inside = (raw > -5) & (raw < 2)
        ds = (du * noise * np.exp(np.clip(raw, -5, 2)) - alpha / B) * inside
        self.actor_grads = flat(self.actor.backward(np.concatenate((du, ds), 1))[0])
        self.actor_adam.step(self.actor_grads)
        if self.c.auto_alpha:
            calm = self.c.calm_after and self.updates >= self.c.calm_after
            scale = self.c.calm_entropy_scale if calm else self.c.target_entropy_scale
            target_entropy = -scale * A
            self.alpha_adam.step([np.array([-(log_prob + target_entropy).mean()])])
        return float((alpha * log_prob - qs.min(0)).mean()), float(-log_prob.mean())

    def assert_equal(self, sac: SAC) -> None:
        """Every parameter, target and the temperature, to float64 accuracy."""
        close = {"rtol": 1e-8, "atol": 1e-10}
        stacks = ([self.actor], sac.actor.net), (self.critics, sac.critics)
        for nets, stack in (*stacks, (self.targets, sac.targets)):
            for net, theirs in zip(nets, members(stack), strict=True):
                for layer, values in zip(net.layers, theirs.layers, strict=True):
                    assert set(layer) == set(values)
                    for name, value in layer.items():
                        np.testing.assert_allclose(values[name], value, **close)
        np.testing.assert_allclose(sac.log_alpha.detach().numpy(), self.log_alpha, **close)


SMALL = SACConfig(hidden=(7, 5), lr=3e-3, alpha_lr=2e-3)
"""Small layers and larger steps than the defaults, so that three updates move everything."""


def data(seed: int, width: int, ones: bool) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    shapes = {"obs": O, "next_obs": O, "skill": Z, "signal": width, "w": width}
    batch = {k: rng.normal(size=(B, d)) for k, d in shapes.items()}
    batch["action"] = rng.uniform(-1, 1, (B, A))
    batch["terminated"] = (np.arange(B) % 3 == 0).astype(float)
    if ones:
        batch["w"] = np.ones((B, width))
    return batch


def as_batch(b: dict[str, Array]) -> Batch:
    names = ("obs", "action", "next_obs", "skill", "terminated")
    return Batch(*(torch.from_numpy(b[k]) for k in names), time=torch.zeros(B))


def make(config: SACConfig = SMALL, **kwargs: Any) -> SAC:
    """An agent in float64, so that agreement means agreement."""
    return SAC(O, A, Z, config, generator=seeded(), **kwargs).double()


def run_both(sac: SAC, reference: NumpySAC, updates: int = 3, ones: bool = False) -> None:
    noise = torch.Generator()
    noise.set_state(sac.generator.get_state())
    for u in range(updates):
        b = data(u, sac.signal_dim, ones)
        draws = 2 if u % sac.config.actor_every == 0 else 1
        drawn = torch.randn((draws * B, A), generator=noise, dtype=torch.float64)
        noises = np.split(drawn.numpy(), draws)
        metrics = sac.update(as_batch(b), torch.from_numpy(b["signal"]), torch.from_numpy(b["w"]))
        expected = reference.update(b, noises)
        assert set(metrics) == set(expected)
        for name, value in metrics.items():
            assert value.item() == pytest.approx(expected[name], rel=1e-8), name
            assert not value.requires_grad
        reference.assert_equal(sac)


@pytest.mark.parametrize(
    ("changes", "kwargs"),
    [
        ({}, {}),
        ({}, {"signal_dim": 3}),
        ({}, {"signal_dim": 3, "entropy_in_target": False}),
        ({}, {"entropy_in_target": False}),
        ({"hidden": (9,)}, {}),
        ({"activation": "tanh"}, {}),
        ({"lr": 1e-2}, {}),
        ({"gamma": 0.5}, {"signal_dim": 2}),
        ({"tau": 0.3}, {}),
        ({"critics": 1}, {}),
        ({"critics": 4}, {"signal_dim": 3}),
        ({"layer_norm": True}, {"signal_dim": 2}),
        ({"auto_alpha": False, "alpha0": 0.7}, {}),
        ({"alpha0": 0.01}, {}),
        ({"alpha_lr": 0.05}, {}),
        ({"target_entropy_scale": 2.0, "alpha_lr": 0.05}, {}),
        ({"calm_after": 2, "calm_entropy_scale": 5.0, "alpha_lr": 0.05}, {}),
        ({"actor_every": 2}, {}),
    ],
    ids=str,
)
def test_update_agrees_with_numpy(changes: dict[str, Any], kwargs: dict[str, Any]) -> None:
    """Three whole updates: losses, gradients, Adam, temperature, targets; every setting."""
    sac = make(dataclasses.replace(SMALL, **changes), **kwargs)
    reference, config = NumpySAC(sac), sac.config
    assert len(reference.critics) == config.critics
    for net in (reference.actor, *reference.critics):
        assert tuple(len(layer["b"]) for layer in net.layers[:-1]) == config.hidden
    for net in reference.critics:
        assert ["gain" in layer for layer in net.layers[:-1]] == [config.layer_norm] * len(
            config.hidden
        )
    run_both(sac, reference)
    for stacked, own in ((sac.critics, reference.critic_grads), (sac.actor, reference.actor_grads)):
        # Adam hides the scale of a gradient, so the gradients are compared themselves.
        theirs = sum(p.grad.square().sum().item() for p in stacked.parameters())
        assert theirs == pytest.approx(sum((g**2).sum() for g in own), rel=1e-8)


def test_every_setting_is_compared() -> None:
    """The list above must name each field of the configuration."""
    marks = test_update_agrees_with_numpy.pytestmark  # type: ignore[attr-defined]
    named = {name for changes, _ in marks[0].args[1] for name in changes}
    assert named == {f.name for f in dataclasses.fields(SACConfig)}


class PlainSAC(NumpySAC):
    """The target as Haarnoja et al. write it, for a scalar reward."""

    def target(self, b: dict[str, Array], noise: Array, alpha: float) -> Array:
        action, log_prob, _ = self.sample(b["next_obs"], b["skill"], noise)
        x = np.concatenate((b["next_obs"], b["skill"], action), 1)
        q = np.minimum(*(net.forward(x)[:, 0] for net in self.targets))
        return (b["signal"][:, 0] + 0.99 * (1 - b["terminated"]) * (q - alpha * log_prob))[:, None]


def test_one_signal_with_weight_one_is_plain_sac() -> None:
    sac = make()
    run_both(sac, PlainSAC(sac), ones=True)


def test_entropy_enters_the_target_exactly_once_along_w() -> None:
    """<y, w> of the successor-feature target loses exactly gamma alpha log pi."""
    with_entropy, without = (make(signal_dim=3, entropy_in_target=e) for e in (True, False))
    b = {k: torch.from_numpy(v) for k, v in data(0, 3, ones=False).items()}
    batch, alpha = as_batch({k: v.numpy() for k, v in b.items()}), torch.tensor([0.3]).double()
    noise_state = without.generator.get_state()  # that of both: one seed, one initialisation
    noise = torch.randn((B, A), generator=seeded().set_state(noise_state), dtype=torch.float64)
    after = without.actor.sample(batch.next_obs, batch.skill, noise)
    log_prob = after.log_prob
    y, y_without = (
        s._target(after, batch, b["signal"], b["w"], alpha) for s in (with_entropy, without)
    )
    lost = ((y_without - y) * b["w"]).sum(1)
    expected = 0.99 * (1 - batch.terminated) * 0.3 * log_prob.detach()
    torch.testing.assert_close(lost, expected, rtol=1e-6, atol=1e-9)
