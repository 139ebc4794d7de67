"""A policy that learns in imagination: by the gradient of its imagined return through the model.

From each start the model is rolled out for H steps under pi(o, z), o being the observation that the
model decodes, and with lambda-returns R_t of the rewards r_t and the slow critics V,

    pi maximises mean R_t,        every critic minimises mean (V_e(s_t, z) - sg R_t)^2

as in Dreamer (Hafner et al. 2020, arXiv:1912.01603). Deviations: a policy with constant noise; the
smallest of two critics, because the last imagined state is bootstrapped from and never corrected
(Sims et al. 2024, arXiv:2402.12527); slow critics follow by a running mean.

Shapes: B batch, H horizon, O observation, Z condition, A action, D features, E critics.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from etude.agents.networks import Critics, mlp
from etude.config import Config, Range
from etude.worldmodels.distributions import normal_like
from etude.worldmodels.imagine import Imagined, State, imagine, lambda_return, smallest
from etude.worldmodels.latent import Latent

Reward = Callable[[Imagined], Tensor]
"""What the H imagined steps are paid, (B, H)."""


@dataclass(frozen=True)
class ActorCriticConfig(Config):
    """Settings of learning in imagination."""

    hidden: tuple[Annotated[int, Range(1, 8192)], ...] = (256, 256)
    """widths of the hidden layers of policy and critics, units (Dreamer: 4 x 400)"""
    horizon: Annotated[int, Range(1, 100)] = 10
    """imagined steps H (Dreamer: 15)"""
    gamma: Annotated[float, Range(0, 1)] = 0.99
    """discount per step (Dreamer)"""
    lam: Annotated[float, Range(0, 1)] = 0.95
    """weight of longer returns against the next value (Dreamer)"""
    noise: Annotated[float, Range(0, 1)] = 0.1
    """standard deviation of what is added to actions while learning"""
    lr: Annotated[float, Range(0, 1, open_low=True)] = 3e-4
    """step size of both optimisers (Dreamer: 8e-5)"""
    slow: Annotated[float, Range(0, 1, open_high=True)] = 0.98
    """share of the slow critics that stays as it is per update (Dreamer: a copy every 100)"""
    clip: Annotated[float, Range(0, open_low=True)] = 100.0
    """largest norm of a gradient (Dreamer)"""


class ActorCritic(nn.Module):
    """Policy pi(o, z) and two critics V(s, z)."""

    def __init__(
        self, obs_dim: int, cond_dim: int, feat_dim: int, action_dim: int, config: ActorCriticConfig
    ) -> None:
        super().__init__()
        self.config = config
        self.actor = mlp((obs_dim + cond_dim, *config.hidden, action_dim))  # before tanh
        self.critics = Critics(feat_dim + cond_dim, config.hidden, layer_norm=True)
        self.slow = copy.deepcopy(self.critics).requires_grad_(False)

    def optimisers(self) -> tuple[torch.optim.Adam, torch.optim.Adam]:
        """Of policy and critics, as `update` expects them; the caller saves their moments."""
        lr = self.config.lr
        return (
            torch.optim.Adam(self.actor.parameters(), lr, fused=True),
            torch.optim.Adam(self.critics.parameters(), lr, fused=True),
        )

    def act(self, obs: Tensor, cond: Tensor | None, generator: torch.Generator | None) -> Tensor:
        """Actions (B, A) for observations (B, O); with noise if there is a generator."""
        action = torch.tanh(self.actor(_join(obs, cond)))
        if generator is None:
            return action
        return (action + self.config.noise * normal_like(action, generator)).clamp(-1, 1)

    def imagine(
        self, model: Latent, start: State, cond: Tensor | None, generator: torch.Generator | None
    ) -> Imagined:
        """Rollouts of the policy, through which gradients reach it."""

        def policy(feat: Tensor, cond: Tensor | None) -> Tensor:
            return self.act(model.decode(feat), cond, generator)

        return imagine(model, policy, start, self.config.horizon, cond, generator)

    def losses(
        self, seen: Imagined, reward: Tensor, cond: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Losses of policy and critics on imagined steps that were paid (B, H), and returns."""
        steps = seen.feat.shape[1]
        held = None if cond is None else cond.unsqueeze(1).expand(-1, steps, -1)
        known = _join(seen.feat, held)  # (B, H + 1, D + Z)
        value = smallest(self._values(self.slow, known))  # (B, H + 1)
        returns = lambda_return(reward, value, self.config.gamma, self.config.lam)  # (B, H)
        guess = self._values(self.critics, known[:, :-1].detach())  # (E, B, H)
        critic = (guess - returns.detach()).square().mean()
        return -returns.mean(), critic, returns.detach()

    def update(
        self,
        model: Latent,
        start: State,
        cond: Tensor | None,
        reward: Reward,
        optimisers: tuple[torch.optim.Optimizer, torch.optim.Optimizer],
        generator: torch.Generator | None,
    ) -> tuple[Imagined, Tensor, Tensor]:
        """One gradient step of policy and critics; the rollouts, their rewards and returns."""
        seen = self.imagine(model, start, cond, generator)
        paid = reward(seen)
        policy, critic, returns = self.losses(seen, paid, cond)
        modules = (self.actor, self.critics)
        for module, optimiser, loss in zip(modules, optimisers, (policy, critic), strict=True):
            weights = list(module.parameters())
            for weight, gradient in zip(weights, torch.autograd.grad(loss, weights), strict=True):
                weight.grad = gradient
            nn.utils.clip_grad_norm_(weights, self.config.clip)
            optimiser.step()
        with torch.no_grad():
            self.slow.flat.lerp_(self.critics.flat, 1 - self.config.slow)
        return seen, paid.detach(), returns

    def _values(self, critics: Critics, known: Tensor) -> Tensor:
        """V (E, B, T) of states and conditions (B, T, D + Z)."""
        flat = critics(known.flatten(0, 1))[..., 0]  # (E, B T)
        return torch.as_tensor(flat.unflatten(1, known.shape[:2]))


def _join(x: Tensor, cond: Tensor | None) -> Tensor:
    return x if cond is None else torch.cat((x, cond), -1)
