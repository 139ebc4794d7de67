"""The ensemble: its bootstrap, its steps, and a bonus that noise cannot earn."""

from __future__ import annotations

import ensemble_by_hand as by_hand
import numpy as np
import pytest
import torch
from torch import Tensor

from etude.errors import UsageError
from etude.worldmodels.ensemble import Ensemble, EnsembleConfig


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small(**settings: object) -> Ensemble:
    config = EnsembleConfig(**{"hidden": (16, 16), **settings})  # type: ignore[arg-type]
    return Ensemble(3, 2, config, seeded())


def transitions(n: int, low: float, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """A point on [low, low + 1], whose second number is noise, afresh in every step."""
    place = low + torch.rand(n, 1, generator=generator)
    action = torch.rand(n, 1, generator=generator) * 2 - 1
    noise, next_noise = torch.randn(2, n, 1, generator=generator)
    moved = place + 0.3 * action * torch.cos(3 * place)
    return torch.cat((place, noise), 1), action, torch.cat((moved, next_noise), 1)


def test_noise_earns_no_bonus_and_the_unseen_does() -> None:
    generator = seeded()
    model = Ensemble(2, 1, EnsembleConfig(hidden=(64, 64)), generator)
    seen = transitions(10_000, -1.0, generator)
    unseen = transitions(1_000, 1.0, generator)

    def ratio() -> float:
        with torch.no_grad():
            bonus = model.disagreement(seen[0][:1000], seen[1][:1000]).mean()
            return float(bonus / model.disagreement(*unseen[:2]).mean())

    assert ratio() > 0.3, "before learning the bonus is everywhere"
    assert float(model(*seen[:2]).std(0).mean().detach()) > 0.05, "members differ at first"
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(800):
        rows = torch.randint(10_000, (256,), generator=generator)
        loss, metrics = model.loss(*(part[rows] for part in seen))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert ratio() < 0.2
    # what is left of the error is the noise: variance 1 in one of two dimensions
    assert float(metrics["model/ensemble_error"]) == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(("keep", "members"), [(0.5, 5), (1.0, 3)])
def test_loss_bootstrap_and_disagreement_agree_with_numpy(keep: float, members: int) -> None:
    model = small(keep=keep, members=members).double()
    rng = np.random.default_rng(0)
    obs, action, after = (rng.normal(size=(20, width)) for width in (3, 2, 3))
    each, x = rng.uniform(size=(20, 3)), np.concatenate((obs, action), 1)
    predicted, kept = by_hand.changes(model, (5, 16, 16, 3), x), by_hand.masks(x, members, keep)
    assert predicted.shape[0] == members and kept.any(1).all() and kept.all() == (keep == 1)
    told, acted, then = (torch.from_numpy(part) for part in (obs, action, after))
    np.testing.assert_array_equal(model.masks(told, acted).numpy(), kept)
    for weight in (None, each, each[:, 0]):
        full = np.ones((20, 1)) if weight is None else weight.reshape(20, -1)
        wanted = by_hand.losses(predicted, after - obs, full, kept)
        factor = None if weight is None else torch.from_numpy(weight)
        loss, metrics = model.loss(told, acted, then, factor)
        assert float(loss.detach()) == pytest.approx(sum(wanted), rel=1e-9)
        assert float(metrics["model/ensemble_error"]) == pytest.approx(np.mean(wanted), rel=1e-9)
    found = model.disagreement(told, acted).detach().numpy()
    np.testing.assert_allclose(found, by_hand.variance(predicted), rtol=1e-9)


def test_the_bootstrap_is_fixed_fair_and_independent() -> None:
    obs, action = torch.randn(20_000, 3, generator=seeded()), torch.zeros(20_000, 2)
    masks = small(keep=0.8).masks(obs, action)
    order = torch.randperm(20_000, generator=seeded())
    assert torch.equal(small(keep=0.8).masks(obs[order], action[order]), masks[:, order])
    assert masks.float().mean(1).tolist() == pytest.approx([0.8] * 5, abs=0.01)
    assert (torch.corrcoef(masks.float()) - torch.eye(5)).abs().max() < 0.03
    assert small(keep=1.0).masks(obs, action).all()
    swapped = small(keep=0.8).masks(obs.flip(1), action)
    assert 0.3 < (swapped != masks).float().mean() < 0.34, "the order of the numbers counts"


def test_a_step_is_by_the_member_asked_for_by_a_drawn_one_or_by_all() -> None:
    model = small()
    obs, action = torch.randn(6, 3, generator=seeded()), torch.randn(6, 2, generator=seeded(1))
    each = obs + model(obs, action)  # (E, B, O)
    member = torch.tensor([0, 1, 2, 3, 4, 0])
    got = model.step({"obs": obs}, action, member=member)["obs"]
    torch.testing.assert_close(got, torch.stack([each[e, i] for i, e in enumerate(member)]))
    torch.testing.assert_close(model.step({"obs": obs}, action)["obs"], each.mean(0))
    drawn = model.step({"obs": obs}, action, seeded(3))["obs"]
    distance = (drawn - each).abs().sum(-1)  # (E, B)
    assert (distance.amin(0) < 1e-6).all()
    assert len(distance.argmin(0).unique()) > 1, "rows have members of their own"
    assert torch.equal(drawn, model.step({"obs": obs}, action, seeded(3))["obs"])


@pytest.mark.parametrize(("members", "member"), [(5, -1), (5, 5), (3, 3)])
def test_a_member_that_is_not_there_is_refused(members: int, member: int) -> None:
    model, state, asked = small(members=members), {"obs": torch.zeros(1, 3)}, torch.tensor([member])
    with pytest.raises(UsageError, match=f"out of range: there are {members}"):
        model.step(state, torch.zeros(1, 2), member=asked)
