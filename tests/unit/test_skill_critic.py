"""The low level of Skill-Critic: its equations in NumPy, a chain it must solve, its KL."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import Env, spaces
from stable_baselines3 import DQN
from stable_baselines3.common.logger import Logger

from etude.agents.skill_critic import (
    ALPHA_MAX,
    ALPHA_MIN,
    SkillCritic,
    SkillCriticConfig,
    Steps,
    values,
)
from etude.agents.smdp import SMDPReplayBuffer
from etude.errors import CheckpointError

O, I, Z, A, B, K, GAMMA = 3, 2, 2, 2, 5, 4, 0.9
Array = np.ndarray
Net = list[tuple[Array, Array]]


def layers(rng: np.random.Generator, *sizes: int, scale: float = 0.7) -> Net:
    return [
        (scale * rng.standard_normal((a, b)), scale * rng.standard_normal(b))
        for a, b in zip(sizes, sizes[1:], strict=False)
    ]


def agent(seed: int = 0, **settings: Any) -> SkillCritic:
    """A small low level whose policy has left its parent."""
    rng = np.random.default_rng(seed)
    config = SkillCriticConfig(**{"hidden": (6,), "layer_norm": False, "log_std": -0.5, **settings})
    torch_rng = torch.Generator().manual_seed(seed)
    made = SkillCritic(layers(rng, I + Z, 5, A), "tanh", O, Z, K, GAMMA, config, torch_rng).double()
    for flat in (made.actor.net.flat, made.critics.flat, made.targets.flat):
        flat.data += torch.as_tensor(0.1 * rng.standard_normal(len(flat)))
    return made


def batch(seed: int = 1) -> Steps:
    rng = np.random.default_rng(seed)
    wide = {"obs": O, "next_obs": O, "body": I, "next_body": I, "skill": Z}
    columns = {name: rng.standard_normal((B, width)) for name, width in wide.items()}
    columns |= {
        "step": np.array([0.0, 1, K - 1, K - 1, 2]),
        "action": rng.uniform(-1, 1, (B, A)),
        "reward": rng.standard_normal(B),
        "terminated": np.array([0.0, 0, 0, 1, 1]),
    }
    return Steps(**{name: torch.as_tensor(value) for name, value in columns.items()})


# ---- the equations of the docstring, in NumPy, with gradients by differences


def forward(flat: Array, sizes: list[int], x: Array, tanh: bool) -> Array:
    """An MLP whose parameters lie in one vector, layer by layer: weight (out, in), bias."""
    at = 0
    for i, (n, m) in enumerate(zip(sizes, sizes[1:], strict=False)):
        weight, bias = flat[at : at + n * m].reshape(m, n), flat[at + n * m : at + n * m + m]
        at += n * m + m
        x = x @ weight.T + bias
        if i < len(sizes) - 2:
            x = np.tanh(x) if tanh else np.maximum(x, 0)
    return x


class Reference:
    """The losses of one update, written one network at a time."""

    def __init__(self, made: SkillCritic, b: Steps) -> None:
        self.b = {name: value.numpy() for name, value in vars(b).items()}
        self.actor, self.parent = (
            net.net.flat.detach().numpy().copy() for net in (made.actor, made.parent)
        )
        self.critics, self.targets = (
            self.split(net.flat.detach().numpy().copy()) for net in (made.critics, made.targets)
        )
        self.sigma, self.alpha = math.exp(made.config.log_std), float(made.log_alpha.exp())
        self.limit = made.config.kl_target

    @staticmethod
    def split(flat: Array) -> list[Array]:
        """Parameters of each of the two stacked critics with one hidden layer of 6."""
        n = O + Z + 1 + A
        parts = np.split(flat, np.cumsum([2 * 6 * n, 2 * 6, 2 * 6]))
        halves = [part.reshape(2, -1) for part in parts]
        return [np.concatenate([half[e] for half in halves]) for e in range(2)]

    def policy(self, flat: Array, body: Array) -> tuple[Array, Array]:
        head = forward(flat, [I + Z, 5, 2 * A], np.hstack((body, self.b["skill"])), tanh=True)
        return head[:, :A], np.clip(head[:, A:], -5, 2)

    def q(self, flat: Array, obs: Array, step: Array, action: Array) -> Array:
        x = np.hstack((obs, self.b["skill"], step[:, None] / K, action))
        return forward(flat, [O + Z + 1 + A, 6, 1], x, tanh=False)[:, 0]

    def draw(self, flat: Array, body: Array, noise: Array) -> tuple[Array, Array]:
        """Actions, and the KL of two Gaussians as textbooks write it."""
        (mean, log_std), (first, _) = self.policy(flat, body), self.policy(self.parent, body)
        std = np.exp(log_std)
        kl = np.log(self.sigma / std) + (std**2 + (mean - first) ** 2) / (2 * self.sigma**2) - 0.5
        return np.tanh(mean + std * noise), kl.sum(1)

    def target(self, noise: Array, decide: Callable[[Array], Array]) -> Array:
        b = self.b
        action, _ = self.draw(self.actor, b["next_body"], noise)
        ahead = np.min([self.q(t, b["next_obs"], b["step"] + 1, action) for t in self.targets], 0)
        future = np.where(b["step"] == K - 1, decide(b["next_obs"]), ahead)
        return b["reward"] + GAMMA * (1 - b["terminated"]) * future

    def critic_loss(self, critics: list[Array], target: Array) -> float:
        errors = [
            self.q(c, *(self.b[n] for n in ("obs", "step", "action"))) - target for c in critics
        ]
        return float(0.5 * np.square(errors).sum(0).mean())

    def actor_loss(self, actor: Array, critics: list[Array], noise: Array) -> tuple[float, float]:
        action, kl = self.draw(actor, self.b["body"], noise)
        q = np.min([self.q(c, self.b["obs"], self.b["step"], action) for c in critics], 0)
        wall = self.alpha * self.limit / 5 * (kl.mean() / self.limit) ** 5
        return float(wall - q.mean()), float(kl.mean())


def slope(loss: Callable[[Array], float], at: Array) -> Array:
    """The gradient by central differences."""
    h, eye = 1e-6, np.eye(len(at))
    return np.array([(loss(at + h * e) - loss(at - h * e)) / (2 * h) for e in eye])


def decide(obs: Any) -> Any:
    """A controller's value, the same for torch and NumPy."""
    return 2.0 * obs[:, 0] - obs[:, 1]


def test_an_update_is_that_of_an_independent_numpy_implementation() -> None:
    made, b = agent(kl_target=0.1), batch()
    state = made.generator.get_state()
    noise, noise_after = (
        torch.randn((B, A), generator=made.generator, dtype=torch.float64).numpy() for _ in range(2)
    )
    made.generator.set_state(state)
    ref = Reference(made, b)
    target = ref.target(noise, decide)
    metrics = {k: float(v) for k, v in made.update(b, decide).items()}
    assert metrics["finetune/critic_loss"] == pytest.approx(
        ref.critic_loss(ref.critics, target), 1e-5
    )
    assert made.critics.flat.grad is not None
    assert made.actor.net.flat.grad is not None
    grads = ref.split(made.critics.flat.grad.numpy())
    for e in range(2):

        def of_one(flat: Array, e: int = e) -> float:
            return ref.critic_loss(
                [flat if i == e else c for i, c in enumerate(ref.critics)], target
            )

        np.testing.assert_allclose(grads[e], slope(of_one, ref.critics[e]), atol=1e-5)
    moved = ref.split(made.critics.flat.detach().numpy())  # the policy climbs the new critics
    loss, kl = ref.actor_loss(ref.actor, moved, noise_after)
    assert (metrics["finetune/actor_loss"], metrics["finetune/kl"]) == pytest.approx(
        (loss, kl), 1e-5
    )
    expected = slope(lambda flat: ref.actor_loss(flat, moved, noise_after)[0], ref.actor)
    np.testing.assert_allclose(made.actor.net.flat.grad.numpy(), expected, atol=1e-5)
    assert kl > ref.limit  # so that the wall is felt
    grown = math.log(ref.alpha) + made.config.alpha_lr * (kl / ref.limit - 1)
    assert float(made.log_alpha) == pytest.approx(grown, 1e-5)
    lagging = [t + made.config.tau * (m - t) for t, m in zip(ref.targets, moved, strict=True)]
    np.testing.assert_allclose(ref.split(made.targets.flat.numpy()), lagging, atol=1e-7)


# ---- five places in a row, two skills, two steps to a decision

PLACES, PUSH = 5, 1.5
STEP_COST = 0.1


def move(place: int, action: float) -> tuple[int, float, bool]:
    """One step along the row: where to, the reward, and whether that was its end."""
    there = min(max(place + (1 if action > 0 else -1), 0), PLACES - 1)
    end = there == PLACES - 1
    return there, float(end) - STEP_COST, end


def skill_action(skill: int) -> float:
    return math.tanh(PUSH if skill else -PUSH)


def value_iteration() -> tuple[Array, Array]:
    """Q of every (place, skill, step, left or right), and of every decision (place, skill)."""
    q, high = np.zeros((PLACES, 2, 2, 2)), np.zeros((PLACES, 2))
    for _ in range(200):
        new = np.zeros_like(q)
        for place, skill, step, way in np.ndindex(PLACES - 1, 2, 2, 2):
            there, reward, end = move(place, (-1, 1)[way])
            ahead = high[there].max() if step == 1 else q[there, skill, step + 1, skill]
            new[place, skill, step, way] = reward + GAMMA * (not end) * ahead
        q, high = new, np.array([[new[s, z, 0, z] for z in range(2)] for s in range(PLACES)])
    return q, high


class Row(Env[Any, Any]):
    """Never stepped: it names the spaces of the row's controller."""

    observation_space = spaces.Box(0, 1, (PLACES,), np.float32)
    action_space = spaces.Discrete(2)


def controller_of_the_row() -> DQN:
    """A table of decisions, learnt with their exact discounts."""
    model = DQN(
        "MlpPolicy",
        Row(),
        gamma=GAMMA**2,
        learning_rate=0.02,
        policy_kwargs={"net_arch": []},
        replay_buffer_class=SMDPReplayBuffer,
        buffer_size=(PLACES - 1) * 2,
        seed=0,
        device="cpu",
    )
    model.set_logger(Logger(None, []))
    one = np.eye(PLACES, dtype=np.float32)
    for place, skill in np.ndindex(PLACES - 1, 2):
        there, total, steps, end = place, 0.0, 0, False
        while steps < 2 and not end:
            there, reward, end = move(there, skill_action(skill))
            total, steps = total + GAMMA**steps * reward, steps + 1
        info = [{"skill": {"discount": GAMMA**steps, "duration": steps}}]
        here, next_ = one[place][None], one[there][None]
        assert isinstance(model.replay_buffer, SMDPReplayBuffer)
        model.replay_buffer.add(
            here, next_, np.array([[skill]]), np.array([total]), np.array([end]), info
        )
    for _ in range(60):
        model.train(gradient_steps=10, batch_size=64)
        model.q_net_target.load_state_dict(model.q_net.state_dict())
    return model


def test_on_a_chain_both_levels_learn_what_value_iteration_finds() -> None:
    exact, high = value_iteration()
    model = controller_of_the_row()
    one = torch.eye(PLACES)
    np.testing.assert_allclose(values(model, one[: PLACES - 1]), high[:-1].max(1), atol=1e-2)
    weight = np.zeros((PLACES + 2, 1))
    weight[PLACES:, 0] = -PUSH, PUSH
    config = SkillCriticConfig(hidden=(64, 64), lr=1e-3, tau=0.05, log_std=-5.0, layer_norm=False)
    low = SkillCritic(
        [(weight, np.zeros(1))],
        "relu",
        PLACES,
        2,
        2,
        GAMMA,
        config,
        torch.Generator().manual_seed(0),
    )
    cases = [*np.ndindex(PLACES - 1, 2, 2, 2)]
    after = [(cases[i], move(cases[i][0], (-1, 1)[cases[i][3]])) for i in range(len(cases))]
    every = Steps(
        obs=torch.stack([one[c[0]] for c in cases]),
        next_obs=torch.stack([one[there] for _, (there, _, _) in after]),
        body=torch.stack([one[c[0]] for c in cases]),
        next_body=torch.stack([one[there] for _, (there, _, _) in after]),
        skill=torch.stack([torch.eye(2)[c[1]] for c in cases]),
        step=torch.tensor([float(c[2]) for c in cases]),
        action=torch.tensor([[skill_action(c[3])] for c in cases]),
        reward=torch.tensor([reward for _, (_, reward, _) in after]),
        terminated=torch.tensor([float(end) for _, (_, _, end) in after]),
    )
    for _ in range(1500):
        low.update(every, lambda obs: values(model, obs), move=False)
    np.testing.assert_allclose(low.q(every).detach(), [exact[c] for c in cases], atol=1e-2)


# ---- the KL


def test_a_target_that_is_not_needed_lets_alpha_fall_to_its_floor() -> None:
    made = agent(kl_target=1e6, alpha_lr=1.0)
    for _ in range(80):
        made.update(batch(), decide)
    assert float(made.log_alpha.exp()) == pytest.approx(ALPHA_MIN)
    made = agent(kl_target=1e-6, alpha_lr=0.5)
    for _ in range(40):
        made.update(batch(), decide)
    assert float(made.log_alpha.exp()) == pytest.approx(ALPHA_MAX)


def test_the_policy_stays_where_it_may_not_move() -> None:
    made = agent()
    before = made.actor.net.flat.detach().clone()
    metrics = made.update(batch(), decide, move=False)
    assert torch.equal(made.actor.net.flat, before)
    assert "finetune/kl" not in metrics
    made.update(batch(), decide)
    assert not torch.equal(made.actor.net.flat, before)


@pytest.mark.parametrize(
    "change",
    [
        {"lr": 1e-2},
        {"actor_lr": 1e-2},
        {"tau": 0.5},
        {"critics": 3},
        {"layer_norm": True},
        {"hidden": (7,)},
        {"log_std": -1.0},
        {"kl_target": 0.1},
        {"alpha0": 5.0},
        {"alpha_lr": 0.5},
    ],
)
def test_every_setting_changes_what_is_learnt(change: dict[str, Any]) -> None:
    def learnt(**settings: Any) -> Array:
        start = layers(np.random.default_rng(0), I + Z, 5, A)
        base = {"hidden": (6,), "layer_norm": False, "lr": 0.03, "actor_lr": 0.03}
        config = SkillCriticConfig(**{**base, **settings})
        rng = torch.Generator().manual_seed(0)
        made = SkillCritic(start, "relu", O, Z, K, GAMMA, config, rng)
        b = Steps(**{name: value.float() for name, value in vars(batch()).items()})
        for _ in range(20):
            made.update(b, decide)
        return made.actor.net.flat.detach().numpy().copy()

    assert np.abs(learnt(**change) - learnt()).max() > 1e-5


# ---- going on


def test_a_restored_low_level_goes_on_exactly() -> None:
    made, other = agent(), agent(seed=5)
    for _ in range(3):
        made.update(batch(), decide)
    other.restore(made.checkpoint())
    for one in (made, other):
        one.update(batch(), decide)
    for name, value in made.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    assert other.updates == 4
    with pytest.raises(CheckpointError, match="other layers"):
        agent(hidden=(7,)).restore(made.checkpoint())
