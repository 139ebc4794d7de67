"""A vector-quantised autoencoder whose codes move with a running mean and are never all dead.

    x -> e = encoder(x) -> the nearest of K codes c_k -> decoder(c_k) -> x        (straight through)
    L = |decoder - x|^2 + w_c |e - sg c_k|^2,      c_k = mean of the e that fell to it, decaying

(van den Oord et al. 2017, arXiv:1711.00937, with the running mean of its appendix). A code that no
vector has chosen for some updates moves to an encoded vector, drawn with probability proportional
to its distance from the nearest code, as k-means++ spreads its centres. It starts there with the
weight of one vector: with its old weight, near zero, the next mean would throw it anywhere.

Shapes: B batch, X input, D code, K codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from etude.config import Config, Range
from etude.worldmodels.distributions import exponential_like
from etude.worldmodels.encoders import layers


@dataclass(frozen=True)
class CodebookConfig(Config):
    """Settings of the codes."""

    codes: Annotated[int, Range(2, 4096)] = 64
    """number K of codes (Choreographer: 64)"""
    dim: Annotated[int, Range(1, 1024)] = 8
    """dimension of a code (Choreographer: 16)"""
    hidden: tuple[Annotated[int, Range(1, 8192)], ...] = (256, 256)
    """widths of the hidden layers of encoder and decoder, units"""
    decay: Annotated[float, Range(0, 1, open_high=True)] = 0.99
    """share of a code's mean and weight that stays as it is per update (Choreographer)"""
    commitment: Annotated[float, Range(0)] = 1e-4
    """weight w_c of the distance from an encoded vector to its code (Choreographer)"""
    resample: Annotated[int, Range(1)] = 200
    """updates after which a code that nothing chose is moved (Choreographer)"""
    lr: Annotated[float, Range(0, 1, open_low=True)] = 3e-4
    """step size of Adam (Choreographer: 8e-5)"""


class Codebook(nn.Module):
    """K codes with an encoder to choose them and a decoder to read them."""

    code: Tensor  # (K, D)
    weight: Tensor  # (K,) decaying number of vectors that fell to each
    total: Tensor  # (K, D) decaying sum of them
    chosen: Tensor  # (K,) number of them since dead codes were last moved
    updates: Tensor  # () so far

    def __init__(
        self,
        inputs: int,
        config: CodebookConfig | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.config = config = config or CodebookConfig()
        self.encoder = layers((inputs, *config.hidden, config.dim), generator)
        self.decoder = layers((config.dim, *config.hidden, inputs), generator)
        code = torch.rand(config.codes, config.dim, generator=generator)
        self.register_buffer("code", code)
        self.register_buffer("total", code.clone())
        self.register_buffer("weight", torch.ones(config.codes))
        self.register_buffer("chosen", torch.zeros(config.codes))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def optimiser(self) -> torch.optim.Adam:
        """What `update` expects; it belongs to the caller, who saves its moments."""
        return torch.optim.Adam(self.parameters(), lr=self.config.lr, fused=True)

    def assign(self, x: Tensor) -> Tensor:
        """The code of each vector (B, X) as one-hot rows (B, K)."""
        return self._nearest(self.encoder(x))

    def decode(self, hot: Tensor) -> Tensor:
        """The vectors (B, X) that codes (B, K) stand for."""
        return torch.as_tensor(self.decoder(hot @ self.code))

    def update(
        self,
        x: Tensor,
        optimiser: torch.optim.Optimizer,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """One gradient step and one of the running means; at its time, dead codes move."""
        e = self.encoder(x)  # (B, D)
        hot = self._nearest(e.detach())  # (B, K)
        q = hot @ self.code
        reconstruction = F.mse_loss(self.decoder(e + (q - e).detach()), x)
        loss = reconstruction + self.config.commitment * F.mse_loss(e, q)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            self._follow(e, hot)
            self.updates += 1
            due = self.updates % self.config.resample == 0
            self._move(e, due & (self.chosen == 0), generator)
            self.chosen *= ~due
            share = hot.mean(0)
            return {
                "reconstruction": reconstruction.detach(),
                "perplexity": torch.special.entr(share).sum().exp(),
            }

    def _nearest(self, e: Tensor) -> Tensor:
        distance = torch.cdist(e, self.code)  # (B, K)
        return F.one_hot(distance.argmin(-1), len(self.code)).to(e.dtype)

    def _follow(self, e: Tensor, hot: Tensor) -> None:
        """Move every code towards the mean of the encoded vectors (B, D) that fell to it."""
        count = hot.sum(0)
        self.weight.lerp_(count, 1 - self.config.decay)
        self.total.lerp_(hot.T @ e, 1 - self.config.decay)
        self.chosen += count
        self.code.copy_(self.total / self.weight.unsqueeze(-1))

    def _move(self, e: Tensor, dead: Tensor, generator: torch.Generator | None) -> None:
        """Put the `dead` (K,) among the codes where encoded vectors are far from all."""
        far = torch.cdist(e, self.code).amin(-1)  # (B,)
        tickets = far.expand(len(dead), -1)  # the winner of a race has P ~ its distance
        winner = (tickets / exponential_like(tickets, generator)).argmax(-1)  # (K,)
        place = torch.where(dead.unsqueeze(-1), e[winner], self.code)
        self.total.copy_(torch.where(dead.unsqueeze(-1), place, self.total))
        self.weight.copy_(torch.where(dead, torch.ones_like(self.weight), self.weight))
        self.code.copy_(place)
