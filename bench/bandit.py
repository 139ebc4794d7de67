"""Empowerment by a bandit over the weights of a policy, one arm per weight: a small reference.

The optimiser of the source (Levy, Allievi, Konidaris 2024, arXiv:2410.11155, and Skillset
Empowerment before it), as far as its reviews tell: for each weight, skill sets are proposed that
differ from the present one in that weight alone; each gets a posterior of its own, fitted to it;
what it then tells is its reward; a critic per weight regresses the reward on the weight; and the
policy climbs every critic. So no gradient passes through the world or a model, and the bound is
tight for each proposal, at a cost of |weights| posteriors a step: a few hundred weights at most.

Ours: one start state, so that the weights need no actor; critics are parabolas fitted to the
proposals of the step; and posteriors are linear Gaussians, whose fit has a closed form.
Shapes: W weights, P proposals of each, M skills, X entries of an end state, Z skill.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Array = np.ndarray
World = Callable[[Array, Array], Array]
"""Weights (..., W) and skills (..., M, Z) -> end states (..., M, X), drawn anew."""


def told(z: Array, end: Array) -> Array:
    """E log q(z | s_n) - log p(z) (...) in nats of z (..., M, Z), uniform on [-1, 1]^Z.

    q is the normal distribution around a linear guess with the covariance of what the guess misses,
    the best one for these samples; nothing is held out, so M must be large beside X.
    """
    known = np.concatenate([end, np.ones_like(end[..., :1])], axis=-1)
    missed = z - known @ (np.linalg.pinv(known) @ z)  # (..., M, Z)
    covariance = np.swapaxes(missed, -1, -2) @ missed / z.shape[-2]
    entropy = 0.5 * np.linalg.slogdet(2 * np.pi * np.e * covariance)[1]
    return np.asarray(z.shape[-1] * np.log(2) - entropy)


class Bandit:
    """Climbs towards weights whose skills tell most of where they end."""

    def __init__(
        self,
        world: World,
        weights: Array,
        dim: int,
        rng: np.random.Generator,
        proposals: int = 16,
        skills: int = 256,
        spread: float = 0.2,
        rate: float = 0.2,
    ) -> None:
        self.world, self.weights, self.dim, self.rng = world, weights.astype(float), dim, rng
        self.proposals, self.skills, self.spread, self.rate = proposals, skills, spread, rate

    def step(self) -> float:
        """One move of every weight; returns the mean reward of the proposals, nats."""
        width = len(self.weights)
        change = self.spread * self.rng.standard_normal((width, self.proposals))
        tried = self.weights + change[..., None] * np.eye(width)[:, None]  # (W, P, W)
        z = self.rng.uniform(-1, 1, (width, self.proposals, self.skills, self.dim))
        reward = told(z, self.world(tried, z))  # (W, P)
        critics = [np.polyfit(c, r, 2) for c, r in zip(change, reward, strict=True)]
        slope = np.array([critic[1] for critic in critics])  # of each at the present weight
        self.weights += self.rate * slope / max(1.0, float(np.linalg.norm(slope)))
        return float(reward.mean())
