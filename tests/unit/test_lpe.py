"""LPE: its objective against NumPy, who moves whom, plans, and the corner of a grid."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from etude.agents.replay import Jumps
from etude.config import replace
from etude.envs import registry
from etude.errors import UsageError
from etude.evaluate.capacity import mutual_information
from etude.skills.discovery import Discovery, preset
from etude.skills.learners.base import Spec
from etude.skills.learners.lpe import LEAST, Lpe
from etude.worldmodels.densities import categorical_information, categorical_kl

FIELDS = {"place": slice(0, 2), "speed": slice(2, 4)}
SMALL: dict[str, Any] = {
    "knots": 3,
    "hold": 2,
    "codes": 5,
    "particles": 4,
    "hidden": (16,),
    "model_first": 0,
}


def build(**settings: Any) -> Lpe:
    torch.manual_seed(0)
    return Lpe(Spec(FIELDS, 4, 2), Lpe.Config(**SMALL | settings))


def jumps(learner: Lpe, n: int = 8) -> Jumps:
    """Random stretches whose actions are held as those of plans."""
    g = torch.Generator().manual_seed(1)
    obs, end = torch.randn(2, n, 4, generator=g)
    knots = torch.rand(n, learner.config.knots, 2, generator=g) * 2 - 1
    action = knots.repeat_interleave(learner.config.hold, 1)
    return Jumps(obs, action, end, torch.rand(n, 2, generator=g), torch.zeros(n), torch.zeros(n))


def log_softmax(x: np.ndarray) -> np.ndarray:
    shifted = x.astype(float) - x.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def test_information_and_divergence_are_the_textbook_s() -> None:
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(6), (2, 3, 4))
    log_p, log_q = torch.from_numpy(np.log(p)), torch.from_numpy(np.log(q))
    np.testing.assert_allclose(categorical_kl(log_p, log_q), (p * np.log(p / q)).sum(-1))
    expected = [mutual_information(channel) for channel in p]
    np.testing.assert_allclose(categorical_information(log_p), expected, rtol=1e-9)


def test_information_is_at_most_that_of_the_codes_and_of_the_skills() -> None:
    sure = torch.full((1, 12, 5), -1e9)
    sure[0, torch.arange(12), torch.arange(12) % 5] = 0.0
    assert categorical_information(sure).item() == pytest.approx(math.log(5), rel=0.02)
    assert categorical_information(sure[:, :3]).item() == pytest.approx(math.log(3))


@pytest.mark.parametrize("reads_start", [False, True])
def test_losses_equal_numpy(reads_start: bool) -> None:
    """Divergence, diversity and the bound from the networks' outputs, worked out by hand."""
    learner = build(reads_start=reads_start)
    batch = jumps(learner)
    state = learner.generator.get_state()
    with torch.no_grad():
        plan = batch.action[:, [0, 2, 4]].reshape(8, 6)
        xi = learner.xi(torch.cat((batch.obs, plan), -1)).numpy()
        ends = torch.cat((batch.obs, batch.next_obs), -1) if reads_start else batch.next_obs
        eta = learner.eta(ends).numpy()
        z = torch.empty(2, 4, 2).uniform_(-1, 1, generator=learner.generator)
        starts = batch.obs[[0, 4]][:, None].repeat(1, 4, 1)
        plans = learner.pi(torch.cat((starts, 5 * z), -1)).tanh()
        plans += 0.3 * torch.randn(plans.shape, generator=learner.generator)
        known = torch.cat((starts, plans), -1)
        model, felt = learner.xi(known).numpy(), learner.omega(known).numpy()
        groups = torch.cat((starts, plan.reshape(2, 4, 6)), -1)
        others = log_softmax(learner.xi(groups).numpy())
    learner.generator.set_state(state)
    metrics = learner.update(batch)
    log_xi, log_eta, log_model = log_softmax(xi), log_softmax(eta), log_softmax(model)
    divergence = (np.exp(log_xi) * (log_xi - log_eta)).sum(-1).mean()
    diversity = np.mean([mutual_information(np.exp(o)) for o in others])
    gained = [mutual_information(np.exp(m)) for m in log_model]
    lost = (np.exp(log_model) * (log_model - felt)).sum(-1).mean(-1)
    assert metrics["skill/divergence"].item() == pytest.approx(divergence, rel=1e-4)
    assert metrics["skill/diversity"].item() == pytest.approx(diversity, rel=1e-4)
    assert metrics["skill/bound"].item() == pytest.approx(np.mean(gained - lost), rel=1e-4)


def moved(before: dict[str, torch.Tensor], learner: Lpe) -> set[str]:
    """The networks with other weights than before."""
    now = learner.state_dict()
    return {k.split(".")[0] for k in before if (before[k] - now[k]).abs().max() > 1e-12} - {
        "updates"
    }


def test_plans_wait_for_the_model() -> None:
    learner = build(model_first=2)
    seen = []
    for _ in range(3):
        before = {k: v.clone() for k, v in learner.state_dict().items()}
        learner.update(jumps(learner))
        seen.append(moved(before, learner))
    model = {"xi", "eta", "omega", "value"}
    assert seen == [model, model, model | {"pi"}]


def test_plans_do_not_move_the_model() -> None:
    """A step of the plans alone: the bound's gradient stays in pi."""
    learner = build(lr=1e-30, value_lr=1e-30)
    before = {k: v.clone() for k, v in learner.state_dict().items()}
    learner.update(jumps(learner))
    assert moved(before, learner) == {"pi"}


def test_the_value_has_a_rate_of_its_own() -> None:
    learner = build(lr=1e-30, policy_lr=1e-30)
    before = {k: v.clone() for k, v in learner.state_dict().items()}
    learner.update(jumps(learner))
    assert moved(before, learner) == {"value"}


def test_a_plan_holds_each_action_and_at_first_anything_is_tried() -> None:
    learner = build(noise=0.0, random=0.0)
    obs, z = torch.randn(64, 4), torch.rand(64, 2) * 2 - 1
    sure = learner.plan(obs, z, deterministic=True)
    assert sure.shape == (64, 6, 2) and learner.period == 6
    assert torch.equal(sure[:, ::2], sure[:, 1::2])
    tried = learner.plan(obs, z)
    assert not torch.allclose(tried, sure) and abs(tried.mean()) < 0.1
    learner.update(jumps(learner))
    assert torch.equal(learner.plan(obs, z), learner.plan(obs, z, deterministic=True))
    noisy = build(noise=0.3, random=0.0)
    noisy.update(jumps(noisy))
    assert 0.1 < (noisy.plan(obs, z) - noisy.plan(obs, z, deterministic=True)).std() < 0.3
    half = build(noise=0.0, random=0.5)
    half.update(jumps(half))
    same = (half.plan(obs, z) == half.plan(obs, z, deterministic=True)).flatten(1).all(1)
    assert 0.3 < same.float().mean() < 0.7


def test_actions_are_held_as_long_as_asked() -> None:
    """In plans, in a library, and in what is learnt of what was done."""
    learner = build(dim=3, knots=2, hold=3)
    plan = learner.plan(torch.randn(5, 4), torch.rand(5, 3) * 2 - 1, deterministic=True)
    assert plan.shape == (5, 6, 2) and learner.period == learner.policy().period == 6
    assert torch.equal(plan, plan[:, [0, 0, 0, 3, 3, 3]])
    assert not torch.allclose(plan[:, 2], plan[:, 3])
    batch, other = jumps(learner), build(dim=3, knots=2, hold=3)
    action = batch.action.clone()
    action[:, [1, 2, 4, 5]] = 9.0  # those of a plan are told by their first steps
    found = other.update(batch.replace(action=action))
    assert all(torch.equal(v, found[k]) for k, v in learner.update(batch).items())


def test_the_policy_of_a_library_makes_the_same_plans() -> None:
    learner = build(spread=3.0)
    obs, z = torch.randn(6, 4), torch.rand(6, 2) * 2 - 1
    knots = learner.policy()(torch.cat((obs, z), -1).numpy())
    plans = learner.plan(obs, z, deterministic=True)[:, ::2]
    np.testing.assert_allclose(np.reshape(knots, plans.shape), plans, atol=1e-6)
    assert not torch.allclose(plans, build(spread=1.0).plan(obs, z, deterministic=True)[:, ::2])


def test_the_noise_of_plans_falls_once_they_learn() -> None:
    learner = build(model_first=9, noise=0.4)
    plans = torch.zeros(100, 100)
    for updates, std in ((0, 0.4), (9, 0.4), (19, 0.2), (99, 0.04)):
        learner.updates = updates
        assert learner._near(plans).std().item() == pytest.approx(std, rel=0.05)


def test_a_skill_lasts_as_long_as_its_plan() -> None:
    learner, rng = build(), np.random.default_rng(0)
    z = learner.space.sample(rng, 5)
    assert learner.resample(z, 5, rng, 0) is z
    assert not np.array_equal(learner.resample(z, 6, rng, 0), z)
    assert learner.resample(z, 6, rng, 12) is z
    config = replace(preset("lpe", "point-open"), {"loop": {"hold": 15}})
    with pytest.raises(UsageError, match="hold = 15 breaks off plans of 10 steps"):
        Discovery(config)


@pytest.mark.parametrize("reads_start", [False, True])
def test_the_skill_for_a_goal_is_the_one_whose_code_it_shows(reads_start: bool) -> None:
    learner = build(particles=32, reads_start=reads_start)
    obs, goal = torch.randn(3, 4), torch.randn(3, 4)
    chosen = learner.goal_skill(obs, goal)
    with torch.no_grad():
        read = learner.read(obs, goal).clamp_min(LEAST)

        def fit(z: torch.Tensor) -> torch.Tensor:
            plan = learner.pi(torch.cat((obs, 5 * z.expand(3, -1)), -1)).tanh()
            return (learner.log_xi(obs, plan).exp() * read).sum(-1)

        every = torch.stack([fit(torch.as_tensor(z)) for z in learner.space.even(32)])
        best = torch.as_tensor(learner.space.even(32))[every.argmax(0)]
    assert torch.equal(chosen, best)


def test_state_empowerment_is_learned_and_is_the_signal() -> None:
    learner = build(lr=1e-2, value_lr=1e-2, policy_lr=1e-30, noise=0.0, spread=1.0)
    batch = jumps(learner, 4)
    assert abs(learner.signal(batch)[0].item()) < 1  # type: ignore[arg-type]
    for _ in range(300):
        metrics = learner.update(batch)
    assert metrics["skill/bound"] < -1.5
    signal = learner.signal(batch.replace(next_obs=batch.obs))  # type: ignore[arg-type]
    assert signal.shape == (4, 1)
    assert signal[0].item() == pytest.approx(metrics["skill/bound"].item(), abs=0.5)


@pytest.mark.slow
def test_the_divergence_alone_teaches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the diversity of codes the constant code is best: J near zero."""
    settings = {"steps": 60_000, "method": {"model_first": 300}}
    config = replace(preset("lpe", "grid-5-bits-corner"), settings)
    run = Discovery(config)
    zero = lambda log_p: 0 * log_p.sum((-1, -2))  # noqa: E731
    monkeypatch.setattr("etude.skills.learners.lpe.categorical_information", zero)
    run.run()
    monkeypatch.undo()
    assert isinstance(run.learner, Lpe)
    starts = run.normaliser(torch.as_tensor(registry.make_vec(config.env, 8, seed=0).reset()[0]))
    with torch.no_grad():
        assert run.learner.bound(starts).mean() < 0.05
