"""METRA: skills that travel far in a space whose unit is one step of time.

Park, Rybkin, Levine, "METRA: Scalable Unsupervised RL with Metric-Aware Abstraction", ICLR 2024
(arXiv:2310.08887). The policy and the representation phi: S -> R^D maximise together

    E[ sum_t (phi(s_{t+1}) - phi(s_t)) . z ]   subject to   |phi(s) - phi(s')|^2 <= 1

for adjacent s, s': a bound on the Wasserstein dependency between skills and states under the
temporal distance. The constraint is held by dual ascent on lambda.

Deviations: the squared step is summed over the D dimensions as in the paper (the authors' code
takes the mean); time-outs are not terminal; lambda is clamped to [e^-5, e^10], without which a
lasting violation carries it to infinity; by default lambda starts at 3 and learns ten times faster
than in the paper, because at 1e-4 its first e-fold takes ten thousand updates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from etude.agents.replay import Batch
from etude.config import Range
from etude.skills.learners._delta_phi import DeltaPhi
from etude.skills.learners.base import Spec


class Metra(DeltaPhi):
    """Maximises the progress (phi(s') - phi(s)) . z under the unit-step constraint."""

    config: Config

    @dataclass(frozen=True)
    class Config(DeltaPhi.Config):
        """Settings of METRA."""

        dual_lr: Annotated[float, Range(0, 1, open_low=True)] = 1e-3
        """learning rate of log lambda (paper: 1e-4)"""
        dual_init: Annotated[float, Range(0, open_low=True)] = 3.0
        """initial lambda (paper: 30)"""
        slack: Annotated[float, Range(0, open_low=True)] = 1e-3
        """upper clip of the constraint 1 - |step|^2: satisfied ones no longer move phi, and lower
        lambda by this much (paper)"""

    def __init__(self, spec: Spec, config: Config) -> None:
        super().__init__(spec, config)
        self.constrain(config.dual_init, config.dual_lr)

    def bound(self, batch: Batch, step: Tensor) -> Tensor:
        squared = step.square().sum(-1)  # (B,)
        return (1 - squared).clamp(max=self.config.slack)
