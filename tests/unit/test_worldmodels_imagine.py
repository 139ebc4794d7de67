"""`imagine` on all three models, mixtures of start states, and values at the edge of reach."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from etude.errors import UsageError
from etude.worldmodels.ensemble import Ensemble, EnsembleConfig
from etude.worldmodels.imagine import State, edge_ratio, frozen, imagine, mix_starts, smallest
from etude.worldmodels.latent import Latent, LatentConfig
from etude.worldmodels.rssm import RSSM, RSSMConfig

B, O, A, Z, H = 5, 3, 2, 4, 6


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def latent() -> tuple[nn.Module, State, int]:
    model = Latent(O, A, LatentConfig(width=16, hidden=(8,)), seeded())
    return model, model.initial(torch.randn(B, O, generator=seeded(1))), 16


def ensemble() -> tuple[nn.Module, State, int]:
    model = Ensemble(O, A, EnsembleConfig(hidden=(8,)), seeded())
    return model, model.initial(torch.randn(B, O, generator=seeded(1))), O


def rssm() -> tuple[nn.Module, State, int]:
    model = RSSM(O, A, RSSMConfig(deter=8, groups=2, classes=4, hidden=8), seeded())
    obs = torch.randn(B, 1, O, generator=seeded(1))
    first = torch.ones(B, 1, dtype=torch.bool)
    states, _ = model.observe(obs, torch.zeros(B, 0, A), first, generator=seeded())
    return model, {name: value[:, 0] for name, value in states.items()}, model.feat_dim


class Actor(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Linear(width + Z, A)

    def forward(self, feat: Tensor, cond: Tensor | None) -> Tensor:
        assert cond is not None
        return self.net(torch.cat((feat, cond), -1)).tanh()


@pytest.mark.parametrize("make", [latent, ensemble, rssm])
def test_gradients_reach_the_policy_and_not_the_model(make: object) -> None:
    model, start, width = make()  # type: ignore[operator]
    torch.manual_seed(0)
    actor, cond = Actor(width), F.one_hot(torch.arange(B) % Z, Z).float()
    before = {name: value.clone() for name, value in start.items()}
    wanted = [p.requires_grad for p in model.parameters()]
    found = imagine(model, actor, start, H, cond, seeded())
    assert found.feat.shape == (B, H + 1, width) and found.action.shape == (B, H, A)
    for name in start:
        assert torch.equal(found.state[name][:, 0], before[name])
    # the reward is in the last state alone, so that it comes through the dynamics
    found.feat[:, -1].square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in actor.parameters())
    assert all(p.grad is None for p in model.parameters())
    assert [p.requires_grad for p in model.parameters()] == wanted


@pytest.mark.parametrize("make", [latent, ensemble, rssm])
def test_a_rollout_is_the_model_stepped_by_hand(make: object) -> None:
    model, start, width = make()  # type: ignore[operator]
    torch.manual_seed(0)
    actor, cond = Actor(width), torch.randn(B, Z, generator=seeded(2))
    found = imagine(model, actor, start, H, cond, seeded(3))
    state, noise = start, seeded(3)
    for h in range(H):
        action = actor(model.feat(state), cond)
        torch.testing.assert_close(found.action[:, h], action)
        state = model.step(state, action, noise)
        torch.testing.assert_close(found.feat[:, h + 1], model.feat(state))
    other = imagine(model, actor, start, H, -cond, seeded(3))
    assert not torch.allclose(other.feat, found.feat), "the condition counts"


def test_the_first_action_has_the_gradient_of_finite_differences() -> None:
    model, start, _ = latent()
    model.double()
    start = {"latent": start["latent"].detach().double()}
    push = torch.zeros(A, dtype=torch.float64, requires_grad=True)

    def outcome(push: Tensor) -> Tensor:
        feat = imagine(model, lambda feat, _: push + feat[:, :A], start, H).feat
        return feat[:, -1, 0].sum()

    assert torch.autograd.gradcheck(outcome, push)


def test_parameters_learn_again_after_an_error_in_the_rollout() -> None:
    model, start, _ = latent()

    def broken(feat: Tensor, cond: Tensor | None) -> Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        imagine(model, broken, start, 1)
    assert all(p.requires_grad for p in model.encoder.parameters())
    assert not any(p.requires_grad for p in model.target.parameters()), "what was frozen stays so"
    with frozen(model):
        assert not any(p.requires_grad for p in model.parameters())


def test_a_rollout_has_a_step_at_least() -> None:
    model, start, _ = latent()
    with pytest.raises(UsageError, match="horizon = 0"):
        imagine(model, lambda feat, _: feat[:, :A], start, 0)


def test_start_states_are_mixed_by_weight_and_not_by_size() -> None:
    sources = [{"obs": torch.full((n, 1), float(i))} for i, n in enumerate((10, 1000, 50))]
    drawn = mix_starts(sources, (2, 1, 0), 30_000, seeded())["obs"][:, 0]
    share = torch.bincount(drawn.long(), minlength=3) / 30_000
    assert share.tolist() == pytest.approx([2 / 3, 1 / 3, 0], abs=0.01)
    again = mix_starts(sources, (2, 1, 0), 30_000, seeded())["obs"][:, 0]
    assert torch.equal(drawn, again)


def test_start_states_keep_their_rows_together() -> None:
    row = torch.arange(8.0)[:, None]
    sources = [{"a": row, "b": 10 * row}, {"a": row + 100, "b": 10 * (row + 100)}]
    drawn = mix_starts(sources, (1, 1), 200, seeded())
    assert torch.equal(drawn["b"], 10 * drawn["a"]) and len(drawn["a"].unique()) == 16


@pytest.mark.parametrize("weights", [(1,), (1, -1), (0, 0), (1, 1, 1), (0, 1)])
def test_weights_that_fit_no_sources_are_refused(weights: tuple[float, ...]) -> None:
    sources = [{"obs": torch.zeros(2, 1)}, {"obs": torch.zeros(0, 1)}]
    with pytest.raises(UsageError, match="weights .* rows"):
        mix_starts(sources, weights, 4)


def test_the_minimum_and_the_spread_of_critics() -> None:
    q = torch.randn(4, 7, 3, generator=seeded())
    assert torch.equal(smallest(q), torch.as_tensor(q.numpy().min(0)))
    assert torch.equal(smallest(q, 2), torch.as_tensor(q[:2].numpy().min(0)))
    spread = q.numpy().std(0, ddof=1).mean(0)
    assert float(edge_ratio(q)) == pytest.approx(spread[2] / spread[0], rel=1e-5)
    for critics in (0, 5):
        with pytest.raises(UsageError, match="there are 4"):
            smallest(q, critics)
    agreed = torch.stack((q[..., 0] * 0, q[..., 1]), -1)
    assert float(edge_ratio(agreed)) == pytest.approx(1e6, rel=1e-4)
    assert float(edge_ratio(0 * q)) == 0
    with pytest.raises(UsageError, match="no spread"):
        edge_ratio(q[:1])


class Chain:
    """A walk on N places, known exactly: action (B, 1) below zero goes left, else right."""

    N = 12

    def step(self, state: State, action: Tensor, generator: torch.Generator | None = None) -> State:
        move = torch.where(action[:, 0] < 0, -1, 1)
        return {"place": (state["place"] + move).clamp(0, self.N - 1)}

    def feat(self, state: State) -> Tensor:
        return state["place"].unsqueeze(-1).float()


GAMMA, STARTS, REACH = 0.9, 4, 5


def learned(critics: int, seed: int) -> tuple[float, float, float]:
    """Values of ten tables, learned on rollouts of 5 steps from places 0 to 3; reward 1 at place 0.

    Place 8 is reached by last steps only: bootstrapped from and never updated. Returns the largest
    ratio of estimate and optimum among the starts, and the spread of the tables at the end of
    rollouts to the right over that at their beginning, before and after.
    """
    generator, chain = seeded(seed), Chain()
    q = 30 * torch.randn(10, Chain.N, 2, generator=generator)
    starts = {"place": torch.arange(STARTS)}

    def explore(feat: Tensor, cond: Tensor | None) -> Tensor:
        return torch.rand(len(feat), 1, generator=generator) - 0.5

    def spread() -> float:
        right = imagine(
            chain, lambda feat, _: torch.ones(len(feat), 1), {"place": starts["place"][3:]}, REACH
        )
        return float(edge_ratio(q[:, right.state["place"], 1]))

    before = spread()
    for _ in range(300):
        found = imagine(chain, explore, mix_starts([starts], [1], 32, generator), REACH)
        place, after = found.state["place"][:, :-1], found.state["place"][:, 1:]
        side = (found.action[..., 0] >= 0).long()
        target = (after == 0).float() + GAMMA * smallest(q, critics).amax(-1)[after]
        q[:, place, side] += 0.5 * (target - q[:, place, side])
    value = smallest(q, critics).amax(-1)[:STARTS]
    # the first step left brings the first reward from places 0 and 1
    optimum = GAMMA ** (torch.arange(STARTS) - 1).clamp_min(0) / (1 - GAMMA)
    return float((value / optimum).max()), before, spread()


def test_the_minimum_of_ten_critics_is_not_fooled_by_the_edge_of_reach() -> None:
    """A single table believes what it was initialised with, though the model is perfect."""
    single = torch.tensor([learned(1, seed) for seed in range(10)])
    least = torch.tensor([learned(10, seed) for seed in range(10)])
    assert single[:, 0].mean() > 1.5 and single[:, 0].max() > 3
    assert least[:, 0].max() < 1.05 and least[:, 0].min() > 0.95
    assert 0.5 < least[:, 1].mean() < 2, "before learning the tables differ alike everywhere"
    assert least[:, 2].min() > 10, "the diagnostic sees it"
