"""The goal box against NumPy, where the best box is known, and on the point."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from etude.agents.replay import Batch
from etude.config import replace
from etude.errors import UsageError
from etude.evaluate.rollouts import rollout_skills
from etude.skills import learners
from etude.skills.discovery import Discovery, preset
from etude.skills.export import export
from etude.skills.learners.base import Spec
from etude.skills.learners.goal_box import GoalBox
from etude.skills.library import SkillLibrary

O, B, HOLD = 4, 24, 10
FIELDS = {"speed": slice(0, 2), "place": slice(2, 4)}
REACH = 4.7 / (5 / 3**0.5)
"""How far the centre of the disc comes on `point-open`, normalised: walls at 5 m, radius 0.3 m."""


def goal_box(**settings: Any) -> GoalBox:
    """One whose box is somewhere."""
    learner = GoalBox(Spec(FIELDS, O, 2), GoalBox.Config(skill_obs=("place",), **settings))
    with torch.no_grad():
        learner.centre.copy_(torch.tensor([0.3, -0.2]))
        learner.log_width.copy_(torch.tensor([0.7, 1.3]).log())
    return learner


def a_batch(seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    obs, after, future = rng.normal(size=(3, B, O)).astype(np.float32)
    z = rng.uniform(-1, 1, (B, 2)).astype(np.float32)
    parts = (obs, np.zeros((B, 2), np.float32), after, z)
    steps = rng.integers(HOLD, size=B).astype(np.float32)
    steps[0] = HOLD - 1
    rest = (torch.zeros(B), torch.from_numpy(steps), torch.from_numpy(future))
    return Batch(*map(torch.from_numpy, parts), *rest)


def numpy_bound(
    batch: Batch, c: np.ndarray, w: np.ndarray, sigma: float, arrival: float
) -> tuple[float, float]:
    """J and the mean distance, end by end."""
    told, apart = [], []
    for z, after, t in zip(batch.skill, batch.next_obs, batch.time, strict=True):
        if t >= arrival * (HOLD - 1):
            error = c + w * z.double().numpy() - after[2:].double().numpy()
            density = np.exp(-(error**2) / (2 * sigma**2)) / np.sqrt(2 * np.pi * sigma**2)
            told.append(np.log(density).sum())
            apart.append(np.sqrt((error**2).sum()))
    return float(np.log(2 * w).sum() + np.mean(told)), float(np.mean(apart))


def box_of(learner: GoalBox) -> tuple[np.ndarray, np.ndarray]:
    c, w = learner.centre.detach(), learner.log_width.detach().exp()
    return c.double().numpy(), w.double().numpy()


@pytest.mark.parametrize(("sigma", "arrival"), [(0.4, 0.5), (1.0, 0.0), (0.7, 0.9)])
def test_the_bound_and_a_step_up_it_are_those_of_numpy(sigma: float, arrival: float) -> None:
    learner, batch = goal_box(sigma=sigma, arrival=arrival, lr=0.01), a_batch()
    c, w = box_of(learner)
    expected = numpy_bound(batch, c, w, sigma, arrival)
    found = learner.update(batch)
    assert float(found["skill/bound"]) == pytest.approx(expected[0], rel=1e-5)
    assert float(found["skill/goal_error"]) == pytest.approx(expected[1], abs=1e-5)
    assert found.keys() - {"skill/bound", "skill/goal_error"} == {
        f"skill/box_{what}_{i}" for what in ("centre", "width") for i in range(2)
    }
    for what, now in zip(("centre", "width"), box_of(learner), strict=True):
        logged = [float(found[f"skill/box_{what}_{i}"]) for i in range(2)]
        np.testing.assert_allclose(logged, now, rtol=1e-6)
    eps = 1e-5  # Adam's first step is as long as its rate, along the sign of the slope
    for i, unit in enumerate(np.eye(2)):
        up, down = (numpy_bound(batch, c + s * eps * unit, w, sigma, arrival)[0] for s in (1, -1))
        moved = float(learner.centre[i].detach()) - c[i]
        assert moved == pytest.approx(0.01 * np.sign(up - down), abs=1e-5)
        up, down = (
            numpy_bound(batch, c, w * np.exp(s * eps * unit), sigma, arrival)[0] for s in (1, -1)
        )
        moved = float(learner.log_width[i].detach()) - math.log(w[i])
        assert moved == pytest.approx(0.01 * np.sign(up - down), abs=1e-5)


@pytest.mark.parametrize("sigma", [0.1, 0.5])
def test_the_signal_is_the_way_that_was_gained(sigma: float) -> None:
    learner, batch = goal_box(sigma=sigma), a_batch()
    c, w = box_of(learner)
    goal = c + w * batch.skill.double().numpy()
    before, after = (
        np.linalg.norm(goal - s[:, 2:].double().numpy(), axis=1)
        for s in (batch.obs, batch.next_obs)
    )
    found = learner.signal(batch)[:, 0].numpy()
    np.testing.assert_allclose(found, (before - after) / sigma, atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_hindsight_tells_goals_that_were_met(share: float) -> None:
    learner, batch = goal_box(hindsight=share), a_batch()
    assert batch.future_obs is not None
    c, w = box_of(learner)
    met = np.clip((batch.future_obs[:, 2:].double().numpy() - c) / w, -1, 1)
    assert (np.abs(met) == 1).any() and (np.abs(met) < 1).any()
    told = learner.relabel(batch, np.random.default_rng(0)).skill.numpy()
    new = ~(told == batch.skill.numpy()).all(1)
    np.testing.assert_allclose(told[new], met[new], atol=1e-5)
    assert abs(new.mean() - share) < 0.25 and (share == 0.5 or new.mean() == share)
    alone = batch.replace(future_obs=None)
    assert learner.relabel(alone, np.random.default_rng(0)) is alone


# ---- boxes whose best size is known


def value(w: float, sigma: float) -> float:
    """J of goals in [-w, w], w >= 1, where [-1, 1] and no more can be reached."""
    outside = (w - 1) ** 3 / (6 * w * sigma**2)
    return math.log(2 * w) - 0.5 * math.log(2 * math.pi * sigma**2) - outside


def practised(width: float, ends: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Any:
    """Widths, centres and bounds of 1,500 updates on skills that end where `ends(goal, noise)`."""
    settings = GoalBox.Config(sigma=0.1, width=width, lr=3e-3)
    learner, g = GoalBox(Spec({"x": slice(0, 1)}, 1, 1), settings), torch.Generator().manual_seed(0)
    rows, zero, still = [], torch.zeros(512), torch.zeros(512, 1)
    for _ in range(1500):
        z = 2 * torch.rand(512, 1, generator=g) - 1
        end = ends(learner.goal(z).detach(), torch.randn(512, 1, generator=g))
        found = learner.update(Batch(still, still, end, z, zero, zero))
        rows.append([float(found[f"skill/{k}"]) for k in ("box_width_0", "box_centre_0", "bound")])
    return np.array(rows)[-200:].mean(0)


def test_the_value_is_as_it_was_derived() -> None:
    assert value(1.0, 0.1) == pytest.approx(2.077, abs=1e-3)
    w = np.linspace(1, 2, 10_001)
    best = max(w, key=lambda x: value(x, 0.1))
    assert best == pytest.approx(1.1445, abs=1e-3) and value(best, 0.1) == pytest.approx(
        2.168, abs=1e-3
    )
    assert 6 * 0.1**2 * best == pytest.approx((best - 1) ** 2 * (2 * best + 1), rel=1e-2)


@pytest.mark.parametrize("width", [0.1, 3.0])
@pytest.mark.parametrize("away", [0.0, 0.8])
def test_the_box_finds_what_can_be_reached(width: float, away: float) -> None:
    """From far too small and far too large; reachable is |x - away| <= 1."""
    w, c, bound = practised(width, lambda goal, _: goal.clamp(away - 1, away + 1))
    assert w == pytest.approx(1.1445, abs=0.015)
    assert c == pytest.approx(away, abs=0.01)
    assert bound == pytest.approx(2.168, abs=0.005)


def test_skills_that_change_nothing_tell_nothing() -> None:
    """The ends are noise of deviation s: w^2 = 3 sigma^2, and no claim of information."""
    w, c, bound = practised(1.0, lambda _, noise: 0.5 + 0.05 * noise)
    assert w == pytest.approx(0.1 * 3**0.5, abs=0.01) and c == pytest.approx(0.5, abs=0.02)
    expected = math.log(2 * w) - 0.5 * math.log(2 * math.pi * 0.01) - (w**2 / 3 + 0.05**2) / 0.02
    assert bound == pytest.approx(expected, abs=0.01) and bound < 0


def test_a_box_that_is_asked_for_is_where_it_begins() -> None:
    learner = GoalBox(Spec(FIELDS, O, 2), GoalBox.Config(width=0.25))
    torch.testing.assert_close(learner.log_width.exp(), torch.full((4,), 0.25))
    assert not learner.centre.any()


# ---- the library


def test_goals_of_the_library_are_those_of_the_box(tmp_path: Path) -> None:
    run = Discovery(preset("goal-box", "point-open"))
    assert isinstance(run.learner, GoalBox)
    with torch.no_grad():
        run.learner.centre.copy_(torch.tensor([0.4, -0.1]))
        run.learner.log_width.copy_(torch.tensor([0.5, 1.2]).log())
    library = SkillLibrary.load(export(run, tmp_path / "library", {}))
    obs, goal = np.random.default_rng(0).normal(size=(2, 64, 4)).astype(np.float32) * 2
    seen, there = (run.normaliser(torch.from_numpy(x)) for x in (obs, goal))
    z = run.learner.goal_skill(seen, there)
    found = library.goal_skill(obs, goal)
    np.testing.assert_allclose(found, z.numpy(), atol=1e-5)
    inside = (np.abs(found) < 1).all(1)
    assert inside.any() and not inside.all()
    places = run.learner.goal(torch.from_numpy(found)).detach() * run.normaliser.std[:2]
    np.testing.assert_allclose(places[inside], goal[inside, :2], atol=1e-4)


def test_ids_have_dashes() -> None:
    assert "goal-box" in learners.ids() and learners.get("goal-box") is GoalBox
    with pytest.raises(UsageError, match='unknown learner "goal_box": did you mean "goal-box"'):
        learners.get("goal_box")
    assert preset("goal-box", "half-cheetah").method.skill_obs == ("x",)


# ---- the point


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_the_box_covers_the_arena_and_its_goals_are_reached(seed: int) -> None:
    """From 0.6 of the reachable half-width, in a minute of one core."""
    run = Discovery(replace(preset("goal-box", "point-open"), {"seed": seed}))
    assert isinstance(run.learner, GoalBox)
    began = time.process_time()
    run.run()
    seconds = time.process_time() - began  # of a processor, whoever else is using it
    c, w = box_of(run.learner)
    assert (np.abs(c) + REACH < w + 0.1 * 2 * REACH).all(), (c, w)  # 9 tenths of every side
    assert (w < 1.35 * REACH).all(), (c, w)
    done = rollout_skills(run.snapshot(), run.config.env, episodes=100)
    wanted = c + w * done.skills.astype(float)
    ends = done.obs[:, 100, :2] / run.normaliser.std[:2].numpy()
    possible = (np.abs(wanted) < REACH).all(1)
    apart = np.linalg.norm(wanted - ends, axis=1)[possible]
    assert possible.sum() > 30 and (apart < 2 * run.learner.config.sigma).mean() >= 0.9, apart
    assert seconds < 60
