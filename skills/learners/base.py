"""The contract between a skill-discovery method and everything around it.

A learner owns the representation that makes skills distinguishable and turns a batch of
transitions into a *signal*: the intrinsic reward (K = 1) or successor features (K > 1) that the
agent then maximises. It says which agent and which batches it wants, and knows nothing of the loop,
of logging or files. Observations reach it normalised once, by the loop.

Modules return `Any` to a type checker; where `torch.as_tensor` stands around one, it says no more
than that this is a tensor.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from etude.agents.kernels import moments, set_moments
from etude.agents.replay import Batch, Record, Replay
from etude.agents.sac import SAC
from etude.config import Config
from etude.errors import unknown
from etude.skills.mlp import MLP
from etude.skills.spaces import SkillSpace


@dataclass(frozen=True)
class Spec:
    """What a learner is told of the environment."""

    fields: Mapping[str, slice]
    """named parts of an observation"""
    obs_dim: int
    action_dim: int

    def columns(self, names: Sequence[str]) -> list[int]:
        """Columns of the named fields; of all fields when `names` is empty."""
        for name in names:
            if name not in self.fields:
                raise unknown("observation field", name, self.fields)
        chosen = names or tuple(self.fields)
        return [i for name in chosen for i in range(*self.fields[name].indices(self.obs_dim))]


@dataclass(frozen=True)
class LearnerConfig(Config):
    """Settings that every learner has."""

    skill_obs: tuple[str, ...] = ()
    """observation fields that skills are told apart by; empty = all of them"""


class Learner(nn.Module, ABC):
    """Base of every method; a subclass sets `space` and defines `update` and `signal`."""

    Config: ClassVar[type[LearnerConfig]]
    agent: ClassVar[type[SAC] | None] = SAC
    """what maximises the signal; None: the method has a policy of its own, `plan`"""
    signal_dim: int = 1
    """width K of the signal"""
    entropy_in_target: ClassVar[bool] = True
    """whether the critics' target counts the policy's entropy, as SAC's; features have none"""
    reads_skills: ClassVar[bool] = True
    """whether it learns from what skills did; one that does not can take any dataset"""
    space: SkillSpace
    offline: bool = False
    """whether it learns from a dataset, so that it need not explore"""
    generator: torch.Generator | None = None
    """of a method that draws numbers of its own"""
    updates: int = 0
    """gradient steps so far, of a method that does not do the same in all of them"""

    def __init__(self, spec: Spec, config: LearnerConfig) -> None:
        super().__init__()
        self.spec = spec
        chosen = spec.columns(config.skill_obs)
        self.seen_dim = len(chosen)  # width of what the representation sees
        # obs[:, columns] is that; a slice where it can be one, because a list makes a copy
        whole = slice(chosen[0], chosen[-1] + 1)
        self.columns = whole if chosen == list(range(spec.obs_dim))[whole] else chosen

    @abstractmethod
    def update(self, batch: Any) -> dict[str, Tensor]:
        """One gradient step of the representation; returns detached scalars `skill/...`.

        `batch` is what `draw` returned, normalised.
        """

    @abstractmethod
    def signal(self, batch: Batch) -> Tensor:
        """The signal (B, K) of a batch, computed afresh and without gradient."""

    def draw(self, replay: Replay, size: int) -> Record:
        """What `update` learns from: `size` transitions, unless a method needs more context."""
        return replay.steps(size)

    def task_vector(self, z: Tensor) -> Tensor:
        """Weights (B, K) with Q = <psi, w>; ones unless the signal is successor features."""
        return torch.ones(len(z), self.signal_dim, device=z.device)

    def resample(self, z: np.ndarray, step: int, rng: np.random.Generator, hold: int) -> np.ndarray:
        """Skills (N, Z) of the next step: redrawn every `hold` steps (0 = once per episode)."""
        redraw = step == 0 or (hold > 0 and step % hold == 0)
        return self.space.sample(rng, len(z)) if redraw else z

    def relabel(self, batch: Batch, rng: np.random.Generator) -> Batch:
        """The batch the agent learns from, with other skills in hindsight; the identity here."""
        return batch

    def goal_skill(self, obs: Tensor, goal: Tensor) -> Tensor | None:
        """The skill (B, Z) that leads from `obs` to `goal` (B, O), if the method knows one.

        Its library names the same one if networks of `export` can (`library_goals`).
        """
        return None

    def encode(self, obs: Tensor) -> Tensor | None:
        """Features (B, D) of observations (B, O), or their place among goals, if there are any."""
        return None

    @property
    def period(self) -> int:
        """Steps of a plan, for a method with a policy of its own."""
        return 1

    def plan(self, obs: Tensor, z: Tensor, deterministic: bool = False) -> Tensor:
        """Actions (N, period, A) of the method's own policy, for normalised observations (N, O)."""
        raise NotImplementedError(f"{type(self).__name__} acts through its agent")

    def policy(self) -> MLP:
        """The method's own policy, deterministic, as a library keeps it."""
        raise NotImplementedError(f"{type(self).__name__} acts through its agent")

    def export(self) -> Mapping[str, nn.Sequential | MLP]:
        """Networks that go into the library beside the policy.

        A module reads the columns of `skill_obs`; an `MLP` says what it reads.
        """
        return {}

    def checkpoint(self) -> dict[str, Any]:
        """Weights and the moments of every optimiser, as a tree."""
        return {
            "weights": dict(self.state_dict()),
            "optimisers": {name: moments(o) for name, o in self._optimisers().items()},
            **({"generator": self.generator.get_state()} if self.generator else {}),
            "updates": self.updates,
        }

    def restore(self, tree: Mapping[str, Any]) -> None:
        """Take over a tree made by `checkpoint`."""
        self.load_state_dict({k: torch.as_tensor(v) for k, v in tree["weights"].items()})
        for name, optimiser in self._optimisers().items():
            set_moments(optimiser, tree["optimisers"][name])
        if self.generator:
            self.generator.set_state(torch.as_tensor(tree["generator"]))
        self.updates = int(tree["updates"])

    def _optimisers(self) -> dict[str, torch.optim.Optimizer]:
        return {k: v for k, v in sorted(vars(self).items()) if isinstance(v, torch.optim.Optimizer)}


LOG_LAMBDA = (-5.0, 10.0)
"""Ends of the logarithm of a dual variable: a lasting violation would carry it to infinity."""


def own_generator() -> torch.Generator:
    """A generator for a method's own draws, whose seed comes from torch's, as weights do."""
    return torch.Generator().manual_seed(int(torch.randint(2**62, ())))


def in_hindsight(told: Tensor, other: Tensor, share: float, rng: np.random.Generator) -> Tensor:
    """Skills (B, Z): those that were told, but `other` (B, Z) in a random share of the rows."""
    chosen = torch.from_numpy(rng.random((len(told), 1)) < share)
    return torch.where(chosen.to(told.device), other, told)


def affine(scale: Tensor, shift: Tensor) -> nn.Sequential:
    """x -> scale * x + shift, both (N,), as a network that a library can hold."""
    layer = nn.Linear(len(scale), len(shift))
    with torch.no_grad():
        layer.weight.copy_(scale.diag())
        layer.bias.copy_(shift)
    return nn.Sequential(layer)


def descend(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    """A gradient step of the optimiser's own parameters, whatever else the loss depends on."""
    weights = [p for group in optimiser.param_groups for p in group["params"]]
    for weight, gradient in zip(weights, torch.autograd.grad(loss, weights), strict=True):
        weight.grad = gradient
    optimiser.step()
