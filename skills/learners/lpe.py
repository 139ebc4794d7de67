"""LPE: as many skills as a start state allows, counted in a code that only has to be predicted.

Levy, Allievi, Konidaris, "Latent-Predictive Empowerment: Measuring Empowerment without a
Simulator", 2024 (arXiv:2410.11155). Skills are open-loop plans: pi(s0, z) gives the actions a of n
steps, which end in s_n. A model p_xi(y | s0, a) predicts a code y, p_eta(y | s_n) reads it off, and

    J(s0) = I(Z; Y | s0) - E KL( p_xi(y | s0, a) || p_eta(y | s_n) )

counts the skills that the model tells apart, less what no end state gives away: plans that end in
the same states, or a code of noise, cost what they pretend to add. For every xi and eta, with this
direction of the divergence and weight 1, J <= I(Z; S_n | s0).

Deviations: objective, open-loop skills and their uniform prior on a cube are the paper's. Ours are
the gradient through the model, in place of a critic per weight of the policy; K codes y, so that
the information of M skills is exact and, by Jensen, not above that of all; omega(s0, a) for
log p_eta(y | s_n), by which plans feel the divergence; noise on the plans that do, which then keep
off borders; a model that maximises J for the plans in the replay, half of them random; and, as an
option, an eta that also reads s0, which leaves the bound as it is for every s0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor, nn

from etude.agents.networks import linear_layers, mlp
from etude.agents.replay import Batch, Jumps, Replay
from etude.config import Range
from etude.skills.learners.base import Learner, LearnerConfig, Spec, descend, own_generator
from etude.skills.mlp import MLP
from etude.skills.spaces import Cube
from etude.worldmodels.densities import categorical_information, categorical_kl

LEAST = -8.0  # nats; a code less likely than e^-8 costs no more


class Lpe(Learner):
    """Maximises the skills of each start state that a predicted code tells apart."""

    agent = None

    @dataclass(frozen=True)
    class Config(LearnerConfig):
        """Settings of LPE."""

        dim: Annotated[int, Range(1, 64)] = 2
        """dimension of z, uniform on a cube"""
        knots: Annotated[int, Range(1, 256)] = 5
        """actions of a plan"""
        hold: Annotated[int, Range(1, 256)] = 2
        """steps for which each of them is held; n = knots * hold"""
        codes: Annotated[int, Range(2, 1024)] = 64
        """number K of codes y; J is at most log K nats"""
        particles: Annotated[int, Range(2, 1024)] = 64
        """skills M of one start in an update; J is at most log M nats"""
        hidden: tuple[Annotated[int, Range(1)], ...] = (128, 128)
        """widths of the hidden layers of every network"""
        lr: Annotated[float, Range(0, 1, open_low=True)] = 3e-3
        """learning rate of the model"""
        policy_lr: Annotated[float, Range(0, 1, open_low=True)] = 1e-3
        """learning rate of the plans"""
        value_lr: Annotated[float, Range(0, 1, open_low=True)] = 3e-4
        """learning rate of E(s0): small, for it is to average over updates"""
        model_first: Annotated[int, Range(0)] = 2000
        """updates of the model alone, before the plans move"""
        spread: Annotated[float, Range(0, open_low=True)] = 5.0
        """factor on z before the policy, so that plans differ much from the first"""
        reads_start: bool = False
        """whether eta sees the start beside the end: a tighter bound where starts differ much"""
        random: Annotated[float, Range(0, 1)] = 0.5
        """share of the plans tried out that are uniform, so that the model knows the others"""
        noise: Annotated[float, Range(0)] = 0.3
        """standard deviation of what is added to plans that learn; falls once they do, as 1 / t"""

    def __init__(self, spec: Spec, config: Config) -> None:
        super().__init__(spec, config)
        self.config, self.space = config, Cube(config.dim)
        obs, plan, hidden = spec.obs_dim, config.knots * spec.action_dim, config.hidden
        self.pi = mlp((obs + config.dim, *hidden, plan))  # z -> plan, before tanh
        self.xi = mlp((obs + plan, *hidden, config.codes), layer_norm=True)
        read = self.seen_dim + obs * config.reads_start
        self.eta = mlp((read, *hidden, config.codes), layer_norm=True)
        self.omega = mlp((obs + plan, *hidden, config.codes), layer_norm=True)
        self.value = mlp((self.seen_dim, *hidden, 1))
        model = [p for net in (self.xi, self.eta, self.omega) for p in net.parameters()]
        value: dict[str, Any] = {"params": [*self.value.parameters()], "lr": config.value_lr}
        self.model_optimiser = torch.optim.Adam([{"params": model}, value], config.lr, fused=True)
        self.policy_optimiser = torch.optim.Adam(self.pi.parameters(), config.policy_lr, fused=True)
        self.generator = own_generator()

    @property
    def period(self) -> int:
        return self.config.knots * self.config.hold

    def draw(self, replay: Replay, size: int) -> Jumps:
        return replay.jumps(size, self.period, aligned=True)

    def resample(self, z: np.ndarray, step: int, rng: np.random.Generator, hold: int) -> np.ndarray:
        return super().resample(z, step, rng, hold or self.period)

    def update(self, batch: Jumps) -> dict[str, Tensor]:
        plan = batch.action[:, :: self.config.hold].flatten(1)  # (B, knots A)
        rows = len(plan) // (m := min(self.config.particles, len(plan))) * m
        starts, plans = batch.obs[:rows:m], plan[:rows].unflatten(0, (-1, m))  # (G, O), (G, M, …)
        with torch.set_grad_enabled(self.updates >= self.config.model_first):
            bound = self.bound(starts)  # (G,)
        predicted, read = self.log_xi(batch.obs, plan), self.read(batch.obs, batch.next_obs)
        divergence = categorical_kl(predicted, read).mean()
        diversity = categorical_information(self.log_xi(spread(starts, plans), plans)).mean()
        felt = self.omega(torch.cat((batch.obs, plan), -1))  # (B, K)
        regression = (felt - read.detach().clamp_min(LEAST)).square().sum(-1).mean()
        value = (self.empowerment(starts) - bound.detach()).square().mean()
        if bound.requires_grad:
            descend(self.policy_optimiser, -bound.mean())
        descend(self.model_optimiser, divergence - diversity + regression + value)
        self.updates += 1
        found = {"bound": bound, "divergence": divergence, "diversity": diversity}
        return {f"skill/{name}": nats.detach().mean() for name, nats in found.items()}

    def bound(self, starts: Tensor) -> Tensor:
        """J (G,) in nats at normalised starts (G, O), from M skills each, through the model."""
        z = torch.empty(len(starts), self.config.particles, self.config.dim)
        z = z.uniform_(-1, 1, generator=self.generator).to(starts)
        obs = spread(starts, z)
        plans = self._near(self._plans(obs, z))  # (G, M, knots A)
        predicted = self.log_xi(obs, plans)  # (G, M, K)
        divergence = categorical_kl(predicted, self.omega(torch.cat((obs, plans), -1)))
        return categorical_information(predicted) - divergence.mean(-1)

    def plan(self, obs: Tensor, z: Tensor, deterministic: bool = False) -> Tensor:
        with torch.no_grad():
            plan = self._plans(obs, z)  # (N, knots A)
        plan = plan if deterministic else self._explored(plan)
        knots = plan.unflatten(-1, (self.config.knots, -1))  # (N, knots, A)
        return torch.as_tensor(knots.repeat_interleave(self.config.hold, 1))  # (N, n, A)

    @torch.no_grad()
    def signal(self, batch: Batch) -> Tensor:
        """Empowerment of where a step leads, as a reward for any agent."""
        return self.empowerment(batch.next_obs).unsqueeze(-1)

    @torch.no_grad()
    def goal_skill(self, obs: Tensor, goal: Tensor) -> Tensor:
        """Of M even skills, the one whose code is the likeliest to be read off the goal."""
        z = torch.as_tensor(self.space.even(self.config.particles)).to(obs)  # (M, Z)
        starts = spread(obs, z.expand(len(obs), *z.shape))  # (B, M, O)
        plans = self._plans(starts, z.expand(len(obs), *z.shape))
        read = self.read(obs, goal).unsqueeze(1).clamp_min(LEAST)  # (B, 1, K)
        fit = (self.log_xi(starts, plans).exp() * read).sum(-1)  # (B, M)
        return torch.as_tensor(z[fit.argmax(-1)])

    def read(self, start: Tensor, end: Tensor) -> Tensor:
        """log p_eta(y | s_n), (B, K), given s0 as well if it `reads_start`."""
        known = (
            (start, end[:, self.columns]) if self.config.reads_start else (end[:, self.columns],)
        )
        return torch.as_tensor(self.eta(torch.cat(known, -1)).log_softmax(-1))

    def log_xi(self, obs: Tensor, plan: Tensor) -> Tensor:
        """log p_xi(y | s0, a), (..., K)."""
        return torch.as_tensor(self.xi(torch.cat((obs, plan), -1)).log_softmax(-1))

    def policy(self) -> MLP:
        config, layers = self.config, linear_layers(self.pi)
        layers[0][0][self.spec.obs_dim :] *= config.spread
        return MLP(layers, output="tanh", knots=config.knots, hold=config.hold)

    def export(self) -> dict[str, nn.Sequential]:
        return {"empowerment": self.value}

    def _plans(self, obs: Tensor, z: Tensor) -> Tensor:
        """Plans (..., knots A) of skills z (..., Z) at normalised starts (..., O)."""
        return torch.as_tensor(self.pi(torch.cat((obs, self.config.spread * z), -1)).tanh())

    def _explored(self, plan: Tensor) -> Tensor:
        """Plans to try out: with noise, and a share of them random; all of them at first."""
        g = self.generator
        share = self.config.random if self.updates else 1.0
        chosen = torch.rand(len(plan), 1, generator=g).to(plan) < share
        anything = torch.empty(plan.shape).uniform_(-1, 1, generator=g).to(plan)
        return torch.where(chosen, anything, self._near(plan).clamp(-1, 1))

    def _near(self, plans: Tensor) -> Tensor:
        std = self.config.noise * min(1, (1 + self.config.model_first) / (1 + self.updates))
        return plans + std * torch.randn(plans.shape, generator=self.generator).to(plans)

    def empowerment(self, obs: Tensor) -> Tensor:
        """E(s0) in nats, (B,): J at normalised states (B, O), learned on the way to it."""
        return torch.as_tensor(self.value(obs[:, self.columns]).squeeze(-1))


def spread(starts: Tensor, others: Tensor) -> Tensor:
    """Starts (G, O) repeated for each of others (G, M, ...): (G, M, O)."""
    return starts.unsqueeze(1).expand(-1, others.shape[1], -1)
