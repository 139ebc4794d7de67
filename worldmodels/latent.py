"""A latent step model without decoder or reward: predict your own features some steps ahead.

An encoder gives the latent y; from the first one alone, the dynamics are unrolled over H actions
and every predicted latent is compared with what a slow copy of the encoder sees there:

    L = mean_h |d(...d(e(s_0), a_0)..., a_{h-1}) - e'(s_h)|^2 + w_i L_inverse + w_v L_variance

Steps after the end of an episode do not count. With `decode` above zero a decoder reads the
observation off every latent, predicted ones too, and L gets its squared error; without, the latent
keeps only what can be predicted. The form is that of TD-MPC2 (Hansen et al. 2024,
arXiv:2310.16828) and MR.Q (Fujimoto et al. 2025, arXiv:2501.16142). These have rewards and values,
which keep the latent from collapsing to a constant; here two terms must do it: the action is
recovered from neighbouring latents (Pathak et al. 2017, arXiv:1705.05363), and each dimension's
deviation over the batch is held above a floor (VICReg, Bardes et al. 2022, arXiv:2105.04906).
Whether they did is in the metrics: effective rank and deviation per dimension.

Shapes: B batch, H horizon, O observation, A action, D latent.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from etude.agents.replay import Sequences
from etude.config import Config, Range
from etude.errors import UsageError
from etude.worldmodels.encoders import Encoder, SimNorm, UnitNorm, layers
from etude.worldmodels.imagine import State

FLAT = 1e-2
"""Spread, as a share of the features' own size, that counts as none."""


@dataclass(frozen=True)
class LatentConfig(Config):
    """Settings of the latent step model."""

    width: Annotated[int, Range(1, 4096)] = 64
    """dimension of the latent (TD-MPC2, MR.Q: 512)"""
    norm: Literal["simnorm", "layer_norm"] = "simnorm"
    """what bounds the latent: softmax in groups of 8 (TD-MPC2), or layer norm"""
    hidden: tuple[Annotated[int, Range(1, 8192)], ...] = (256, 256)
    """widths of the hidden layers of encoder, dynamics and inverse dynamics, units"""
    horizon: Annotated[int, Range(1, 100)] = 5
    """steps H predicted from the first observation alone (MR.Q: 5)"""
    ema: Annotated[float, Range(0, 1, open_high=True)] = 0.99
    """share of the target encoder that stays as it is per update"""
    inverse: Annotated[float, Range(0)] = 0.1
    """weight w_i of the inverse dynamics"""
    variance: Annotated[float, Range(0)] = 1.0
    """weight w_v of the variance term"""
    decode: Annotated[float, Range(0)] = 0.0
    """weight of the decoder's squared error; 0 = there is no decoder"""
    floor: Annotated[float, Range(0, 1)] = 0.2
    """deviation below which the variance term sets in, as a share of the largest that the norm
    allows to all dimensions at once (VICReg: 1, without a norm)"""
    lr: Annotated[float, Range(0, 1, open_low=True)] = 3e-4
    """step size of AdamW (TD-MPC2: 3e-4)"""
    decay: Annotated[float, Range(0, 1)] = 1e-4
    """weight decay of AdamW (MR.Q: 1e-4)"""
    clip: Annotated[float, Range(0, open_low=True)] = 10.0
    """largest norm of the gradient"""


class Latent(nn.Module):
    """Self-predictive latent dynamics, state {"latent": (B, D)}."""

    GROUP = 8

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        config: LatentConfig | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.config = config = config or LatentConfig()
        width, hidden = config.width, config.hidden
        simnorm = config.norm == "simnorm"
        self.norm = SimNorm(width, self.GROUP) if simnorm else UnitNorm(width)
        # of independent one-hot groups a feature has this deviation, of layer norm 1
        self.largest = (self.GROUP - 1) ** 0.5 / self.GROUP if simnorm else 1.0
        self.encoder: Encoder[Tensor] = Encoder(obs_dim, self.norm, hidden, generator)
        self.target = copy.deepcopy(self.encoder).requires_grad_(False)
        self.dynamics = layers((width + action_dim, *hidden, width), generator)
        self.inverse = layers((2 * width, *hidden, action_dim), generator)
        self.decoder = layers((width, *hidden, obs_dim), generator) if config.decode else None

    def optimiser(self) -> torch.optim.AdamW:
        """What `update` expects; it belongs to the caller, who saves its moments."""
        learning = [p for p in self.parameters() if p.requires_grad]
        return torch.optim.AdamW(
            learning, lr=self.config.lr, weight_decay=self.config.decay, fused=True
        )

    def initial(self, obs: Tensor) -> State:
        """The state of an observation (B, O)."""
        return {"latent": self.encoder(obs)}

    def step(self, state: State, action: Tensor, generator: torch.Generator | None = None) -> State:
        """The next state; the model has no noise, so a generator changes nothing."""
        raw = self.dynamics(torch.cat((state["latent"], action), -1))
        return {"latent": self.norm(raw)}

    def feat(self, state: State) -> Tensor:
        """The latent itself (B, D)."""
        return state["latent"]

    def decode(self, feat: Tensor) -> Tensor:
        """Observations (B, O) of latents (B, D).

        Raises:
            UsageError: the model has no decoder.
        """
        if self.decoder is None:
            raise UsageError("the latent model has no decoder: give `decode` a weight above 0.")
        return torch.as_tensor(self.decoder(feat))

    def loss(self, batch: Sequences) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss on the first H steps of the batch, and metrics.

        Raises:
            UsageError: the sequences are shorter than the horizon.
        """
        H = self.config.horizon
        if batch.action.shape[1] < H:
            raise UsageError(
                f"sequences of {batch.action.shape[1]} steps are too short: the horizon needs {H}."
            )
        obs, action = batch.obs[:, : H + 1], batch.action[:, :H]
        mask = batch.valid[:, :H].to(obs.dtype)  # (B, H)
        count = mask.sum().clamp_min(1)
        seen = self.encoder(obs)  # (B, H + 1, D)
        with torch.no_grad():
            wanted = self.target(obs[:, 1:])  # (B, H, D)
        state, predicted = {"latent": seen[:, 0]}, []
        for h in range(H):
            state = self.step(state, action[:, h])
            predicted.append(state["latent"])
        # as a share of what the norm allows, so that weights mean the same for both norms
        ahead = torch.stack(predicted, 1)  # (B, H, D)
        error = (ahead - wanted).square().mean(-1) / self.largest**2  # (B, H)
        consistency = (error * mask).sum() / count
        guess = self.inverse(torch.cat((seen[:, :-1], seen[:, 1:]), -1))  # (B, H, A)
        inverse = ((guess - action).square().mean(-1) * mask).sum() / count
        std = seen[:, 0].std(0)  # (D,)
        short = self.config.floor * self.largest - std
        variance = F.relu(short / self.largest).mean()
        loss = consistency + self.config.inverse * inverse + self.config.variance * variance
        decoded = {}
        if self.decoder is not None:
            read = self.decode(torch.cat((seen[:, :1], ahead), 1))  # (B, H + 1, O)
            there = torch.cat((torch.ones_like(mask[:, :1]), mask), 1)
            missed = ((read - obs).square().mean(-1) * there).sum() / there.sum()
            loss = loss + self.config.decode * missed
            decoded["model/decode_error"] = missed.detach()
        with torch.no_grad():
            metrics = {
                "model/consistency": consistency.detach(),
                "model/inverse_error": inverse.detach(),
                "model/rank": effective_rank(seen[:, 0]),
                "model/std": std.detach().mean(),
                "model/std_smallest": std.detach().amin(),
                **decoded,
            }
        return loss, metrics

    def update(self, batch: Sequences, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
        """One gradient step and one of the target encoder; returns detached scalars `model/...`."""
        loss, metrics = self.loss(batch)
        optimiser.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(optimiser.param_groups[0]["params"], self.config.clip)
        optimiser.step()
        with torch.no_grad():
            pairs = zip(self.target.parameters(), self.encoder.parameters(), strict=True)
            for slow, fast in pairs:
                slow.lerp_(fast, 1 - self.config.ema)
        return {"model/loss": loss.detach(), "model/gradient": norm, **metrics}


@torch.no_grad()
def effective_rank(features: Tensor) -> Tensor:
    """How many directions the features (B, D) spread in: exp of the entropy of their singular
    values, normalised to sum 1 (Roy and Vetterli 2007); 1 at least, and at most min(B, D).

    The mean is taken off. Singular values below `FLAT` of the features' norm count as none: scaled
    up, the rounding noise of a constant would pass for full rank.
    """
    values = torch.linalg.svdvals(features - features.mean(0))
    values = values * (values > FLAT * torch.linalg.vector_norm(features))
    share = values / values.sum().clamp_min(torch.finfo(values.dtype).tiny)
    return torch.as_tensor(torch.special.entr(share).sum().exp())
