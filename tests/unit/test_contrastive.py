"""The contrastive agent against NumPy, at its optimum, and every option of it and of CRL."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from etude.agents.contrastive import EPSILON, Contrastive, ContrastiveConfig, contrast, energies
from etude.agents.replay import Batch
from etude.errors import UsageError
from etude.skills.discovery import Discovery, preset
from etude.skills.export import export
from etude.skills.learners.base import Spec
from etude.skills.learners.crl import VISITED, Crl
from etude.skills.library import SkillLibrary

O, A, Z, B = 4, 2, 3, 6
SMALL = ContrastiveConfig(hidden=(7, 5), dim=4, lr=3e-3, alpha_lr=2e-3, told=0.25)
Array = np.ndarray


def make(seed: int = 0, double: bool = True, **settings: Any) -> Contrastive:
    config = dataclasses.replace(SMALL, **settings)
    agent = Contrastive(O, A, Z, config, generator=torch.Generator().manual_seed(seed))
    return agent.double() if double else agent


def a_batch(seed: int = 0, dtype: torch.dtype = torch.float64) -> Batch:
    g = torch.Generator().manual_seed(seed)
    obs, after = torch.randn(2, B, O, generator=g, dtype=dtype)
    action = torch.rand(B, A, generator=g, dtype=dtype) * 2 - 1
    told, met = torch.randn(2, B, Z, generator=g, dtype=dtype)
    zero = torch.zeros(B, dtype=dtype)
    return Batch(obs, action, after, told, zero, zero, goal=met)


def met(batch: Batch) -> torch.Tensor:
    assert batch.goal is not None
    return batch.goal


def step(agent: Contrastive, batch: Batch) -> dict[str, torch.Tensor]:
    nothing = torch.zeros(len(batch.obs), 1)
    return agent.update(batch, nothing, nothing)


# ---- NumPy


def numpy_energies(phi: Array, psi: Array, kind: str) -> Array:
    """f (B, G), one pair after the other."""
    f = np.empty((len(phi), len(psi)))
    for i, left in enumerate(phi):
        for j, right in enumerate(psi):
            apart = ((left - right) ** 2).sum()
            f[i, j] = (left * right).sum() if kind == "inner" else -np.sqrt(apart + EPSILON)
    return f


def numpy_loss(f: Array, kind: str, penalty: float) -> float:
    """The loss of one critic, from softmaxes."""
    rows, columns = np.log(np.exp(f).sum(1)), np.log(np.exp(f).sum(0))
    of_goals = -np.log(np.diag(np.exp(f) / np.exp(f).sum(1)[:, None])).mean()
    of_pairs = -np.log(np.diag(np.exp(f) / np.exp(f).sum(0))).mean()
    wanted = {"forward": of_goals, "backward": of_pairs, "symmetric": of_goals + of_pairs}
    assert len(columns) == len(rows)
    return float(wanted[kind] + penalty * (rows**2).mean())


def slope(loss: Any, x: Array, eps: float = 1e-6) -> Array:
    """Central differences."""
    grad = np.empty_like(x)
    for at in np.ndindex(*x.shape):
        up, down = x.copy(), x.copy()
        up[at] += eps
        down[at] -= eps
        grad[at] = (loss(up) - loss(down)) / (2 * eps)
    return grad


every_loss = pytest.mark.parametrize("loss", ["forward", "backward", "symmetric"])
every_energy = pytest.mark.parametrize("energy", ["inner", "distance"])


@every_loss
@pytest.mark.parametrize("penalty", [0.0, 0.3])
def test_the_loss_and_its_gradient_are_those_of_numpy(loss: str, penalty: float) -> None:
    f = np.random.default_rng(0).normal(size=(2, B, B))
    got, grad = contrast(torch.from_numpy(f), loss, penalty)
    assert float(got) == pytest.approx(sum(numpy_loss(g, loss, penalty) for g in f), abs=1e-9)
    for e in range(2):
        expected = slope(lambda x: numpy_loss(x, loss, penalty), f[e])
        np.testing.assert_allclose(grad[e].numpy(), expected, atol=1e-8)


@every_energy
def test_energies_are_those_of_numpy(energy: str) -> None:
    phi, psi = np.random.default_rng(0).normal(size=(2, 2, B, 5))
    psi[1, 0] = phi[1, 2]  # at a distance of zero, where the root has no slope
    got = energies(torch.from_numpy(phi), torch.from_numpy(psi[:, :4]), energy).numpy()
    expected = [numpy_energies(phi[e], psi[e, :4], energy) for e in range(2)]
    np.testing.assert_allclose(got, expected, atol=1e-6)


@every_loss
@every_energy
@pytest.mark.parametrize("critics", [1, 2])
def test_the_gradients_of_an_update_are_those_of_autograd(
    loss: str, energy: str, critics: int
) -> None:
    """Of phi and psi before the step, and of the policy after it."""
    settings = {"loss": loss, "energy": energy, "critics": critics, "layer_norm": critics == 2}
    agent, batch = make(**settings, penalty=0.2), a_batch()
    phi = agent.critics(torch.cat((batch.obs, batch.action), -1))
    psi = agent.goals(met(batch))
    f = phi @ psi.mT if energy == "inner" else -(_square(phi, psi) + EPSILON).sqrt()
    whole = torch.stack([_torch_loss(g, loss, 0.2) for g in f]).sum()
    expected = torch.autograd.grad(whole, [agent.critics.flat, agent.goals.flat])
    generator = agent.generator.get_state()
    found = step(agent, batch)
    assert float(found["train/critic_loss"]) == pytest.approx(float(whole.detach()), abs=1e-6)
    for name, want in zip(("critics", "goals"), expected, strict=True):
        torch.testing.assert_close(agent.gradients()[name], want, atol=1e-7, rtol=1e-5)

    fresh = make(**settings, penalty=0.2)  # the policy as it was, the critics as they are now
    fresh.critics.flat.data.copy_(agent.critics.flat.data)
    fresh.goals.flat.data.copy_(agent.goals.flat.data)
    noise = torch.Generator()
    noise.set_state(generator)
    hindsight = met(batch)  # of six rows: three of others, two of its own, one as it was told
    goal = torch.cat((hindsight.roll(1, 0)[:3], hindsight[3:5], batch.skill[5:]))
    drawn = torch.randn(B, A, generator=noise, dtype=torch.float64)
    action, log_prob, *_ = fresh.actor.sample(batch.obs, goal, drawn)
    phi, psi = fresh.critics(torch.cat((batch.obs, action), -1)), fresh.goals(goal)
    apart = (phi - psi).square().sum(-1)
    f = (phi * psi).sum(-1) if energy == "inner" else -(apart + EPSILON).sqrt()
    objective = (0.1 * log_prob - f.min(0).values).mean()
    [want] = torch.autograd.grad(objective, [fresh.actor.net.flat])
    torch.testing.assert_close(agent.gradients()["actor"], want, atol=1e-7, rtol=1e-5)
    assert float(found["train/actor_loss"]) == pytest.approx(float(objective.detach()), abs=1e-6)


def _square(phi: torch.Tensor, psi: torch.Tensor) -> torch.Tensor:
    return (phi.unsqueeze(2) - psi.unsqueeze(1)).square().sum(-1)


def _torch_loss(f: torch.Tensor, kind: str, penalty: float) -> torch.Tensor:
    forward = torch.nn.functional.cross_entropy(f, torch.arange(B))
    backward = torch.nn.functional.cross_entropy(f.mT, torch.arange(B))
    sides = {"forward": forward, "backward": backward, "symmetric": forward + backward}
    return sides[kind] + penalty * f.logsumexp(1).square().mean()


# ---- the optimum


@pytest.mark.parametrize(
    ("loss", "energy", "free"),
    [("symmetric", "inner", ""), ("forward", "distance", "pair"), ("backward", "inner", "goal")],
)
def test_the_optimum_is_the_log_odds_of_the_goal(loss: str, energy: str, free: str) -> None:
    """Three pairs, four goals: f - log p(g|s,a)/p(g) is constant but for what the loss leaves."""
    chances = np.array([[0.7, 0.1, 0.1, 0.1], [0.1, 0.6, 0.2, 0.1], [0.25, 0.25, 0.25, 0.25]])
    odds = np.log(chances / chances.mean(0))
    config = ContrastiveConfig(hidden=(32,), dim=8, lr=1e-2, loss=loss, energy=energy, penalty=0.0)  # type: ignore[arg-type]
    agent = Contrastive(3, 1, 4, config, generator=torch.Generator().manual_seed(0))
    rng, eye = np.random.default_rng(0), torch.eye(4)
    whole = torch.cumsum(torch.from_numpy(chances), 1)
    f = np.zeros_like(odds)
    updates, averaged = 800, 400
    for update in range(updates):
        pair = torch.from_numpy(rng.integers(3, size=96))
        goal = (torch.from_numpy(rng.random((96, 1))) > whole[pair]).sum(1).clamp(max=3)
        obs, zero = eye[pair, :3], torch.zeros(96)
        step(agent, Batch(obs, torch.zeros(96, 1), obs, eye[goal], zero, zero, goal=eye[goal]))
        if update >= updates - averaged:
            f += agent.score(eye[:3, :3], torch.zeros(3, 1), eye).numpy() / averaged
    error = f - odds
    axis = {"": None, "pair": 1, "goal": 0}[free]
    error = error - error.mean(axis, keepdims=True)
    assert np.abs(error).max() < 0.12, error.round(3)
    assert np.abs(odds).max() > 1


def test_the_penalty_fixes_what_the_forward_loss_leaves_free() -> None:
    """Rows of another height cost nothing without it, and the more the larger it is."""
    f = torch.from_numpy(np.random.default_rng(0).normal(size=(1, B, B)))
    raised = f + torch.arange(B, dtype=torch.float64)[:, None]
    free, held = (
        float(contrast(raised, "forward", c)[0] - contrast(f, "forward", c)[0]) for c in (0.0, 0.1)
    )
    assert abs(free) < 1e-9 and held > 0.5


def test_the_policy_goes_where_its_goal_is_met() -> None:
    """One state, and the action is the place: the policy of goal g should act g."""
    config = ContrastiveConfig(hidden=(32, 32), dim=8, lr=3e-3, auto_alpha=False, alpha0=0.01)
    agent = Contrastive(1, 1, 1, config, generator=torch.Generator().manual_seed(0))
    g = torch.Generator().manual_seed(1)
    for _ in range(400):
        action = torch.rand(128, 1, generator=g) * 2 - 1
        goal = action + 0.1 * torch.randn(128, 1, generator=g)
        obs, zero = torch.zeros(128, 1), torch.zeros(128)
        step(agent, Batch(obs, action, obs, goal, zero, zero, goal=goal))
    wanted = torch.linspace(-0.7, 0.7, 8).unsqueeze(1)
    acted = agent.act(torch.zeros(8, 1), wanted, deterministic=True)
    assert (acted - wanted).abs().max() < 0.25, acted.T


# ---- options


def test_no_target_and_no_reward() -> None:
    """The same update whatever signal there is, and SAC's settings of bootstrapping are refused."""
    agents = [make(), make()]
    assert not hasattr(agents[0], "targets")
    batch = a_batch()
    for agent, reward in zip(agents, (0.0, 5.0), strict=True):
        agent.update(
            batch.replace(terminated=torch.full((B,), reward)),
            torch.full((B, 1), reward),
            torch.ones(B, 1),
        )
    one, two = (agent.state_dict() for agent in agents)
    assert all(torch.equal(v, two[k]) for k, v in one.items())
    for settings in ({"gamma": 0.99}, {"tau": 0.005}):
        with pytest.raises(UsageError, match="out of range"):
            dataclasses.replace(SMALL, **settings)


@pytest.mark.parametrize(
    ("shuffled", "told", "expected"),
    [(0.0, 0.0, "mmmmmm"), (1.0, 0.0, "oooooo"), (0.0, 1.0, "tttttt"), (0.5, 0.25, "ooommt")],
)
def test_shares_of_the_goals_of_the_policy(
    shuffled: float, told: float, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Met by its own episode, met by others, or told to reach."""
    agent, batch, seen = make(shuffled=shuffled, told=told), a_batch(), []
    sample = agent.actor.sample

    def spy(obs: torch.Tensor, goal: torch.Tensor, noise: torch.Tensor) -> Any:
        seen.append(goal)
        return sample(obs, goal, noise)

    monkeypatch.setattr(agent.actor, "sample", spy)
    step(agent, batch)
    kinds = {"m": met(batch), "o": met(batch).roll(1, 0), "t": batch.skill}
    for row, kind in enumerate(expected):
        assert torch.equal(seen[0][row], kinds[kind][row]), row


def test_shares_above_one_are_refused() -> None:
    with pytest.raises(UsageError, match="more than all goals"):
        make(shuffled=0.8)


def test_the_scale_is_that_of_everything_seen() -> None:
    """As an agent that is given what is three times as large, in all that it does."""
    scaled, plain, batch = make(scale=3.0), make(), a_batch()
    obs, action, goal, told = batch.obs, batch.action, met(batch), batch.skill
    step(scaled, batch)
    step(plain, batch.replace(obs=3 * obs, skill=3 * told, goal=3 * goal))
    one, two = scaled.state_dict(), plain.state_dict()
    assert all(torch.equal(v, two[k]) for k, v in one.items())
    assert torch.equal(scaled.score(obs, action, goal), plain.score(3 * obs, action, 3 * goal))
    acted = scaled.act(obs, told, deterministic=True)
    assert torch.equal(acted, plain.act(3 * obs, 3 * told, deterministic=True))
    x = torch.cat((obs, told), -1).numpy()  # and so in a library, which knows of no scale
    *hidden, (weight, bias) = scaled.policy_layers()
    for w, b in hidden:
        x = np.maximum(x @ w + b, 0)
    np.testing.assert_allclose(np.tanh(x @ weight + bias), acted.numpy(), atol=1e-9)


def test_the_smallest_of_several_critics_counts() -> None:
    agent, batch = make(critics=3, energy="inner"), a_batch()
    each = energies(
        agent.critics(torch.cat((batch.obs, batch.action), -1)), agent.goals(met(batch)), "inner"
    )
    got = agent.score(batch.obs, batch.action, met(batch))
    torch.testing.assert_close(got, each.detach().min(0).values)
    assert len({int(i) for i in each.min(0).indices.ravel()}) > 1


def test_actor_every_and_the_temperature() -> None:
    agent, batch = make(actor_every=2), a_batch()
    moved = []
    for _ in range(3):
        before = agent.actor.net.flat.detach().clone(), agent.log_alpha.detach().clone()
        step(agent, batch)
        after = agent.actor.net.flat, agent.log_alpha
        moved.append([not torch.equal(a, b) for a, b in zip(before, after, strict=True)])
    assert moved == [[True, True], [False, False], [True, True]]
    fixed = make(auto_alpha=False)
    step(fixed, batch)
    assert float(fixed.log_alpha.detach().exp()) == pytest.approx(0.1)


def test_the_target_entropy_may_lie_above_zero() -> None:
    """It is reached from below, and one above that of uniform actions refused."""
    settings = {"target_entropy_scale": -0.3, "lr": 1e-2, "alpha_lr": 3e-2}
    agent, batch = make(**settings), a_batch()
    assert agent.target_entropy == pytest.approx(0.3 * A)
    entropy = [float(step(agent, batch)["train/entropy"]) for _ in range(300)]
    assert np.mean(entropy[-100:]) == pytest.approx(0.3 * A, abs=0.3)
    with pytest.raises(UsageError, match="out of range"):
        make(target_entropy_scale=-0.7)


def test_a_restored_agent_goes_on_as_the_first() -> None:
    first, second = make(double=False), make(seed=5, double=False)
    batch = a_batch(dtype=torch.float32)
    step(first, batch)
    second.restore(first.checkpoint())
    for agent in (first, second):
        step(agent, batch)
    one, two = first.state_dict(), second.state_dict()
    assert all(torch.equal(v, two[k]) for k, v in one.items())
    assert {*first.checkpoint()["optimisers"]} == {"actor", "critics", "goals", "alpha"}


# ---- the learner


FIELDS = {"place": slice(0, 2), "speed": slice(2, 4)}


def crl(**settings: Any) -> Crl:
    torch.manual_seed(0)
    return Crl(Spec(FIELDS, O, A), Crl.Config(skill_obs=("place",), **settings))


def test_hindsight_goals_are_the_places_of_the_future() -> None:
    learner, future = crl(reach=2.0), torch.arange(4 * B).reshape(B, 4).double()
    drawn, rng = a_batch().replace(future_obs=future, goal=None), np.random.default_rng(0)
    batch = learner.relabel(drawn, rng)
    torch.testing.assert_close(batch.goal, future[:, :2] / 2)
    assert batch.skill is drawn.skill
    learner.offline = True  # skills of a dataset may be of any kind
    torch.testing.assert_close(learner.relabel(drawn, rng).skill, future[:, :2] / 2)


def test_what_is_practised() -> None:
    rng, z = np.random.default_rng(0), np.zeros((500, 2), np.float32)
    visited, space = crl(), crl(goals="space")
    single = crl(goals="single", goal=(0.5, -0.25))
    places = torch.tensor([[0.1, 0.2, 0, 0], [9.0, -9.0, 0, 0]])
    zero = torch.zeros(2)
    for learner in (visited, space, single):
        learner.update(Batch(places, zero[:, None], places, zero[:, None], zero, zero))
    drawn = visited.resample(z, 0, rng, 0)
    expected = (visited.encode(places).clamp(-1, 1)).numpy()
    assert {tuple(row) for row in drawn} == {tuple(row) for row in expected}
    assert len(np.unique(space.resample(z, 0, rng, 0), axis=0)) == 500
    np.testing.assert_array_equal(single.resample(z, 0, rng, 0), np.tile([[0.5, -0.25]], (500, 1)))
    assert single.resample(z, 3, rng, 0) is z
    before = crl().resample(z, 0, rng, 0)  # nothing was visited: anywhere in the cube
    assert crl().space.contains(before) and np.abs(before).max() > 0.9
    assert len(np.unique(before, axis=0)) > VISITED / 2
    for settings in (
        {"goals": "single"},
        {"goal": (0.5, 0.5)},
        {"goals": "single", "goal": (0.5,)},
    ):
        with pytest.raises(UsageError, match="does not fit goals"):
            crl(**settings)


def test_a_goal_is_its_skill_in_the_library_too(tmp_path: Path) -> None:
    run = Discovery(preset("crl", "point-open"))
    library = SkillLibrary.load(export(run, tmp_path / "library", {}))
    obs = np.random.default_rng(0).normal(size=(8, 4)) * 2
    goal = np.random.default_rng(1).normal(size=(8, 4)) * 2
    goal[0, :2] = 2.5, 30.0  # half the way to one wall, and far behind another
    seen, there = (run.normaliser(torch.as_tensor(x, dtype=torch.float32)) for x in (obs, goal))
    z = library.goal_skill(obs, goal)
    np.testing.assert_allclose(z, run.learner.goal_skill(seen, there).numpy(), atol=1e-6)
    np.testing.assert_allclose(z[0], [0.5, 1.0], atol=1e-6)
    np.testing.assert_allclose(z, np.clip(goal[:, :2] / 5, -1, 1), atol=1e-6)
    assert library.space.contains(z)
