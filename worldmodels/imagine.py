"""Imagined trajectories: one function for every model that has `step` and `feat`.

A model's state is a plain dictionary of tensors with the batch first, so that nothing here depends
on the kind of model. Beside the rollout stand what keeps values honest that are learned on it: a
mixture of start states, the minimum over an ensemble of critics, and the figure that tells whether
the states at the edge of the imagined ones, which are bootstrapped from but never corrected, have
values made up from nothing (Sims et al. 2024, arXiv:2402.12527).

Shapes: B batch, H horizon, A action, Z condition, D features, E critics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from etude.agents.networks import check_sizes
from etude.errors import UsageError

State = dict[str, Tensor]
Policy = Callable[[Tensor, Tensor | None], Tensor]
"""Actions (B, A) for features (B, D) and a condition (B, Z), or None."""


class StepModel(Protocol):
    """What `imagine` asks of a model."""

    def step(self, state: State, action: Tensor, generator: torch.Generator | None = None) -> State:
        """The next state; noise from the generator, and without one the model's best guess."""

    def feat(self, state: State) -> Tensor:
        """What policies, critics and heads see of a state: (B, D)."""


class Imagined(NamedTuple):
    """A batch of rollouts."""

    state: State  # (B, H + 1, ...) each
    feat: Tensor  # (B, H + 1, D)
    action: Tensor  # (B, H, A)


def imagine(
    model: StepModel,
    policy: Policy,
    start: State,
    horizon: int,
    cond: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Imagined:
    """Roll the model out under `policy(feat, cond)` for `horizon` steps from `start` (B, ...).

    Gradients flow through the whole rollout to the policy, and neither to the model's parameters
    nor to what the start states were computed from. `cond` (B, Z) is held throughout; a policy
    that samples brings its own noise.
    """
    check_sizes(horizon=horizon)
    states = [{name: value.detach() for name, value in start.items()}]
    actions: list[Tensor] = []
    with frozen(model):
        feats = [model.feat(states[0])]
        for _ in range(horizon):
            actions.append(policy(feats[-1], cond))
            states.append(model.step(states[-1], actions[-1], generator))
            feats.append(model.feat(states[-1]))
    whole = {name: torch.stack([s[name] for s in states], 1) for name in states[0]}
    return Imagined(whole, torch.stack(feats, 1), torch.stack(actions, 1))


@contextmanager
def frozen(model: object) -> Iterator[None]:
    """Within it, what the model computes has gradients for its inputs, none for its parameters."""
    parameters = model.parameters() if isinstance(model, nn.Module) else ()
    learning = [p for p in parameters if p.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


def mix_starts(
    sources: Sequence[State],
    weights: Sequence[float],
    batch: int,
    generator: torch.Generator | None = None,
) -> State:
    """`batch` start states: each from source i with probability weights[i], uniformly within it.

    Sources are states of any number of rows (replay, recent, novel); weights need not sum to 1.

    Raises:
        UsageError: the numbers of sources and weights differ, a weight is negative or all are
            zero, or a source with a weight above zero is empty.
    """
    check_sizes(batch=batch)
    sizes = [len(next(iter(source.values()))) for source in sources]
    usable = [w >= 0 and (w == 0 or n > 0) for w, n in zip(weights, sizes, strict=False)]
    if len(weights) != len(sources) or not all(usable) or not sum(weights) > 0:
        raise UsageError(
            f"weights {list(weights)} fit no start states of {sizes} rows: give one weight >= 0 "
            "per source, one of them positive, and none above zero to a source without rows."
        )
    rows = torch.repeat_interleave(
        torch.tensor([w / n if w else 0.0 for w, n in zip(weights, sizes, strict=True)]),
        torch.tensor(sizes),
    )
    chosen = torch.multinomial(rows, batch, replacement=True, generator=generator)
    pools = {name: torch.cat([source[name] for source in sources]) for name in sources[0]}
    return {name: pool.detach()[chosen.to(pool.device)] for name, pool in pools.items()}


def lambda_return(reward: Tensor, value: Tensor, gamma: float, lam: float) -> Tensor:
    """Returns (B, H) of rollouts, R_t = r_t + gamma ((1 - lam) V_{t+1} + lam R_{t+1}), R_H = V_H.

    reward (B, H) is paid for the steps, value (B, H + 1) belongs to the states around them. The
    mixture over all n-step returns with weights (1 - lam) lam^(n-1), as in Dreamer (Hafner et al.
    2020, arXiv:1912.01603).
    """
    steps, ahead = [], value[:, -1]
    for t in reversed(range(reward.shape[1])):
        ahead = reward[:, t] + gamma * torch.lerp(value[:, t + 1], ahead, lam)
        steps.append(ahead)
    return torch.stack(steps[::-1], 1)


def smallest(q: Tensor, critics: int | None = None) -> Tensor:
    """The minimum (B, ...) over the first `critics` values of q (E, B, ...), of all by default."""
    if critics is not None and not 1 <= critics <= len(q):
        raise UsageError(f"critics = {critics} is out of range: there are {len(q)}.")
    return q[:critics].amin(0)


def edge_ratio(q: Tensor) -> Tensor:
    """Disagreement of the critics q (E, B, H + 1) in the last imagined state over the first.

    The last states of rollouts are bootstrapped from and never updated. A ratio that grows says
    that their values are noise, and that the policy's maximum will find it; one near 1 is healthy.
    It ends at 1e6, where the first spread is next to nothing.
    """
    if q.ndim != 3 or len(q) < 2:
        raise UsageError(f"q of shape {tuple(q.shape)} has no spread: give (E >= 2, B, H + 1).")
    spread = q.std(0).mean(0)  # (H + 1,)
    least = (1e-6 * spread[-1]).clamp_min(torch.finfo(q.dtype).tiny)
    return spread[-1] / torch.maximum(spread[0], least)
