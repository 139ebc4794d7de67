"""The recurrent model: its recursion, its loss against NumPy, its memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import special
from torch import Tensor
from torch.nn import functional as F

from etude.agents.replay import Sequences
from etude.errors import UsageError
from etude.worldmodels.rssm import RSSM, GRUCell, RSSMConfig

B, T, O, A = 4, 7, 3, 2


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small(**settings: object) -> RSSM:
    sizes = {"deter": 8, "groups": 2, "classes": 4, "hidden": 8}
    return RSSM(O, A, RSSMConfig(**{**sizes, **settings}), seeded())  # type: ignore[arg-type]


def sequences(obs: Tensor, action: Tensor, valid: Tensor | None = None) -> Sequences:
    n, steps = action.shape[:2]
    first = torch.zeros(n, steps + 1, dtype=torch.bool)
    first[:, 0] = True
    valid = torch.ones(n, steps, dtype=torch.bool) if valid is None else valid
    return Sequences(obs, action, torch.zeros(n, steps, 1), valid, first, first, first)


def random_sequences(steps: int = T, valid: Tensor | None = None) -> Sequences:
    obs = torch.randn(B, steps + 1, O, generator=seeded(1))
    return sequences(obs, torch.randn(B, steps, A, generator=seeded(2)), valid)


def deaf(model: RSSM) -> RSSM:
    """The same model with the prior for its posterior: it ignores what it sees."""
    for post, prior in zip(model.posterior.parameters(), model.prior.parameters(), strict=True):
        post.data.zero_()
        post.data[..., : prior.shape[-1]] = prior.data
    return model


@pytest.mark.parametrize("noisy", [True, False])
def test_observing_without_looking_is_stepping(noisy: bool) -> None:
    model, batch = deaf(small()), random_sequences()
    noise, again = (seeded(3), seeded(3)) if noisy else (None, None)
    found, prior = model.observe(batch.obs, batch.action, batch.is_first, generator=noise)
    state = model.initial(B)
    for t in range(T + 1):
        action = batch.action[:, t - 1] if t else torch.zeros(B, A)
        state = model.step(state, action, again)
        for name in state:
            torch.testing.assert_close(found[name][:, t], state[name])
        torch.testing.assert_close(prior[:, t], state["logit"])


def test_looking_changes_the_posterior_and_nothing_before_it() -> None:
    model, batch = small(), random_sequences()
    obs = batch.obs.clone()
    obs[:, 4] += 1
    runs = [model.observe(o, batch.action, batch.is_first)[0] for o in (batch.obs, obs)]
    assert torch.equal(runs[0]["logit"][:, :4], runs[1]["logit"][:, :4])
    assert not torch.allclose(runs[0]["logit"][:, 4], runs[1]["logit"][:, 4])
    assert torch.equal(runs[0]["deter"][:, 4], runs[1]["deter"][:, 4])


def test_two_episodes_in_a_row_are_two_episodes() -> None:
    model = small()
    one, two = random_sequences(3), random_sequences(5)
    between = torch.full((B, 1, A), 7.0)  # the action across the border must not count
    obs = torch.cat((one.obs, two.obs), 1)
    action = torch.cat((one.action, between, two.action), 1)
    is_first = torch.cat((one.is_first, two.is_first), 1)
    whole, prior = model.observe(obs, action, is_first)
    for part, place in ((one, slice(0, 4)), (two, slice(4, 10))):
        alone, alone_prior = model.observe(part.obs, part.action, part.is_first)
        torch.testing.assert_close(prior[:, place], alone_prior)
        for name in alone:
            torch.testing.assert_close(whole[name][:, place], alone[name])
    joined, _ = model.observe(obs, action, torch.zeros_like(is_first))
    assert not torch.allclose(joined["deter"][:, 4:], whole["deter"][:, 4:])


def test_a_sequence_goes_on_from_a_state() -> None:
    model, batch = small(), random_sequences(2)
    state = {name: torch.randn_like(value) for name, value in model.initial(B).items()}
    never = torch.zeros_like(batch.is_first)
    fresh, _ = model.observe(batch.obs, batch.action, never)
    on, _ = model.observe(batch.obs, batch.action, never, state)
    assert not torch.allclose(on["deter"], fresh["deter"])
    reset, _ = model.observe(batch.obs, batch.action, batch.is_first, state)
    torch.testing.assert_close(reset["deter"], fresh["deter"])


def test_the_loss_agrees_with_numpy() -> None:
    valid = torch.ones(B, T, dtype=torch.bool)
    valid[0, 3:], valid[2, :] = False, False
    batch = random_sequences(valid=valid)
    model = small(balance=0.8, free_nats=0.0)
    loss, metrics, states = model.loss(batch, seeded(5))
    _, prior = model.observe(batch.obs, batch.action, batch.is_first, generator=seeded(5))
    seen = np.concatenate((np.ones((B, 1), bool), valid.numpy()), 1)
    p, q = (
        special.softmax(x.detach().numpy().reshape(B, T + 1, 2, 4), -1)
        for x in (states["logit"], prior)
    )
    kl = (p * np.log(p / q)).sum((2, 3))[seen].mean()
    entropy = [-(x * np.log(x)).sum((2, 3))[seen].mean() for x in (p, q)]
    decoded = model.decoder(model.feat(states)).detach().numpy()
    error = (0.5 * (decoded - batch.obs.numpy()) ** 2).sum(-1)[seen].mean()
    assert float(loss.detach()) == pytest.approx(error + kl, rel=1e-5)
    wanted = (error, kl, entropy[1], entropy[0])
    names = ("reconstruction", "kl", "prior_entropy", "posterior_entropy")
    assert [float(metrics[f"model/{n}"]) for n in names] == pytest.approx(wanted, rel=1e-4)
    free, free_metrics, _ = small(free_nats=50.0).loss(batch, seeded(5))
    assert float(free.detach()) == pytest.approx(error + 50, rel=1e-5)
    assert float(free_metrics["model/kl"]) == pytest.approx(kl, rel=1e-4)


def test_the_balance_divides_the_gradient_between_prior_and_posterior() -> None:
    batch, found = random_sequences(), {}
    for balance in (0.0, 0.8, 1.0):
        model = small(balance=balance, free_nats=0.0)
        for parameter in model.decoder.parameters():
            parameter.data.zero_()  # without a reconstruction only the KL teaches
        model.loss(batch, seeded(5))[0].backward()
        # of the last layers, which nothing else lies behind
        found[balance] = model.prior[-1].weight.grad, model.posterior[-1].weight.grad
    none, mixed, all_ = (found[b] for b in (0.0, 0.8, 1.0))
    assert none[0] is None or not none[0].any()
    torch.testing.assert_close(mixed[0], 0.8 * all_[0])
    assert all_[0].any() and none[1].any()


def test_free_nats_stop_the_gradient_of_the_kl() -> None:
    model = small(free_nats=50.0)
    model.loss(random_sequences(), seeded())[0].backward()
    assert all(p.grad is None or not p.grad.any() for p in model.prior.parameters())


def test_the_cell_is_a_gru_that_keeps() -> None:
    cell = GRUCell(3, 4, seeded())
    x, h = (torch.randn(5, n, generator=seeded(n)) for n in (3, 4))
    raw = torch.cat((x, h), 1).numpy() @ cell.gates.weight.detach().numpy().T
    raw = (raw - raw.mean(1, keepdims=True)) / np.sqrt(raw.var(1, keepdims=True) + 1e-5)
    reset, candidate, update = np.split(raw, 3, 1)
    share = special.expit(update - 1)
    wanted = share * np.tanh(special.expit(reset) * candidate) + (1 - share) * h.numpy()
    np.testing.assert_allclose(cell(x, h).detach(), wanted, atol=1e-5)


@pytest.mark.parametrize(("actions", "flags"), [(T + 1, T + 1), (T, T)])
def test_sequences_that_do_not_fit_are_refused(actions: int, flags: int) -> None:
    first = torch.zeros(B, flags, dtype=torch.bool)
    with pytest.raises(UsageError, match=f"{T + 1} observations with {actions} actions"):
        small().observe(torch.zeros(B, T + 1, O), torch.zeros(B, actions, A), first)


def test_the_posterior_knows_more_than_the_prior_and_pays_the_free_nats_at_least() -> None:
    """Three fair bits, new in every step: 2.1 nats that no prior can know."""
    model, generator = RSSM(O, A, RSSMConfig(32, 4, 4, 32, lr=3e-3), seeded()), seeded()
    optimiser = model.optimiser()
    for _ in range(150):
        obs = torch.randint(2, (32, 5, O), generator=generator) * 2.0 - 1
        loss, metrics, _ = model.loss(sequences(obs, torch.zeros(32, 4, A)), generator)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    found = {name.removeprefix("model/"): float(value) for name, value in metrics.items()}
    assert found["kl"] > 0.95 * model.config.free_nats, found
    assert found["posterior_entropy"] < found["prior_entropy"] - 0.5, found
    assert found["reconstruction"] < 0.75, found  # 1.5 if nothing were told


@pytest.mark.slow
def test_it_remembers_a_cue_for_twenty_steps() -> None:
    """Shown once at t = 0, asked for at t = 20 by a head on the features; chance is 0.25."""
    steps, generator = 20, seeded()
    model = RSSM(4, 1, RSSMConfig(64, 4, 4, 64), generator)
    head = torch.nn.Linear(model.feat_dim, 4)
    optimiser = torch.optim.AdamW([*model.parameters(), *head.parameters()], lr=3e-3)

    def answer(n: int) -> tuple[Tensor, Tensor, Tensor]:
        cue = torch.randint(4, (n,), generator=generator)
        obs = torch.zeros(n, steps + 1, 4)
        obs[:, 0] = F.one_hot(cue, 4).float()
        loss, _, states = model.loss(sequences(obs, torch.zeros(n, steps, 1)), generator)
        return loss, head(model.feat(states)[:, steps]), cue

    for _ in range(500):
        loss, logits, cue = answer(32)
        optimiser.zero_grad()
        (loss + F.cross_entropy(logits, cue)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 100)
        optimiser.step()
    with torch.no_grad():
        _, logits, cue = answer(1000)
    assert float((logits.argmax(-1) == cue).float().mean()) > 0.95
