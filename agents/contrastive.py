"""Contrastive reinforcement learning: a critic that knows how likely a goal is to be met later.

Eysenbach, Zhang, Levine, Salakhutdinov, "Contrastive Learning as Goal-Conditioned Reinforcement
Learning", NeurIPS 2022 (arXiv:2206.07568). Row i of a batch is a pair (s_i, a_i) with a goal g_i
that its own episode met later, `batch.goal`. Networks phi(s, a) and psi(g) learn which goal of
the batch belongs to which pair, from the energies

    f_ij = -(|phi_i - psi_j|^2 + 1e-6)^(1/2)  ("distance")     or     phi_i . psi_j  ("inner"),

    L_fwd = mean_i (log sum_j exp f_ij - f_ii)        the goal of a pair,
    L_bwd = mean_j (log sum_i exp f_ij - f_jj)        the pair of a goal,

`"symmetric"` their sum, and c mean_i (log sum_j exp f_ij)^2. The optimum is the log-odds of meeting
g in the discounted future of (s, a), log p(g | s, a) - log p(g), plus a c(s, a) that L_fwd leaves
free and the last term fixes, or a c(g) of L_bwd, which no policy notices. The policy maximises it
as SAC its Q:

    L_pi = mean_B (alpha log pi(a|s,g) - min_e f_e(s,a,g))                           a ~ pi(.|s,g)

There is no reward, no target network and no bootstrapping. Shares of the policy's goals are those
of another row, so that it also learns for goals that its states did not lead to (Liu, Tang,
Eysenbach 2024, arXiv:2408.05804), and of those that it was told to reach, `batch.skill`.

Deviations: distances by default, with which a point stops 0.1 m from its goals and not 0.6; policy
and temperature are SAC's, the policy of the same width as the critics; the smallest of E critics
counts, where more than one is asked for (2022: two offline, else one); rows and columns are told
(2022: a logistic loss for each pair, or rows alone with the same penalty; 2024: rows alone); half
of the policy's batch has the goal of another row, where the 2022 code adds a second batch of such;
goals that the policy was told to reach are an option (the papers: only goals that were met).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from etude.agents.kernels import FlatAdam
from etude.agents.networks import Critics
from etude.agents.replay import Batch
from etude.agents.sac import SAC, SACConfig
from etude.config import Range
from etude.errors import UsageError

EPSILON = 1e-6  # under the root of the distance, whose slope at zero is infinite


@dataclass(frozen=True)
class ContrastiveConfig(SACConfig):
    """Settings of the contrastive agent: SAC's, and those of the critic."""

    gamma: Annotated[float, Range(0, 0)] = 0.0
    """Nothing is bootstrapped; how far ahead goals lie is a setting of the learner."""
    tau: Annotated[float, Range(1, 1)] = 1.0
    """There are no target networks."""
    critics: Annotated[int, Range(1, 64)] = 1
    """Number E of critics; the smallest f counts. Eysenbach et al. 2022: 1."""
    dim: Annotated[int, Range(1, 4096)] = 64
    """Width of phi and psi. Both papers: 64."""
    energy: Literal["inner", "distance"] = "distance"
    """f: minus the distance of phi and psi, or their inner product. Both papers: inner."""
    loss: Literal["forward", "backward", "symmetric"] = "symmetric"
    """Who is told apart: goals of a pair, pairs of a goal, or both. 2024: forward."""
    penalty: Annotated[float, Range(0)] = 0.01
    """Weight c of the squared log-sum-exp of rows. 2022, with this loss, and 2024: 0.01."""
    shuffled: Annotated[float, Range(0, 1)] = 0.5
    """Share of the policy's goals met by another row. Both papers: 0.5."""
    told: Annotated[float, Range(0, 1)] = 0.0
    """Share of the policy's goals that it was told to reach. 2024: 0."""
    target_entropy_scale: Annotated[float, Range(-0.6, 10)] = 0.5
    """Target entropy = -scale * |A|, nats; uniform actions have a scale of -0.69. Below 0 a point
    comes off the walls that a goal behind them presses it against."""
    scale: Annotated[float, Range(0, open_low=True)] = 1.0
    """Factor on observations and goals that all networks see. Both papers: units of the place, in
    which their mazes are 11 wide; normalised ones are 3.5 wide."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shuffled + self.told > 1:
            raise UsageError(
                f"shuffled = {self.shuffled} and told = {self.told} are more than all goals: "
                "choose shares with a sum of at most 1."
            )


class Contrastive(SAC):
    """The agent: skills are goals, and batches say which were met."""

    Config: ClassVar = ContrastiveConfig
    rewarded: ClassVar[bool] = False
    config: ContrastiveConfig

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
        c = config or ContrastiveConfig()
        assert isinstance(c, ContrastiveConfig), "the configuration is that of another agent"
        super().__init__(
            obs_dim, action_dim, skill_dim, c, signal_dim, entropy_in_target, generator
        )
        del self.targets

        def networks(inputs: int) -> Critics:
            return Critics(inputs, c.hidden, c.dim, c.critics, c.layer_norm, self.generator)

        self.critics, self.goals = networks(obs_dim + action_dim), networks(skill_dim)
        self._optimisers["critics"] = FlatAdam(self.critics.flat, c.lr)
        self._optimisers["goals"] = FlatAdam(self.goals.flat, c.lr)

    def act(self, obs: Tensor, skill: Tensor, deterministic: bool = False) -> Tensor:
        scale = self.config.scale
        return super().act(scale * obs, scale * skill, deterministic)

    @torch.no_grad()
    def update(self, batch: Batch, signal: Tensor, task_vector: Tensor) -> dict[str, Tensor]:
        """One update on normalised transitions; there is no use for a reward."""
        scale = self.config.scale
        batch = batch.replace(
            obs=scale * batch.obs, skill=scale * batch.skill, goal=scale * _met(batch)
        )
        alpha = self.log_alpha.exp()
        found = self._tell_apart(batch)
        if self.updates % self.config.actor_every == 0:
            self._improve(batch, alpha)
        self.updates += 1
        return {
            "train/actor_loss": self.actor_metrics[0].clone(),
            "train/ent_coef": alpha[0],
            "train/entropy": self.actor_metrics[1].clone(),
            **found,
        }

    def _tell_apart(self, batch: Batch) -> dict[str, Tensor]:
        """An update of phi and psi."""
        phi, of_phi = self.critics.trace(torch.cat((batch.obs, batch.action), -1))  # (E, B, D)
        psi, of_psi = self.goals.trace(_met(batch))
        f = energies(phi, psi, self.config.energy)  # (E, B, B)
        loss, slope = contrast(f, self.config.loss, self.config.penalty)
        if self.config.energy == "inner":
            for_phi, for_psi = slope @ psi, slope.mT @ phi
        else:
            pull = slope / f  # of f_ij on phi_i, along phi_i - psi_j
            for_phi = pull.sum(2, keepdim=True) * phi - pull @ psi
            for_psi = pull.sum(1).unsqueeze(-1) * psi - pull.mT @ phi
        self.critics.backward(of_phi, for_phi)
        self.goals.backward(of_psi, for_psi)
        self._optimisers["critics"].step()
        self._optimisers["goals"].step()
        own = f.diagonal(dim1=1, dim2=2)  # (E, B)
        right = (own >= f.amax(2)).float().mean()
        return {"train/critic_loss": loss, "train/q": own.mean(), "train/goals_told": right}

    def _improve(self, batch: Batch, alpha: Tensor) -> None:
        """An update of the policy and its temperature."""
        size, met = len(batch.obs), _met(batch)
        others, told = (int(share * size) for share in (self.config.shuffled, self.config.told))
        goal = torch.cat((met.roll(1, 0)[:others], met[others:]))
        goal[size - told :] = batch.skill[size - told :]
        now = self.actor.sample(batch.obs, goal, self._noise(batch.obs))
        phi, trace = self.critics.trace(torch.cat((batch.obs, now.action), -1))  # (E, B, D)
        psi = self.goals(goal)
        if self.config.energy == "inner":
            f, slope = (phi * psi).sum(-1), psi
        else:
            f = -((phi - psi).square().sum(-1) + EPSILON).sqrt()
            slope = (phi - psi) / f.unsqueeze(-1)
        q, smallest = f.min(0)  # (B,)
        along = slope.gather(0, smallest[None, :, None].expand(1, *slope.shape[1:]))[0]  # (B, D)
        for_action = self.critics.input_gradient(trace, along / -size, smallest, self.action_dim)
        self.actor.backward(now, for_action, alpha / size)
        self._optimisers["actor"].step()
        entropy = -now.log_prob.mean()
        if self.config.auto_alpha:
            self.log_alpha.grad = (entropy - self.target_entropy).reshape(1)
            self._optimisers["alpha"].step()
        self.actor_metrics.copy_(torch.stack(((alpha * now.log_prob - q).mean(), entropy)))

    @torch.no_grad()
    def score(self, obs: Tensor, action: Tensor, goal: Tensor) -> Tensor:
        """f (B, G) of pairs (B, O), (B, A) and goals (G, Z): the smallest of the critics'."""
        scale = self.config.scale
        phi = self.critics(torch.cat((scale * obs, action), -1))
        return energies(phi, self.goals(scale * goal), self.config.energy).amin(0)

    def policy_layers(self) -> list[tuple[np.ndarray, np.ndarray]]:
        (first, bias), *rest = super().policy_layers()
        return [(self.config.scale * first, bias), *rest]

    def gradients(self) -> dict[str, Tensor]:
        grad = self.goals.flat.grad
        return super().gradients() | ({} if grad is None else {"goals": grad})


def _met(batch: Batch) -> Tensor:
    """The goals (B, Z) in hindsight."""
    assert batch.goal is not None, "the learner gives no goals that were met"
    return batch.goal


def energies(phi: Tensor, psi: Tensor, kind: str) -> Tensor:
    """f (E, B, G) of phi (E, B, D) and psi (E, G, D)."""
    product = phi @ psi.mT
    if kind == "inner":
        return product
    square = phi.square().sum(-1, keepdim=True) + psi.square().sum(-1).unsqueeze(1) - 2 * product
    return -(square.clamp_min(0) + EPSILON).sqrt()


def contrast(f: Tensor, kind: str, penalty: float) -> tuple[Tensor, Tensor]:
    """The loss of energies f (E, B, B), summed over E, and its gradient (E, B, B)."""
    size = f.shape[-1]
    own = f.diagonal(dim1=1, dim2=2)
    rows = f.logsumexp(2)  # (E, B)
    chosen = (f - rows.unsqueeze(2)).exp()
    weight = 2 * penalty * rows + float(kind != "backward")
    loss = penalty * rows.square().mean(1)
    slope = chosen * weight.unsqueeze(2)
    sides = 0
    if kind != "backward":
        loss, sides = loss + (rows - own).mean(1), sides + 1
    if kind != "forward":
        columns = f.logsumexp(1)
        loss, sides = loss + (columns - own).mean(1), sides + 1
        slope = slope + (f - columns.unsqueeze(1)).exp()
    slope.diagonal(dim1=1, dim2=2).sub_(sides)
    return loss.sum(), slope / size
