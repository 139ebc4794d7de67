"""What critic and actor see: its loss in NumPy, who trains it, and what a library has of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stopped import stopped
from torch import nn

from etude import cli
from etude.agents.networks import linear_layers
from etude.agents.replay import Sequences
from etude.config import load, replace
from etude.errors import UsageError
from etude.evaluate.metrics import policy_metrics
from etude.evaluate.rollouts import rollout_skills
from etude.skills import learners
from etude.skills.discovery import DiscoverConfig, Discovery, preset, read_config
from etude.skills.export import export
from etude.skills.library import SkillLibrary
from etude.skills.mlp import MLP
from etude.skills.representation import (
    Representation,
    RepresentationConfig,
    composed,
    transitions,
)

B, H, O, A, Z, D, K = 6, 3, 4, 2, 3, 10, 2
LOOP = {"num_envs": 4, "episode_steps": 20, "updates_per_epoch": 3, "batch_size": 32}
LOOP |= {"warmup_steps": 80, "replay_capacity": 320}
ENCODER = {"width": 12, "hidden": [16], "horizon": 4, "sequences": 8}
SMALL: dict[str, Any] = {"steps": 320, "agent": {"hidden": [16, 16]}, "loop": LOOP}
ON = {"representation": "mrq", "encoder": ENCODER}
PAID = [n for n in learners.ids() if (agent := learners.get(n).agent) and agent.rewarded]

Array = np.ndarray


def small(learner: str, **settings: Any) -> DiscoverConfig:
    return replace(replace(preset(learner, "point-open"), {**SMALL, **ON}), settings)


def build(**settings: Any) -> Representation:
    torch.manual_seed(0)
    config = RepresentationConfig(width=D, hidden=(16,), horizon=H, **settings)
    return Representation(O, A, Z, K, config)


def stretches() -> Sequences:
    """Two of them end early."""
    rng = np.random.default_rng(0)
    obs, action, skill = (
        torch.from_numpy(rng.normal(size=shape).astype(np.float32))
        for shape in ((B, H + 1, O), (B, H, A), (B, H, Z))
    )
    valid = torch.ones(B, H, dtype=torch.bool)
    valid[:2, 1:] = False
    flags = torch.zeros(B, H + 1, dtype=torch.bool)
    return Sequences(obs, action, skill, valid, flags, flags, flags)


def a_signal() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(1).normal(3, 5, (B * H, K)).astype(np.float32))


def norm(x: Array) -> Array:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)


def relu_net(net: nn.Module, x: Array) -> Array:
    for weight, bias in linear_layers(nn.Sequential(*net.children())):
        x = np.maximum(x @ weight + bias, 0)
    return x


def smooth_net(net: nn.Module, x: Array) -> Array:
    """Linear, layer norm, SiLU, linear."""
    first, scale, _, last = net.children()
    assert isinstance(scale, nn.LayerNorm)
    (w, b), (w2, b2) = linear_layers(nn.Sequential(first, last))
    h = norm(x @ w + b) * scale.weight.detach().numpy() + scale.bias.detach().numpy()
    return np.asarray(h / (1 + np.exp(-h)) @ w2 + b2)


def test_the_loss_is_that_of_numpy() -> None:
    model, batch, signal = build(signal=0.3), stretches(), a_signal()
    for parameter in model.slow.parameters():
        parameter.data.mul_(1.3).add_(0.05)  # another network than the encoder
    for _ in range(3):
        model.scale.measure(signal)
    obs, action, skill = (np.asarray(x, np.float64) for x in (batch.obs, batch.action, batch.skill))
    valid, numbers = batch.valid.numpy(), signal.numpy().astype(np.float64)
    paid = ((numbers - numbers.mean(0)) / numbers.std(0)).reshape(B, H, K)
    consistency, error = 0.0, 0.0
    y = norm(relu_net(model.encoder, obs[:, 0]))
    for h in range(H):
        step = np.concatenate((y, action[:, h]), -1)
        guess = smooth_net(model.head, np.concatenate((step, skill[:, h]), -1))
        error += (((guess - paid[:, h]) ** 2).mean(-1) * valid[:, h]).sum()
        y = norm(smooth_net(model.dynamics, step))
        wanted = norm(relu_net(model.slow, obs[:, h + 1]))
        consistency += (((y - wanted) ** 2).mean(-1) * valid[:, h]).sum()
    loss, metrics = model.loss(batch, signal)
    count = valid.sum()
    assert count == B * H - 4 and consistency > 1 and error > 1
    assert loss.item() == pytest.approx((consistency + 0.3 * error) / count, rel=1e-5)
    assert metrics["model/consistency"].item() == pytest.approx(consistency / count, rel=1e-5)
    assert metrics["model/signal_error"].item() == pytest.approx(error / count, rel=1e-5)


def test_nothing_after_the_end_of_an_episode_counts() -> None:
    model, batch, signal = build(), stretches(), a_signal()
    other = batch.replace(obs=batch.obs.clone(), action=batch.action.clone())
    other.obs[:2, 2:] += 5
    other.action[:2, 1:] -= 5
    assert torch.equal(model.loss(batch, signal)[0], model.loss(other, signal)[0])


def test_the_models_loss_trains_the_encoder_through_both_heads() -> None:
    for weight in (0.0, 1.0):  # of the signal
        model = build(signal=weight)
        loss, _ = model.loss(stretches(), a_signal())
        loss.backward()
        for part in (model.encoder, model.dynamics):
            assert all(p.grad.abs().max() > 0 for p in part.parameters())  # type: ignore[union-attr]
        told = [
            p.grad is not None and bool(p.grad.abs().max() > 0) for p in model.head.parameters()
        ]
        assert all(told) if weight else not any(told)
        assert all(p.grad is None for p in model.slow.parameters())


def test_an_update_moves_the_slow_copy_a_little() -> None:
    model = build(ema=0.75)
    before = [p.clone() for p in model.slow.parameters()]
    model.update(stretches(), a_signal())
    for old, slow, fast in zip(
        before, model.slow.parameters(), model.encoder.parameters(), strict=True
    ):
        assert not torch.equal(old, fast)
        torch.testing.assert_close(slow, 0.75 * old + 0.25 * fast)


def test_the_first_step_is_that_of_adam_and_a_share_of_the_weights() -> None:
    """Of a gradient that is no longer than the clip."""
    model = build(lr=0.125, decay=0.5, clip=0.25)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    norm = model.update(stretches(), a_signal())["model/gradient"]
    learned = {name: p for name, p in model.named_parameters() if p.grad is not None}
    slopes = torch.cat([p.grad.flatten() for p in learned.values()])  # type: ignore[union-attr]
    assert norm > 0.3 and float(slopes.norm()) == pytest.approx(0.25, rel=1e-4)
    for name, p in learned.items():
        assert p.grad is not None
        told = p.grad.abs() > 1e-5  # elsewhere Adam's epsilon counts
        wanted = before[name] * (1 - 0.125 * 0.5) - 0.125 * p.grad.sign()
        torch.testing.assert_close(p.detach()[told], wanted[told], atol=1e-3, rtol=0)
        assert told.any()


def test_a_run_has_networks_and_batches_of_the_sizes_that_were_asked_for() -> None:
    sizes = {"width": 12, "hidden": [16, 9], "horizon": 4, "sequences": 7}
    run = Discovery(small("metra", encoder=sizes))
    run.collect()
    model = run.representation
    assert model is not None
    drawn = model.draw(run.replay)
    assert drawn.obs.shape == (7, 5, 4) and drawn.action.shape == (7, 4, 2)
    for net, outputs in ((model.encoder, 12), (model.dynamics, 12), (model.head, 1)):
        layers = [m for m in net.modules() if isinstance(m, nn.Linear)]
        assert [layer.out_features for layer in layers] == [16, 9, outputs]


def test_the_agent_does_not_train_the_representation() -> None:
    """It sees features, as many as the configuration says, and leaves the encoder alone."""
    run = Discovery(small("metra"))
    run.collect()
    model, agent = run.representation, run.agent
    assert model is not None and agent is not None
    assert agent.actor.net.layers()[0].weight.shape[-1] == 12 + run.space.dim
    before = {k: v.clone() for k, v in model.state_dict().items()}
    old = {k: v.clone() for k, v in agent.state_dict().items()}
    batch = run.replay.steps(32).normalised(run.normaliser)
    seen = model.encoded(batch)
    assert not seen.obs.requires_grad and not seen.next_obs.requires_grad
    torch.testing.assert_close(seen.next_obs, model.encode(batch.next_obs))
    agent.update(seen, *run._paid(batch, batch)[:2])
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    moved = {k.split(".")[0] for k, v in agent.state_dict().items() if not torch.equal(v, old[k])}
    assert {"actor", "critics"} <= moved


@pytest.mark.parametrize("learner", PAID)
def test_a_run_makes_a_library_that_acts_as_the_agent(learner: str, tmp_path: Path) -> None:
    """The encoder and the policy are one network of NumPy, for skills of either sign."""
    run = Discovery(small(learner))
    run.run()
    assert np.isfinite([*run.metrics.values()]).all() and run.metrics["model/gradient"] > 0
    library = SkillLibrary.load(export(run, tmp_path / "library", {}, {}))
    obs, _ = run.venv.reset()
    z = run.space.sample(np.random.default_rng(0), len(obs))
    np.testing.assert_allclose(library.plan(obs, z), run.snapshot().plan(obs, z), atol=1e-5)
    np.testing.assert_allclose(library.act(obs[0], z[0]), library.plan(obs, z)[0, 0], atol=1e-5)
    assert library.data.policy.sizes[0] == obs.shape[1] + run.space.dim


def test_composing_is_exact() -> None:
    """Also where the skill is negative, and for encoders of any depth."""
    rng = np.random.default_rng(0)

    def net(*sizes: int) -> list[tuple[Array, Array]]:
        pairs = zip(sizes, sizes[1:], strict=False)
        return [(rng.normal(size=p).astype(np.float32), rng.normal(size=p[1])) for p in pairs]

    obs, z = rng.normal(size=(50, O)), rng.normal(size=(50, Z))
    for depth in ((O, D), (O, 7, D), (O, 7, 5, D)):
        encoder, policy = net(*depth), net(D + Z, 9, A)
        seen = np.maximum(MLP(encoder)(obs), 0)
        expected = MLP(policy, output="tanh")(np.concatenate((seen, z), -1))
        both = MLP(composed(encoder, policy, Z), output="tanh")
        np.testing.assert_allclose(both(np.concatenate((obs, z), -1)), expected, atol=1e-5)


@pytest.mark.parametrize("bonus", ["", "rnd"])
@pytest.mark.parametrize("learner", ["metra", "csf"])
@pytest.mark.parametrize("asked", [7, 44, 46], ids=["episode", "updates", "between"])
def test_resume_is_bit_equal(learner: str, bonus: str, asked: int, tmp_path: Path) -> None:
    def fresh() -> Discovery:
        config = preset(learner, "point-open", bonus=bonus)
        return Discovery(replace(config, {**SMALL, **ON}))

    whole, second = fresh(), stopped(fresh(), asked, tmp_path)
    whole.run()
    second.run()
    for part in ("agent", "learner", "bonus", "representation"):
        one, other = getattr(second, part), getattr(whole, part)
        if one is not None:
            assert _bytes(one.checkpoint()) == _bytes(other.checkpoint())
    assert second.metrics.keys() == whole.metrics.keys()
    changed = {k for k, v in second.metrics.items() if v != whole.metrics[k]}
    assert changed <= {"time/fps"}


def _bytes(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {k: _bytes(v) for k, v in tree.items()}
    return np.asarray(tree).tobytes() if hasattr(tree, "__array__") else tree


def test_the_head_is_told_the_skill_that_is_paid(monkeypatch: pytest.MonkeyPatch) -> None:
    """HILP draws skills afresh for every transition, and pays for those."""
    run = Discovery(small("hilp"))
    run.collect()
    assert run.representation is not None
    seen: list[tuple[Sequences, torch.Tensor]] = []
    update = run.representation.update
    monkeypatch.setattr(
        run.representation,
        "update",
        lambda *a: seen.append(a) or update(*a),  # type: ignore[func-returns-value]
    )
    run._update()
    (batch, signal), steps = seen[0], transitions(seen[0][0])
    torch.testing.assert_close(run.learner.signal(steps), signal)
    stored = run.replay.steps(64).skill
    assert not torch.isin(batch.skill[..., 0], stored[:, 0]).any()


@pytest.mark.parametrize("bonus", ["apt", "disagreement", "rnd"])
def test_every_tensor_of_an_update_is_where_the_batch_is(
    bonus: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of bonus and representation, on torch's `meta` device, which refuses to mix with the CPU."""
    for optimiser in (torch.optim.Adam, torch.optim.AdamW):
        monkeypatch.setattr(optimiser, "step", lambda _: None)
    monkeypatch.setattr(torch.__future__, "_swap_module_params_on_conversion", True)
    run = Discovery(replace(preset("csf", "point-open", bonus=bonus), {**SMALL, **ON}))
    run.collect()
    assert run.bonus is not None and run.representation is not None
    for module in (run.learner, run.bonus, run.representation):
        module.to("meta")
    drawn = run.representation.draw(run.replay)
    drawn = drawn.replace(**{k: v.to("meta") for k, v in vars(drawn).items()})
    steps = transitions(drawn)
    metrics = run.bonus.update(steps)
    signal, weights, rewards = run._paid(steps, steps)
    metrics |= rewards | run.representation.update(drawn, signal)
    seen = run.representation.encoded(steps)
    found = {v.device.type for v in (signal, weights, seen.obs, seen.next_obs, *metrics.values())}
    assert found == {"meta"}


def test_off_there_is_nothing_of_it() -> None:
    run = Discovery(replace(preset("metra", "point-open"), SMALL))
    run.run()
    assert run.representation is None and "representation" not in run.checkpoint()
    assert not any(k.startswith("model/") for k in run.metrics)


@pytest.mark.parametrize(
    ("learner", "settings", "said"),
    [
        ("lpe", {}, "lpe has no agent that learns from a signal"),
        ("crl", {}, "crl has no agent that learns from a signal"),
        ("metra", {"agent": {"activation": "tanh"}}, "activation = tanh does not go with .* relu"),
        ("metra", {"representation": "none"}, "settings of encoder are for a representation"),
        ("metra", {"representation": "mrk"}, 'representation = .* did you mean "mrq"'),
    ],
)
def test_what_cannot_be_is_refused(learner: str, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Discovery(small(learner, **settings))


def test_the_command_line_has_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["discover", "metra", "--env", "point-open", "--help"])
    text = capsys.readouterr().out
    assert "--representation" in text and "none,mrq" in text and "--encoder.horizon" in text
    out = tmp_path / "run"
    command = ["discover", "metra", "--env", "point-open", "--representation", "mrq"]
    command += ["--steps", "160", "--agent.hidden", "8", "--eval-every", "0", "--mi-episodes", "0"]
    command += ["--loop.num-envs", "4", "--loop.episode-steps", "20", "--loop.warmup-steps", "80"]
    assert cli.main([*command, "--encoder.width", "8", "--out", str(out)]) == 0
    stored = read_config(load(out / "config.json")["discover"])
    assert (stored.representation, stored.encoder.width) == ("mrq", 8)
    assert "model/consistency" in (out / "metrics.csv").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_skills_of_the_point_cover_more_than_before(
    seed: int, record_property: Callable[[str, object], None]
) -> None:
    """The bar of every learner, which METRA passes without a representation too."""
    config = replace(preset("metra", "point-open"), {"representation": "mrq"})
    run = Discovery(replace(config, {"seed": seed, "steps": 24_000}))

    def measured() -> dict[str, float]:
        done = rollout_skills(run.snapshot(), run.config.env)
        return policy_metrics(done.paths, run.env_spec.cell)

    before, began = measured(), time.process_time()
    run.run()
    seconds, after = time.process_time() - began, measured()
    assert after["policy_coverage"] > 3 * before["policy_coverage"], (before, after)
    assert after["displacement"] > 3 * before["displacement"], (before, after)
    assert run.metrics["model/signal_error"] < 0.5, "of the variance of the signal"
    assert run.metrics["model/rank"] > 4 and seconds < 60
    record_property("count", 1)
