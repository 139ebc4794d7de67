"""Exact information in finite channels: what skills could tell at most, and what given ones do.

The capacity of the channel from open-loop blocks of actions to end states is the empowerment of the
start (Klyubin, Polani and Nehaniv 2005), the yardstick for what a method claims to have found. It
is computed by Blahut's and Arimoto's algorithm (both 1972), whose brackets say how close it is.

Shapes: A inputs, S outputs. All information is in nats.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from etude.envs import registry
from etude.envs.testbeds.body import Testbed
from etude.errors import UsageError
from etude.skills.spaces import Discrete, SkillSpace

Array = NDArray[np.float64]

TOLERANCE = 1e-9
"""Default width of the bracket, nats."""
ITERATIONS = 100_000
"""Default limit; an input that is just not worth using leaves as slowly as 1 / iterations."""
ROUNDING = 1e-9
"""How far a row of probabilities may be from the sum 1."""
LARGEST, ROUGH, TRIES = 10**5, 1e-4, 200
"""Entries of a channel whose capacity is worth finding as a limit, and how well it is found."""


@dataclass(frozen=True, eq=False)
class Capacity:
    """The largest mutual information over all input distributions, bracketed."""

    lower: float
    """what `inputs` achieve, and so a valid bound whatever the bracket, nats"""
    upper: float
    """what no input distribution exceeds, nats"""
    inputs: Array
    """the distribution that achieves `lower`, (A,); others may achieve it as well"""
    iterations: int
    """updates of `inputs` that were made"""


def capacity(
    channel: ArrayLike, tolerance: float = TOLERANCE, iterations: int = ITERATIONS
) -> Capacity:
    """Capacity of a channel, from below and from above.

    Starts from uniform inputs, and repeats r_a <- r_a exp(D_a) / Z with the divergence D_a of row a
    from the outputs' distribution, until max_a D_a - sum_a r_a D_a is within the tolerance.

    Args:
        channel: p(s | a), (A, S).
        tolerance: width of the bracket to stop at, nats; rounding allows 1e-12 or so.
        iterations: updates after which to stop even so; the bracket is then wider.

    Raises:
        UsageError: the channel is no matrix whose rows are distributions.
    """
    rows = _distributions("channel", channel, 2)
    own = _negative_entropy(rows)  # (A,)
    inputs = np.full(len(rows), 1 / len(rows))
    for made in range(iterations + 1):
        divergence = own - rows @ _log(inputs @ rows)  # (A,)
        lower, upper = float(inputs @ divergence), float(divergence.max())
        if upper - lower <= tolerance or made == iterations:
            break
        inputs = inputs * np.exp(divergence - upper)
        inputs /= inputs.sum()
    return Capacity(max(lower, 0.0), upper, inputs, made)


def mutual_information(channel: ArrayLike, inputs: ArrayLike | None = None) -> float:
    """Mutual information in nats of a channel's input and output.

    Args:
        channel: p(s | a), (A, S).
        inputs: p(a), (A,); None: uniform.

    Raises:
        UsageError: these are no distributions, or their shapes do not fit.
    """
    rows = _distributions("channel", channel, 2)
    given = np.full(len(rows), 1 / len(rows)) if inputs is None else inputs
    weights = _distributions("inputs", given, 1)
    if len(weights) != len(rows):
        raise UsageError(f"{len(weights)} inputs for a channel with {len(rows)} rows.")
    outputs = weights @ rows
    return max(0.0, float(weights @ _negative_entropy(rows) - outputs @ _log(outputs)))


@dataclass(frozen=True)
class Limit:
    """What no skills can exceed."""

    nats: float
    why: str
    """what it is, in a few words"""


def limit(space: SkillSpace, env_id: str, planned: int = 0, first: bool = False) -> Limit:
    """The least of the known upper limits of I(Z; S_n | S0); infinite where none is known.

    K discrete skills tell log K, and S states log S. A plan that sees nothing of what happens
    meanwhile tells no more than the channel of a test bed carries from the best start.

    Args:
        space: the skills' space.
        env_id: environment.
        planned: n, where skills are such plans; 0: they see every step.
        first: whether plans are made where episodes begin only; else in any state.
    """
    known = [Limit(math.inf, "no limit is known")]
    if isinstance(space, Discrete):
        known.append(Limit(math.log(space.n), f"the logarithm of {space.n} skills"))
    body, _ = registry.build(env_id)
    if isinstance(body, Testbed):
        states = body.table.states
        known.append(Limit(math.log(states), f"the logarithm of {states} states"))
        if planned and len(body.actions) ** planned * states <= LARGEST:
            begin = body.start(body.spec.constants["start"]) if first else np.ones(states)
            most = max(_carried(body, int(s), planned) for s in np.flatnonzero(begin))
            known.append(Limit(most, f"the capacity of plans of {planned} steps"))
    return min(known, key=lambda found: found.nats)


def _carried(body: Testbed, state: int, n: int) -> float:
    """An upper bound on the capacity of n steps from a state, nats."""
    return capacity(body.channel(state, n), ROUGH, TRIES).upper


def empowerment(body: Testbed, n: int) -> Array:
    """Capacity (S,) of n steps from each state, nats: its empowerment, exactly."""
    return np.array([capacity(body.channel(s, n)).lower for s in range(body.table.states)])


def _distributions(name: str, values: ArrayLike, ndim: int) -> Array:
    array = np.asarray(values, np.float64)
    shaped = array.ndim == ndim and array.size > 0
    if not shaped or not (array >= 0).all() or (abs(array.sum(-1) - 1) > ROUNDING).any():
        raise UsageError(
            f"{name} of shape {array.shape}: give {ndim} dimensions, the last of which holds "
            "probabilities that sum to 1."
        )
    return array


def _log(p: Array) -> Array:
    """Logarithm, and 0 where p is 0: it is only ever multiplied by p, and 0 log 0 = 0."""
    return np.log(p, out=np.zeros_like(p), where=p > 0)


def _negative_entropy(rows: Array) -> Array:
    """sum_s p log p of every row, (A,)."""
    return np.asarray((rows * _log(rows)).sum(axis=-1))
