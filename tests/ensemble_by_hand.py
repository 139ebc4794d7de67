"""The ensemble of dynamics models written anew in NumPy: forward pass, bootstrap, loss, variance.

Shapes: E members, B batch, I inputs (observation and action), O observation.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import nn

Array = NDArray[np.float64]
WEYL, FACTORS = 0x9E3779B97F4A7C15, (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def changes(model: nn.Module, sizes: tuple[int, ...], x: Array) -> Array:
    """The changes (E, B, O) that ReLU networks of `sizes` predict for inputs (B, I).

    A layer's weights stand before its biases, and in either those of the first member first.
    """
    flat = model.state_dict()["net.flat"].numpy().astype(np.float64)
    per_member = sum((i + 1) * o for i, o in zip(sizes, sizes[1:], strict=False))
    members, at = len(flat) // per_member, 0
    outputs = np.stack([x] * members)
    for layer, (i, o) in enumerate(zip(sizes, sizes[1:], strict=False)):
        weight = flat[at : at + members * o * i].reshape(members, o, i)
        at += weight.size
        bias = flat[at : at + members * o].reshape(members, 1, o)
        at += bias.size
        inputs = np.maximum(outputs, 0) if layer else outputs
        outputs = np.stack([h @ w.T + b for h, w, b in zip(inputs, weight, bias, strict=True)])
    assert at == len(flat)
    return outputs


def scramble(number: int) -> int:
    """The hash of a signed number of 64 bits."""
    for factor in FACTORS:
        number = signed((number ^ (number >> 30)) * factor)
    return number ^ (number >> 31)


def signed(number: int) -> int:
    """The number of 64 bits that is left of one that is too large."""
    return (number + 2**63) % 2**64 - 2**63


def masks(x: Array, members: int, keep: float) -> NDArray[np.bool_]:
    """Which of the transitions (B, I) each member learns from, (E, B), one by one."""
    kept = np.zeros((members, len(x)), bool)
    for column, row in enumerate(x.astype(np.float32).view(np.int32).tolist()):
        words = (scramble(signed(word + place * WEYL)) for place, word in enumerate(row, 1))
        total = signed(sum(words))
        for member in range(members):
            drawn = scramble(signed(total + (member + 1) * WEYL)) % 2**24
            kept[member, column] = drawn < keep * 2**24
    return kept


def losses(predicted: Array, change: Array, weight: Array, kept: NDArray[np.bool_]) -> list[float]:
    """Each member's mean weighted square error, over the transitions that it learns from."""
    square = weight * (predicted - change) ** 2
    return [float(square[e][kept[e]].mean()) for e in range(len(predicted))]


def variance(predicted: Array) -> Array:
    """Unbiased variance (B,) of the members' predictions, mean over dimensions."""
    away = predicted - predicted.mean(0)
    return np.asarray((away**2).sum(0).mean(-1) / (len(predicted) - 1))
