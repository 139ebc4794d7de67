"""Options of discovery that no other test would miss: what follows from each, in numbers."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from etude.agents.contrastive import Contrastive, ContrastiveConfig
from etude.agents.replay import Batch, Replay, Sequences
from etude.config import replace
from etude.skills import learners
from etude.skills.discovery import DiscoverConfig, Discovery, preset
from etude.skills.learners.base import Spec
from etude.skills.learners.choreographer import Choreographer
from etude.worldmodels.actor_critic import ActorCritic, ActorCriticConfig
from etude.worldmodels.codebook import Codebook, CodebookConfig
from etude.worldmodels.latent import Latent, LatentConfig

B, O, A = 12, 4, 2
SPEC = Spec({"place": slice(0, 2), "speed": slice(2, 4)}, O, A)
SKILLED = [
    name
    for name in learners.ids()
    if name != "rnd" and "dim" in {f.name for f in dataclasses.fields(learners.get(name).Config)}
]


def build(name: str, **settings: Any) -> Any:
    torch.manual_seed(0)
    method = learners.get(name)
    return method(SPEC, method.Config(**settings))


def batch(learner: Any, seed: int = 0, size: float = 1.0) -> Batch:
    """Random transitions whose observations have this size."""
    rng = np.random.default_rng(seed)
    obs, next_obs = size * rng.normal(size=(2, B, O)).astype(np.float32)
    action = rng.uniform(-1, 1, (B, A)).astype(np.float32)
    skill = learner.space.sample(np.random.default_rng(0), B)
    now, acted, after, z = map(torch.from_numpy, (obs, action, next_obs, skill))
    return Batch(now, acted, after, z, torch.zeros(B), torch.zeros(B))


def widths(net: nn.Module) -> list[int]:
    """Outputs of every linear layer."""
    return [layer.out_features for layer in net.modules() if isinstance(layer, nn.Linear)]


def farthest(net: nn.Module, before: dict[str, Tensor]) -> float:
    """The largest change of a weight that learns."""
    changes = [p.detach() - before[name] for name, p in net.named_parameters() if p.requires_grad]
    return max(float(change.abs().max()) for change in changes)


def copied(net: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in net.named_parameters()}


# ---- learners


@pytest.mark.parametrize("name", SKILLED)
def test_dim_is_the_width_of_skills_and_of_what_is_paid_for_them(name: str) -> None:
    learner = build(name, dim=7)
    one = batch(learner)
    assert one.skill.shape == (B, 7)
    signal, weights = learner.signal(one), learner.task_vector(one.skill)
    assert signal.shape == weights.shape == (B, learner.signal_dim)


@pytest.mark.parametrize(
    ("name", "settings", "outputs"),
    [
        ("becl", {"features": 6}, [6]),
        ("csd", {"dim": 3}, [3, 2 * O]),
        ("diayn", {"dim": 3}, [3]),
        ("diayn", {"dim": 3, "skills": "continuous"}, [6]),
        ("lpe", {"knots": 3, "codes": 5}, [3 * A, 5, 5, 5, 1]),
        ("rnd", {"dim": 5}, [5, 5]),
    ],
)
def test_layers_are_as_wide_as_asked(
    name: str, settings: dict[str, Any], outputs: list[int]
) -> None:
    learner = build(name, hidden=(9, 8), **settings)
    assert widths(learner) == [width for last in outputs for width in (9, 8, last)]


@pytest.mark.parametrize(
    ("name", "metric"),
    [
        ("apt", "skill/distance"),
        ("aps", "skill/distance"),
        ("disagreement", "skill/variance"),
        ("rnd", "skill/prediction_error"),
    ],
)
def test_the_second_batch_counts_by_the_momentum(name: str, metric: str) -> None:
    learner = build(name, momentum=0.25)
    first, second = (
        float(learner.update(batch(learner, seed, size))[metric])
        for seed, size in ((0, 1.0), (1, 3.0))
    )
    [usual] = (float(v) for k, v in learner.state_dict().items() if k.endswith("usual.mean"))
    assert usual == pytest.approx(0.75 * first + 0.25 * second, rel=1e-5)
    assert abs(second / first - 1) > 0.1


@pytest.mark.parametrize("name", ["becl", "disagreement", "rnd"])
def test_the_first_step_is_the_learning_rate(name: str) -> None:
    """That of Adam is, whatever the gradient."""
    learner = build(name, hidden=(16,), lr=0.125)
    before = copied(learner)
    learner.update(batch(learner))
    assert farthest(learner, before) == pytest.approx(0.125, abs=1e-4)


# ---- Choreographer, whose parts have settings of their own

PARTS: dict[str, Any] = {
    "starts": 5,
    "model": {"width": 16, "hidden": [10], "horizon": 3, "lr": 0.01, "decay": 0.0},
    "ensemble": {"members": 3, "hidden": [9]},
    "codebook": {"codes": 6, "dim": 4, "hidden": [7], "lr": 0.02},
    "exploration": {"hidden": [11], "horizon": 4, "lr": 0.03},
    "imagination": {"hidden": [13], "horizon": 2, "lr": 0.04},
    "ensemble_lr": 0.05,
}


@pytest.fixture
def choreographer() -> Choreographer:
    torch.manual_seed(0)
    return Choreographer(SPEC, replace(Choreographer.Config(), PARTS))


def sequences() -> Sequences:
    g = torch.Generator().manual_seed(0)
    obs, action = torch.randn(B, 4, O, generator=g), torch.rand(B, 3, A, generator=g) * 2 - 1
    valid, flags = torch.ones(B, 3, dtype=torch.bool), torch.zeros(B, 4, dtype=torch.bool)
    return Sequences(obs, action, torch.zeros(B, 3, 6), valid, flags, flags, flags)


def test_every_part_has_the_sizes_that_were_asked_for(choreographer: Choreographer) -> None:
    learner = choreographer
    assert widths(learner.model.dynamics) == [10, 16]
    assert learner.ensemble(torch.zeros(B, 16), torch.zeros(B, A)).shape == (3, B, 16)
    assert (widths(learner.codebook.encoder), widths(learner.codebook.decoder)) == ([7, 4], [7, 16])
    assert (widths(learner.explorer.actor), widths(learner.skills.actor)) == ([11, A], [13, A])
    assert widths(learner.outcome) == [13, O] and learner.goals().shape == (6, O)


def test_batches_are_as_long_as_the_horizon_of_the_model(choreographer: Choreographer) -> None:
    replay, flags = Replay(20, 1, O, A, 6, seed=0), np.zeros(1, bool)
    obs, action, skill = (np.zeros((1, width), np.float32) for width in (O, A, 6))
    for _ in range(20):
        replay.add(obs, action, obs, skill, flags, flags)
    assert choreographer.draw(replay, 7).action.shape == (7, 3, A)


def test_every_part_has_a_learning_rate_of_its_own(choreographer: Choreographer) -> None:
    parts = "model", "codebook", "explorer", "skills", "ensemble", "outcome"
    nets = {name: getattr(choreographer, name) for name in parts}
    before = {name: copied(net) for name, net in nets.items()}
    choreographer.update(sequences())
    moved = [farthest(net, before[name]) for name, net in nets.items()]
    assert moved == pytest.approx([0.01, 0.02, 0.03, 0.04, 0.05, 0.05], rel=1e-3)


def test_imagination_begins_at_so_many_observations_and_goes_so_far(
    choreographer: Choreographer, monkeypatch: pytest.MonkeyPatch
) -> None:
    dreams, imagine = [], ActorCritic.imagine

    def spy(self: ActorCritic, *given: Any) -> Any:
        dreams.append(imagine(self, *given))
        return dreams[-1]

    monkeypatch.setattr(ActorCritic, "imagine", spy)
    choreographer.update(sequences())
    assert [dream.action.shape for dream in dreams] == [(5, 4, A), (5, 2, A)]


def test_actor_and_critics_in_imagination_are_clipped_and_followed() -> None:
    g = torch.Generator().manual_seed(0)
    model = Latent(O, A, LatentConfig(width=8, hidden=(8,), decode=1.0), g)
    config = ActorCriticConfig(hidden=(9, 7), horizon=3, clip=1e-3, slow=0.75, lr=0.1)
    learner = ActorCritic(O, 0, 8, A, config)
    old = learner.slow.flat.clone()
    start = {"latent": model.encoder(torch.randn(B, O, generator=g)).detach()}

    def reward(dream: Any) -> Tensor:
        return torch.as_tensor(1e3 * dream.feat[:, 1:, 0])

    learner.update(model, start, None, reward, learner.optimisers(), g)
    for net in (learner.actor, learner.critics):
        norm = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None]).norm()
        assert float(norm) == pytest.approx(1e-3, rel=1e-3)
    torch.testing.assert_close(learner.slow.flat, 0.75 * old + 0.25 * learner.critics.flat)
    assert not torch.allclose(old, learner.critics.flat)
    assert widths(learner.actor) == [9, 7, A]
    assert [layer.weight.shape[1] for layer in learner.critics.layers()] == [9, 7, 1]


def test_what_is_encoded_commits_itself_to_its_code_by_the_weight() -> None:
    """The slope of the encoder is that of the reconstruction and, so many times, of the rest."""
    slopes, x = [], torch.randn(20, 5, generator=torch.Generator().manual_seed(1))
    for weight in (0.0, 0.5):
        config = CodebookConfig(codes=4, dim=3, hidden=(8,), commitment=weight)
        book = Codebook(5, config, torch.Generator().manual_seed(0))
        encoder = [*book.encoder.parameters()]
        apart = (book.encoder(x) - book.assign(x) @ book.code).square().mean()
        own = torch.autograd.grad(apart, encoder)
        book.update(x, book.optimiser())
        slopes.append([p.grad for p in encoder])
    for without, with_it, more in zip(*slopes, own, strict=True):
        torch.testing.assert_close(with_it - without, 0.5 * more, rtol=1e-4, atol=1e-6)
    assert max(float(more.abs().max()) for more in own) > 0.01


# ---- the contrastive agent


def test_both_networks_of_the_contrastive_agent_are_as_asked() -> None:
    config = ContrastiveConfig(hidden=(9, 7), dim=5, critics=3, layer_norm=True)
    agent = Contrastive(O, A, 2, config, generator=torch.Generator().manual_seed(0))
    for stack, inputs in ((agent.critics, O + A), (agent.goals, 2)):
        first, second, last = stack.layers()
        shapes = [layer.weight.shape for layer in (first, second, last)]
        assert shapes == [(3, 9, inputs), (3, 7, 9), (3, 5, 7)]
        x = torch.randn(B, inputs)
        with torch.no_grad():
            before = stack(x)
            first.weight.mul_(5)  # which the norm takes back
            first.bias.mul_(5)
            torch.testing.assert_close(stack(x), before, atol=1e-3, rtol=1e-3)


def test_the_contrastive_agent_has_its_learning_rates() -> None:
    config = ContrastiveConfig(hidden=(8,), dim=4, lr=0.02, alpha_lr=0.05)
    agent = Contrastive(O, A, 2, config, generator=torch.Generator().manual_seed(0))
    before, goals = copied(agent), torch.randn(B, 2)
    obs, action, zero = torch.randn(B, O), torch.rand(B, A) * 2 - 1, torch.zeros(B)
    agent.update(
        Batch(obs, action, obs, goals, zero, zero, goal=goals), zero[:, None], zero[:, None]
    )
    moved = {k: float((p.detach() - before[k]).abs().max()) for k, p in agent.named_parameters()}
    rates = {"actor.net.flat": 0.02, "critics.flat": 0.02, "goals.flat": 0.02, "log_alpha": 0.05}
    assert moved == pytest.approx(rates, rel=1e-2)


# ---- the loop


def small(**settings: Any) -> DiscoverConfig:
    """Four epochs of two episodes, the first of them warm-up."""
    loop = {"num_envs": 2, "episode_steps": 10, "updates_per_epoch": 5, "batch_size": 24}
    loop |= {"warmup_steps": 40, "replay_capacity": 60, "hold": 4}
    base = replace(preset("metra", "point-open"), {"steps": 80, "agent": {"hidden": [16, 16]}})
    return replace(replace(base, {"loop": loop}), settings)


def test_steps_updates_and_batches_are_as_many_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    run, sizes, told = Discovery(small()), [], []
    update, resample = run.learner.update, run.learner.resample

    def updated(one: Batch) -> dict[str, Tensor]:
        sizes.append(len(one.obs))
        return update(one)

    def resampled(*given: Any) -> np.ndarray:
        told.append(resample(*given))
        return told[-1]

    monkeypatch.setattr(run.learner, "update", updated)
    monkeypatch.setattr(run.learner, "resample", resampled)
    run.run()
    assert (run.steps, run.updates, sizes) == (80, 15, [24] * 15)
    assert len(run.replay) == 60 and run.collected.shape == (2, 11, 2)
    assert run.agent is not None
    assert [len(bias) for _, bias in run.agent.policy_layers()] == [16, 16, 2]
    skills = np.reshape(told, (4, 10, 2, 2))  # epochs, steps, environments, Z
    assert [len(np.unique(one[:, 0], axis=0)) for one in skills] == [3] * 4  # of 4, 4 and 2 steps
    assert (skills[:, [0, 4, 8]] == skills[:, [3, 7, 9]]).all()


def test_a_share_of_episodes_begins_where_training_has_been(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = {"visited_starts": 0.25, "num_envs": 40, "replay_capacity": 800, "warmup_steps": 0}
    run = Discovery(small(steps=400, loop=loop))
    chosen: list[bool] = []
    run.collect()
    reset = run.venv.reset

    def watched(**given: Any) -> Any:
        chosen.extend(given["options"]["mask"] if given else [])
        return reset(**given)

    monkeypatch.setattr(run.venv, "reset", watched)
    for _ in range(20):
        run.reset()
    assert np.mean(chosen) == pytest.approx(0.25, abs=0.05)
    assert len(chosen) == 800


def drawn(seed: int) -> dict[str, np.ndarray]:
    """What each generator of a run gives."""
    run = Discovery(small(seed=seed))
    assert run.agent is not None
    obs, z = torch.ones(5, 4), torch.ones(5, 2)
    features = run.learner.encode(obs)
    assert features is not None
    return {
        "learner": features.detach().numpy(),
        "agent": run.agent.act(obs, z, deterministic=True).numpy(),
        "noise": (run.agent.act(obs, z) - run.agent.act(obs, z)).numpy(),
        "environments": run.venv.reset()[0],
        "skills": run.space.sample(run.rng, 5),
        "batches": run.replay.rng.integers(1000, size=5),
        "starts": run.starts.rng.integers(1000, size=5),
    }


def test_whatever_is_drawn_is_that_of_the_seed() -> None:
    one, same, other = drawn(1), drawn(1), drawn(2)
    assert [name for name in one if not np.array_equal(one[name], same[name])] == []
    assert [name for name in one if np.allclose(one[name], other[name])] == []
