"""E networks of one shape as one flat parameter, with a hand-written backward pass.

Autograd records some sixty small operations for a policy and its critics; their bookkeeping takes
a quarter of a 256-wide update on a CPU, half of a 128-wide one. Here an update is a `trace` forward
and a `backward` that writes every layer's gradient into one flat vector, which an optimiser takes
as a single parameter. `tests/unit/test_kernels.py` holds the gradients against autograd, through
which `forward` can still be differentiated.

Shapes: E networks, B batch, I inputs and O outputs of a layer, K outputs of a network.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.adam import adam

from etude.errors import unknown

ACTIVATIONS = ("relu", "tanh")
# A product with fewer columns than this is up to ten times faster on a CPU when it is transposed.
NARROW = 8

_relu_gradient = torch.ops.aten.threshold_backward.grad_input


class Layer(NamedTuple):
    """Views of one layer's parameters; the last two where layer norm is on."""

    weight: Tensor  # (E, O, I)
    bias: Tensor  # (E, 1, O)
    gain: Tensor | None = None  # (E, 1, O)
    shift: Tensor | None = None  # (E, 1, O)


class Step(NamedTuple):
    """What the backward pass needs of one layer; the last two where layer norm is on."""

    inputs: Tensor  # (E, B, I)
    normed: Tensor | None = None  # (E, B, O) before gain and shift
    inverse: Tensor | None = None  # (E, B, 1) 1 / standard deviation


Trace = list[Step]


class Stack(nn.Module):
    """E MLPs evaluated together, x (B, I) -> (E, B, K), with ReLU or tanh hidden units.

    `layer_norm` normalises each hidden layer before its activation, with a gain and a shift per
    unit. Parameters start at zero, gains at one.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        members: int = 1,
        activation: str = "relu",
        layer_norm: bool = False,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise unknown("activation", activation, ACTIVATIONS)
        self.members, self.tanh = members, activation == "tanh"
        self._shapes: list[list[tuple[int, ...]]] = []
        for i, (inputs, outputs) in enumerate(zip(sizes, sizes[1:], strict=False)):
            rows = 3 if layer_norm and i < len(sizes) - 2 else 1
            row = (members, 1, outputs)
            self._shapes.append([(members, outputs, inputs), *[row] * rows])
        self._counts = [math.prod(shape) for shapes in self._shapes for shape in shapes]
        self.flat = nn.Parameter(torch.zeros(sum(self._counts)))
        self._views: dict[int, list[Layer]] = {}
        for layer in self.layers(self.flat.data):
            if layer.gain is not None:
                layer.gain.fill_(1.0)

    def layers(self, flat: Tensor | None = None) -> list[Layer]:
        """Views of the parameters, or of another vector of that length, layer by layer."""
        if flat is None and torch.is_grad_enabled():
            return self._cut(self.flat)
        flat = self.flat if flat is None else flat
        # making the views anew would take a twentieth of a 128-wide update
        place = flat.data_ptr()
        views = self._views.get(place)
        if views is None or views[0].weight.data_ptr() != place:  # new, or copied from elsewhere
            if len(self._views) == 2:  # of the parameters and their gradient, which have moved
                self._views.clear()
            views = self._views[place] = self._cut(flat.detach())
        return views

    def _cut(self, flat: Tensor) -> list[Layer]:
        parts = iter(flat.split(self._counts))
        return [Layer(*[next(parts).view(s) for s in shapes]) for shapes in self._shapes]

    def forward(self, x: Tensor) -> Tensor:
        return self.trace(x)[0]

    def trace(self, x: Tensor) -> tuple[Tensor, Trace]:
        """Outputs (E, B, K) of x (B, I), and what `backward` needs."""
        trace: Trace = []
        layers = self.layers()
        h = x.expand(self.members, *x.shape)
        for i, (weight, bias, gain, shift) in enumerate(layers):
            inputs, normed, inverse = h, None, None
            if weight.shape[1] < NARROW:
                h = (weight @ h.mT).mT + bias
            else:
                h = torch.baddbmm(bias, h, weight.mT)
            if gain is not None and shift is not None:
                normed, _, inverse = torch.native_layer_norm(h, h.shape[-1:], None, None, 1e-5)
                h = normed * gain + shift
            if i < len(layers) - 1:
                h = h.tanh_() if self.tanh else h.relu_()
            trace.append(Step(inputs, normed, inverse))
        return h, trace

    @torch.no_grad()
    def backward(self, trace: Trace, grad: Tensor) -> None:
        """Set `flat.grad` from the gradient (E, B, K) of the outputs."""
        if self.flat.grad is None:
            self.flat.grad = torch.empty_like(self.flat)
        own = self.layers(self.flat.grad)
        layers = self.layers()
        for i in reversed(range(len(own))):
            if own[i].gain is not None:
                gain, normed, inverse = _norm(layers[i], trace[i])
                torch.sum(grad * normed, 1, keepdim=True, out=own[i].gain)
                torch.sum(grad, 1, keepdim=True, out=own[i].shift)
                grad = _before_norm(grad, gain, normed, inverse)
            torch.bmm(grad.mT, trace[i].inputs, out=own[i].weight)
            torch.sum(grad, 1, keepdim=True, out=own[i].bias)
            if i:
                grad = self._before_activation(grad @ layers[i].weight, trace[i].inputs)

    @torch.no_grad()
    def input_gradient(self, trace: Trace, grad: Tensor, member: Tensor, width: int) -> Tensor:
        """Gradient (B, width) of the last `width` inputs of network `member[b]` in each row b.

        `grad` (B, K) is that of its outputs. The other networks have none there, and cost nothing.
        """
        found = grad.new_empty(len(grad), width)
        layers = self.layers()
        for e in range(self.members):
            rows = (member == e).nonzero()[:, 0]  # R of them
            g = grad[rows]
            for i in reversed(range(len(trace))):
                if layers[i].gain is not None:
                    gain, normed, inverse = _norm(layers[i], trace[i])
                    g = _before_norm(g, gain[e], normed[e, rows], inverse[e, rows])
                if i:
                    g = self._before_activation(g @ layers[i].weight[e], trace[i].inputs[e, rows])
            found[rows] = g @ layers[0].weight[e, :, -width:]
        return found

    def _before_activation(self, grad: Tensor, h: Tensor) -> Tensor:
        """Gradient before an activation, from that of its outputs h; overwrites `grad`."""
        if self.tanh:
            return grad.mul_(1 - h * h)
        _relu_gradient(grad, h, 0, grad_input=grad)
        return grad


def _norm(layer: Layer, step: Step) -> tuple[Tensor, Tensor, Tensor]:
    """Gain, normed values and inverse deviations of a layer with layer norm."""
    assert layer.gain is not None
    assert step.normed is not None
    assert step.inverse is not None
    return layer.gain, step.normed, step.inverse


def _before_norm(grad: Tensor, gain: Tensor, normed: Tensor, inverse: Tensor) -> Tensor:
    """Gradient of a layer's product, from that after its norm."""
    g = grad * gain
    along = (g * normed).mean(-1, keepdim=True)
    return inverse * (g - g.mean(-1, keepdim=True) - normed * along)


class FlatAdam:
    """Adam (Kingma and Ba 2015, arXiv:1412.6980) for one flat parameter that has a gradient.

    torch's fused kernel, without what `torch.optim.Adam` does around it for groups of parameters,
    which takes longer than the arithmetic.
    """

    def __init__(self, flat: nn.Parameter, lr: float) -> None:
        self.flat, self.lr = flat, lr
        self.restore({})

    def step(self) -> None:
        """One step along `flat.grad`."""
        assert self.flat.grad is not None
        if self._mean.device != self.flat.device or self._mean.dtype != self.flat.dtype:
            self.restore(self.moments())  # the module has moved
        adam(
            [self.flat.data],
            [self.flat.grad],
            [self._mean],
            [self._square],
            [],
            [self._count],
            fused=True,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=self.lr,
            weight_decay=0.0,
            eps=1e-8,
            maximize=False,
        )

    def moments(self) -> dict[str, Any]:
        """A copied tree of what the next step depends on, beside parameter and gradient."""
        return {
            "mean": self._mean.clone(),
            "square": self._square.clone(),
            "steps": int(self._count),
        }

    def restore(self, tree: Mapping[str, Any]) -> None:
        """Continue from `moments()`, whose leaves may be arrays; from an empty tree, begin."""
        zeros = torch.zeros_like(self.flat.data)
        self._mean, self._square = (
            torch.as_tensor(tree[name]).to(zeros, copy=True) if tree else zeros.clone()
            for name in ("mean", "square")
        )
        self._count = torch.tensor(float(tree.get("steps", 0)), device=zeros.device)


def moments(optimiser: Optimizer) -> dict[str, Any]:
    """The moments of an optimiser, as a copied tree of tensors and numbers."""
    return {
        str(i): {k: v.clone() if v.ndim else v.item() for k, v in state.items()}
        for i, state in optimiser.state_dict()["state"].items()
    }


def set_moments(optimiser: Optimizer, tree: Mapping[str, Any]) -> None:
    """Continue from `moments`; the leaves may be tensors or NumPy arrays."""
    state = {
        int(i): {k: torch.as_tensor(v).clone() for k, v in values.items()}
        for i, values in tree.items()
    }
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
