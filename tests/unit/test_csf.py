"""CSF against its optima: the length of the best step, on the sphere and for one-hot skills.

Loss, gradient and signal against NumPy stand in `test_delta_phi.py`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from etude.agents.replay import Batch
from etude.errors import UsageError
from etude.skills.discovery import Discovery, preset
from etude.skills.learners.base import Spec
from etude.skills.learners.csf import Csf

O = 8


def make(seed: int = 0, **settings: Any) -> Csf:
    torch.manual_seed(seed)
    return Csf(Spec({"place": slice(0, O)}, O, 2), Csf.Config(**{"hidden": (8,), **settings}))


def steps_from_rest(z: np.ndarray) -> Batch:
    """Transitions from 0 to z: each gives its skill (B, Z) away."""
    n, skill = len(z), torch.as_tensor(z, dtype=torch.float32)
    after = torch.nn.functional.pad(skill, (0, O - z.shape[1]))
    nothing = torch.zeros(n)
    return Batch(torch.zeros(n, O), torch.zeros(n, 2), after, skill, nothing, nothing)


def bessel(order: float, x: float) -> float:
    """I_order(x), by its power series."""
    terms = (
        math.pow(x / 2, 2 * m + order) / math.gamma(m + 1) / math.gamma(m + order + 1)
        for m in range(60)
    )
    return sum(terms)


def kappa(dim: int, xi: float) -> float:
    """Length of CSF's best step for a decodable skill on the sphere, by bisection."""
    low, high = 0.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        ratio = bessel(dim / 2, middle) / bessel(dim / 2 - 1, middle)
        low, high = (middle, high) if ratio < 1 / xi else (low, middle)
    return low


def kappa_of_one_hot(count: int, xi: float) -> float:
    """The same for `count` one-hot skills: a share p of the softmax where the gradient vanishes."""
    p = (1 + (count - 1) / xi) / count
    return math.log(p * (count - 1) / (1 - p)) * ((count - 1) / count) ** 2


def test_kappa_of_the_paper_s_settings() -> None:
    known = {2: 0.408, 3: 0.615, 4: 0.822, 8: 1.653, 16: 3.319}
    for dim, value in known.items():
        assert kappa(dim, 5) == pytest.approx(value, abs=1e-3)
    assert kappa(2, 2) == pytest.approx(1.159, abs=1e-3)


@pytest.mark.parametrize(("dim", "xi"), [(2, 5.0), (2, 2.0), (3, 5.0), (8, 5.0)])
def test_it_reaches_kappa_where_steps_give_the_skill_away(dim: int, xi: float) -> None:
    learner = make(hidden=(64,), lr=1e-2, dim=dim, xi=xi, negatives=1024)
    rng = np.random.default_rng(0)
    for _ in range(400):
        batch = steps_from_rest(learner.space.sample(rng, 128))
        learner.update(batch)
    step = learner.step(batch).detach()
    assert float(step.norm(dim=-1).mean()) == pytest.approx(kappa(dim, xi), rel=0.06)
    assert float((learner.signal(batch) * batch.skill).sum(-1).mean()) > 0.95 * kappa(dim, xi)


@pytest.mark.parametrize(("count", "xi"), [(4, 2.0), (4, 5.0), (8, 5.0)])
def test_it_reaches_kappa_of_one_hot_skills(count: int, xi: float) -> None:
    learner = make(hidden=(32,), lr=1e-2, skills="discrete", dim=count, xi=xi)
    batch = steps_from_rest(np.eye(count))
    for _ in range(800):
        learner.update(batch)
    step = learner.step(batch).detach()
    step = step - step.mean(-1, keepdim=True)  # which centred skills do not see
    best = kappa_of_one_hot(count, xi) * learner.direction(batch.skill)
    torch.testing.assert_close(step, best, rtol=0.02, atol=0.02)


def test_the_normaliser_is_the_mean_over_the_prior() -> None:
    """On the circle E exp(v . z') = I_0(|v|): many negatives come near, few do not."""
    step = torch.tensor([[2.0, 0.0], [0.0, -0.5]])
    exact = [-5 * math.log(bessel(0, x)) for x in (2.0, 0.5)]
    batch = steps_from_rest(np.eye(2))
    many = make(negatives=65536).bound(batch, step)
    assert many.tolist() == pytest.approx(exact, abs=0.05)
    few = [float(make(seed, negatives=2).bound(batch, step)[0]) for seed in range(20)]
    assert np.std(few) > 0.5


def test_it_draws_fresh_negatives_for_every_update() -> None:
    learner = make()
    assert not torch.equal(learner.others(), learner.others())
    assert torch.allclose(learner.others().norm(dim=-1), torch.ones(256))


def test_it_has_a_wide_critic_without_entropy_in_its_target() -> None:
    agent = Discovery(preset("csf", "point-open")).agent
    assert agent is not None and agent.signal_dim == 2 and not agent.entropy_in_target
    assert make(dim=7).signal_dim == 7


def test_what_is_without_an_optimum_is_refused() -> None:
    with pytest.raises(UsageError, match=r"xi = 1.0"):
        make(xi=1.0)
