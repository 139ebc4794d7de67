"""LSD, CSD, METRA and CSF against NumPy, LSD and CSD against their optima, what they share.

METRA and CSF have files of their own beside this one, `test_metra.py` and `test_csf.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from etude.agents.networks import linear_layers
from etude.agents.replay import Batch
from etude.errors import UsageError
from etude.skills import learners
from etude.skills.learners._delta_phi import DeltaPhi
from etude.skills.learners.base import Spec

B, O = 16, 5
FIELDS = {"place": slice(0, 2), "rest": slice(2, 5)}
FAMILY = ("csd", "csf", "lsd", "metra")
Array = NDArray[np.float64]


def make(name: str, seed: int = 0, **settings: Any) -> Any:
    torch.manual_seed(seed)
    learner = learners.get(name)
    return learner(Spec(FIELDS, O, 2), learner.Config(**{"hidden": (8,), **settings}))


def transitions(obs: Any, next_obs: Any, z: Any) -> Batch:
    n = len(obs)
    arrays = (np.asarray(x, np.float32) for x in (obs, np.zeros((n, 2)), next_obs, z))
    return Batch(*map(torch.from_numpy, arrays), torch.zeros(n), torch.zeros(n))


def batch_for(learner: DeltaPhi, seed: int = 1) -> Batch:
    rng = np.random.default_rng(seed)
    return transitions(*rng.normal(size=(2, B, O)), learner.space.sample(rng, B))


def in_the_plane(learner: DeltaPhi, rng: np.random.Generator, n: int = 128) -> Batch:
    """Steps of length 0.25 along z, in the first two observations."""
    z, obs = learner.space.sample(rng, n), rng.normal(size=(n, O))
    next_obs = obs.copy()
    next_obs[:, :2] += 0.25 * z
    return transitions(obs, next_obs, z)


def forward(weights: list[Array], x: Array) -> Array:
    """A ReLU network (W, b, W, b, ...)."""
    for i in range(0, len(weights), 2):
        x = (np.maximum(x, 0) if i else x) @ weights[i].T + weights[i + 1]
    return x


def learned(net: torch.nn.Module, what: str = "data") -> list[Array]:
    """W, b, W, b, ... before any spectral normalisation; or what="grad", their gradients."""
    found = {k.replace("parametrizations.", ""): p for k, p in net.named_parameters()}
    order = sorted(found, key=lambda k: (int(k.split(".")[0]), "bias" in k))
    return [getattr(found[k], what).numpy().astype(np.float64) for k in order]


def unstretched(weights: list[Array]) -> list[Array]:
    return [w / np.linalg.svd(w)[1][0] if w.ndim == 2 else w for w in weights]


def directions(learner: DeltaPhi, z: Array) -> Array:
    n = learner.config.dim
    return (z - 1 / n) * n / (n - 1) if learner.config.skills == "discrete" else z


def central_differences(loss: Callable[[], float], weights: list[Array]) -> list[Array]:
    """The gradient of `loss`, which reads `weights`, by moving each of them a little."""
    gradients, small = [np.zeros_like(part) for part in weights], 1e-6
    for part, gradient in zip(weights, gradients, strict=True):
        for i in np.ndindex(part.shape):
            for sign in (1, -1):
                part[i] += sign * small
                gradient[i] += sign * loss() / (2 * small)
                part[i] -= sign * small
    return gradients


def lsd_bound(learner: Any, s: Array, s2: Array, step: Array) -> Array:
    return np.zeros(len(s))


def csd_bound(learner: Any, s: Array, s2: Array, step: Array) -> Array:
    mean, raw = np.split(forward(learned(learner.q.net), s), 2, axis=1)
    variance = (learner.config.min_std + np.log1p(np.exp(raw))) ** 2
    weight = 1 / variance / (1 / variance).prod(1, keepdims=True) ** (1 / s.shape[1])
    room = (weight * (s2 - s - mean) ** 2).mean(1) - (step**2).sum(1)
    return learner.config.dual_init * np.minimum(room, learner.config.slack)


def metra_bound(learner: Any, s: Array, s2: Array, step: Array) -> Array:
    room = 1 - (step**2).sum(1)
    return learner.config.dual_init * np.minimum(room, learner.config.slack)


def csf_bound(learner: Any, s: Array, s2: Array, step: Array) -> Array:
    dim = learner.config.dim
    if learner.config.skills == "discrete":
        others = directions(learner, np.eye(dim))
    else:
        same = torch.Generator()
        same.set_state(learner.generator.get_state())
        others = torch.randn((learner.config.negatives, dim), generator=same).numpy()
        others = others / np.linalg.norm(others, axis=1, keepdims=True)
    return -learner.config.xi * np.log(np.exp(step @ others.T).mean(1))


BOUNDS: dict[str, Callable[..., Array]] = {
    "lsd": lsd_bound,
    "csd": csd_bound,
    "metra": metra_bound,
    "csf": csf_bound,
}
DUAL = {"dual_lr": 0.1, "dual_init": 0.7, "slack": 0.5}
CASES: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in BOUNDS),
    *((name, {"skills": "discrete", "dim": 3}) for name in BOUNDS),
    *((name, {"skill_obs": ("place",), "hidden": (6, 4)}) for name in BOUNDS),
    ("csd", {**DUAL, "min_std": 0.3, "scale": 3.0}),
    ("metra", DUAL),
    ("csf", {"xi": 2.0, "negatives": 7, "dim": 4}),
]


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_loss_gradient_and_signal_agree_with_numpy(name: str, settings: dict[str, Any]) -> None:
    """The gradient by central differences of a loss that is written anew, in double precision."""
    learner = make(name, **settings)
    for layer in learner.phi[::2]:  # no unit may stand exactly at its kink
        torch.nn.init.uniform_(layer.bias, -0.5, 0.5)
    learner.phi.train()
    for _ in range(100 * (name == "lsd")):  # power iterations, to the largest singular value
        learner.phi(torch.zeros(1, learner.seen_dim))
    learner.phi.eval()
    batch = batch_for(learner)
    s, s2 = (
        x.numpy().astype(np.float64)[:, : learner.seen_dim] for x in (batch.obs, batch.next_obs)
    )
    m = directions(learner, batch.skill.numpy().astype(np.float64))
    weights = learned(learner.phi)

    def phi_step() -> Array:
        kept = unstretched(weights) if name == "lsd" else weights
        return forward(kept, s2) - forward(kept, s)

    def bound() -> Array:
        return BOUNDS[name](learner, s, s2, phi_step())

    def loss() -> float:
        return -float(np.mean((phi_step() * m).sum(1) + bound()))

    progress = (phi_step() * m).sum(1)
    signal = learner.signal(batch).numpy()
    if name == "csf":
        np.testing.assert_allclose(signal, phi_step(), atol=1e-5)
        np.testing.assert_allclose(learner.task_vector(batch.skill).numpy(), m, atol=1e-6)
        signal = (signal * m).sum(1, keepdims=True)
    np.testing.assert_allclose(
        signal[:, 0], getattr(learner.config, "scale", 1) * progress, atol=1e-5
    )

    expected, gradients = loss(), central_differences(loss, weights)
    kept = bound().mean() / getattr(learner.config, "dual_init", 1)  # the constraint, if any
    length = float((phi_step() ** 2).sum(1).mean())
    metrics = learner.update(batch)
    assert float(metrics["skill/phi_loss"]) == pytest.approx(expected, abs=1e-5)
    assert float(metrics["skill/squared_step"]) == pytest.approx(length, abs=1e-5)
    for gradient, found in zip(gradients, learned(learner.phi, "grad"), strict=True):
        np.testing.assert_allclose(found, gradient, atol=1e-5)
    if learner.log_lambda is not None:  # descends log lambda * mean constraint
        assert float(learner.log_lambda.grad) == pytest.approx(kept, abs=1e-5)


def test_every_setting_of_a_step_size_is_used() -> None:
    """The first step of Adam is the learning rate, whatever the gradient."""
    learner = make("csd", lr=0.25, density_lr=0.125, dual_lr=0.5, dual_init=2.0)
    before = [p.detach().clone() for p in (learner.phi[0].weight, learner.q.net[0].weight)]
    learner.update(batch_for(learner))
    after = learner.phi[0].weight, learner.q.net[0].weight
    moved = [float((a - b).abs().max().detach()) for a, b in zip(after, before, strict=True)]
    assert moved == pytest.approx([0.25, 0.125], abs=1e-4)
    assert abs(float(learner.log_lambda.detach()) - math.log(2)) == pytest.approx(0.5, abs=1e-4)


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("settings", [{"dim": 3}, {"skills": "discrete", "dim": 3}])
def test_pacing_to_and_fro_earns_nothing(name: str, settings: dict[str, Any]) -> None:
    """The signals of an episode add up to the progress from its first state to its last."""
    learner = make(name, **settings)
    rng = np.random.default_rng(0)
    path = rng.normal(size=(B + 1, O))
    z = np.repeat(learner.space.sample(rng, 1), B, axis=0)
    batch = transitions(path[:-1], path[1:], z)
    total = (learner.signal(batch) * learner.task_vector(batch.skill)).sum()
    once = transitions(path[:1], path[-1:], z[:1])
    whole = (learner.signal(once) * learner.task_vector(once.skill)).sum()
    assert float(total) == pytest.approx(float(whole), abs=1e-5)


@pytest.mark.parametrize("name", FAMILY)
def test_goal_skill_points_from_here_to_there(name: str) -> None:
    learner = make(name, dim=3)
    batch = batch_for(learner)
    way = (learner.encode(batch.next_obs) - learner.encode(batch.obs)).detach()
    z = learner.goal_skill(batch.obs, batch.next_obs)
    torch.testing.assert_close(z, way / way.norm(dim=-1, keepdim=True))
    discrete = make(name, skills="discrete", dim=3)
    way = discrete.encode(batch.next_obs) - discrete.encode(batch.obs)
    chosen = discrete.goal_skill(batch.obs, batch.next_obs)
    assert (chosen.argmax(-1) == way.argmax(-1)).all() and (chosen.sum(-1) == 1).all()


def test_lsd_never_stretches() -> None:
    """Under the greatest pressure to grow: large steps along z, and a large learning rate."""
    learner = make("lsd", hidden=(32, 32), lr=1e-2, skill_obs=("place",))
    rng = np.random.default_rng(0)
    for _ in range(300):
        learner.update(in_the_plane(learner, rng))
    for weight, _ in linear_layers(learner.phi):
        assert np.linalg.svd(weight)[1][0] == pytest.approx(1, abs=0.02)
    x, y = torch.from_numpy(rng.normal(size=(2, 4096, O)).astype(np.float32) * 3)
    near = x + 1e-2 * (y - x)
    for other in (y, near):
        apart = (learner.encode(x) - learner.encode(other)).norm(dim=-1)
        assert (apart <= (x - other)[:, :2].norm(dim=-1) * (1 + 1e-3)).all()


def test_lsd_reaches_the_length_of_the_step() -> None:
    """Where steps of 0.25 carry the skill, the best 1-Lipschitz phi keeps distances."""
    learner = make("lsd", hidden=(64,), lr=1e-2, skill_obs=("place",))
    rng = np.random.default_rng(0)
    for _ in range(600):
        learner.update(in_the_plane(learner, rng))
    assert 0.9 * 0.25 < float(learner.signal(in_the_plane(learner, rng)).mean()) <= 0.2501


@pytest.mark.parametrize("name", FAMILY)
def test_signals_are_the_same_when_asked_twice(name: str) -> None:
    """Power iterations and fresh draws belong to updates alone, and exporting changes nothing."""
    learner = make(name, hidden=(64, 64))
    batch = batch_for(learner)
    torch.testing.assert_close(learner.signal(batch), learner.signal(batch), rtol=0, atol=0)
    learner.update(batch)
    first, state = learner.signal(batch), learner.checkpoint()["weights"]
    kept = {k: v.clone() for k, v in state.items()}
    linear_layers(learner.export()["phi"])
    torch.testing.assert_close(first, learner.signal(batch), rtol=0, atol=0)
    assert all(torch.equal(v, kept[k]) for k, v in learner.state_dict().items())


def test_csd_weights_have_unit_product() -> None:
    """A step of one along each axis, from what was expected, is w_i / seen far."""
    learner = make("csd")
    for seed in range(20):
        learner.update(batch_for(learner, seed))
    obs = np.repeat(np.random.default_rng(0).normal(size=(1, O)), O, axis=0)
    mean = learner.q(torch.from_numpy(obs.astype(np.float32)))[0].detach().numpy()
    batch = transitions(obs, obs + mean + np.eye(O), learner.space.even(O))
    weights = O * learner.distance(batch).numpy()
    assert weights.prod() == pytest.approx(1, abs=1e-4)
    assert weights.std() > 1e-2


def test_csd_stretches_what_seldom_moves() -> None:
    """Of two coordinates, one moves ten times farther: the other has 100 times its weight."""
    learner = make("csd", hidden=(32,), skill_obs=("place",), density_lr=1e-2)
    rng = np.random.default_rng(0)

    def data(n: int) -> Batch:
        obs = rng.normal(size=(n, O))
        moved = obs.copy()
        moved[:, :2] += rng.normal(size=(n, 2)) * (1.0, 0.1)
        return transitions(obs, moved, learner.space.sample(rng, n))

    for _ in range(400):
        learner.update(data(256))
    weights = []
    for axis in np.eye(2):
        step = data(512)
        mean = learner.q(step.obs[:, :2])[0].detach().numpy()
        there = step.obs.numpy().copy()
        there[:, :2] += mean + axis
        weights.append(
            2 * learner.distance(step.replace(next_obs=torch.from_numpy(there))).median()
        )
    assert float(weights[1] / weights[0]) == pytest.approx(100, rel=0.3)
    floored = make("csd", hidden=(32,), skill_obs=("place",), density_lr=1e-2, min_std=1.0)
    for _ in range(400):
        floored.update(data(256))
    assert float(floored.q(data(64).obs[:, :2])[1].detach().min()) >= 1.0


def test_csd_steps_become_as_long_as_the_learned_distance() -> None:
    """With slack for what varies, the dual variable makes the constraint an equality on average."""
    settings = {"lr": 1e-2, "dual_lr": 1e-2, "slack": 0.02, "skill_obs": ("place",)}
    learner = make("csd", hidden=(32,), **settings)
    rng = np.random.default_rng(0)
    for _ in range(800):
        batch = in_the_plane(learner, rng)
        length = float(learner.update(batch)["skill/squared_step"])
    assert length == pytest.approx(float(learner.distance(batch).mean()), rel=0.1)


@pytest.mark.parametrize("name", ["csd", "metra"])
@pytest.mark.parametrize(("growth", "end"), [(2.0, 10.0), (0.0, -5.0)])
def test_lambda_stays_bounded(name: str, growth: float, end: float) -> None:
    """However long the constraint is violated, or kept with room to spare."""
    learner = make(name, dual_lr=1.0, slack=0.1)
    batch = batch_for(learner)
    for _ in range(20):
        with torch.no_grad():
            for p in learner.phi.parameters():
                p.mul_(growth)
        metrics = learner.update(batch)
    assert float(learner.log_lambda.detach()) == end
    assert float(metrics["skill/lambda"]) == pytest.approx(math.exp(end))


@pytest.mark.parametrize("name", FAMILY)
def test_a_single_discrete_skill_is_refused(name: str) -> None:
    """Centred it would be a signal of 0."""
    with pytest.raises(UsageError, match="dim = 1 discrete skill has no direction"):
        make(name, skills="discrete", dim=1)
    assert make(name, dim=1).space.dim == 1
