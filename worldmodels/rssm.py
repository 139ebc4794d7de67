"""A small recurrent state-space model: memory, discrete uncertainty, reconstruction.

The state is a GRU's memory h_t (`deter`) and a choice y_t of one class in each of G groups
(`stoch`), drawn from the prior p(y_t | h_t) when imagining and from the posterior q(y_t | h_t, o_t)
when the observation is there:

    h_t = GRU(h_{t-1}, y_{t-1}, a_{t-1}),        decoder (h_t, y_t) -> o_t with unit variance
    L = mean_t 1/2 |o_t - decoder|^2 + max(1, 0.8 KL(sg q || p) + 0.2 KL(q || sg p))

as in DreamerV2 (Hafner et al. 2021, arXiv:2010.02193), with straight-through gradients for y. The
first term of the KL teaches the prior, the second keeps the posterior predictable; the mean over
the batch is free up to one nat.

Deviations from DreamerV2: vectors instead of pixels, SiLU, 16 x 16 classes and 128 units. Rewards
and other targets are heads of the caller's on `feat` of the states that `loss` returns.

Shapes: B batch, T time, O observation, A action, G groups of K classes, D features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from etude.agents.networks import linear
from etude.agents.replay import Sequences
from etude.config import Config, Range
from etude.errors import UsageError
from etude.worldmodels.distributions import OneHot
from etude.worldmodels.encoders import Encoder, UnitNorm, layers
from etude.worldmodels.imagine import State


@dataclass(frozen=True)
class RSSMConfig(Config):
    """Settings of the recurrent state-space model."""

    deter: Annotated[int, Range(1, 4096)] = 128
    """units of the GRU (DreamerV2 on states: 200)"""
    groups: Annotated[int, Range(1, 256)] = 16
    """number of discrete choices (DreamerV2: 32)"""
    classes: Annotated[int, Range(2, 256)] = 16
    """classes of each (DreamerV2: 32)"""
    hidden: Annotated[int, Range(1, 4096)] = 128
    """width of every hidden layer and of the embedding, units"""
    balance: Annotated[float, Range(0, 1)] = 0.8
    """share of the KL that teaches the prior (DreamerV2)"""
    free_nats: Annotated[float, Range(0)] = 1.0
    """KL per step below which it has no gradient, nats (DreamerV2)"""
    lr: Annotated[float, Range(0, 1, open_low=True)] = 3e-4
    """step size of AdamW (DreamerV2: 1e-4 to 3e-4)"""
    decay: Annotated[float, Range(0, 1)] = 1e-6
    """weight decay of AdamW (DreamerV2)"""


class RSSM(nn.Module):
    """State {"deter": (B, deter), "stoch": (B, G K), "logit": (B, G K)}."""

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        config: RSSMConfig | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.config = config = config or RSSMConfig()
        self.stoch = config.groups * config.classes
        self.feat_dim = config.deter + self.stoch
        self.action_dim, width = action_dim, config.hidden
        self.encoder: Encoder[Tensor] = Encoder(obs_dim, UnitNorm(width), (width,), generator)
        self.mix = layers((self.stoch + action_dim, width, width), generator)
        self.cell = GRUCell(width, config.deter, generator)
        self.prior = layers((config.deter, width, self.stoch), generator)
        self.posterior = layers((config.deter + width, width, self.stoch), generator)
        self.decoder = layers((self.feat_dim, width, width, obs_dim), generator)

    def optimiser(self) -> torch.optim.AdamW:
        """What an update steps with; it belongs to the caller, who saves its moments."""
        config = self.config
        return torch.optim.AdamW(
            self.parameters(), lr=config.lr, weight_decay=config.decay, fused=True
        )

    def initial(self, batch: int) -> State:
        """The state before anything was seen: zeros."""
        deter = next(self.parameters()).new_zeros(batch, self.config.deter)
        stoch = deter.new_zeros(batch, self.stoch)
        return {"deter": deter, "stoch": stoch, "logit": stoch}

    def feat(self, state: State) -> Tensor:
        """Memory and choice side by side (B, D)."""
        return torch.cat((state["deter"], state["stoch"]), -1)

    def step(self, state: State, action: Tensor, generator: torch.Generator | None = None) -> State:
        """The next state from the prior: a sample, or without a generator the likeliest."""
        deter = self._remember(state, action)
        return self._choose(deter, self.prior(deter), generator)

    def observe(
        self,
        obs: Tensor,
        action: Tensor,
        is_first: Tensor,
        state: State | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[State, Tensor]:
        """Posterior states (B, T + 1, ...) of obs (B, T + 1, O), and prior logits (B, T + 1, G K).

        action (B, T, A) leads from one observation to the next. Where `is_first` (B, T + 1), the
        state before and the action into it are zeroed. `state` is that before the first
        observation, zeros by default; into it no action is known.

        Raises:
            UsageError: the numbers of observations, actions and flags do not fit.
        """
        steps = obs.shape[1]
        if action.shape[1] != steps - 1 or is_first.shape[1] != steps:
            raise UsageError(
                f"{steps} observations with {action.shape[1]} actions and {is_first.shape[1]} "
                "flags: give one action between two observations and a flag for each observation."
            )
        embedded = self.encoder(obs)
        state = state or self.initial(len(obs))
        into = torch.cat((action.new_zeros(len(obs), 1, self.action_dim), action), 1)
        posts: list[State] = []
        for t in range(steps):
            keep = (~is_first[:, t]).to(obs.dtype).unsqueeze(-1)  # (B, 1)
            state = {name: value * keep for name, value in state.items()}
            deter = self._remember(state, into[:, t] * keep)
            logit = self.posterior(torch.cat((deter, embedded[:, t]), -1))
            state = self._choose(deter, logit, generator)
            posts.append(state)
        whole = {name: torch.stack([s[name] for s in posts], 1) for name in posts[0]}
        return whole, self.prior(whole["deter"])

    def loss(
        self, batch: Sequences, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor], State]:
        """The loss, detached metrics and the posterior states (B, T + 1, ...)."""
        config = self.config
        states, prior_logit = self.observe(
            batch.obs, batch.action, batch.is_first, generator=generator
        )
        # the first observation is always there, each other one if its step is
        seen = torch.cat((torch.ones_like(batch.valid[:, :1]), batch.valid), 1).to(batch.obs.dtype)
        count = seen.sum()
        error = 0.5 * (self.decoder(self.feat(states)) - batch.obs).square().sum(-1)
        reconstruction = (error * seen).sum() / count
        post, prior = self.dist(states["logit"]), self.dist(prior_logit)
        still = self.dist(states["logit"].detach()), self.dist(prior_logit.detach())
        teach = (still[0].kl(prior) * seen).sum() / count
        restrain = (post.kl(still[1]) * seen).sum() / count
        kl = config.balance * teach + (1 - config.balance) * restrain
        loss = reconstruction + kl.clamp_min(config.free_nats)
        with torch.no_grad():
            metrics = {
                "model/reconstruction": reconstruction.detach(),
                "model/kl": kl.detach(),
                "model/prior_entropy": (prior.entropy() * seen).sum() / count,
                "model/posterior_entropy": (post.entropy() * seen).sum() / count,
            }
        return loss, metrics, states

    def dist(self, logit: Tensor) -> OneHot:
        """The distribution over choices that logits (..., G K) stand for."""
        return OneHot(logit, self.config.groups)

    def _remember(self, state: State, action: Tensor) -> Tensor:
        """The GRU's memory (B, deter) after an action (B, A)."""
        mixed = self.mix(torch.cat((state["stoch"], action), -1))
        return torch.as_tensor(self.cell(mixed, state["deter"]))

    def _choose(self, deter: Tensor, logit: Tensor, generator: torch.Generator | None) -> State:
        dist = self.dist(logit)
        stoch = dist.mode if generator is None else dist.rsample(generator)
        return {"deter": deter, "stoch": stoch, "logit": logit}


class GRUCell(nn.Module):
    """A GRU with layer norm on its gates, which at first keeps most of what it has.

    The update gate's input is lowered by 1 (DreamerV2), so that memory lasts before it is learned.
    """

    def __init__(self, inputs: int, size: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.gates = linear(inputs + size, 3 * size, generator)
        self.norm = nn.LayerNorm(3 * size)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        """The next memory (B, S) of inputs (B, I) and memory (B, S)."""
        reset, candidate, update = self.norm(self.gates(torch.cat((x, memory), -1))).chunk(3, -1)
        candidate = torch.tanh(reset.sigmoid() * candidate)
        share = (update - 1).sigmoid()
        return torch.lerp(memory, candidate, share)
