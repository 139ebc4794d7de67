"""Soft actor-critic for skills: scalar and successor-feature critics in one update.

Haarnoja et al. 2018 (arXiv:1812.05905): a stochastic policy pi(a|s,z) maximises return and entropy,
the smaller of E critics gives the target, the temperature alpha holds the entropy near a target.

The critics put out psi (K numbers) and Q = <psi(s,a,z), w(z)>. A reward is K = 1 with w = 1; CSF
(Zheng et al. 2025, arXiv:2412.08021) has features of width K and w = z. One update serves both:

    i*    = argmin_i <psi_target_i(s',a',z), w>                                      a' ~ pi(.|s',z)
    y     = signal + gamma (1 - terminated) (psi_target_i*(s',a',z) - alpha log pi(a'|s',z) w/|w|^2)
    L_psi = mean_B sum_i sum_K 1/2 (psi_i - y)^2
    L_pi  = mean_B (alpha log pi(a|s,z) - min_i <psi_i(s,a,z), w>)                   a ~ pi(.|s,z)

Gradients are written out instead of recorded by autograd (`kernels.py`, `SquashedGaussian`).
w/|w|^2 spreads the entropy so that <y, w> receives exactly -alpha log pi; `entropy_in_target =
False` (CSF) leaves it out. Order within an update: critics, policy, alpha, targets.

Deviations from the paper: target entropy -|A|/2, as METRA's code (half the usual -|A|).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from etude.agents.kernels import FlatAdam
from etude.agents.networks import Critics, Sample, SquashedGaussian, check_sizes
from etude.agents.replay import Batch
from etude.config import Config, Range
from etude.errors import CheckpointError, UsageError


@dataclass(frozen=True)
class SACConfig(Config):
    """Settings of the SAC agent."""

    hidden: tuple[Annotated[int, Range(1, 8192)], ...] = (256, 256)
    """Widths of the hidden layers of policy and critics, units. SAC 256; METRA's code 1024."""
    activation: Literal["relu", "tanh"] = "relu"
    """Hidden units of the policy; critics always use ReLU. METRA's code: tanh."""
    lr: Annotated[float, Range(0, 1, open_low=True)] = 3e-4
    """Adam step size of policy and critics. SAC 3e-4; METRA's code 1e-4."""
    gamma: Annotated[float, Range(0, 1)] = 0.99
    """Discount per environment step. SAC, Haarnoja et al. 2018, table 1."""
    tau: Annotated[float, Range(0, 1, open_low=True)] = 0.005
    """Share of the critics that moves into the targets per update. SAC, table 1."""
    critics: Annotated[int, Range(1, 64)] = 2
    """Number E of critics; the smallest Q counts. SAC 2; 1 switches the minimum off."""
    layer_norm: bool = False
    """Layer norm in the critics, before each ReLU. BRO, Nauman et al. 2024 (arXiv:2405.16158)."""
    auto_alpha: bool = True
    """Learn the temperature towards the target entropy; off keeps `alpha0`."""
    alpha0: Annotated[float, Range(0, open_low=True)] = 0.1
    """Temperature at the start, reward units per nat. METRA's code: 0.01."""
    alpha_lr: Annotated[float, Range(0, 1, open_low=True)] = 3e-4
    """Adam step size of log alpha. SAC 3e-4."""
    target_entropy_scale: Annotated[float, Range(0, 10)] = 0.5
    """Target entropy = -scale * |A|, nats. METRA's code 0.5; SAC 1."""
    calm_after: Annotated[int, Range(0)] = 0
    """Updates after which the target entropy has `calm_entropy_scale`, 0 = never. Ours: with noise
    no posture is a dead end; without it, a policy has to learn how to leave some."""
    calm_entropy_scale: Annotated[float, Range(0, 10)] = 1.5
    """As `target_entropy_scale`, after `calm_after` updates."""
    actor_every: Annotated[int, Range(1, 100)] = 1
    """Updates of the critics per update of policy and alpha. SAC 1; TD3 2."""


class SAC(nn.Module):
    """The agent: observations come normalised, skills as they are, signals from the learner."""

    Config: ClassVar = SACConfig
    rewarded: ClassVar[bool] = True
    """whether it learns from the signal; one that does not can be paid no bonus"""
    actor_metrics: Tensor

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        skill_dim: int,
        config: SACConfig | None = None,
        signal_dim: int = 1,
        entropy_in_target: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_sizes(
            obs_dim=obs_dim, action_dim=action_dim, skill_dim=skill_dim, signal_dim=signal_dim
        )
        c = self.config = config or SACConfig()
        g = self.generator = generator or torch.Generator()
        self.action_dim, self.signal_dim = action_dim, signal_dim
        self.entropy_in_target = entropy_in_target
        inputs = obs_dim + skill_dim
        self.actor = SquashedGaussian(inputs, action_dim, c.hidden, c.activation, g)
        self.critics = Critics(
            inputs + action_dim, c.hidden, signal_dim, c.critics, c.layer_norm, g
        )
        self.targets = copy.deepcopy(self.critics).requires_grad_(False)
        self.log_alpha = nn.Parameter(torch.tensor([math.log(c.alpha0)]))
        self.register_buffer("actor_metrics", torch.zeros(2))  # last loss and entropy
        self.updates = 0
        self._optimisers = {
            "actor": FlatAdam(self.actor.net.flat, c.lr),
            "critics": FlatAdam(self.critics.flat, c.lr),
            "alpha": FlatAdam(self.log_alpha, c.alpha_lr),
        }

    @property
    def target_entropy(self) -> float:
        """The entropy that alpha holds at this update, nats."""
        c = self.config
        calm = 0 < c.calm_after <= self.updates
        return -(c.calm_entropy_scale if calm else c.target_entropy_scale) * self.action_dim

    @torch.no_grad()
    def act(self, obs: Tensor, skill: Tensor, deterministic: bool = False) -> Tensor:
        """Actions (N, A) in [-1, 1] for normalised observations (N, O) and skills (N, Z)."""
        if deterministic:
            mean: Tensor = self.actor(obs, skill)[0]
            return mean.tanh()
        return self.actor.sample(obs, skill, self._noise(obs)).action

    def update(self, batch: Batch, signal: Tensor, task_vector: Tensor) -> dict[str, Tensor]:
        """One update on normalised transitions; `signal` and `task_vector` are (B, K)."""
        shape = (len(batch.obs), self.signal_dim)
        for name, value in (("signal", signal), ("task_vector", task_vector)):
            if value.shape != shape:
                raise UsageError(f"{name} has shape {tuple(value.shape)}: give (B, K) = {shape}.")
        alpha = self.log_alpha.detach().exp()
        after, now = self._sample(batch, self.updates % self.config.actor_every == 0)
        target = self._target(after, batch, signal, task_vector, alpha)
        critic_loss, q = self._update_critics(batch, target, task_vector)
        if now is not None:
            self._update_actor(now, batch, task_vector, alpha)
        with torch.no_grad():
            self.targets.flat.lerp_(self.critics.flat, self.config.tau)
        self.updates += 1
        return {
            "train/actor_loss": self.actor_metrics[0].clone(),
            "train/critic_loss": critic_loss,
            "train/ent_coef": alpha[0],
            "train/entropy": self.actor_metrics[1].clone(),
            "train/q": q,
        }

    @torch.no_grad()
    def _sample(self, batch: Batch, both: bool) -> tuple[Sample, Sample | None]:
        """Actions a' of the next observations and, in the same pass, a of the observations."""
        if not both:
            noise = self._noise(batch.next_obs)
            return self.actor.sample(batch.next_obs, batch.skill, noise), None
        obs = torch.cat((batch.next_obs, batch.obs))
        skill = torch.cat((batch.skill, batch.skill))
        drawn = self.actor.sample(obs, skill, self._noise(obs))
        half = len(batch.obs)
        return drawn.rows(slice(half)), drawn.rows(slice(half, None))

    @torch.no_grad()
    def _target(
        self, after: Sample, batch: Batch, signal: Tensor, w: Tensor, alpha: Tensor
    ) -> Tensor:
        """The critics' common target y, (B, K)."""
        psi: Tensor = self.targets(torch.cat((batch.next_obs, batch.skill, after.action), -1))
        smallest = (psi * w).sum(-1).min(0).indices  # (B,)
        future = psi.gather(0, smallest[None, :, None].expand(1, *w.shape))[0]  # (B, K)
        if self.entropy_in_target:
            spread = w / w.square().sum(-1, keepdim=True).clamp_min(1e-12)
            future = future - (alpha * after.log_prob).unsqueeze(-1) * spread
        return signal + self.config.gamma * (1.0 - batch.terminated).unsqueeze(-1) * future

    @torch.no_grad()
    def _update_critics(self, batch: Batch, target: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        psi, trace = self.critics.trace(torch.cat((batch.obs, batch.skill, batch.action), -1))
        error = psi - target  # (E, B, K)
        self.critics.backward(trace, error / len(w))
        self._optimisers["critics"].step()
        return 0.5 * error.square().sum((0, 2)).mean(), (psi * w).sum(-1).mean()

    @torch.no_grad()
    def _update_actor(self, now: Sample, batch: Batch, w: Tensor, alpha: Tensor) -> None:
        action, log_prob, *_ = now
        psi, trace = self.critics.trace(torch.cat((batch.obs, batch.skill, action), -1))
        q, smallest = (psi * w).sum(-1).min(0)  # (B,)
        for_action = self.critics.input_gradient(trace, w / -len(w), smallest, self.action_dim)
        self.actor.backward(now, for_action, alpha / len(w))
        self._optimisers["actor"].step()
        entropy = -log_prob.mean()
        if self.config.auto_alpha:
            self.log_alpha.grad = (entropy - self.target_entropy).reshape(1)
            self._optimisers["alpha"].step()
        self.actor_metrics.copy_(torch.stack(((alpha * log_prob - q).mean(), entropy)))

    def _noise(self, like: Tensor) -> Tensor:
        # drawn on the CPU everywhere, so that a seed means the same on every device
        shape = (len(like), self.action_dim)
        return torch.randn(shape, generator=self.generator, dtype=like.dtype).to(like.device)

    def policy_layers(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """The deterministic policy as (W (in, out), b) per layer, for tanh(mlp([obs, z])).

        Its hidden activation is `config.activation`.
        """
        return self.actor.mean_layers()

    def gradients(self) -> dict[str, Tensor]:
        """The gradients of the last update, flat, by network."""
        networks = {"actor": self.actor.net.flat, "critics": self.critics.flat}
        return {name: flat.grad for name, flat in networks.items() if flat.grad is not None}

    def optimisers(self) -> dict[str, FlatAdam]:
        """The optimisers by name: actor, critics, alpha."""
        return dict(self._optimisers)

    def checkpoint(self) -> dict[str, Any]:
        """Everything that the next update depends on, as a copied tree of tensors and numbers."""
        return {
            "parameters": {k: v.clone() for k, v in self.state_dict().items()},
            "optimisers": {name: o.moments() for name, o in self._optimisers.items()},
            "generator": self.generator.get_state(),
            "updates": self.updates,
        }

    def restore(self, tree: Mapping[str, Any]) -> None:
        """Continue from `checkpoint()`; its leaves may be tensors or NumPy arrays.

        Raises:
            CheckpointError: the agent that was saved had other sizes.
        """
        parameters = {k: torch.as_tensor(v) for k, v in tree["parameters"].items()}
        own = {k: v.shape for k, v in self.state_dict().items()}
        if own != {k: v.shape for k, v in parameters.items()}:
            raise CheckpointError(
                "the saved agent has other layers than this one: resume with the run's settings."
            )
        self.load_state_dict(parameters)
        for name, optimiser in self._optimisers.items():
            optimiser.restore(tree["optimisers"][name])
        self.generator.set_state(torch.as_tensor(tree["generator"]))
        self.updates = int(tree["updates"])
