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


def check_observations(obs: np.ndarray, step: int, fields: Mapping[str, slice]) -> None:
    """Refuse observations (N, O) of vector step `step` with a NaN or an infinity.

    Raises:
        NotFiniteError: names environment, step, field and value.
    """
    if np.isfinite(obs).all():
        return
    env, entry = np.argwhere(~np.isfinite(obs))[0].tolist()
    field = next((n for n, s in fields.items() if entry in range(*s.indices(obs.shape[1]))), "?")
    raise NotFiniteError(
        f"environment to replay: entry {entry} ({field}) of the observation of environment {env} "
        f"is {obs[env, entry]} at step {step}: mend the environment; nothing was learned from it."
    )


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
