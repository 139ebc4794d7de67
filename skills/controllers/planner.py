"""Planning with skills: model-predictive path integrals through the library's own dynamics.

A learner that predicts what its skills do needs no training downstream (Sharma et al. 2020, "DADS",
arXiv:1907.01657): candidate sequences of skills are rolled out in the mean of q(s' | s, z), those
that come near the goal count most in the next, better sequence, and its first skill is held for k
steps. The weights and the noise that is correlated in time are those of Nagabandi et al. 2020,
"Deep Dynamics Models for Learning Dexterous Manipulation" (arXiv:1909.11652).

The cost is the distance to the task's goal, averaged over the steps of a sequence. Entries of the
observation that the model does not predict stay as they are, and so does what it cannot know, such
as a wall. Shapes: N environments, J candidates, H skills in a sequence, Z skill, O observation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from etude.config import Config, Range
from etude.envs.spec import EnvSpec
from etude.errors import UsageError
from etude.skills.controllers.base import goal_and_place
from etude.skills.dynamics import DYNAMICS, SkillDynamics
from etude.skills.library import SkillLibrary
from etude.skills.spaces import Discrete


@dataclass(frozen=True)
class PlannerConfig(Config):
    """Settings of the search; what DADS published, unless it says otherwise."""

    horizon: Annotated[int, Range(1, 100)] = 1
    """skills H in a sequence"""
    candidates: Annotated[int, Range(2, 10_000)] = 50
    """sequences J that are rolled out in each refinement"""
    refinements: Annotated[int, Range(1, 1000)] = 10
    """times that the sequence is improved before its first skill is taken"""
    gamma: Annotated[float, Range(0, open_low=True)] = 10.0
    """weight exp(-gamma cost) of a candidate, per unit of the descriptor"""
    smoothing: Annotated[float, Range(0, 1, open_low=True)] = 0.9
    """share of fresh noise in that of each skill; the rest is that of the skill before"""
    spread: Annotated[float, Range(0, open_low=True)] = 0.5
    """deviation of the fresh noise, in units of z (ours)"""


class PlannerController:
    """Plans anew at every decision, from the sequence that was best at the last one.

    Args:
        library: has the encoder "dynamics".
        env_spec: a task with a goal.
        k: steps for which each skill is held.
        seed: of the candidates.
        config: settings of the search.

    Raises:
        UsageError: no dynamics, no goal, dynamics of other coordinates, or discrete skills.
    """

    def __init__(
        self,
        library: SkillLibrary,
        env_spec: EnvSpec,
        k: int,
        seed: int = 0,
        config: PlannerConfig | None = None,
    ) -> None:
        self._goal, self._place = goal_and_place(env_spec, "planner")
        name = f'set "{library.set}" of library {library.name}'
        if DYNAMICS not in library.encoders:
            raise UsageError(
                f'{name} has no encoder "{DYNAMICS}", which {library.learner} does not learn: '
                "choose skills of dads."
            )
        self._dynamics = SkillDynamics(library.encoders[DYNAMICS])
        if not {*self._place} <= {*self._dynamics.columns.tolist()}:
            raise UsageError(
                f"the dynamics of {name} predict {', '.join(self._dynamics.fields)}, the goal is "
                f"in {', '.join(env_spec.descriptor)}: choose skills that were told apart by these."
            )
        if isinstance(library.space, Discrete):
            raise UsageError(f"the skills of {name} are discrete: choose continuous ones.")
        self._space, self._k, self.config = library.space, k, config or PlannerConfig()
        self._body, self._rng = env_spec.body_dim, np.random.default_rng(seed)
        self._plan = np.zeros((0, self.config.horizon, self._space.dim))

    def reset(self, obs: np.ndarray) -> None:
        """Forget the sequences of the last episodes."""
        self._plan = np.zeros((len(obs), *self._plan.shape[1:]))

    def act(self, obs: np.ndarray) -> np.ndarray:
        """The first skills (N, Z) of the sequences that lead to each environment's goal."""
        for _ in range(self.config.refinements):
            self._plan = self._refined(obs, self._plan)
        first = self._space.from_action(self._plan[:, 0])
        self._plan = np.concatenate((self._plan[:, 1:], self._plan[:, -1:]), 1)
        return first

    def _refined(self, obs: np.ndarray, plan: np.ndarray) -> np.ndarray:
        """Sequences (N, H, Z): candidates around `plan`, averaged with weights exp(-gamma cost)."""
        c = self.config
        noise = self._rng.normal(0, c.spread, (c.candidates, *plan.shape))
        noise[:, :, 0] *= c.smoothing
        for h in range(1, c.horizon):
            noise[:, :, h] = c.smoothing * noise[:, :, h] + (1 - c.smoothing) * noise[:, :, h - 1]
        noise[0] = 0  # the sequence as it is
        tried = np.clip(plan + noise, -1, 1)  # (J, N, H, Z)
        cost = self.cost(obs, self._space.from_action(tried))
        weight = np.exp(-c.gamma * (cost - cost.min(0)))
        weight /= weight.sum(0)
        return np.asarray((weight[..., None, None] * tried).sum(0))

    def cost(self, obs: np.ndarray, skills: np.ndarray) -> np.ndarray:
        """Mean predicted distance (J, N) to the goal under sequences of skills (J, N, H, Z)."""
        tries = len(skills)
        here = np.tile(obs[:, : self._body], (tries, 1)).astype(np.float32)  # (J N, O)
        goal = np.tile(obs[:, self._goal], (tries, 1))
        z = skills.reshape(len(here), *skills.shape[2:])  # (J N, H, Z)
        total = np.zeros(len(here))
        for h in range(z.shape[1]):
            for _ in range(self._k):
                here = self._dynamics.step(here, z[:, h])
                total += np.linalg.norm(here[:, self._place] - goal, axis=1)
        return np.asarray(total.reshape(tries, -1) / (self._k * z.shape[1]))
