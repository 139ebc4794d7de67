"""A finite world as a body of the engine: discrete actions behind a continuous control.

Shapes: n rows of the call, A primitive actions, S states, D descriptor.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from etude.envs.body import Body, View
from etude.envs.spec import EnvSpec, Field
from etude.envs.testbeds.table import Table, TableBatch, TablePainter
from etude.errors import UsageError, unknown

ANYWHERE = "anywhere"
"""A start drawn uniformly from the states where an episode may begin."""
MAX_STEPS = 20
"""Default time limit."""
Decode = Callable[[np.ndarray], np.ndarray]
"""Actions (n, 2) in [-1, 1] -> indices (n,) of primitive actions."""


class Model:
    """In place of a MuJoCo model: a table, and how many random bits are shown beside it."""

    def __init__(self, table: Table, bits: int) -> None:
        self.table, self.bits = table, bits

    def batch(self, num_envs: int) -> TableBatch:
        """That many simulations."""
        return TableBatch(self.table, self.bits, num_envs)

    def painter(self) -> TablePainter:
        """What draws a state."""
        return TablePainter(self.table.places)


class Testbed(Body):
    """A table that the engine can step, with its exact channel.

    The observation is what the table shows, then `bits` random bits that are drawn anew at every
    step and tell nothing of anything: a stand-in for the highly stochastic observations that Levy
    et al. 2024 (arXiv:2410.11155) ask methods to see through. No channel and no capacity has them.
    """

    __test__ = False  # pytest would take the name for a suite
    frame_skip = 1

    def __init__(
        self,
        name: str,
        table: Table,
        *,
        actions: np.ndarray,
        decode: Decode,
        fields: tuple[Field, ...],
        starts: Mapping[str, Sequence[int]],
        start: str = ANYWHERE,
        bits: int = 0,
        constants: Mapping[str, Any],
    ) -> None:
        """Describe a world.

        Args:
            name: of the world with its settings; a start other than "anywhere" is appended.
            table: its dynamics.
            actions: for each primitive action a control that means it, (A, 2).
            decode: from controls to indices of primitive actions.
            fields: names and widths of what the table shows.
            starts: the states that a name of a start stands for.
            start: where episodes begin, one of those names.
            bits: random bits beside the observation.
            constants: settings of the world.

        Raises:
            UsageError: there is no such start, or `bits` is negative.
        """
        if bits < 0:
            raise UsageError(f"bits is {bits}: choose 0 or more.")
        self.table, self.actions, self.bits = table, actions, bits
        self.decode, self._starts = decode, starts
        self._first = self._states(start)
        shown = (*fields, *((Field("bits", bits),) if bits else ()))
        own = name if start == ANYWHERE else f"{name}-{start}"
        self.spec = _spec(own, shown, {**constants, "start": start, "bits": bits})
        assert self.spec.obs_dim == table.seen.shape[1] + bits, f"{name}: fields do not fit"

    def at(self, where: str | int) -> Testbed:
        """The same world, spec and all, in which every episode begins at a named start or a state.

        What was learnt from other starts can be measured there.

        Raises:
            UsageError: there is no such start.
        """
        other = copy.copy(self)
        other._first = self._states(where)
        return other

    def start(self, where: str | int) -> np.ndarray:
        """The distribution (S,) of the first state: a named start, or a state.

        Raises:
            UsageError: there is no such start.
        """
        states = list(self._states(where))
        weights = np.zeros(self.table.states)
        weights[states] = 1 / len(states)
        return weights

    def _states(self, where: str | int) -> Sequence[int]:
        if not isinstance(where, str):
            if not 0 <= where < self.table.states:
                last = self.table.states - 1
                raise UsageError(f"start {where}: choose a state from 0 to {last}.")
            return (where,)
        if where not in self._starts:
            raise unknown("start", where, self._starts)
        return self._starts[where]

    def channel(self, start: str | int, n: int) -> np.ndarray:
        """p(s_n | s_0, block), (A^n, S), of all open-loop blocks of n primitive actions, exactly.

        A start of several states is averaged over: whoever chooses the block does not see which.

        Raises:
            UsageError: there is no such start, or n is out of range.
        """
        return self.table.channel(self.start(start), n)

    def model(self) -> Model:
        """A new model of the world, which the engine takes in place of MuJoCo's."""
        return Model(self.table, self.bits)

    def reset(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """One of the states of the start, bits, and a seed for the noise of the episode."""
        state = self._first[int(rng.random() * len(self._first))]
        bits, seed = rng.integers(2, size=self.bits), rng.integers(2**32, size=2)
        return np.array([state, *bits, *seed], np.float64), np.zeros(0)

    def control(self, action: np.ndarray) -> np.ndarray:
        """Indices (n, 1) of the primitive actions that controls (n, 2) mean."""
        return self.decode(action.astype(np.float64))[:, None]

    def observe(self, view: View) -> np.ndarray:
        """What the table shows, then the bits."""
        seen = self.table.seen[view.qpos[:, 0].astype(int)]
        return np.concatenate([seen, view.qpos[:, 1 : 1 + self.bits]], axis=1)

    def descriptor(self, view: View) -> np.ndarray:
        """Coordinates of the cell, (n, 2)."""
        place: np.ndarray = self.table.places[view.qpos[:, 0].astype(int)]
        return place


def _spec(name: str, fields: tuple[Field, ...], constants: Mapping[str, Any]) -> EnvSpec:
    width = sum(f.dim for f in fields)
    return EnvSpec(
        id=name,
        body=name,
        fields=fields,
        task_fields=(),
        action_dim=2,
        descriptor=("x", "y"),
        descriptor_unit="cells",
        cell=1.0,
        dt=1.0,
        max_steps=MAX_STEPS,
        constants=constants,
        obs_mean=(0.0,) * width,
        obs_std=(1.0,) * width,
    )
