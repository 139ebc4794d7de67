"""What critic and actor see instead of the observation: features that a model of the run predicts.

After Fujimoto, D'Oro, Zhang, Tian, Rabbat, "Towards General-Purpose Model-Free Reinforcement
Learning", ICLR 2025 (arXiv:2501.16142; MR.Q): no step is ever imagined for the agent, the model is
there for the sake of its encoder e alone. From the first observation of a stretch the dynamics d
and the head r are unrolled over its actions and skills,

    y_0 = n(e(s_0)),   y_{h+1} = n(d(y_h, a_h)),
    L   = mean_h |y_{h+1} - n(e'(s_{h+1}))|^2 / D  +  w mean_h (r(y_h, a_h, z_h) - signal_h)^2,

where n gives a vector mean 0 and variance 1, e' is a slow copy of e, and the signal, whatever the
learner (and a bonus) pay for that step just now, is scaled to variance 1. What the features are to
tell is thus where one is going and what is paid there. Agent and library read e'; no gradient of
theirs reaches it. With `mrq` the learner goes on seeing the observation, whose parts `skill_obs`
names; with `mrq-all` it sees e' as well.

Deviations: e is an MLP of ReLUs without layer norm, so that e' and the policy are one MLP together,
which every library can hold (`composed`); the critic sees (e'(s), z, a), not an embedding of both;
the signal is regressed and not sorted into bins; e' moves a little in every update (paper: is
copied every 250); no head for the end of episodes, for no body of ours has one but the time limit;
uniform replay, and everything else of the agent as it was.

Shapes: B batch, H horizon, O observation, A action, Z skill, D features, K width of the signal.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from etude.agents.kernels import moments, set_moments
from etude.agents.networks import linear_layers, mlp
from etude.agents.replay import Batch, Replay, Sequences
from etude.config import Config, Range
from etude.worldmodels.encoders import UnitNorm, layers
from etude.worldmodels.latent import effective_rank
from etude.worldmodels.scale import RunningScale

Layers = Sequence[tuple[np.ndarray, np.ndarray]]
MOMENTUM, LEAST = 0.01, 1e-6  # of the scale of the signal


@dataclass(frozen=True)
class RepresentationConfig(Config):
    """Settings of the representation."""

    width: Annotated[int, Range(2, 4096)] = 128
    """number D of features (MR.Q: 512)"""
    hidden: tuple[Annotated[int, Range(1, 8192)], ...] = (256,)
    """widths of the hidden layers of encoder, dynamics and head (MR.Q: 512, 512)"""
    horizon: Annotated[int, Range(1, 100)] = 5
    """steps H that are predicted from an observation (MR.Q: 5)"""
    sequences: Annotated[int, Range(2, 65536)] = 64
    """stretches of H steps in an update (MR.Q: 256)"""
    signal: Annotated[float, Range(0)] = 1.0
    """weight w of the signal (MR.Q: 0.1, of a cross-entropy)"""
    ema: Annotated[float, Range(0, 1, open_high=True)] = 0.99
    """share of the slow copy that stays as it is per update"""
    lr: Annotated[float, Range(0, 1, open_low=True)] = 3e-4
    """step size of AdamW (MR.Q: 1e-4)"""
    decay: Annotated[float, Range(0, 1)] = 1e-4
    """weight decay of AdamW (MR.Q: 1e-4)"""
    clip: Annotated[float, Range(0, open_low=True)] = 10.0
    """largest norm of the gradient (MR.Q clips its critics, at 20)"""


class Representation(nn.Module):
    """An encoder, its slow copy, and the model that they are learned with."""

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        skill_dim: int,
        width: int,
        config: RepresentationConfig,
    ) -> None:
        """For observations, actions, skills and a signal of these widths."""
        super().__init__()
        self.config, self.skill_dim = config, skill_dim
        features, hidden = config.width, config.hidden
        self.encoder = nn.Sequential(*mlp((obs_dim, *hidden, features)), nn.ReLU())
        self.slow = copy.deepcopy(self.encoder).requires_grad_(False)
        self.dynamics = layers((features + action_dim, *hidden, features))
        self.head = layers((features + action_dim + skill_dim, *hidden, width))
        self.norm = UnitNorm(features)
        self.scale = RunningScale(width, MOMENTUM, LEAST)
        learned = [p for p in self.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(
            learned, lr=config.lr, weight_decay=config.decay, fused=True
        )

    @torch.no_grad()
    def encode(self, obs: Tensor) -> Tensor:
        """What agent and library read: e'(s) (B, D) of normalised observations (B, O)."""
        return torch.as_tensor(self.slow(obs))

    def encoded(self, batch: Batch) -> Batch:
        """The batch with features in place of its observations."""
        obs, next_obs = self.encode(torch.cat((batch.obs, batch.next_obs))).chunk(2)
        return batch.replace(obs=obs, next_obs=next_obs, future_obs=None)

    def draw(self, replay: Replay) -> Sequences:
        """What `update` learns from, raw."""
        return replay.sequences(self.config.sequences, self.config.horizon)

    def update(self, batch: Sequences, signal: Tensor) -> dict[str, Tensor]:
        """One gradient step, and one of the slow copy; returns detached scalars `model/...`.

        `signal` (B H, K) is that of `transitions(batch)`.
        """
        self.scale.measure(signal)
        loss, metrics = self.loss(batch, signal)
        self.optimiser.zero_grad()
        loss.backward()
        norm = clip_grad_norm_(self.optimiser.param_groups[0]["params"], self.config.clip)
        self.optimiser.step()
        with torch.no_grad():
            for slow, fast in zip(self.slow.parameters(), self.encoder.parameters(), strict=True):
                slow.lerp_(fast, 1 - self.config.ema)
        return {**metrics, "model/gradient": norm}

    def loss(self, batch: Sequences, signal: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """L and its parts."""
        mask = batch.valid.to(batch.obs.dtype)  # (B, H)
        count = mask.sum().clamp_min(1)
        paid = self.scale(signal).unflatten(0, mask.shape)  # (B, H, K)
        features = self.encoder(batch.obs[:, 0])  # (B, D)
        with torch.no_grad():
            wanted = self.norm(self.slow(batch.obs[:, 1:]))  # (B, H, D)
        y, missed, misjudged = self.norm(features), [], []
        for h in range(mask.shape[1]):
            step = torch.cat((y, batch.action[:, h]), -1)
            guess = self.head(torch.cat((step, batch.skill[:, h]), -1))
            misjudged.append((guess - paid[:, h]).square().mean(-1))
            y = self.norm(self.dynamics(step))
            missed.append((y - wanted[:, h]).square().mean(-1))
        consistency = (torch.stack(missed, 1) * mask).sum() / count
        error = (torch.stack(misjudged, 1) * mask).sum() / count
        seen = features.detach()
        return consistency + self.config.signal * error, {
            "model/consistency": consistency.detach(),
            "model/signal_error": error.detach(),
            "model/rank": effective_rank(seen),
            "model/size": seen.square().mean().sqrt(),
        }

    def network(self, net: nn.Sequential) -> nn.Sequential:
        """A network of features (D) behind the encoder, for observations."""
        return nn.Sequential(*self.slow, *net)

    def policy(self, policy: Layers) -> list[tuple[np.ndarray, np.ndarray]]:
        """The layers of a policy of features and skill, for observation and skill."""
        net = nn.Sequential(*self.slow)
        return composed(linear_layers(net), policy, self.skill_dim)

    def checkpoint(self) -> dict[str, Any]:
        """Weights and moments, as a tree."""
        return {"weights": dict(self.state_dict()), "optimiser": moments(self.optimiser)}

    def restore(self, tree: Mapping[str, Any]) -> None:
        """Go on from a tree made by `checkpoint`."""
        self.load_state_dict({k: torch.as_tensor(v) for k, v in tree["weights"].items()})
        set_moments(self.optimiser, tree["optimiser"])


def transitions(batch: Sequences) -> Batch:
    """The steps (B H) of the stretches, filled ones too, as transitions."""
    zeros = batch.obs.new_zeros(batch.valid.numel())
    return Batch(
        obs=batch.obs[:, :-1].flatten(0, 1),
        action=batch.action.flatten(0, 1),
        next_obs=batch.obs[:, 1:].flatten(0, 1),
        skill=batch.skill.flatten(0, 1),
        terminated=batch.is_terminal[:, 1:].flatten().to(batch.obs.dtype),
        time=zeros,
    )


def composed(encoder: Layers, policy: Layers, skill: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """One MLP of ReLUs that is the policy (D + Z -> A) behind the encoder (O -> D, ending in ReLU).

    The skill (Z) passes the encoder's layers as z = relu(z) - relu(-z), which is exact.
    """
    both = np.concatenate((np.eye(skill), -np.eye(skill)), 1)  # (Z, 2 Z)
    found = []
    for i, (weight, bias) in enumerate(encoder):
        beside = both if i == 0 else np.eye(2 * skill)
        block = np.zeros(np.add(weight.shape, beside.shape))
        block[: len(weight), : len(bias)] = weight
        block[len(weight) :, len(bias) :] = beside
        found.append((block, np.concatenate((bias, np.zeros(2 * skill)))))
    (first, bias), *rest = policy
    own, z = np.split(first, [len(first) - skill])
    layers = [*found, (np.concatenate((own, z, -z)), bias), *rest]
    return [(np.asarray(w, np.float32), np.asarray(b, np.float32)) for w, b in layers]
