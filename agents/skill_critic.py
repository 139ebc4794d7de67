"""Skill-Critic: skills go on learning while a controller chooses among them.

Hao et al. 2023, "Skill-Critic: Refining Learned Skills for Hierarchical Reinforcement Learning"
(arXiv:2306.08388). Both levels are given: a policy pi(a|s,z) whose parent pi_0 is kept, and a
controller, any of stable-baselines3's, that chooses z for k steps at a time and learns by itself
from whole decisions (`smdp.py`). The critic of the low level knows how far the skill has got:

    y = r + gamma (1 - terminated) { min_e Q_target_e(s',z,i+1,a')    if i + 1 < k
                                   { V(s')                           if i + 1 = k
    L_Q  = mean_B sum_E 1/2 (Q_e(s,z,i,a) - y)^2
    L_pi = alpha T/5 (mean_B KL(s,z) / T)^5 - mean_B min_e Q_e(s,z,i,a~)         a~ ~ pi(.|s,z)
    KL   = KL(pi(.|s,z) || pi_0(.|s,z)) = sum_A 1/2 (exp(2 rho) + delta^2 / sigma_0^2 - 1) - rho

with i = 0 … k - 1 the step within the decision, delta and rho the differences of mean and log-std
before the squashing, which leaves a KL as it is. V is the controller's value of deciding anew.
A decision is discounted by gamma per step here as there, so a reward is worth the same to both
levels. alpha is a dual variable: log alpha grows by the share by which the mean KL exceeds its
target T, where a nat more costs alpha.

Deviations from the paper: the controller is regularised by its own entropy and not towards a
parent; the KL limits the policy and is no part of its value, which the controller's value, without
it, would contradict at every end of a decision; both levels use the smallest of E critics; the
fifth power instead of alpha KL, of the same slope at T, because a dual variable alone
comes too late: the KL went to three times its target before alpha had risen.

Shapes: B batch, O observation of the critic, I body fields that the policy reads, Z skill,
A action, E critics.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple, TypeAlias

import numpy as np
import torch
from stable_baselines3 import DQN, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor, nn

from etude.agents.kernels import FlatAdam, Trace
from etude.agents.networks import LOG_STD_MAX, LOG_STD_MIN, Critics, SquashedGaussian
from etude.config import Config, Range
from etude.errors import CheckpointError, unknown

Layers = Sequence[tuple[np.ndarray, np.ndarray]]
Algorithm: TypeAlias = BaseAlgorithm  # so that nobody else needs to import SB3
Values = Callable[[Tensor], Tensor]
"""The controller's values (B,) of deciding anew at observations (B, O)."""

ALPHA_MIN, ALPHA_MAX = 1e-3, 1e3
POWER = 4
"""Steepness of the wall that a KL above its target runs into."""
FALL = 0.1
"""Share of its fastest rise by which alpha falls at most; else it would be too low when needed."""


@dataclass(frozen=True)
class SkillCriticConfig(Config):
    """Settings of the low level."""

    hidden: tuple[Annotated[int, Range(1, 8192)], ...] = (256, 256)
    """Widths of the critics' hidden layers, units; the policy has its parent's."""
    lr: Annotated[float, Range(0, 1, open_low=True)] = 3e-4
    """Adam step size of the critics."""
    actor_lr: Annotated[float, Range(0, 1, open_low=True)] = 1e-4
    """Adam step size of the policy."""
    tau: Annotated[float, Range(0, 1, open_low=True)] = 0.005
    """Share of the critics that moves into the targets per update."""
    critics: Annotated[int, Range(1, 64)] = 2
    """Number E of critics; the smallest Q counts."""
    layer_norm: bool = True
    """Layer norm in the critics, before each ReLU."""
    batch_size: Annotated[int, Range(1)] = 256
    """Environment steps in a batch."""
    log_std: Annotated[float, Range(LOG_STD_MIN, LOG_STD_MAX)] = -1.5
    """Log-std of the parent before the squashing; a library keeps means only. The paper: -3."""
    kl_target: Annotated[float, Range(0, open_low=True)] = 10.0
    """Mean KL to the parent that alpha aims at, nats per step. The paper: 80 in its maze."""
    alpha0: Annotated[float, Range(ALPHA_MIN, ALPHA_MAX)] = 1.0
    """Price of the KL at the start, units of reward per nat."""
    alpha_lr: Annotated[float, Range(0, 1, open_low=True)] = 0.02
    """Growth of log alpha per update where the KL is twice its target."""


@dataclass(frozen=True)
class Steps:
    """Independent environment steps."""

    obs: Tensor  # (B, O)
    next_obs: Tensor  # (B, O)
    body: Tensor  # (B, I)
    next_body: Tensor  # (B, I)
    skill: Tensor  # (B, Z)
    step: Tensor  # (B,) whole numbers from 0: how long the skill has been held
    action: Tensor  # (B, A)
    reward: Tensor  # (B,)
    terminated: Tensor  # (B,) 1.0 where the episode ended for good, not by a time limit


class Proposal(NamedTuple):
    """Actions drawn from the policy, and what their backward pass needs."""

    action: Tensor  # (B, A) in (-1, 1)
    deviation: Tensor  # (B, A) std * noise
    shift: Tensor  # (B, A) mean - parent's mean, in the parent's deviations
    spread: Tensor  # (B, A) log-std - parent's
    free: Tensor  # (B, A) bool: the log-std was not clamped
    trace: Trace

    @property
    def kl(self) -> Tensor:
        """KL to the parent, (B,) nats."""
        ratio = (2 * self.spread).exp()
        return (0.5 * (ratio + self.shift.square() - 1) - self.spread).sum(-1)


class SkillCritic(nn.Module):
    """The low level: a policy that starts as its parent, and its critics."""

    log_alpha: Tensor

    def __init__(
        self,
        parent: Layers,
        activation: str,
        obs_dim: int,
        skill_dim: int,
        k: int,
        gamma: float,
        config: SkillCriticConfig | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        """Begin with the deterministic policy tanh(mlp([body, z])).

        Args:
            parent: its layers (W (in, out), b (out,)).
            activation: of its hidden units.
            obs_dim: O, entries of what the critics see of the environment.
            skill_dim: Z.
            k: the most steps a decision lasts.
            gamma: discount per environment step.
            config: settings.
            generator: of initial weights and noise.
        """
        super().__init__()
        c = self.config = config or SkillCriticConfig()
        g = self.generator = generator or torch.Generator()
        self.k, self.gamma = k, gamma
        self.action_dim = len(parent[-1][1])
        self.actor = _gaussian(parent, activation, c.log_std)
        self.parent = copy.deepcopy(self.actor).requires_grad_(False)
        inputs = obs_dim + skill_dim + 1 + self.action_dim
        self.critics = Critics(inputs, c.hidden, 1, c.critics, c.layer_norm, g)
        self.targets = copy.deepcopy(self.critics).requires_grad_(False)
        self.register_buffer("log_alpha", torch.tensor(math.log(c.alpha0)))
        self.updates = 0
        self._optimisers = {
            "actor": FlatAdam(self.actor.net.flat, c.actor_lr),
            "critics": FlatAdam(self.critics.flat, c.lr),
        }

    @torch.no_grad()
    def act(self, body: Tensor, skill: Tensor, deterministic: bool = False) -> Tensor:
        """Actions (B, A) in [-1, 1] at normalised body fields (B, I)."""
        if deterministic:
            mean: Tensor = self.actor(body, skill)[0]
            return mean.tanh()
        return self.actor.sample(body, skill, self._noise(body)).action

    @torch.no_grad()
    def update(self, batch: Steps, values: Values, move: bool = True) -> dict[str, Tensor]:
        """One update of the critics and, if it is to `move`, of the policy and alpha."""
        target = self._target(batch, values)
        q, trace = self.critics.trace(self._inputs(batch, batch.action))
        error = q - target[:, None]  # (E, B, 1)
        self.critics.backward(trace, error / len(target))
        self._optimisers["critics"].step()
        found = {
            "finetune/critic_loss": 0.5 * error.square().sum((0, 2)).mean(),
            "finetune/q": q.mean(),
        }
        if move:
            found |= self._update_actor(batch)
        self.targets.flat.lerp_(self.critics.flat, self.config.tau)
        self.updates += 1
        return found

    def _target(self, batch: Steps, values: Values) -> Tensor:
        """The critics' common target y, (B,)."""
        action = self.act(batch.next_body, batch.skill)
        future = self.targets(self._inputs(batch, action, ahead=1))[..., 0].min(0).values  # (B,)
        last = batch.step == self.k - 1
        if last.any():
            future[last] = values(batch.next_obs[last])
        target: Tensor = batch.reward + self.gamma * (1 - batch.terminated) * future
        return target

    def _update_actor(self, batch: Steps) -> dict[str, Tensor]:
        drawn, alpha, count = (
            self.propose(batch.body, batch.skill),
            self.log_alpha.exp(),
            len(batch.obs),
        )
        q, trace = self.critics.trace(self._inputs(batch, drawn.action))
        least, which = q[..., 0].min(0)  # (B,)
        climb = q.new_full((count, 1), -1 / count)
        for_action = self.critics.input_gradient(trace, climb, which, self.action_dim)
        before = for_action * (1 - drawn.action.square())  # the squashing
        kl = drawn.kl.mean()
        ratio = kl / self.config.kl_target
        price = alpha * ratio**POWER / count
        for_mean = before + price * drawn.shift / math.exp(self.config.log_std)
        for_std = before * drawn.deviation + price * ((2 * drawn.spread).exp() - 1)
        self.actor.net.backward(drawn.trace, torch.cat((for_mean, for_std * drawn.free), -1)[None])
        self._optimisers["actor"].step()
        self.log_alpha.add_(self.config.alpha_lr * (ratio - 1).clamp(-FALL, 10))
        self.log_alpha.clamp_(math.log(ALPHA_MIN), math.log(ALPHA_MAX))
        loss = alpha * kl * ratio**POWER / (POWER + 1) - least.mean()
        return {"finetune/actor_loss": loss, "finetune/alpha": alpha, "finetune/kl": kl}

    def propose(self, body: Tensor, skill: Tensor) -> Proposal:
        """Draw actions at normalised body fields (B, I) for skills (B, Z)."""
        outputs, trace = self.actor.net.trace(torch.cat((body, skill), -1))
        mean, raw = outputs[0].chunk(2, -1)
        log_std = raw.clamp(LOG_STD_MIN, LOG_STD_MAX)
        deviation = log_std.exp() * self._noise(mean)
        first: Tensor = self.parent(body, skill)[0]
        shift = (mean - first) / math.exp(self.config.log_std)
        spread = log_std - self.config.log_std
        action = (mean + deviation).tanh()
        return Proposal(action, deviation, shift, spread, raw == log_std, trace)

    def _noise(self, like: Tensor) -> Tensor:
        # drawn on the CPU everywhere, so that a seed means the same on every device
        shape = (len(like), self.action_dim)
        return torch.randn(shape, generator=self.generator, dtype=like.dtype).to(like.device)

    def _inputs(self, batch: Steps, action: Tensor, ahead: int = 0) -> Tensor:
        """What the critics see: now, or one step `ahead` under the same skill."""
        obs = batch.next_obs if ahead else batch.obs
        share = (batch.step + ahead)[:, None] / self.k
        return torch.cat((obs, batch.skill, share, action), -1)

    def q(self, batch: Steps) -> Tensor:
        """The smallest Q(s,z,i,a) of the critics, (B,)."""
        found: Tensor = self.critics(self._inputs(batch, batch.action))
        return found[..., 0].min(0).values

    def policy_layers(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """The deterministic policy as it is now: (W (in, out), b) per layer."""
        return self.actor.mean_layers()

    def checkpoint(self) -> dict[str, Any]:
        """Everything that the next update depends on, as a copied tree."""
        return {
            "parameters": {name: value.clone() for name, value in self.state_dict().items()},
            "optimisers": {name: found.moments() for name, found in self._optimisers.items()},
            "noise": self.generator.get_state(),
            "updates": self.updates,
        }

    def restore(self, tree: Mapping[str, Any]) -> None:
        """Continue from `checkpoint()`; its leaves may be tensors or NumPy arrays.

        Raises:
            CheckpointError: the low level that was saved had other sizes.
        """
        saved = {name: torch.as_tensor(value) for name, value in tree["parameters"].items()}
        if {n: v.shape for n, v in saved.items()} != {
            n: v.shape for n, v in self.state_dict().items()
        }:
            raise CheckpointError(
                "the saved low level has other layers: resume with the settings of the run."
            )
        self.load_state_dict(saved)
        for name, optimiser in self._optimisers.items():
            optimiser.restore(tree["optimisers"][name])
        self.generator.set_state(torch.as_tensor(tree["noise"]))
        self.updates = int(tree["updates"])


def _gaussian(layers: Layers, activation: str, log_std: float) -> SquashedGaussian:
    """A policy with these layers for its mean, and one log-std everywhere."""
    sizes = [len(layers[0][0]), *(len(bias) for _, bias in layers)]
    actor = SquashedGaussian(sizes[0], sizes[-1], sizes[1:-1], activation)
    for own, (weight, bias) in zip(actor.net.layers(actor.net.flat.data), layers, strict=True):
        outputs = len(bias)  # of the last layer, those of the mean
        own.weight.zero_()[0, :outputs] = torch.as_tensor(weight.T)
        own.bias.fill_(log_std)[0, 0, :outputs] = torch.as_tensor(bias)
    return actor


@torch.no_grad()
def values(model: Algorithm, obs: Tensor) -> Tensor:
    """What a controller expects from deciding anew at its observations (B, O): (B,).

    SAC draws the decision and pays for its log-density; DQN takes the best one; PPO has a value.
    """
    if isinstance(model, SAC):
        action, log_prob = model.actor.action_log_prob(obs)
        q = torch.cat(model.critic_target(obs, action), 1).min(1).values
        assert model.log_ent_coef is not None
        return q - model.log_ent_coef.exp() * log_prob
    if isinstance(model, DQN):
        best: Tensor = model.q_net_target(obs).max(1).values
        return best
    assert isinstance(model, PPO)
    return model.policy.predict_values(obs)[:, 0]


class JointLearning(BaseCallback):
    """Lets the low level learn after every decision, and the controller once it may.

    Args:
        waits: whether the controller is to stay as it is for now.
        learn: lets the low level learn from what it has just done; returns numbers to log.
    """

    def __init__(self, waits: Callable[[], bool], learn: Callable[[], Mapping[str, float]]) -> None:
        super().__init__()
        self._waits, self._learn = waits, learn

    def _on_training_start(self) -> None:
        self._schedule = self.model.lr_schedule

    def _on_step(self) -> bool:
        self.model.lr_schedule = _still if self._waits() else self._schedule
        for key, value in self._learn().items():
            self.logger.record(key, value)
        return True


def _still(progress: float) -> float:
    """The learning rate of what does not learn."""
    return 0.0


ACTORS: dict[str, Any] = {"SAC": SAC, "TD3": TD3}
"""Algorithms whose deterministic policy is tanh(mlp(obs)), as a skill's is."""


def actor_model(
    algo: str, env: Any, layers: Layers, activation: str, log_std: float, **settings: Any
) -> Algorithm:
    """An algorithm of stable-baselines3 whose policy is tanh(mlp(obs)) with the given layers.

    Args:
        algo: "SAC" or "TD3"; others squash in another way.
        env: what it is to learn in; its actions lie in [-1, 1].
        layers: (W (in, out), b (out,)) of the network.
        activation: of the hidden units, "relu" or "tanh".
        log_std: of SAC's noise before the squashing.
        settings: for the algorithm's constructor; widths and activation are the network's.
    """
    if algo not in ACTORS:
        raise unknown("algorithm that can begin with a skill", algo, ACTORS)
    hidden = [len(bias) for _, bias in layers[:-1]]
    function = {"relu": nn.ReLU, "tanh": nn.Tanh}[activation]
    shape = {"net_arch": {"pi": hidden, "qf": hidden or [256, 256]}, "activation_fn": function}
    kwargs = {**settings.pop("policy_kwargs", {}), **shape}
    model: Any = ACTORS[algo]("MlpPolicy", env, policy_kwargs=kwargs, **settings)
    actor = model.actor
    head = [actor.mu] if algo == "SAC" else []
    trunk = actor.latent_pi if algo == "SAC" else actor.mu
    linear = [layer for layer in [*trunk, *head] if isinstance(layer, nn.Linear)]
    with torch.no_grad():
        for layer, (weight, bias) in zip(linear, layers, strict=True):
            layer.weight.copy_(torch.as_tensor(weight.T))
            layer.bias.copy_(torch.as_tensor(bias))
        if algo == "SAC":
            actor.log_std.weight.zero_()
            actor.log_std.bias.fill_(log_std)
        else:
            model.actor_target.load_state_dict(actor.state_dict())
    made: Algorithm = model
    return made
