"""How many nats a set of skills tells: a held-out lower bound on I(Z; F | S0), for every method.

Z is the skill, F are features of where it led and S0 the start. For any density q (Barber and
Agakov 2003), E[log q(z | f, s0) - log p(z)] <= I(Z; F | S0), and is estimated without bias on rows
that neither fitted q nor chose when to stop. exp of it is an effective number of skills.

How to read it: 0 nats are skills that nothing tells apart, log K is all that K discrete skills can
tell, and continuous skills have no such end. As a lower bound it may be low because the skills
are alike, or because q has seen too few episodes to read them: more episodes tell which. So it
compares learners of all kinds, but only with the same features, the same q and as many episodes.

The support of q is that of p: a softmax over discrete skills, mixtures of normal distributions
for Gaussian ones and of normal distributions cut off at the faces for a cube, and on the sphere of
power spherical distributions (De Cao and Aziz 2020, arXiv:2006.04437), which look like von
Mises-Fisher distributions and have a normaliser in closed form. p itself is a component of every
mixture. Nothing is sharper than `MIN_STD`, which bounds what continuous skills without noise score.

Shapes: M episodes, F features, S start features, Z skill, B batch, C components.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from etude.agents.networks import mlp
from etude.envs import registry
from etude.envs.engine import BatchedEnv
from etude.envs.spec import EnvSpec
from etude.errors import Stopped, UsageError, unknown
from etude.evaluate.rollouts import STEPS, Skills, rollout_skills
from etude.evaluate.statistics import bootstrap_ci
from etude.skills.spaces import Cube, Discrete, Gaussian, SkillSpace, Sphere

Array = NDArray[np.float64]
LogProb = Callable[[Tensor, Tensor], Tensor]
"""log q (B,) of skills (B, Z), given what the network says (B, outputs)."""

EPISODES, TOGETHER, FOLDS = 2000, 250, 5
"""Episodes to measure with, how many of them at the same time, and tenths of them to report on."""
LEAST = 50
"""Fewest rows that can be split into three parts."""
PARTS = 10
"""Parts of the rows: q is reported on one, stopped by the one before it, fitted to the others."""
HIDDEN, COMPONENTS, BATCH = (64, 64), 4, 256
RATES, PATIENCE, GAIN, EPOCHS = (3e-3, 1e-3, 3e-4), 8, 1e-3, 200
"""Rates of Adam, each kept until `PATIENCE` epochs brought less than `GAIN` nats; epochs each."""
MIN_STD, MAX_STD, FARTHEST = 1e-3, 3.0, 4.0
"""Limits of a component's deviation and of its centre's coordinates, in units of the space."""
RESAMPLES, WIDTH = 1000, 2 * 1.96
"""Bootstrap samples, and standard errors in a 95 % interval."""


@dataclass(frozen=True)
class SkillsetMI:
    """A lower bound on the mutual information of skills and what comes of them."""

    nats: float
    """the bound, H(Z) less `conditional`; may be below 0 where there is nothing to tell"""
    low: float
    """lower end of the 95 % bootstrap interval over held-out rows, nats"""
    high: float
    """upper end of it, nats"""
    entropy: float
    """H(Z) of the held-out skills, -mean log p(z), nats; differential unless skills are discrete"""
    conditional: float
    """H(Z | F, S0) by q, an upper bound, -mean log q(z | f, s0), nats"""
    rows: int
    """held-out episodes"""

    @property
    def size(self) -> float:
        """Effective number of skills that can be told apart."""
        return math.exp(self.nats)

    @property
    def error(self) -> float:
        """Standard error of `nats`, from the interval."""
        return (self.high - self.low) / WIDTH


def skillset_mi(
    features: ArrayLike,
    skills: ArrayLike,
    space: SkillSpace,
    starts: ArrayLike | None = None,
    seed: int = 0,
    folds: int = 1,
    stop: Callable[[], bool] = lambda: False,
) -> SkillsetMI:
    """Bound I(Z; F | S0) from independent episodes whose skills were drawn from the prior.

    Args:
        features: of where each episode led, (M, F).
        skills: (M, Z), drawn from the prior of `space`.
        space: the skills' space.
        starts: features of where each episode began, (M, S); None: all began alike.
        seed: of the split, the network and the intervals.
        folds: tenths of the rows, 1 to 10, to report on, each by a q that has not seen it.
        stop: asked before each epoch of a fit.

    Raises:
        Stopped: `stop()` was true.
        UsageError: too few rows, no such number of folds, shapes that do not fit, or values that
            are not finite.
    """
    if not 1 <= folds <= PARTS:
        raise UsageError(f"folds = {folds}: choose 1 to {PARTS}.")
    context, z = _rows(features, skills, space, starts)
    rng = np.random.default_rng(seed)
    order, prior = rng.permutation(len(z)), space.log_prob(z)
    found = []
    for fold in range(folds):
        *fitted, stopping, held_out = np.array_split(
            np.roll(order, fold * (len(z) // PARTS)), PARTS
        )
        parts = np.concatenate(fitted), stopping, held_out
        found.append((held_out, _score(space, context, z, parts, seed, rng, stop)))
    rows, scores = (np.concatenate(part) for part in zip(*found, strict=True))
    gain = scores - prior[rows]
    low, high = bootstrap_ci(gain, _mean, resamples=RESAMPLES, seed=seed)
    entropy = -float(prior[rows].mean())
    return SkillsetMI(float(gain.mean()), low, high, entropy, -float(scores.mean()), len(gain))


def rollout_mi(
    skills: Skills,
    env: str | BatchedEnv,
    fields: Sequence[str] | None = None,
    *,
    episodes: int = EPISODES,
    steps: int = STEPS,
    seed: int = 0,
    folds: int = 1,
    stop: Callable[[], bool] = lambda: False,
) -> SkillsetMI:
    """Act out fresh skills, one per episode, and bound what their ends tell of them.

    Args:
        skills: a library or a snapshot.
        env: id of the environment, or a vector to take turns in.
        fields: names of the observation fields that are the features of the last state, and of the
            first one; None: the descriptor.
        episodes: how many, each with a skill of its own.
        steps: length of an episode, unless the environment ends it earlier.
        seed: of skills and estimate; episode i starts as environment `seed + i` does.
        folds: see `skillset_mi`.
        stop: asked before each step, and each epoch of a fit.

    Raises:
        LibraryError: the skills belong to another body.
        Stopped: `stop()` was true.
        UsageError: no such environment or field, or too few episodes.
    """
    given: AbstractContextManager[BatchedEnv]
    if isinstance(env, str):
        given = closing(registry.make_vec(env, max(1, min(TOGETHER, episodes)), max_steps=steps))
    else:
        given = nullcontext(env)
    with given as venv:
        z, first, last = _ends(skills, venv, fields, episodes, steps, seed, stop)
    return skillset_mi(last, z, skills.space, first, seed, folds, stop)


def _ends(
    skills: Skills,
    venv: BatchedEnv,
    fields: Sequence[str] | None,
    episodes: int,
    steps: int,
    seed: int,
    stop: Callable[[], bool],
) -> tuple[NDArray[np.float32], Array, Array]:
    """Skills (M, Z) and the features (M, F) of where their episodes began and ended."""
    columns = None if fields is None else _columns(venv.env_spec, fields)
    n = venv.num_envs
    turns = -(-episodes // n)
    z = skills.space.sample(np.random.default_rng(seed), turns * n)
    starts, ends = [], []
    for i in range(turns):
        own = z[i * n : (i + 1) * n]
        made = rollout_skills(skills, venv, z=own, steps=steps, seed=seed + i * n, stop=stop)
        seen = made.paths if columns is None else made.obs[..., columns]
        starts.append(seen[:, 0])
        ends.append(seen[:, -1])
    first, last = (np.concatenate(part)[:episodes] for part in (starts, ends))
    return z[:episodes], first, last


def _columns(spec: EnvSpec, fields: Sequence[str]) -> NDArray[np.int64]:
    """Where the named body fields stand in the body observation."""
    found = {name: s for name, s in spec.slices().items() if name not in spec.task_fields}
    for name in fields:
        if name not in found:
            raise unknown("observation field", name, found)
    return np.concatenate([np.arange(found[name].start, found[name].stop) for name in fields])


def _rows(
    features: ArrayLike, skills: ArrayLike, space: SkillSpace, starts: ArrayLike | None
) -> tuple[Array, Array]:
    """What skills are told by, (M, F + S), and the skills (M, Z); refuses what does not fit."""
    z = space.check(skills).astype(np.float64)
    given = [features] if starts is None else [features, starts]
    parts = [np.asarray(part, np.float64) for part in given]
    if z.ndim != 2 or len(z) < LEAST or any(p.ndim != 2 or len(p) != len(z) for p in parts):
        shapes = ", ".join(str(part.shape) for part in (z, *parts))
        raise UsageError(
            f"skills, features and starts have shapes {shapes}: give a row for each of {LEAST} "
            "episodes or more."
        )
    context = np.concatenate(parts, axis=1)
    if not np.isfinite(context).all():
        raise UsageError("a feature is not finite: leave those episodes or features out.")
    return context, z


def _mean(values: Array) -> Array:
    return np.asarray(values.mean(axis=-1))


def _scaled(context: Array, fitted: NDArray[np.int64]) -> Array:
    """With mean 0 and deviation 1 over the fitted rows; what is constant there becomes 0."""
    mean, std = context[fitted].mean(axis=0), context[fitted].std(axis=0)
    varies = std > 1e-8 * (1 + np.abs(mean))
    scaled: Array = np.where(varies, (context - mean) / np.where(varies, std, 1), 0)
    return scaled


# ---- the fit


def _network(space: SkillSpace, width: int, seed: int) -> tuple[nn.Module, LogProb]:
    """A network whose first guess is nearly the prior, and the density that its outputs mean."""
    outputs, log_prob = _density(space)
    generator = torch.Generator().manual_seed(seed)
    net = mlp((width, *HIDDEN, outputs), generator=generator).double()
    last = [layer for layer in net.modules() if isinstance(layer, nn.Linear)][-1]
    with torch.no_grad():
        for parameter in last.parameters():
            parameter.mul_(0.1)  # and not 0, where components would stay equal for ever
    return net, log_prob


def _score(
    space: SkillSpace,
    context: Array,
    z: Array,
    parts: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]],
    seed: int,
    rng: np.random.Generator,
    stop: Callable[[], bool],
) -> Array:
    """log q of the rows of the third part, by a q fitted to the first and stopped by the second."""
    net, log_prob = _network(space, context.shape[1], seed)
    scaled, target = torch.as_tensor(_scaled(context, parts[0])), torch.as_tensor(z)
    fitted, stopping, held_out = ((scaled[part], target[part]) for part in parts)
    _fit(net, log_prob, fitted, stopping, rng, stop)
    with torch.no_grad():
        return np.asarray(log_prob(net(held_out[0]), held_out[1]).numpy())


def _fit(
    net: nn.Module,
    log_prob: LogProb,
    fitted: tuple[Tensor, Tensor],
    stopping: tuple[Tensor, Tensor],
    rng: np.random.Generator,
    stop: Callable[[], bool],
) -> None:
    """Maximise the likelihood of one part, and leave the weights that suited the other best."""

    def score() -> float:
        with torch.no_grad():
            return float(log_prob(net(stopping[0]), stopping[1]).mean())

    best, kept = score(), copy.deepcopy(net.state_dict())
    for rate in RATES:
        net.load_state_dict(kept)
        optimiser = torch.optim.Adam(net.parameters(), rate)
        idle, mark = 0, best
        for _ in range(EPOCHS):
            if stop():
                raise Stopped
            order = torch.as_tensor(rng.permutation(len(fitted[0])))
            for rows in order.split(BATCH):
                optimiser.zero_grad()
                (-log_prob(net(fitted[0][rows]), fitted[1][rows]).mean()).backward()
                optimiser.step()
            idle, now = idle + 1, score()
            if now > best:
                best, kept = now, copy.deepcopy(net.state_dict())
            if now > mark + GAIN:
                idle, mark = 0, now
            if idle == PATIENCE:
                break
    net.load_state_dict(kept)


# ---- densities on the four spaces


def _density(space: SkillSpace) -> tuple[int, LogProb]:
    """Outputs that a network needs, and the log-density they stand for."""
    dim, weights = space.dim, COMPONENTS + 1
    if isinstance(space, Discrete):
        return dim, lambda out, z: (torch.log_softmax(out, -1) * z).sum(-1)
    if isinstance(space, Sphere) and dim == 1:  # two points, which no density can surround
        return 1, lambda out, z: torch.nn.functional.logsigmoid(out * z)[:, 0]
    kinds: dict[type[SkillSpace], tuple[int, LogProb]] = {
        Sphere: (dim + 1, _power_spherical),
        Cube: (2 * dim, _truncated),
        Gaussian: (2 * dim, _normal),
    }
    each, component = kinds[type(space)]

    def log_prob(out: Tensor, z: Tensor) -> Tensor:
        shapes = out[:, weights:].reshape(len(out), COMPONENTS, each)
        prior = torch.as_tensor(space.log_prob(z.numpy()))[:, None]
        logs = torch.cat([component(shapes, z[:, None]), prior], dim=1)  # (B, C + 1)
        return torch.logsumexp(torch.log_softmax(out[:, :weights], -1) + logs, -1)

    return weights + COMPONENTS * each, log_prob


def _centre_and_std(out: Tensor) -> tuple[Tensor, Tensor]:
    centre, raw = out.chunk(2, dim=-1)
    bounded = FARTHEST * torch.tanh(centre / FARTHEST)
    return bounded, raw.clamp(math.log(MIN_STD), math.log(MAX_STD)).exp()


def _log_normal(z: Tensor, centre: Tensor, std: Tensor) -> Tensor:
    square = ((z - centre) / std).square()
    return -0.5 * (square + math.log(2 * math.pi)) - std.log()


def _normal(out: Tensor, z: Tensor) -> Tensor:
    """log q (B, C) of z (B, 1, Z), with outputs (B, C, 2 Z)."""
    return _log_normal(z, *_centre_and_std(out)).sum(-1)


def _truncated(out: Tensor, z: Tensor) -> Tensor:
    """The same, cut off at -1 and 1 in every coordinate and normalised again."""
    centre, std = _centre_and_std(out)
    far = centre.abs()  # by symmetry; towards the tail, where logarithms keep their digits
    below = torch.special.log_ndtr((-1 - far) / std)
    above = torch.special.log_ndtr((1 - far) / std)
    mass: Tensor = above + torch.log(-torch.expm1(below - above))
    return (_log_normal(z, centre, std) - mass).sum(-1)


def _power_spherical(out: Tensor, z: Tensor) -> Tensor:
    """log q (B, C) of z (B, 1, Z) with outputs (B, C, Z + 1): q ~ (1 + mu . z)^kappa."""
    # near its centre it is a normal distribution with the variance 2 / kappa
    kappa = out[..., -1].clamp(math.log(1e-3), math.log(2 / MIN_STD**2)).exp()
    centre = torch.nn.functional.normalize(out[..., :-1], dim=-1)
    beta = (z.shape[-1] - 1) / 2
    alpha = beta + kappa
    area = (alpha + beta) * math.log(2) + beta * math.log(math.pi)
    cosine = (centre * z).sum(-1).clamp(min=-1 + 1e-12)
    height = kappa * torch.log1p(cosine)
    value: Tensor = height - area - torch.lgamma(alpha) + torch.lgamma(alpha + beta)
    return value
