"""Skill dynamics as a library keeps them: q(s' - s | s, z), a mixture of normal distributions.

DADS (Sharma et al. 2020, arXiv:1907.01657) learns them together with its skills. In a library they
are a network that reads the normalised observation and the skill and puts out, in units of the
normalised observation and in this order: C logits, C x X means and X logarithms of deviations,
X being the entries of its `output_fields`. The deviations are constants, held in the last bias.

Shapes: B batch, O body observation, Z skill, C components, X predicted entries, H hidden units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from etude.errors import UsageError
from etude.skills.mlp import RawMLP, columns
from etude.skills.spaces import Array

DYNAMICS = "dynamics"  # name of the encoder

Layers = Sequence[tuple[Array, Array]]


@dataclass(frozen=True)
class Changes:
    """What one step may change, in units of the raw observation."""

    logits: Array  # (B, C)
    means: Array  # (B, C, X)
    std: Array  # (B, X)

    @property
    def mean(self) -> Array:
        """The expected change, (B, X)."""
        weight = np.exp(self.logits - self.logits.max(-1, keepdims=True))
        weight /= weight.sum(-1, keepdims=True)
        return np.asarray((weight[..., None] * self.means).sum(-2), np.float32)


class SkillDynamics:
    """What a library's skills do in one step, predicted without torch.

    Raises:
        UsageError: the network's outputs are no such mixture.
    """

    def __init__(self, net: RawMLP) -> None:
        fields = net.net.output_fields or ()
        self.columns = np.arange(len(net.mean))[columns(net.fields, fields)]
        self.fields = fields
        self._net, self._std = net, net.std[self.columns]
        size, width = len(self.columns), net.net.sizes[-1]
        self._components, rest = divmod(width - size, 1 + size)
        if not size or self._components < 1 or rest:
            raise UsageError(
                f"{width} outputs are no dynamics of {size} entries: there must be C (1 + {size}) "
                f"+ {size} of them, for C components."
            )

    def changes(self, obs: ArrayLike, z: ArrayLike) -> Changes:
        """The distribution of s' - s for raw observations (B, O) and skills (B, Z) or (Z,)."""
        c, size, raw = self._components, len(self.columns), self._net(obs, z)
        means = raw[..., c : c + c * size].reshape(*raw.shape[:-1], c, size)
        std = np.exp(raw[..., -size:])
        return Changes(raw[..., :c], means * self._std, std * self._std)

    def step(self, obs: Array, z: ArrayLike) -> Array:
        """The expected next observations (B, O); entries that are not predicted stay."""
        after = np.array(obs, np.float32)
        after[..., self.columns] += self.changes(obs, z).mean
        return after


def folded(layers: Layers, mean: ArrayLike, std: ArrayLike) -> list[tuple[Array, Array]]:
    """A network of (C logits, C x X means) of scaled changes, as one that a library keeps.

    Args:
        layers: its layers (W (in, out), b (out,)).
        mean: of the changes that were scaled to 0 and 1, (X,).
        std: their deviations, (X,), in which the density has deviation 1.
    """
    shift, scale = np.asarray(mean, np.float32), np.asarray(std, np.float32)
    *hidden, (weight, bias) = layers
    size = len(scale)
    c = len(bias) // (1 + size)
    factor = np.concatenate((np.ones(c, np.float32), np.tile(scale, c)))
    offset = np.concatenate((np.zeros(c, np.float32), np.tile(shift, c)))
    none = np.zeros((len(weight), size), np.float32)
    last: NDArray[np.float32] = np.concatenate((weight * factor, none), 1)
    return [*hidden, (last, np.concatenate((bias * factor + offset, np.log(scale))))]
