"""Checks at the borders of training: what is not finite stops the run in the same step.

A NaN that gets in is otherwise met hours later, as an error of a distribution that names neither
environment nor step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from etude.errors import NotFiniteError


def check_observations(
    obs: np.ndarray, step: int | np.ndarray, fields: Mapping[str, slice]
) -> None:
    """Refuse observations (N, O) with a NaN or an infinity; `step` is one for all, or (N,).

    Raises:
        NotFiniteError: names environment, step, field and value.
    """
    if np.isfinite(obs).all():
        return
    env, entry = np.argwhere(~np.isfinite(obs))[0].tolist()
    field = next((n for n, s in fields.items() if entry in range(*s.indices(obs.shape[1]))), "?")
    raise NotFiniteError(
        f"environment to replay: entry {entry} ({field}) of the observation of environment {env} "
        f"is {obs[env, entry]} at step {_of(env, step)}: mend the environment; nothing was learned "
        "from it."
    )


def check_rewards(reward: np.ndarray, step: int | np.ndarray) -> None:
    """Refuse rewards (N,) with a NaN or an infinity; `step` is one for all, or (N,).

    Raises:
        NotFiniteError: names environment, step and value.
    """
    if np.isfinite(reward).all():
        return
    env = int(np.flatnonzero(~np.isfinite(reward))[0])
    raise NotFiniteError(
        f"environment to agent: the reward of environment {env} is {reward[env]} at step "
        f"{_of(env, step)}: mend the environment; nothing was learned from it."
    )


def _of(env: int, step: int | np.ndarray) -> int:
    return int(step[env] if isinstance(step, np.ndarray) else step)


def check_tensors(update: int, groups: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Refuse tensors with a NaN or an infinity.

    Args:
        update: the number of the update.
        groups: what the tensors of each group are -> name of a tensor -> tensor; causes first.

    Raises:
        NotFiniteError: names the update, the first such tensor, and its first bad entry.
    """
    # a sum is not finite where an entry is not, and the sum of sums asks the device once
    found = [t for group in groups.values() for t in group.values()]
    if math.isfinite(torch.stack([t.sum() if t.ndim else t for t in found]).sum().item()):
        return
    for kind, group in groups.items():
        for name, tensor in group.items():
            bad = (~tensor.isfinite()).nonzero()
            if len(bad):
                place = tuple(bad[0].tolist())
                at = f" at {place}" if place else ""
                raise NotFiniteError(
                    f"{kind} {name} is {tensor[place].item()}{at} in update {update}: lower the "
                    "learning rate, or look at the batch in the run's folder crash/."
                )
