"""An ensemble of one-step dynamics whose disagreement says where it has not been.

E networks predict the change of the normalised observation; each learns from its own share of the
transitions. Where data is plentiful they agree, also on the mean of what is pure noise, so the
variance over the members rewards the unseen and not the unpredictable (Pathak et al. 2019,
arXiv:1906.04161; as a bonus in imagination, Sekar et al. 2020, arXiv:2005.05960).

Shapes: E members, B batch, O observation, A action.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from etude.agents.kernels import Stack
from etude.agents.networks import draw
from etude.config import Config, Range
from etude.errors import UsageError
from etude.worldmodels.imagine import State

WEYL, *MIX = (n - 2**64 for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
"""Odd factors of splitmix64 (Steele et al. 2014), as signed numbers of 64 bits."""


@dataclass(frozen=True)
class EnsembleConfig(Config):
    """Settings of the ensemble."""

    members: Annotated[int, Range(2, 64)] = 5
    """number of networks (URLB, Laskin et al. 2021: 5)"""
    hidden: tuple[Annotated[int, Range(1, 8192)], ...] = (256, 256)
    """widths of the hidden layers, units"""
    keep: Annotated[float, Range(0, 1, open_low=True)] = 0.8
    """share of the transitions that each member learns from"""


class Ensemble(nn.Module):
    """E dynamics models, state {"obs": (B, O)}; observations are normalised, and so are changes."""

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        config: EnsembleConfig | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.config = config = config or EnsembleConfig()
        self.net = Stack((obs_dim + action_dim, *config.hidden, obs_dim), config.members)
        draw(self.net, generator)

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        """The predicted changes of the observation, (E, B, O)."""
        return torch.as_tensor(self.net(torch.cat((obs, action), -1)))

    def loss(
        self, obs: Tensor, action: Tensor, next_obs: Tensor, weight: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean squared error of the members, each over its own transitions; and metrics.

        `weight` (B,) or (B, O) multiplies the squared errors.
        """
        error = (self(obs, action) - (next_obs - obs)).square()  # (E, B, O)
        if weight is not None:
            error = error * (weight if weight.ndim == obs.ndim else weight.unsqueeze(-1))
        mask = self.masks(obs, action).to(error.dtype)  # (E, B)
        each = (error.mean(-1) * mask).sum(-1) / mask.sum(-1).clamp_min(1)  # (E,)
        # a sum: every member has the gradient that it would have alone
        return each.sum(), {"model/ensemble_error": each.detach().mean()}

    @torch.no_grad()
    def masks(self, obs: Tensor, action: Tensor) -> Tensor:
        """Which transitions each member learns from, (E, B) bool.

        A hash of the transition decides, so that a bootstrap needs no memory: a member sees a
        transition each time it is drawn, or never.
        """
        bits = torch.cat((obs, action), -1).float().contiguous().view(torch.int32).long()  # (B, .)
        places = torch.arange(1, bits.shape[-1] + 1, device=bits.device)
        row = _scramble(bits + places * WEYL).sum(-1)  # (B,), wraps around
        members = torch.arange(1, self.config.members + 1, device=bits.device) * WEYL
        drawn = _scramble(row + members.unsqueeze(-1)) & 0xFFFFFF  # (E, B), uniform below 2^24
        return torch.lt(drawn, self.config.keep * 2**24)

    def disagreement(self, obs: Tensor, action: Tensor) -> Tensor:
        """Variance (B,) over the members, averaged over dimensions, in squared normalised units."""
        return torch.as_tensor(self(obs, action).var(0).mean(-1))

    def initial(self, obs: Tensor) -> State:
        """The state of an observation (B, O)."""
        return {"obs": obs}

    def step(
        self,
        state: State,
        action: Tensor,
        generator: torch.Generator | None = None,
        member: Tensor | None = None,
    ) -> State:
        """The next state by `member` (B,) of each row, or one drawn for each, or the mean of all.

        Raises:
            UsageError: a member that the ensemble does not have.
        """
        obs, members = state["obs"], self.config.members
        if member is None and generator is None:
            return {"obs": obs + self(obs, action).mean(0)}
        if member is None:
            drawn = torch.randint(
                members, (len(obs),), generator=generator, device=getattr(generator, "device", None)
            )
            member = drawn.to(obs.device)
        elif not ((member >= 0) & (member < members)).all():
            raise UsageError(f"member {member.tolist()} is out of range: there are {members}.")
        change = self(obs, action)[member, torch.arange(len(obs), device=obs.device)]
        return {"obs": obs + change}

    def feat(self, state: State) -> Tensor:
        """The observation itself."""
        return state["obs"]


def _scramble(x: Tensor) -> Tensor:
    """A hash of 64-bit integers whose low bits depend on every bit."""
    for factor in MIX:
        x = (x ^ (x >> 30)) * factor
    return x ^ (x >> 31)
