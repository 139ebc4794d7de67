"""The baseline of `bench/empowerment.py`: skills counted through a model of whole observations.

Its plans are those of LPE, and so are its networks' widths, its replay and its budget; what differs
is the model. A decoder predicts every entry of the observation in which a plan ends, as independent
Bernoulli variables, noise and all. Skills are counted in what the decoder draws, by a variational
posterior over z (Barber and Agakov 2003), as variational intrinsic control does in the world
(Gregor, Rezende and Wierstra 2016, arXiv:1611.07507):

    J = E log q(z | s0, s_n) - E log p(z),   s_n ~ p_decoder(. | s0, a)  <=  I_decoder(Z; S_n | s0)

With s_n from the world the same expression bounds I(Z; S_n | s0), and is what is reported.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from etude.agents.networks import mlp
from etude.agents.replay import Jumps
from etude.skills.learners.base import Spec, descend
from etude.skills.learners.lpe import Lpe

BINS = 8
"""Parts into which the posterior cuts each axis of the cube; it is flat within a part."""


class Reconstruction(Lpe):
    """Maximises the skills that end in different observations, as its decoder draws them."""

    def __init__(self, spec: Spec, config: Lpe.Config) -> None:
        super().__init__(spec, config)
        obs, plan, hidden = spec.obs_dim, config.knots * spec.action_dim, config.hidden
        self.decoder = mlp((obs + plan, *hidden, obs), layer_norm=True)
        self.posterior = mlp((2 * obs, *hidden, BINS**config.dim), layer_norm=True)
        weights = [*self.decoder.parameters(), *self.posterior.parameters()]
        self.model_optimiser = torch.optim.Adam(weights, config.lr, fused=True)

    def update(self, batch: Jumps) -> dict[str, Tensor]:
        plan = batch.action[:, :: self.config.hold].flatten(1)  # (B, knots A)
        drawn = self.decoder(torch.cat((batch.obs, plan), -1))  # (B, O) logits
        entries = F.binary_cross_entropy_with_logits(drawn, batch.next_obs, reduction="none")
        z = torch.empty(len(plan), self.config.dim).uniform_(-1, 1, generator=self.generator)
        z = z.to(plan)
        end = self.draw_end(batch.obs, self._plans(batch.obs, z))
        bound = self.told(batch.obs, z, end).mean()
        if self.updates >= self.config.model_first:
            descend(self.policy_optimiser, -bound)
        refit = self.told(batch.obs, z, end.detach()).mean()
        descend(self.model_optimiser, entries.sum(-1).mean() - refit)
        self.updates += 1
        return {"skill/told": bound.detach(), "skill/entries": entries.detach().sum(-1).mean()}

    def draw_end(self, obs: Tensor, plans: Tensor) -> Tensor:
        """An observation (B, O) of the decoder; its gradient is that of the probabilities."""
        chance = self.decoder(torch.cat((obs, plans), -1)).sigmoid()
        chosen = torch.empty(chance.shape).uniform_(generator=self.generator).to(chance) < chance
        return torch.as_tensor(chosen + chance - chance.detach())

    def told(self, obs: Tensor, z: Tensor, end: Tensor) -> Tensor:
        """log q(z | s0, s_n) - log p(z), (B,), in nats."""
        parts = ((z + 1) / 2 * BINS).long().clamp(0, BINS - 1)  # (B, Z)
        part = (parts * BINS ** torch.arange(parts.shape[-1], device=z.device)).sum(-1)
        log_q = self.posterior(torch.cat((obs, end), -1)).log_softmax(-1)
        chosen = log_q.gather(-1, part.unsqueeze(-1)).squeeze(-1)
        return torch.as_tensor(chosen + self.config.dim * math.log(BINS))
