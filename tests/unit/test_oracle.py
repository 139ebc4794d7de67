"""The oracle's reward is the way along the skill, and its skills answer goals exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from etude.agents.replay import Batch
from etude.errors import UsageError
from etude.skills.learners.base import Spec
from etude.skills.learners.oracle import Oracle

FIELDS = {"place": slice(0, 2), "speed": slice(2, 4)}


def oracle(*names: str, **settings: float) -> Oracle:
    return Oracle(Spec(FIELDS, 4, 2), Oracle.Config(skill_obs=names, **settings))


def batch(learner: Oracle, n: int = 64) -> Batch:
    rng = np.random.default_rng(0)
    obs, next_obs = rng.normal(size=(2, n, 4)).astype(np.float32)
    parts = (obs, np.zeros((n, 2), np.float32), next_obs, learner.space.sample(rng, n))
    return Batch(*map(torch.from_numpy, parts), torch.zeros(n), torch.zeros(n))


@pytest.mark.parametrize("names", [("place",), ("speed",), ()])
def test_the_reward_is_the_way_along_the_skill(names: tuple[str, ...]) -> None:
    learner = oracle(*names)
    one = batch(learner)
    columns = [i for name in names or FIELDS for i in range(*FIELDS[name].indices(4))]
    moved = (one.next_obs - one.obs).numpy()[:, columns]
    expected = np.einsum("bz,bz->b", moved, one.skill.numpy())
    np.testing.assert_allclose(learner.signal(one)[:, 0], expected, atol=1e-6)
    assert learner.update(one)["skill/progress"] == pytest.approx(expected.mean(), abs=1e-6)


def test_a_goal_is_answered_by_the_direction_to_it() -> None:
    learner = oracle("place")
    obs, goal = torch.zeros(2, 4), torch.tensor([[3.0, 4, 9, 9], [0, -2, 9, 9]])
    way = torch.tensor([[0.6, 0.8], [0, -1]])
    torch.testing.assert_close(learner.goal_skill(obs, goal), way)


def test_the_library_gets_the_coordinates_themselves() -> None:
    learner = oracle("speed")
    obs = batch(learner).obs
    phi = learner.export()["phi"]
    torch.testing.assert_close(phi(obs[:, learner.columns]), learner.encode(obs))


def test_the_reward_has_its_scale_and_progress_has_none() -> None:
    plain, twelve = oracle("place"), oracle("place", scale=12.0)
    one = batch(plain)
    torch.testing.assert_close(twelve.signal(one), 12 * plain.signal(one))
    assert twelve.update(one)["skill/progress"] == plain.update(one)["skill/progress"]


def test_coordinates_that_are_to_stay_at_their_mean_cost_their_square() -> None:
    plain = oracle("place")
    steady = Oracle(
        Spec(FIELDS, 4, 2), Oracle.Config(skill_obs=("place",), steady=("speed",), steadiness=0.5)
    )
    one = batch(plain)
    cost = 0.5 * one.next_obs[:, 2:].square().sum(-1, keepdim=True)
    torch.testing.assert_close(steady.signal(one), plain.signal(one) - cost)
    assert steady.update(one)["skill/progress"] == plain.update(one)["skill/progress"]
    with pytest.raises(UsageError, match='unknown observation field "height"'):
        Oracle(Spec(FIELDS, 4, 2), Oracle.Config(steady=("height",)))


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_part_of_a_batch_is_learnt_from_with_other_skills(share: float) -> None:
    learner = oracle("place", hindsight=share)
    one = batch(learner, 4000)
    told = learner.relabel(one, np.random.default_rng(1))
    changed = (told.skill != one.skill).all(1).float().mean()
    assert changed == pytest.approx(share, abs=0.03)
    assert all(learner.space.contains(z) for z in told.skill.numpy()[:50])
    torch.testing.assert_close(told.next_obs, one.next_obs)
    other = (told.next_obs - one.obs)[:, :2] * told.skill
    torch.testing.assert_close(learner.signal(told), other.sum(-1, keepdim=True))
