"""LSD: skills that travel far in a space that cannot stretch the observations.

Park, Choi, Kim, Lee, Kim, "Lipschitz-Constrained Unsupervised Skill Discovery", ICLR 2022
(arXiv:2202.00914). The policy and the representation phi: S -> R^D maximise together

    E[ (phi(s') - phi(s)) . z ]   subject to   |phi(x) - phi(y)| <= |x - y|   for all x, y,

the distance on the right being Euclidean in normalised observations. Every layer of phi is divided
by its largest singular value (spectral normalisation, Miyato et al. 2018, arXiv:1802.05957), and
ReLU does not stretch, so phi keeps the constraint by its architecture. What moves most in units of
the normaliser is learned first: name positions in `skill_obs` where joints would drown them.

Deviations: z is uniform on the sphere (the paper: a standard normal), and transitions come from a
replay under the latest phi, as in METRA's re-run of LSD (the paper: the newest epoch alone, signals
fixed when it begins, targets moved once per epoch).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from etude.agents.networks import mlp
from etude.agents.replay import Batch
from etude.skills.learners._delta_phi import DeltaPhi


class Lsd(DeltaPhi):
    """Maximises the progress (phi(s') - phi(s)) . z of a phi that is 1-Lipschitz."""

    @dataclass(frozen=True)
    class Config(DeltaPhi.Config):
        """Settings of LSD."""

    def network(self, sizes: tuple[int, ...]) -> nn.Sequential:
        net = mlp(sizes)
        for layer in net:
            if isinstance(layer, nn.Linear):
                spectral_norm(layer)
        return net.eval()  # singular vectors move in `update` alone

    def update(self, batch: Batch) -> dict[str, Tensor]:
        self.phi.train()
        metrics = super().update(batch)
        self.phi.eval()
        return metrics

    def bound(self, batch: Batch, step: Tensor) -> Tensor:
        return torch.zeros_like(step[:, 0])
