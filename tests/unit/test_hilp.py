"""HILP against NumPy, and against the shortest ways of a maze."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from etude.agents.replay import Batch, Replay
from etude.config import replace
from etude.envs.maps import MAZE_LARGE
from etude.skills.discovery import Discovery, preset
from etude.skills.export import export
from etude.skills.learners.base import Spec
from etude.skills.learners.hilp import SHORTEST, Hilp
from etude.skills.library import SkillLibrary

O, A, B = 4, 2, 8
FIELDS = {"place": slice(0, 2), "speed": slice(2, 4)}
Array = np.ndarray


def hilp(**settings: Any) -> Hilp:
    torch.manual_seed(0)
    chosen = {"dim": 3, "hidden": (9,), "skill_obs": ("place",), **settings}
    return Hilp(Spec(FIELDS, O, A), Hilp.Config(**chosen))


def a_batch(seed: int = 0) -> Batch:
    g = torch.Generator().manual_seed(seed)
    obs, after, future = torch.randn(3, B, O, generator=g)
    zero = torch.zeros(B)
    z = torch.nn.functional.normalize(torch.randn(B, 3, generator=g), dim=-1)
    return Batch(obs, torch.zeros(B, A), after, z, zero, zero, future_obs=future)


def numpy_phi(net: Any, obs: torch.Tensor) -> Array:
    x = obs[:, :2].double().numpy()
    for i, layer in enumerate([net[0], net[2]]):
        x = x @ layer.weight.detach().double().numpy().T + layer.bias.detach().double().numpy()
        x = np.maximum(x, 0) if i == 0 else x
    return x


def numpy_loss(learner: Hilp, batch: Batch, gamma: float, kappa: float, anywhere: int) -> float:
    """The loss row by row."""
    assert batch.future_obs is not None
    goal = [batch.next_obs[i - 1] if i < anywhere else batch.future_obs[i] for i in range(B)]
    there = torch.stack(goal)

    def value(net: Any, obs: torch.Tensor) -> Array:
        return -np.linalg.norm(numpy_phi(net, obs) - numpy_phi(net, there), axis=1)

    old = [value(net, batch.obs) for net in learner.slow]
    new = [value(net, batch.next_obs) for net in learner.slow]
    now = [value(net, batch.obs) for net in learner.phi]
    total = 0.0
    for i in range(B):
        advantage = -1 + gamma * min(new[0][i], new[1][i]) - (old[0][i] + old[1][i]) / 2
        weight = kappa if advantage >= 0 else 1 - kappa
        total += sum(weight * (-1 + gamma * new[e][i] - now[e][i]) ** 2 for e in range(2)) / B
    return total


@pytest.mark.parametrize(
    ("gamma", "kappa", "share"), [(0.99, 0.9, 0.375), (0.8, 0.5, 0.0), (0.9, 0.7, 1.0)]
)
def test_the_loss_is_that_of_numpy(gamma: float, kappa: float, share: float) -> None:
    learner = hilp(gamma=gamma, expectile=kappa, random_goals=share)
    for parameter in learner.slow.parameters():  # as if they were from earlier
        parameter.mul_(1.5)
    batch = a_batch()
    got, value = learner.loss(batch)
    expected = numpy_loss(learner, batch, gamma, kappa, int(share * B))
    assert float(got.detach()) == pytest.approx(expected, abs=1e-5)
    assert value.shape == (2, B) and (value < 0).all()


def test_a_state_is_at_no_distance_of_itself_and_has_finite_gradients() -> None:
    learner, batch = hilp(random_goals=0.0), a_batch()
    same = batch.replace(future_obs=batch.obs)
    loss, value = learner.loss(same)
    torch.testing.assert_close(value, torch.full((2, B), -SHORTEST))
    loss.backward()
    grads = [p.grad for p in learner.phi.parameters()]
    assert all(g is not None and torch.isfinite(g).all() for g in grads)


@pytest.mark.parametrize("tau", [0.25, 1.0])
def test_slow_copies_follow_by_tau(tau: float) -> None:
    learner = hilp(tau=tau)
    before = [p.clone() for p in learner.slow.parameters()]
    learner.update(a_batch())
    for old, slow, new in zip(
        before, learner.slow.parameters(), learner.phi.parameters(), strict=True
    ):
        torch.testing.assert_close(slow, old + tau * (new.detach() - old))
        assert not torch.equal(old, new)


def test_the_reward_is_the_way_along_a_fresh_skill() -> None:
    learner, batch = hilp(), a_batch()
    step = numpy_phi(learner.phi[0], batch.next_obs) - numpy_phi(learner.phi[0], batch.obs)
    expected = (step * batch.skill.double().numpy()).sum(1)
    np.testing.assert_allclose(learner.signal(batch)[:, 0].numpy(), expected, atol=1e-5)
    wide = batch.replace(skill=torch.zeros(B, 7))  # of a dataset with other skills
    fresh = learner.relabel(wide, np.random.default_rng(0)).skill
    assert learner.space.contains(fresh.numpy()) and len(np.unique(fresh.numpy(), axis=0)) == B


# ---- a maze


def test_the_progress_that_is_logged_is_along_the_skill_that_was_told() -> None:
    """Which the reward is not, and a dataset does not know."""
    learner, batch = hilp(), a_batch()
    metrics = learner.update(batch)
    way = numpy_phi(learner.phi[0], batch.next_obs) - numpy_phi(learner.phi[0], batch.obs)
    expected = (way * batch.skill.numpy()).sum(1).mean()
    assert float(metrics["skill/progress"]) == pytest.approx(expected, abs=1e-5)
    learner.offline = True
    assert "skill/progress" not in learner.update(batch)


def walk(steps: int, walkers: int, seed: int) -> tuple[Replay, list[tuple[int, int]]]:
    """Random walks between the cells of a maze, which are one-hot observations."""
    cells = MAZE_LARGE.free_cells()
    index, rng = {cell: i for i, cell in enumerate(cells)}, np.random.default_rng(seed)
    eye = np.eye(len(cells), dtype=np.float32)
    replay = Replay(steps * walkers, walkers, len(cells), 1, 1, seed=seed)
    at = [cells[i] for i in rng.integers(len(cells), size=walkers)]
    none = np.zeros((walkers, 1), np.float32)
    moves = ((0, 1), (1, 0), (0, -1), (-1, 0))
    for t in range(steps):
        after = []
        for row, col in at:
            ways = [
                (row + dy, col + dx) for dy, dx in moves if MAZE_LARGE.is_free(row + dy, col + dx)
            ]
            after.append(ways[rng.integers(len(ways))])
        seen, then = (eye[[index[c] for c in where]] for where in (at, after))
        ended = np.full(walkers, t % 100 == 99)
        replay.add(seen, none, then, none, np.zeros(walkers, bool), ended)
        at = [cells[i] for i in rng.integers(len(cells), size=walkers)] if ended[0] else after
    return replay, cells


def test_distances_are_those_of_the_maze() -> None:
    replay, cells = walk(300, 32, seed=0)
    torch.manual_seed(0)
    config = Hilp.Config(dim=16, hidden=(64,), lr=3e-3, gamma=0.95, tau=0.02)
    learner = Hilp(Spec({"cell": slice(0, len(cells))}, len(cells), 1), config)
    for _ in range(1200):
        learner.update(learner.draw(replay, 256))
    steps = np.array([[MAZE_LARGE.distances(goal)[cell] for goal in cells] for cell in cells])
    crow = np.array([[abs(a[0] - b[0]) + abs(a[1] - b[1]) for b in cells] for a in cells])
    phi = learner.encode(torch.eye(len(cells))).detach()
    found = torch.cdist(phi, phi).numpy()
    off = ~np.eye(len(cells), dtype=bool)
    discounted = (1 - config.gamma**steps) / (1 - config.gamma)
    match = np.corrcoef(found[off], discounted[off])[0, 1]
    assert match > 0.98, match
    assert match > np.corrcoef(crow[off], discounted[off])[0, 1] + 0.15  # walls count
    assert found[steps == 1].mean() == pytest.approx(1, abs=0.35)
    nearest = [
        np.argmin(np.where(steps[i] == 1, found[:, 0], np.inf)) for i in range(1, len(cells))
    ]
    right = [steps[j, 0] < steps[i, 0] for i, j in enumerate(nearest, 1)]
    assert np.mean(right) > 0.9  # whoever goes down the distance arrives


# ---- the loop


def test_phi_of_the_library_points_at_goals(tmp_path: Path) -> None:
    run = Discovery(replace(preset("hilp", "point-open"), {"method": {"hidden": [16], "dim": 3}}))
    library = SkillLibrary.load(export(run, tmp_path / "library", {}))
    obs, goal = np.random.default_rng(0).normal(size=(2, 8, 4)).astype(np.float32) * 2
    seen, there = (run.normaliser(torch.from_numpy(x)) for x in (obs, goal))
    expected = run.learner.goal_skill(seen, there)
    assert expected is not None
    np.testing.assert_allclose(library.goal_skill(obs, goal), expected.numpy(), atol=1e-5)
