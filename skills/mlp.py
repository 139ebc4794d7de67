"""Multi-layer perceptrons in NumPy: what a library's policies and encoders are made of.

A 2 x 256 policy acts on one observation in about 15 us and needs no torch. The networks keep no
buffers: calls from several threads do not disturb each other, and returned arrays are the caller's.

Shapes: B batch (may be absent), O body observation, Z skill, I input, A output.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from etude.errors import UsageError, unknown
from etude.skills.spaces import Array

ACTIVATIONS = ("relu", "tanh")
OUTPUTS = ("linear", "tanh")
INPUTS = (("obs", "z"), ("obs",))
MAX_WIDTH, MAX_LAYERS = 8192, 16
MAX_PLAN = 4096
HEAD_GAIN = 0.1


@dataclass(frozen=True, eq=False)
class MLP:
    """Linear layers with an activation in between; valid by construction."""

    weights: Sequence[tuple[Array, Array]]
    """Layers as (W (in, out), b (out,)), float32."""
    activation: str = "relu"
    """After each hidden layer: "relu" or "tanh"."""
    output: str = "linear"
    """After the last layer: "linear" or "tanh"."""
    inputs: tuple[str, ...] = ("obs", "z")
    """What is concatenated to form the input: the observation, then perhaps the skill."""
    input_fields: tuple[str, ...] | None = None
    """Names of the observation fields it reads, in this order; None = all body fields."""
    knots: int = 1
    """Actions that the outputs hold, one after the other: more than one for an open-loop plan."""
    hold: int = 1
    """Steps for which each of these actions is held."""
    output_fields: tuple[str, ...] | None = None
    """Of skill dynamics (`dynamics.py`): the observation fields whose changes they predict."""

    def __post_init__(self) -> None:
        for kind, value, allowed in (
            ("activation", self.activation, ACTIVATIONS),
            ("output", self.output, OUTPUTS),
        ):
            if value not in allowed:
                raise unknown(kind, str(value), allowed)
        if self.inputs not in INPUTS:
            raise UsageError(f'network inputs {self.inputs}: choose ("obs", "z") or ("obs",).')
        if not 1 <= len(self.weights) <= MAX_LAYERS:
            raise UsageError(f"{len(self.weights)} layers: a network has 1 to {MAX_LAYERS}.")
        for name, number in (("knots", self.knots), ("hold", self.hold)):
            if type(number) is not int or not 1 <= number <= MAX_PLAN:
                raise UsageError(
                    f"{name} = {number!r}: choose a whole number from 1 to {MAX_PLAN}."
                )
        layers = [
            tuple(np.ascontiguousarray(p, np.float32) for p in layer) for layer in self.weights
        ]
        object.__setattr__(self, "weights", tuple(layers))
        if self.output_fields is not None:
            object.__setattr__(self, "output_fields", tuple(self.output_fields))
        width = None
        for i, (weight, bias) in enumerate(self.weights):
            _check_layer(i, weight, bias, width)
            width = len(bias)
        if self.sizes[-1] % self.knots:
            raise UsageError(
                f"{self.sizes[-1]} outputs cannot hold {self.knots} actions of one length."
            )

    @property
    def period(self) -> int:
        """Steps that one evaluation of a policy is good for."""
        return self.knots * self.hold

    @property
    def sizes(self) -> tuple[int, ...]:
        """Widths: input, hidden layers, output."""
        return (len(self.weights[0][0]), *(len(bias) for _, bias in self.weights))

    def __call__(self, x: ArrayLike) -> Array:
        """Outputs (B, A) of inputs (B, I)."""
        h = np.asarray(x, np.float32)
        last = len(self.weights) - 1
        for i, (weight, bias) in enumerate(self.weights):
            h = h @ weight
            h += bias
            if i == last:
                break
            if self.activation == "relu":
                np.maximum(h, 0, out=h)
            else:
                np.tanh(h, out=h)
        return np.tanh(h, out=h) if self.output == "tanh" else h

    def to_json(self) -> dict[str, Any]:
        """The architecture, without the weights."""
        kind, more = "mlp", dict[str, Any]()
        if self.period > 1:
            kind, more = "open_loop", {"knots": self.knots, "hold": self.hold}
        elif self.output_fields is not None:
            kind, more = "dynamics", {"output_fields": list(self.output_fields)}
        return {
            "kind": kind,
            "sizes": list(self.sizes),
            "activation": self.activation,
            "output": self.output,
            "inputs": list(self.inputs),
            "input_fields": None if self.input_fields is None else list(self.input_fields),
            **more,
        }

    def fresh(self, rng: np.random.Generator) -> MLP:
        """This architecture with weights as before training: Xavier-uniform, zero biases.

        The last layer of a squashed policy starts a tenth as large, as agents initialise it.
        """
        layers = []
        for i, (weight, bias) in enumerate(self.weights):
            bound = np.sqrt(6 / sum(weight.shape))
            if self.output == "tanh" and i == len(self.weights) - 1:
                bound *= HEAD_GAIN
            drawn = rng.uniform(-bound, bound, weight.shape).astype(np.float32)
            layers.append((drawn, np.zeros_like(bias)))
        return dataclasses.replace(self, weights=layers)


@dataclass(frozen=True, eq=False)
class RawMLP:
    """An MLP behind a frozen normaliser: takes raw body observations, picks its fields by name."""

    net: MLP
    fields: Mapping[str, int]
    """Names and widths of the body fields, in the order of the observation."""
    mean: Array  # (O,)
    std: Array  # (O,)
    skill_dim: int

    @cached_property
    def columns(self) -> slice | NDArray[np.intp]:
        """Entries of the body observation that the network reads."""
        return columns(self.fields, self.net.input_fields)

    def __call__(self, obs: ArrayLike, z: ArrayLike | None = None) -> Array:
        """Outputs (B, A) of observations (B, O) and skills (B, Z) or one skill (Z,) for all."""
        raw = np.asarray(obs, np.float32)
        if raw.shape[-1:] != self.mean.shape or raw.ndim > 2:
            raise UsageError(
                f"an observation of shape {raw.shape} does not fit: give ({len(self.mean)},) or "
                f"(B, {len(self.mean)}), the raw body fields {describe_fields(self.fields)}."
            )
        x = (raw - self.mean) / self.std
        if self.net.input_fields is not None:
            x = x[..., self.columns]
        if len(self.net.inputs) == 2:
            x = self._join(x, np.asarray(z, np.float32))
        if not np.isfinite(x).all():
            raise UsageError(f"NaN or infinity in {self._culprit(raw)}: look at what produced it.")
        return self.net(x)

    def check(self) -> None:
        """Raise UsageError unless the network fits the observation and the skill."""
        width = len(self.mean[self.columns]) + self.skill_dim * (len(self.net.inputs) == 2)
        if self.net.sizes[0] != width:
            raise UsageError(
                f"a network of input width {self.net.sizes[0]} does not fit its inputs "
                f"({', '.join(self.net.inputs)} of {self.net.input_fields or 'all body fields'}), "
                f"which have width {width}."
            )

    def _join(self, x: Array, z: Array) -> Array:
        if z.shape[-1:] != (self.skill_dim,) or z.ndim > x.ndim:
            raise UsageError(
                f"a skill of shape {z.shape} does not fit: give ({self.skill_dim},)"
                f" or one such row per observation."
            )
        if z.ndim < x.ndim:
            z = np.broadcast_to(z, (*x.shape[:-1], self.skill_dim))
        return np.concatenate((x, z), -1)

    def _culprit(self, raw: Array) -> str:
        """Names of the fields that are not finite; the skill if all of them are."""
        parts = np.split(raw, np.cumsum(list(self.fields.values()))[:-1], axis=-1)
        named = zip(self.fields, parts, strict=True)
        bad = [name for name, part in named if not np.isfinite(part).all()]
        return f"observation field {', '.join(bad)}" if bad else "the skill"


def columns(fields: Mapping[str, int], names: Sequence[str] | None) -> slice | NDArray[np.intp]:
    """Where the named fields stand in an observation made of `fields`; None = all of it."""
    if names is None:
        return slice(None)
    starts = dict(zip(fields, np.cumsum([0, *fields.values()]), strict=False))
    for name in names:
        if name not in fields:
            raise unknown("observation field", name, fields)
    picked = [np.arange(starts[name], starts[name] + fields[name]) for name in names]
    return np.concatenate(picked) if picked else np.zeros(0, np.intp)


def describe_fields(fields: Mapping[str, int]) -> str:
    """Fields as text: `x(1) joints(8)`."""
    return " ".join(f"{name}({dim})" for name, dim in fields.items())


def _check_layer(index: int, weight: Array, bias: Array, inputs: int | None) -> None:
    if weight.ndim != 2 or bias.shape != weight.shape[1:] or inputs not in (None, len(weight)):
        raise UsageError(
            f"layer {index} has weight {weight.shape} and bias {bias.shape}: "
            f"it needs ({inputs or 'in'}, out) and (out,)."
        )
    if not (min(weight.shape) >= 1 and max(weight.shape) <= MAX_WIDTH):
        raise UsageError(f"layer {index} is {weight.shape}: widths go from 1 to {MAX_WIDTH}.")
    if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
        raise UsageError(f"layer {index} has weights that are NaN or infinite.")
