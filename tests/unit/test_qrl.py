"""QRL against NumPy, on a corridor with a gate that opens to one side, and in a maze."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from etude.agents.replay import Batch, Replay
from etude.config import replace
from etude.envs.maps import MAZE_U
from etude.skills.dataset import write
from etude.skills.discovery import Discovery, preset
from etude.skills.export import export
from etude.skills.learners.base import LOG_LAMBDA, Spec
from etude.skills.learners.qrl import Qrl
from etude.skills.library import SkillLibrary

O, A, B = 4, 2, 12
FIELDS = {"speed": slice(0, 2), "place": slice(2, 4)}
Array = np.ndarray


def qrl(**settings: Any) -> Qrl:
    """A small one in double precision, whose mean and maximum weigh 0.3 and 0.7."""
    torch.manual_seed(0)
    chosen = {"skill_obs": ("place",), "hidden": (9,), "components": 3, "size": 2, **settings}
    learner = Qrl(Spec(FIELDS, O, A), Qrl.Config(**chosen)).double()
    learner.metric.head.raw.data.fill_(np.log(0.7 / 0.3))
    for weight in learner.metric.encoder.parameters():
        weight.data.mul_(3)  # so that some steps are longer than 1
    return learner


def a_batch(seed: int = 0) -> Batch:
    g = torch.Generator().manual_seed(seed)
    obs, after, future = torch.randn(3, B, O, generator=g, dtype=torch.float64)
    z = 2 * torch.rand(B, 2, generator=g, dtype=torch.float64) - 1
    zero = torch.zeros(B, dtype=torch.float64)
    return Batch(obs, torch.zeros(B, A), after, z, zero, zero, future_obs=future)


def numpy_distance(learner: Qrl, start: Array, end: Array) -> float:
    """d of two places (2,): the union of intervals as a sum over the pieces between borders."""
    latents = []
    for x in (start, end):
        layers = [m for m in learner.metric.encoder if isinstance(m, torch.nn.Linear)]
        for i, layer in enumerate(layers):
            x = layer.weight.detach().numpy() @ x + layer.bias.detach().numpy()
            x = np.maximum(x, 0) if i < len(layers) - 1 else x
        latents.append(x.reshape(learner.config.components, learner.config.size))
    parts = []
    for begin, v in zip(*latents, strict=True):
        stop = np.maximum(begin, v)
        borders = np.sort(np.concatenate((begin, stop)))
        parts.append(
            sum(
                b - a
                for a, b in zip(borders, borders[1:], strict=False)
                if any(lo <= a and b <= hi for lo, hi in zip(begin, stop, strict=True))
            )
        )
    return float(0.3 * np.mean(parts) + 0.7 * np.max(parts))


def numpy_loss(learner: Qrl, batch: Batch, price: float) -> tuple[float, float, Array]:
    """The loss, the violation and the distances of random pairs, row by row."""
    c = learner.config
    obs, after = (x.numpy()[:, 2:] for x in (batch.obs, batch.next_obs))
    step = np.array([numpy_distance(learner, obs[i], after[i]) for i in range(B)])
    apart = np.array([numpy_distance(learner, obs[i], after[i - 1]) for i in range(B)])
    violation = np.mean([max(0.0, s - 1) ** 2 for s in step]) - c.slack**2
    push = np.mean([np.log1p(np.exp(c.beta * (c.offset - d))) / c.beta for d in apart])
    return float(push + price * violation), float(violation), apart


@pytest.mark.parametrize(
    "settings",
    [
        {"dual_init": 2.0},
        {"slack": 1.5, "dual_init": 0.3, "components": 5, "size": 1},
        {"offset": 4.0, "beta": 0.5, "hidden": (7, 6), "components": 2, "size": 6},
    ],
)
def test_loss_and_signal_are_those_of_numpy(settings: dict[str, Any]) -> None:
    learner, batch = qrl(reach=1.3, **settings), a_batch()
    widths = [m.out_features for m in learner.metric.encoder if isinstance(m, torch.nn.Linear)]
    assert tuple(widths[:-1]) == settings.get("hidden", (9,))
    loss, violation, apart = learner.loss(batch)
    log_price = np.float32(np.log(settings.get("dual_init", 100.0)))  # as it is stored
    expected = numpy_loss(learner, batch, np.exp(float(log_price)))
    assert float(loss.detach()) == pytest.approx(expected[0], abs=1e-5)
    assert float(violation.detach()) == pytest.approx(expected[1], abs=1e-5)
    np.testing.assert_allclose(apart.numpy(), expected[2], atol=1e-5)
    goal = 1.3 * batch.skill.numpy()
    before, after = (
        np.array([numpy_distance(learner, s[2:], g) for s, g in zip(x.numpy(), goal, strict=True)])
        for x in (batch.obs, batch.next_obs)
    )
    np.testing.assert_allclose(learner.signal(batch)[:, 0].numpy(), before - after, atol=1e-5)
    assert (np.abs(before - after) > 0.1).any()


def test_the_gradient_is_that_of_central_differences() -> None:
    learner, batch, eps = qrl(dual_init=2.0, offset=4.0, beta=0.5), a_batch(), 1e-6
    learner.loss(batch)[0].backward()
    rng = np.random.default_rng(0)
    for name, weight in learner.metric.named_parameters():
        assert weight.grad is not None and weight.grad.abs().sum() > 0, name
        flat = weight.data.view(-1)
        for i in rng.integers(len(flat), size=5):
            kept, found = float(flat[i]), []
            for moved in (kept + eps, kept - eps):
                flat[i] = moved
                found.append(loss_of(learner, batch))
            flat[i] = kept
            slope = (found[0] - found[1]) / (2 * eps)
            assert float(weight.grad.view(-1)[i]) == pytest.approx(slope, abs=1e-5), name


def loss_of(learner: Qrl, batch: Batch) -> float:
    return float(learner.loss(batch)[0].detach())


@pytest.mark.parametrize(("lr", "dual_lr"), [(1e-3, 1e-2), (1e-4, 0.1)])
def test_an_update_descends_with_d_and_ascends_with_lambda(lr: float, dual_lr: float) -> None:
    """Adam's first step is as long as its rate, along the sign of the slope."""
    for slack, sign in ((0.1, 1), (9.0, -1)):
        learner, batch = qrl(lr=lr, dual_lr=dual_lr, dual_init=2.0, slack=slack), a_batch()
        before = [p.clone() for p in learner.metric.parameters()]
        loss, violation, apart = numpy_loss(learner, batch, 2.0)
        metrics = {k: float(v) for k, v in learner.update(batch).items()}
        assert np.sign(violation) == sign
        price = 2 * np.exp(sign * dual_lr)
        expected = {"spread_loss": loss, "violation": violation, "distance": apart.mean()}
        assert metrics == pytest.approx(
            {**{f"skill/{k}": v for k, v in expected.items()}, "skill/lambda": price}, abs=1e-4
        )
        for old, weight in zip(before, learner.metric.parameters(), strict=True):
            assert float((weight - old).detach().abs().max()) == pytest.approx(lr, rel=1e-3)
            assert weight.grad is not None
            moved = (old - weight.detach()) * weight.grad
            assert (moved >= 0).all() and (moved > 0).any()


def test_lambda_stays_within_its_bounds() -> None:
    for slack, end in ((0.1, LOG_LAMBDA[1]), (9.0, LOG_LAMBDA[0])):
        learner = qrl(slack=slack, dual_lr=1.0, lr=1e-9)
        for _ in range(30):
            metrics = learner.update(a_batch())
        assert float(metrics["skill/lambda"]) == pytest.approx(np.exp(end))


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_hindsight_tells_goals_that_were_met(share: float) -> None:
    learner, batch = qrl(hindsight=share, reach=0.8), a_batch()
    assert batch.future_obs is not None
    met = np.clip(batch.future_obs[:, 2:].numpy() / 0.8, -1, 1)
    assert (np.abs(met) == 1).any() and (np.abs(met) < 1).any()
    told = learner.relabel(batch, np.random.default_rng(0)).skill.numpy()
    new = ~(told == batch.skill.numpy()).all(1)
    np.testing.assert_allclose(told[new], met[new])
    assert abs(new.mean() - share) < 0.25 and (share == 0.5 or new.mean() == share)
    learner.offline = True  # skills of a dataset say nothing, and may be of another kind
    wide = batch.replace(skill=torch.zeros(B, 7, dtype=torch.float64))
    told = learner.relabel(wide, np.random.default_rng(0)).skill.numpy()
    np.testing.assert_allclose(told, np.where(new[:, None], met, np.roll(met, 1, 0)))
    alone = learner.relabel(batch.replace(future_obs=None), np.random.default_rng(0)).skill.numpy()
    after = np.clip(batch.next_obs[:, 2:].numpy() / 0.8, -1, 1)
    np.testing.assert_allclose(alone, np.where(new[:, None], after, np.roll(after, 1, 0)))


# ---- a corridor in a ring, with a gate that opens to one side

PLACES = 12


def walk(rounds: int, walkers: int) -> tuple[Replay, Array]:
    """Random walks; from the first place none gets back through the gate to the last one."""
    angle = 2 * np.pi * np.arange(PLACES) / PLACES
    at = (np.stack((np.cos(angle), np.sin(angle)), -1) * 2**0.5).astype(np.float32)
    rng, replay = np.random.default_rng(0), Replay(rounds * walkers, walkers, 2, 1, 2, seed=0)
    here, none = rng.integers(PLACES, size=walkers), np.zeros((walkers, 1), np.float32)
    z = np.zeros((walkers, 2), np.float32)
    for t in range(rounds):
        move = rng.choice([-1, 1], size=walkers)
        there = np.where((here == 0) & (move < 0), here, (here + move) % PLACES)
        ended = np.full(walkers, t % 50 == 49)
        replay.add(at[here], none, at[there], z, np.zeros(walkers, bool), ended)
        here = there
    return replay, at


def test_a_gate_that_opens_to_one_side_is_learned() -> None:
    replay, at = walk(100, 32)
    torch.manual_seed(0)
    config = Qrl.Config(hidden=(64, 64), components=8, size=4, lr=3e-3)
    learner = Qrl(Spec({"place": slice(0, 2)}, 2, 1), config)
    for _ in range(1200):
        learner.update(learner.draw(replay, 256))
    i, j = np.indices((PLACES, PLACES))
    steps = np.where(j >= i, j - i, np.minimum(i - j, PLACES - i + j))
    places = torch.from_numpy(at)
    with torch.no_grad():
        found = learner.metric(places.unsqueeze(1).expand(-1, PLACES, -1), places).numpy()
    assert found[-1, 0] == pytest.approx(1, abs=0.6)  # through the gate
    assert found[0, -1] == pytest.approx(11, abs=2.5)  # back all round
    assert np.abs(found - steps).mean() < 0.6, found.round(1)
    assert np.corrcoef(found.ravel(), steps.ravel())[0, 1] > 0.98
    # whoever follows the reward from the first place to the last goes round, and not to the gate
    obs = places[[0, 0]]
    z = (places[[-1, -1]] / config.reach).clamp(-1, 1)
    rest = (torch.zeros(2), torch.zeros(2))
    on, back = learner.signal(Batch(obs, torch.zeros(2, 1), places[[1, 0]], z, *rest))[:, 0]
    assert on == pytest.approx(1, abs=0.5) and back == 0


# ---- the loop


def test_goals_of_the_library_are_places(tmp_path: Path) -> None:
    small = {"method": {"hidden": [16], "reach": 1.2}}
    run = Discovery(replace(preset("qrl", "point-open"), small))
    library = SkillLibrary.load(export(run, tmp_path / "library", {}))
    obs, goal = np.random.default_rng(0).normal(size=(2, 64, 4)).astype(np.float32) * 2
    z = np.clip(goal[:, :2] / (1.2 * np.asarray(run.env_spec.obs_std)[:2]), -1, 1)
    np.testing.assert_allclose(library.goal_skill(obs, goal), z, atol=1e-5)
    own = run.learner.goal_skill(*(run.normaliser(torch.from_numpy(x)) for x in (obs, goal)))
    assert own is not None
    np.testing.assert_allclose(own.numpy(), z, atol=1e-5)
    assert (np.abs(z) < 1).all(1).any() and (np.abs(z) == 1).any()


def test_distances_from_random_actions_go_along_the_corridor(tmp_path: Path) -> None:
    """A saved dataset of the U, where the straight line between the ends leads through a wall."""
    random = {"random_steps": 16_000, "warmup_steps": 16_000, "visited_starts": 0.7}
    loop = {"num_envs": 16, "episode_steps": 100, "hold": 10, **random}
    small = {"steps": 16_000, "loop": {**loop, "updates_per_epoch": 1}}
    run = Discovery(replace(preset("qrl", "point-maze-u"), small))
    run.run()
    assert run.updates == 1  # in its last epoch
    data = write(tmp_path / "data", run.replay, run.env_spec, run.space, {})
    loop = {"num_envs": 4, "episode_steps": 50, "updates_per_epoch": 100}
    agent = {"agent": {"hidden": [8]}}
    learning = Discovery(
        replace(
            preset("qrl", "point-maze-u"),
            {"dataset": str(data), "steps": 1200, "loop": {**loop, "warmup_steps": 0}, **agent},
        )
    )
    assert isinstance(learning.learner, Qrl)
    learning.run()
    cells = [(1, 1), (1, 2), (1, 3), (2, 3), (3, 3), (3, 2), (3, 1)]
    assert sorted(cells) == MAZE_U.free_cells()
    centres = np.array([MAZE_U.cell_centre(*cell) for cell in cells], np.float32)
    places = torch.from_numpy(centres) / learning.normaliser.std[:2]
    with torch.no_grad():
        found = learning.learner.metric(places.unsqueeze(1).expand(-1, 7, -1), places).numpy()
    way = np.abs(np.subtract.outer(range(7), range(7)))
    line = np.linalg.norm(centres[:, None] - centres, axis=-1)
    off = way > 0
    match, crow = (np.corrcoef(x[off], way[off])[0, 1] for x in (found, line))
    assert match > 0.95 and match > crow + 0.15, (match, crow)
    fastest = 6 / 0.12  # steps of 0.12 m from end to end
    assert all(0.9 * fastest < found[i, 6 - i] < 1.7 * fastest for i in (0, 6)), found.round()
