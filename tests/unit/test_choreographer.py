"""Choreographer and its parts against NumPy, and in worlds where the best policy is known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from etude.agents.replay import Sequences
from etude.config import replace
from etude.errors import UsageError
from etude.evaluate.rollouts import rollout_skills
from etude.skills.dataset import write
from etude.skills.discovery import Discovery, preset
from etude.skills.export import export
from etude.skills.learners.base import Spec
from etude.skills.learners.choreographer import Choreographer
from etude.skills.library import SkillLibrary
from etude.worldmodels.actor_critic import ActorCritic, ActorCriticConfig
from etude.worldmodels.codebook import Codebook, CodebookConfig
from etude.worldmodels.imagine import Imagined, imagine, lambda_return
from etude.worldmodels.latent import Latent, LatentConfig

SMALL: dict[str, Any] = {
    "starts": 8,
    "neighbours": 3,
    "model": {"width": 16, "hidden": [16], "horizon": 3},
    "ensemble": {"members": 3, "hidden": [16]},
    "codebook": {"codes": 6, "dim": 4, "hidden": [16], "resample": 3},
    "exploration": {"hidden": [16], "horizon": 4, "noise": 0.0},
    "imagination": {"hidden": [16], "horizon": 4},
}


def build(skill_obs: Sequence[str] = (), **changes: Any) -> Choreographer:
    torch.manual_seed(0)
    spec = Spec({"place": slice(0, 2), "speed": slice(2, 4)}, 4, 2)
    config = replace(replace(Choreographer.Config(skill_obs=tuple(skill_obs)), SMALL), changes)
    return Choreographer(spec, config)


def sequences(batch: int = 16, length: int = 3, seed: int = 0) -> Sequences:
    g = torch.Generator().manual_seed(seed)
    flags = torch.zeros(batch, length + 1, dtype=torch.bool)
    return Sequences(
        torch.randn(batch, length + 1, 4, generator=g),
        torch.rand(batch, length, 2, generator=g) * 2 - 1,
        torch.zeros(batch, length, 6),
        torch.ones(batch, length, dtype=torch.bool),
        *[flags] * 3,
    )


# ---- codes


def clusters(n: int, g: torch.Generator) -> Tensor:
    """Points of 16 clusters in eight dimensions, far from where codes begin."""
    centre = 4 * torch.randn(16, 8, generator=torch.Generator().manual_seed(1))
    which = torch.randint(16, (n,), generator=g)
    return centre[which] + 0.1 * torch.randn(n, 8, generator=g)


@pytest.mark.parametrize("moving", [True, False])
def test_sixteen_clusters_get_sixteen_codes_after_a_dead_start(moving: bool) -> None:
    g = torch.Generator().manual_seed(0)
    resample = 20 if moving else 10**6
    config = CodebookConfig(codes=16, dim=4, hidden=(32,), lr=1e-3, resample=resample)
    book = Codebook(8, config, g)
    book.code.add_(50)  # nothing is near: one code takes all
    book.total.add_(50)
    optimiser, found = book.optimiser(), {}
    for _ in range(400):
        found = book.update(clusters(128, g), optimiser, g)
    perplexity = found["perplexity"].item()
    assert perplexity >= 14 if moving else perplexity < 8
    if moving:
        x = clusters(128, g)
        near = (book.decode(book.assign(x)) - x).square().mean()
        assert near < 0.3 * x.square().mean()


def test_codes_follow_as_numpy_says() -> None:
    g = torch.Generator().manual_seed(0)
    book = Codebook(5, CodebookConfig(codes=4, dim=3, hidden=(8,), decay=0.9, lr=1e-30), g)
    optimiser = book.optimiser()
    code, total, weight = (getattr(book, k).numpy().copy() for k in ("code", "total", "weight"))
    for _ in range(3):
        x = torch.randn(20, 5, generator=g)
        with torch.no_grad():
            e = book.encoder(x).numpy()
            nearest = np.argmin(((e[:, None] - code) ** 2).sum(-1), 1)
            hot = np.eye(4)[nearest]
            decoded = book.decoder(torch.as_tensor(hot @ code, dtype=torch.float32)).numpy()
        found = book.update(x, optimiser)
        assert found["reconstruction"].item() == pytest.approx(
            ((decoded - x.numpy()) ** 2).mean(), rel=1e-5
        )
        share = hot.mean(0)[hot.mean(0) > 0]
        entropy = -(share * np.log(share)).sum()
        assert found["perplexity"].item() == pytest.approx(math.exp(entropy), rel=1e-5)
        weight = 0.9 * weight + 0.1 * hot.sum(0)
        total = 0.9 * total + 0.1 * hot.T @ e
        code = total / weight[:, None]
        np.testing.assert_allclose(book.code.numpy(), code, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(book.weight.numpy(), weight, rtol=1e-5)


def test_a_moved_code_starts_with_the_weight_of_one_vector_and_stays() -> None:
    g = torch.Generator().manual_seed(0)
    book = Codebook(8, CodebookConfig(codes=3, dim=2, hidden=(8,), lr=1e-30), g)
    book.code[2] = book.total[2] = 1e3
    for _ in range(3000):  # its weight decays to nothing
        book.weight[2] *= 0.99
        book.total[2] *= 0.99
    x = clusters(64, g)
    book.updates.fill_(book.config.resample - 1)
    book.update(x, book.optimiser(), g)
    with torch.no_grad():
        encoded = book.encoder(x)
    assert torch.cdist(book.code[2:], encoded).amin() < 1e-6 and book.weight[2] == 1
    torch.testing.assert_close(book.total[2], book.code[2])
    assert (book.chosen == 0).all()
    before = book.code.clone()
    book.update(x, book.optimiser(), g)
    assert (book.code - before)[2].norm() < encoded.std()


def test_a_code_moves_where_vectors_are_far_from_the_others() -> None:
    """Nine near one code, one at three times the distance of all others together."""
    g, moved = torch.Generator().manual_seed(0), []
    e = torch.tensor([[0.1, 0.0]] * 9 + [[2.7, 0.0]])
    book = Codebook(2, CodebookConfig(codes=2, dim=2, hidden=(4,)), g)
    for _ in range(400):
        book.code.copy_(torch.tensor([[0.0, 0.0], [99.0, 0.0]]))
        book._move(e, torch.tensor([False, True]), g)
        moved.append(book.code[1, 0].item())
        assert book.code[0].abs().max() == 0
    assert np.mean(np.isclose(moved, 2.7)) == pytest.approx(2.7 / 3.6, abs=0.07)


# ---- imagination


def test_lambda_returns_are_the_mixture_of_n_step_returns() -> None:
    rng = np.random.default_rng(0)
    reward, value, gamma, lam = rng.normal(size=(3, 5)), rng.normal(size=(3, 6)), 0.9, 0.7
    expected = np.zeros((3, 5))
    for t in range(5):
        rest = 5 - t
        for n in range(1, rest + 1):
            paid = sum(gamma**i * reward[:, t + i] for i in range(n)) + gamma**n * value[:, t + n]
            expected[:, t] += (1 - lam if n < rest else 1) * lam ** (n - 1) * paid
    found = lambda_return(torch.as_tensor(reward), torch.as_tensor(value), gamma, lam)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)


class Line:
    """A point on a line that moves by a tenth of the action; it is its own latent."""

    def step(self, state: Any, action: Tensor, generator: Any = None) -> Any:
        return {"latent": state["latent"] + 0.1 * action}

    def feat(self, state: Any) -> Tensor:
        return state["latent"]  # type: ignore[no-any-return]

    def decode(self, feat: Tensor) -> Tensor:
        return feat


def test_a_policy_learns_to_reach_its_goal_in_imagination() -> None:
    """Two goals on a line, each to be reached from wherever, and never to be left."""
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(0)
    config = ActorCriticConfig(hidden=(32,), lr=3e-3, horizon=8, noise=0.1, gamma=0.9)
    learner = ActorCritic(1, 2, 1, 1, config)
    optimisers, model = learner.optimisers(), Line()
    goals = torch.tensor([[-0.6], [0.8]])
    for _ in range(200):
        start = {"latent": torch.rand(64, 1, generator=g) * 2 - 1}
        z = torch.eye(2)[torch.randint(2, (64,), generator=g)]

        def reward(dream: Imagined, z: Tensor = z) -> Tensor:
            return -(dream.feat[:, 1:] - (z @ goals).unsqueeze(1)).norm(dim=-1)

        learner.update(model, start, z, reward, optimisers, g)  # type: ignore[arg-type]
    z = torch.eye(2).repeat(5, 1)
    start = {"latent": torch.linspace(-1, 1, 10).unsqueeze(1)}
    with torch.no_grad():
        end = imagine(model, lambda y, c: learner.act(y, c, None), start, 40, z).feat[:, -1]
    assert (end - z @ goals).abs().max() < 0.1
    values = learner._values(learner.critics, torch.cat((z @ goals, z), -1)[:, None])
    assert -1 < values.mean() < 0.1  # there is next to nothing to be paid at the goal, for ever


def test_learning_in_imagination_leaves_the_model_alone() -> None:
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(0)
    model = Latent(4, 2, LatentConfig(width=8, hidden=(8,), decode=1.0), g)
    learner = ActorCritic(4, 0, 8, 2, ActorCriticConfig(hidden=(8,), horizon=3))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    mine = {k: v.clone() for k, v in learner.state_dict().items()}
    start = {"latent": model.encoder(torch.randn(5, 4, generator=g))}
    reward = lambda dream: dream.feat[:, 1:].square().sum(-1)  # noqa: E731
    learner.update(model, start, None, reward, learner.optimisers(), g)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.dynamics.parameters())
    moved = {
        k.split(".")[0] for k, v in learner.state_dict().items() if not torch.equal(v, mine[k])
    }
    assert moved == {"actor", "critics", "slow"}


def test_losses_are_what_numpy_makes_of_the_values() -> None:
    """The smaller of the slow critics in the returns; every critic's own error against them."""
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(0)
    config = ActorCriticConfig(hidden=(8,), horizon=3, gamma=0.9, lam=0.5)
    learner = ActorCritic(1, 2, 1, 1, config)
    learner.slow.flat.normal_(generator=g)
    z = torch.eye(2)
    dream = learner.imagine(Line(), {"latent": torch.randn(2, 1)}, z, g)  # type: ignore[arg-type]
    reward = torch.randn(2, 3, generator=g)
    policy, critic, returns = learner.losses(dream, reward, z)
    with torch.no_grad():
        known = torch.cat((dream.feat, z[:, None].expand(2, 4, 2)), -1).flatten(0, 1)
        slow = learner.slow(known)[..., 0].numpy().reshape(2, 2, 4).min(0)
        guess = learner.critics(known)[..., 0].numpy().reshape(2, 2, 4)
    expected, ahead = np.zeros((2, 3)), slow[:, 3]
    for t in (2, 1, 0):
        ahead = reward[:, t].numpy() + 0.9 * (0.5 * slow[:, t + 1] + 0.5 * ahead)
        expected[:, t] = ahead
    np.testing.assert_allclose(returns.numpy(), expected, rtol=1e-5)
    assert policy.item() == pytest.approx(-expected.mean(), rel=1e-5)
    assert critic.item() == pytest.approx(((guess[..., :3] - expected) ** 2).mean(), rel=1e-5)


def test_a_latent_without_a_decoder_says_so_and_one_with_it_learns_to_read() -> None:
    with pytest.raises(UsageError, match="give `decode` a weight above 0"):
        Latent(4, 2, LatentConfig(width=8)).decode(torch.zeros(1, 8))
    torch.manual_seed(0)
    model = Latent(4, 2, LatentConfig(width=16, hidden=(32,), horizon=3, decode=1.0, lr=3e-3))
    optimiser, batch = model.optimiser(), sequences(64)
    first = model.update(batch, optimiser)["model/decode_error"]
    for _ in range(150):
        last = model.update(batch, optimiser)["model/decode_error"]
    assert last < 0.5 * first
    with torch.no_grad():  # predicted steps count, and those after the end do not
        ended = batch.replace(valid=torch.tensor([True, False, False]).expand(64, 3))
        elsewhere = ended.obs.clone()
        elsewhere[:, 2:] = 9.0
        loss, _ = model.loss(ended)
        torch.testing.assert_close(model.loss(ended.replace(obs=elsewhere))[1]["model/decode_error"],
                                   model.loss(ended)[1]["model/decode_error"])  # fmt: skip
        assert loss < model.loss(batch.replace(obs=elsewhere))[0]


# ---- the learner


def dreamt(learner: Choreographer, seed: int = 0) -> tuple[Imagined, Tensor]:
    g = torch.Generator().manual_seed(seed)
    z = torch.eye(6)[torch.randint(6, (5,), generator=g)]
    start = {"latent": learner.model.encoder(torch.randn(5, 4, generator=g))}
    return learner.skills.imagine(learner.model, start, z @ learner.goals(), g), z


def test_the_reward_equals_numpy() -> None:
    learner = build(entropy=0.7)
    dream, z = dreamt(learner)
    y = dream.feat[:, 1:].detach().numpy().astype(float)  # (5, 4, D)
    flat = y.reshape(20, -1)
    distance = np.sqrt(((flat[:, None] - flat[None]) ** 2).sum(-1))
    near = np.sort(distance, 1)[:, :3].mean(1).reshape(5, 4)
    with torch.no_grad():
        stood_for = learner.model.decoder(learner.codebook.decoder(learner.codebook.code))
        target = (z @ learner.model.encoder(stood_for)).numpy()[:, None]
    expected = 0.7 * near - np.sqrt(((y - target) ** 2).sum(-1))
    found = learner.reward(dream, z)
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-4, atol=1e-5)


def test_only_the_code_has_a_gradient() -> None:
    """The entropy reaches the policy through the critic, never straight through the dynamics."""
    found = []
    for entropy in (0.0, 5.0):
        learner = build(entropy=entropy)
        dream, z = dreamt(learner)
        wanted = list(learner.skills.actor.parameters())
        found.append(torch.autograd.grad(learner.reward(dream, z).sum(), wanted))
    for none, much in zip(*found, strict=True):
        torch.testing.assert_close(none, much)
    assert found[0][0].abs().max() > 0


def test_what_is_explored_is_the_disagreement_in_units_of_its_mean() -> None:
    learner = build()
    learner.scale.fill_(0.5)
    dream, _ = dreamt(learner)
    with torch.no_grad():
        known = torch.cat((dream.feat[:, :-1], dream.action), -1).flatten(0, 1)
        members = learner.ensemble.net(known).numpy()
        expected = members.var(0, ddof=1).mean(-1).reshape(5, 4) / 0.5
        np.testing.assert_allclose(learner.disagreement(dream).numpy(), expected, rtol=1e-4)


def parts(learner: Choreographer) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in learner.state_dict().items()}


def test_a_dataset_is_not_explored() -> None:
    moved = []
    for offline in (False, True):
        learner = build()
        learner.offline = offline
        before = parts(learner)
        learner.update(sequences())
        now = learner.state_dict()
        moved.append({k.split(".")[0] for k in now if not torch.equal(now[k], before[k])})
    assert moved[0] - moved[1] == {"explorer", "ensemble", "scale"}
    assert moved[1] == {"model", "codebook", "skills", "outcome"}


def test_acting_is_exploring_and_at_first_it_is_random() -> None:
    learner = build()
    obs, z = torch.randn(64, 4), torch.eye(6)[torch.arange(64) % 6]
    at_first = learner.plan(obs, z)
    assert at_first.shape == (64, 1, 2) and at_first.std() == pytest.approx(3**-0.5, abs=0.06)
    learner.update(sequences())
    with torch.no_grad():
        torch.testing.assert_close(
            learner.plan(obs, z)[:, 0], learner.explorer.act(obs, None, None)
        )
        other = learner.plan(obs, z.roll(1, 0), deterministic=True)
        assert not torch.allclose(other, learner.plan(obs, z, deterministic=True))


def test_codes_are_moved_at_their_time_and_only_then() -> None:
    learner, moved = build(), []
    for _ in range(6):
        learner.update(sequences())
        moved.append(bool((learner.codebook.chosen == 0).all()))
    assert moved == [False, False, True, False, False, True]


def test_a_goal_s_skill_is_its_code() -> None:
    learner = build(["place"])
    goal = torch.randn(7, 4)
    z = learner.goal_skill(torch.randn(7, 4), goal)
    with torch.no_grad():
        masked = goal * torch.tensor([1.0, 1.0, 0.0, 0.0])
        e = learner.codebook.encoder(learner.model.encoder(masked))
        nearest = ((e[:, None] - learner.codebook.code) ** 2).sum(-1).argmin(-1)
    assert torch.equal(z.argmax(-1), nearest) and (z.sum(-1) == 1).all()


def test_outcomes_are_learned_from_dreams_and_stand_in_the_library(tmp_path: Path) -> None:
    learner = build(imagination={"noise": 0.0})
    for optimiser in (learner.skills_actor, learner.model_optimiser):
        optimiser.param_groups[0]["lr"] = 0.0
    learner.outcome_optimiser.param_groups[0]["lr"] = 1e-2
    for i in range(100):
        learner.update(sequences(seed=i))
    dream, z = dreamt(learner, 1)
    with torch.no_grad():
        ends = learner.model.decode(dream.feat[:, [0, -1]])
        change = ends[:, 1] - ends[:, 0]
        guess = learner.outcome(torch.cat((ends[:, 0], z), -1))
    assert (guess - change).square().mean() < 0.5 * change.square().mean()
    run = Discovery(replace(preset("choreographer", "point-open"), {"method": SMALL}))
    library = SkillLibrary.load(export(run, tmp_path / "library", {}, {}))
    obs, z = run.env_spec.obs_dim * [0.5], np.eye(6)[1]
    assert library.encoders["outcome"](obs, z).shape == (4,)


@pytest.mark.slow
def test_from_random_steps_alone_codes_tile_the_arena_and_are_reached(tmp_path: Path) -> None:
    """Offline: 80 of 100 cells of a metre, and the places that codes stand for."""
    random = {"random_steps": 48_000, "warmup_steps": 48_000, "hold": 10, "visited_starts": 0.5}
    config = replace(preset("choreographer", "point-open"), {"steps": 48_000, "loop": random})
    seen = Discovery(replace(config, {"loop": {"updates_per_epoch": 1}}))
    seen.run()
    path = write(tmp_path / "data", seen.replay, seen.env_spec, seen.space, {})
    config = replace(preset("choreographer", "point-open"), {"dataset": str(path)})
    run = Discovery(replace(config, {"steps": 24_000}))
    run.run()
    learner, z = run.learner, np.eye(64, dtype=np.float32)
    assert isinstance(learner, Choreographer)
    paths = rollout_skills(run.snapshot(), "point-open", z=z).paths
    with torch.no_grad():
        decoded = learner.goals().numpy() * run.normaliser.std.numpy()  # the mean is 0
    assert len({tuple(cell) for cell in np.floor(paths.reshape(-1, 2)).astype(int)}) >= 80
    missed = np.linalg.norm(paths[:, -1] - decoded[:, :2], axis=-1) / run.normaliser.std[0].item()
    assert np.median(missed) < 0.2
