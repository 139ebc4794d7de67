"""A task in logic for the arm: touch A, then B, then C, and never D.

Tasks of this form are those of Tasse et al. 2024, "Skill Machines: Temporal Logic Skill Composition
in Reinforcement Learning" (arXiv:2205.12532): propositions that hold at some places, and an
automaton over them that pays once, when it accepts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from etude.envs.bodies.reacher import Reacher
from etude.envs.body import Mark, Task, View
from etude.envs.spec import Field
from etude.envs.tasks.base import GROUND, Outcome, extend

Colour = tuple[float, float, float, float]
TARGETS: dict[str, tuple[float, Colour]] = {
    "a": (60.0, (0.0, 0.62, 0.45, 1.0)),
    "b": (180.0, (0.0, 0.45, 0.7, 1.0)),
    "c": (300.0, (0.9, 0.62, 0.0, 1.0)),
    "d": (120.0, (0.84, 0.1, 0.1, 1.0)),
}
"""Proposition -> direction of its target from the base in degrees, and its colour. D lies between A
and B: whoever swings the stretched arm from one to the other touches it."""
SEQUENCE, NEVER = ("a", "b", "c"), "d"


class ReacherSequence(Task):
    """Touch three targets in order and a fourth never: reward 1 with the third, which is the end.

    To touch the forbidden one is the end too, without reward. A target that is not next may be
    touched at any time and does not count.

    Fields: goal (x, y) of the next target; propositions, for each target in the order of its name
    whether the fingertip touches it (1 or 0); and the share of the sequence that is left. An
    automaton needs the propositions alone: the constant `labels` has them as predicates, beside
    `sequence` and `never`.
    Task state: targets touched, and whether the forbidden one was.
    """

    distance = 0.16
    """From the base to every target's centre, m; the arm reaches 0.21 m."""
    radius = 0.03
    """A target is touched no further than this from its centre, m."""
    max_steps = 150
    """Time limit of an episode, steps."""
    state_dim = 2

    def __init__(self) -> None:
        self.body = Reacher()
        angle = np.radians([direction for direction, _ in TARGETS.values()])
        self._targets = self.distance * np.stack([np.cos(angle), np.sin(angle)], axis=1)  # (4, 2)
        names = list(TARGETS)
        self._order = np.array([names.index(name) for name in SEQUENCE])
        self._never = names.index(NEVER)
        constants = {
            "propositions": names,
            "targets": self._targets.tolist(),
            "target_radius": self.radius,
            "labels": {name: _label(i) for i, name in enumerate(names)},
            "sequence": SEQUENCE,
            "never": [NEVER],
        }
        fields = [Field("goal", 2), Field("propositions", len(names)), Field("sequence_left", 1)]
        self.spec = extend(self.body, "reacher-sequence", fields, constants, self.max_steps)

    def reset(
        self, rng: np.random.Generator, qpos: np.ndarray, qvel: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Nothing is touched; the targets are always the same."""
        return qpos, qvel, np.zeros(2)

    def propositions(self, view: View) -> np.ndarray:
        """Which targets the fingertip touches, (n, 4) bool."""
        offset = self.body.descriptor(view)[:, None] - self._targets
        touched: np.ndarray = np.linalg.norm(offset, axis=2) <= self.radius
        return touched

    def observe(self, state: np.ndarray, view: View) -> np.ndarray:
        """Goal, propositions and share left, (n, 7)."""
        left = 1 - state[:, :1] / len(SEQUENCE)
        return np.concatenate([self._targets[self._next(state)], self.propositions(view), left], 1)

    def step(self, state: np.ndarray, view: View, rngs: Sequence[np.random.Generator]) -> Outcome:
        """One step of the automaton; its end, accepting or not, is that of the episode."""
        holds, rows = self.propositions(view), np.arange(len(state))
        running = (state[:, 0] < len(SEQUENCE)) & (state[:, 1] == 0)
        state[:, 1] += running & holds[:, self._never]
        state[:, 0] += running & ~holds[:, self._never] & holds[rows, self._next(state)]
        accepted = state[:, 0] == len(SEQUENCE)
        return (running & accepted).astype(float), accepted | (state[:, 1] > 0), accepted

    def marks(self, state: np.ndarray) -> list[Mark]:
        """The targets in their colours."""
        colours = [colour for _, colour in TARGETS.values()]
        places = zip(self._targets.tolist(), colours, strict=True)
        return [Mark((x, y, GROUND / 10), self.radius, colour) for (x, y), colour in places]

    def _next(self, state: np.ndarray) -> np.ndarray:
        found: np.ndarray = self._order[np.minimum(state[:, 0], len(SEQUENCE) - 1).astype(int)]
        return found


def _label(i: int) -> dict[str, Any]:
    """The predicate over observations that a proposition is."""
    return {"field": "propositions", "entry": i, "above": 0.5}
