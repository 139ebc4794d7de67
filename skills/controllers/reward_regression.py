"""Zero-shot rewards: the skill along which a reward grows in the library's own features.

Where skills are directions in a feature space phi, a reward that is nearly linear there needs no
training: regress it on samples and follow its gradient (Barreto et al. 2017, "Successor Features
for Transfer", arXiv:1606.05312; Park et al. 2024, "Foundation Policies with Hilbert
Representations", arXiv:2402.15567). With centred features x and rewards r of B samples

    w = (X'X + lambda I)^-1 X'r,   lambda = ridge trace(X'X) / D,   z = towards(w).

x is phi(s') - phi(s), what a directional skill changes; or phi(s') alone, where phi has length one
and a skill maximises phi(s') . z (VISR, APS). Centring both is the intercept: without it a constant
reward would tilt w. R^2 says whether the reward lies in the span of the features; where it is low,
choose a skill by episodes, point at a goal, or learn.

A direction is a guess about a policy, so it can be put beside the library's known skills, and the
best be taken: by episodes (`best_skill.select`), or by value without any (`select_by_value`).

Shapes: B samples, T steps, C candidates, O body observation, D features, Z skill.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from etude.errors import LibraryError, UsageError
from etude.skills.controllers.best_skill import OneSkillController, Selection
from etude.skills.library import SkillLibrary

RIDGE = 1e-3


@dataclass(frozen=True, eq=False)
class Regression:
    """A reward as a linear function of features: r = weights x + intercept."""

    weights: np.ndarray
    """(D,)"""
    intercept: float
    r2: float
    """share of the samples' variance that is explained; 1 is all of it"""

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Rewards (…,) of features (…, D)."""
        return np.asarray(features @ self.weights + self.intercept)


def regress(features: np.ndarray, rewards: np.ndarray, ridge: float = RIDGE) -> Regression:
    """Fit rewards (B,) by features (B, D), with an intercept.

    Args:
        features: x of each sample.
        rewards: r of each sample.
        ridge: lambda as a share of the features' mean square.

    Raises:
        UsageError: fewer than two samples, NaN or infinity among them, or a reward (or features)
            that never changes.
    """
    x, r = np.asarray(features, np.float64), np.asarray(rewards, np.float64)
    if x.ndim != 2 or r.shape != x.shape[:1] or len(r) < 2:
        raise UsageError(f"features {x.shape} and rewards {r.shape}: give (B, D) and (B,), B > 1.")
    if not (np.isfinite(x).all() and np.isfinite(r).all()):
        raise UsageError("a feature or a reward is NaN or infinite: leave such samples out.")
    centre, mean = x.mean(axis=0), r.mean()
    x, r = x - centre, r - mean
    square = x.T @ x
    scale, total = np.trace(square) / len(square), float(r @ r)
    if not total or not scale:
        raise UsageError(
            f"the {'reward' if not total else 'feature vector'} is the same in all {len(r)} "
            "samples, so nothing can be said about it: sample more of the world."
        )
    weights = np.linalg.solve(square + ridge * scale * np.eye(len(square)), x.T @ r)
    rest = r - x @ weights
    return Regression(weights, float(mean - centre @ weights), 1 - float(rest @ rest) / total)


class RewardRegressionController(OneSkillController):
    """Holds the skill that a reward's samples point at.

    `regression.r2` says how much to expect of it.
    """

    def __init__(
        self,
        library: SkillLibrary,
        obs: np.ndarray,
        next_obs: np.ndarray,
        rewards: np.ndarray,
        *,
        directional: bool | None = None,
        ridge: float = RIDGE,
    ) -> None:
        """Regress the reward on the library's phi.

        Args:
            library: encodes observations as features as wide as its skills.
            obs: raw body observations (B, O).
            next_obs: what followed each, (B, O).
            rewards: what was paid for it, (B,).
            directional: the features are phi(s') - phi(s), as skills of METRA and its kin move
                phi along z; else phi(s'). By default what the library's skills are.
            ridge: see `regress`.

        Raises:
            LibraryError: there is no phi, or it has another width than z.
            UsageError: the samples do not say anything; see `regress`.
        """
        self._library = library
        self._directional = library.directional if directional is None else directional
        self.regression = regress(self.features(obs, next_obs), rewards, ridge)
        if len(self.regression.weights) != library.space.dim:
            raise LibraryError(
                f'phi of set "{library.set}" has {len(self.regression.weights)} dimensions and z '
                f"{library.space.dim}: there is no direction that a skill could follow."
            )
        super().__init__(library.space.towards(self.regression.weights))

    def features(self, obs: np.ndarray, next_obs: np.ndarray) -> np.ndarray:
        """x (B, D) of transitions between body observations (B, O)."""
        after = self._library.encode(next_obs)
        return after - self._library.encode(obs) if self._directional else after

    def candidates(self) -> np.ndarray:
        """The direction found and the library's known skills, (C, Z)."""
        known = [np.asarray(row["z"], np.float32) for row in self._library.skills]
        return np.stack([self.z, *known])

    def select_by_value(
        self, skills: np.ndarray, paths: np.ndarray, lengths: np.ndarray, gamma: float = 0.99
    ) -> Selection:
        """Score skills by the regressed reward along what they are known to do.

        Needs no episode with the reward, only one of each skill without: those that
        `rollout_skills` makes, for example.

        Args:
            skills: (C, Z).
            paths: raw body observations of an episode of each, (C, T + 1, O).
            lengths: steps of the episodes, (C,); what lies behind does not count.
            gamma: discount per step.
        """
        count, steps = paths.shape[0], paths.shape[1] - 1
        flat = (paths[:, at].reshape(count * steps, -1) for at in (slice(-1), slice(1, None)))
        rewards = self.regression(self.features(*flat)).reshape(count, steps)
        inside = np.arange(steps) < np.asarray(lengths)[:, None]
        return Selection(skills, (rewards * inside) @ gamma ** np.arange(steps))
