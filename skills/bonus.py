"""A bonus: the signal of a second learner, added to what the agent of the first one is paid.

The agent of a learner with the signal r and a bonus with the signal b maximises

    r + W b                      where the signal is a reward,
    psi . (w, W)                 where it is features (r, b) whose weights are a task w(z):

a coordinate of its own keeps Q a product, so that psi . w is still the value of the task, as in the
correct form of APS (Liu & Abbeel 2021, arXiv:2108.13956). Both learners update on batches of the
same replay, and b is that of the batch which the agent learns from. A bonus added to a reward is
how exploration signals are used on tasks (Bellemare et al. 2016, arXiv:1606.01868; Burda et al.
2019, arXiv:1810.12894); here the reward is the learner's.

Shapes: B batch, K width of the signal.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from etude.agents.replay import Batch, Record
from etude.errors import UsageError
from etude.skills.learners.base import Learner
from etude.skills.spaces import Discrete


class Bonus(nn.Module):
    """A learner beside `host`, the one that discovers, and its weight W."""

    def __init__(self, learner: Learner, weight: float, host: Learner) -> None:
        """Join them.

        Raises:
            UsageError: `host` has no agent that could be paid, or the learner's signal is no reward
                for what `host` does.
        """
        super().__init__()
        _check(learner, host)
        self.learner, self.weight = learner, weight
        self.own_coordinate = type(host).task_vector is not Learner.task_vector
        """whether the bonus has a coordinate of its own"""
        self.width = host.signal_dim + self.own_coordinate
        """K of the agent"""

    def update(self, batch: Record) -> dict[str, Tensor]:
        """One gradient step of the bonus; returns its metrics as `bonus/...`."""
        found = self.learner.update(batch)
        return {name.replace("skill/", "bonus/"): value for name, value in found.items()}

    def add(self, batch: Batch, signal: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Signal and weights, both (B, K), with the bonus in them; and the bonus W b, (B,)."""
        b = self.learner.signal(batch)  # (B, 1)
        paid = self.weight * b
        if not self.own_coordinate:
            return signal + paid, weights, paid[:, 0]
        weight = torch.full_like(b, self.weight)
        return torch.cat((signal, b), -1), torch.cat((weights, weight), -1), paid[:, 0]

    def checkpoint(self) -> dict[str, Any]:
        """What the learner's next update depends on, as a tree."""
        return self.learner.checkpoint()

    def restore(self, tree: Mapping[str, Any]) -> None:
        """Go on from a tree made by `checkpoint`."""
        self.learner.restore(tree)


def _check(learner: Learner, host: Learner) -> None:
    """Refuse a pair that makes no sense, with the reason."""
    files = (type(one).__module__.rpartition(".")[2] for one in (learner, host))
    bonus, name = (file.replace("_", "-") for file in files)
    if host.agent is None or not host.agent.rewarded:
        why = "has no agent" if host.agent is None else "has an agent that needs no reward"
        raise UsageError(f"{name} {why}, so nothing can be added to it: leave --bonus out.")
    if learner.agent is None:
        raise UsageError(
            f"bonus = {bonus} learns from what its own policy does: choose a learner with an "
            "agent, such as apt, rnd or disagreement."
        )
    if type(learner).task_vector is not Learner.task_vector:
        raise UsageError(
            f"the signal of bonus = {bonus} is features and no reward: choose another learner, "
            "such as apt, rnd or disagreement."
        )
    if learner.space not in (Discrete(1), host.space):
        raise UsageError(
            f"bonus = {bonus} rewards skills of {learner.space}, and those of {name} are "
            f"{host.space}: give both the same (--bonus-method, --method), or choose a bonus "
            "without skills, such as apt, rnd or disagreement."
        )
