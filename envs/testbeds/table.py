"""A finite world as matrices: exact channels on one side, batched simulation on the other.

Shapes: N environments, A primitive actions, S states, D descriptor, F entries seen.
"""

from __future__ import annotations

from dataclasses import dataclass

import mujoco
import numpy as np

from etude.errors import UsageError

LARGEST = 10**8
"""Entries that a channel may have: 0.8 GB."""
WEYL, HALF_WORD = np.uint64(0x9E3779B97F4A7C15), np.uint64(32)
"""Increment of SplitMix64's counter, and bits of half a seed."""
PAPER, TILE, AGENT = (255, 255, 255), (214, 217, 224), (217, 84, 51)
"""Colours of a picture."""
HALF = 0.45
"""Half the edge of a drawn cell, in descriptor units."""


@dataclass(frozen=True, eq=False)
class Table:
    """What each primitive action does in each state, where a state lies and what is seen there."""

    transition: np.ndarray
    """p(s' | s, a), (A, S, S)"""
    places: np.ndarray
    """coordinates of the states, (S, D)"""
    seen: np.ndarray
    """observation of the states, (S, F)"""

    def __post_init__(self) -> None:
        rows = self.transition.sum(axis=-1)
        assert (self.transition >= 0).all(), "a probability is negative"
        assert np.allclose(rows, 1, atol=1e-12, rtol=0), "a row does not sum to 1"
        assert len(self.places) == len(self.seen) == self.states == self.transition.shape[1]

    @property
    def states(self) -> int:
        """S."""
        return int(self.transition.shape[-1])

    def channel(self, start: np.ndarray, n: int) -> np.ndarray:
        """p(s_n | a_0, …, a_{n-1}), (A^n, S), of all open-loop blocks in lexicographic order.

        Args:
            start: distribution of s_0, (S,).
            n: length of a block, steps.

        Raises:
            UsageError: the matrix would not fit into memory, or n is below 0.
        """
        blocks = len(self.transition) ** n if n >= 0 else 0
        if not 0 < blocks * self.states <= LARGEST:
            raise UsageError(
                f"n = {n}: {len(self.transition)} actions make {blocks} blocks, and {self.states} "
                f"states a channel of {blocks * self.states} entries; choose n from 0, with at "
                f"most {LARGEST} entries."
            )
        rows = np.asarray(start, np.float64)[None]
        for _ in range(n):
            rows = np.einsum("bs,ast->bat", rows, self.transition).reshape(-1, self.states)
        return rows


def noise(seed: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Uniform numbers (n, count) in [0, 1), and the seeds to go on with, of seeds (n, 2).

    SplitMix64 (Steele, Lea and Flood 2014). A seed is kept as two halves of 32 bits, each of which
    a float64 holds exactly.
    """
    high, low = seed.astype(np.uint64).T
    ahead = WEYL * np.arange(1, count + 1, dtype=np.uint64)  # wraps round, as it should
    counter = ((high << HALF_WORD) | low)[:, None] + ahead  # (n, count)
    bits = (counter ^ (counter >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    bits ^= bits >> np.uint64(31)
    last = counter[:, -1]
    after = np.stack([last >> HALF_WORD, last & np.uint64(2**32 - 1)], axis=1)
    return (bits >> np.uint64(11)) * 2.0**-53, after.astype(np.float64)


class TableBatch:
    """N copies of a table: what the engine uses of `mujoco.batch.Batch`, in NumPy.

    A row of `state` is the index of the state, the random bits on show and the seed of the noise to
    come, in two halves. So the next state is a function of this one, as the engine promises of
    `set_state`, and only the start of an episode takes numbers from an environment's generator;
    two copies put into one state go the same way under the same actions.
    """

    nthread = 1

    def __init__(self, table: Table, bits: int, num_envs: int) -> None:
        # what lies after the last possible state must be exactly 1, or a draw could overshoot
        sums = table.transition.cumsum(axis=-1)
        self._sums = sums / sums[..., -1:]  # (A, S, S)
        self._bits = bits
        self.nstate = 1 + bits + 2
        self.state = np.zeros((num_envs, self.nstate))
        self.warning = np.zeros((num_envs, int(mujoco.mjtWarning.mjNWARNING), 2), np.int32)
        self._arrays = {
            "qpos": self.state,
            "qvel": np.zeros((num_envs, 0)),
            "ctrl": np.zeros((num_envs, 1)),  # index of the primitive action
        }

    def bind(self, name: str) -> np.ndarray:
        """The live array (N, …) of that name; the state stands in for the positions."""
        return self._arrays[name]

    def step(self, rows: np.ndarray | None, _: int) -> None:
        """Go on to the next states of some environments, or of all."""
        ids = np.arange(len(self.state)) if rows is None else rows
        now, action = self.state[ids, 0].astype(int), self._arrays["ctrl"][ids, 0].astype(int)
        chance, self.state[ids, -2:] = noise(self.state[ids, -2:], 1 + self._bits)
        passed = chance[:, :1] >= self._sums[action, now]  # (n, S)
        self.state[ids, 0] = passed.sum(axis=1)
        self.state[ids, 1:-2] = chance[:, 1:] < 0.5

    def reset(self, ids: np.ndarray, stage: int) -> None:
        """Nothing: a start is the whole state, and the engine writes it next."""

    def forward(self, ids: np.ndarray) -> None:
        """Nothing: no field is derived."""

    def get_data(self, i: int) -> int:
        """The state of environment `i`, to draw."""
        return int(self.state[i, 0])


class TablePainter:
    """Draws the cells of a table as tiles, the agent's in colour."""

    def __init__(self, places: np.ndarray) -> None:
        self._places = places  # (S, 2)

    def draw(self, state: int, width: int, height: int) -> np.ndarray:
        """A picture (height, width, 3) uint8, y upwards."""
        low = self._places.min(axis=0) - 0.5
        size = self._places.max(axis=0) + 0.5 - low
        scale = min(width / size[0], height / size[1])  # pixels per descriptor unit
        picture = np.full((height, width, 3), PAPER, np.uint8)
        for place, colour in [*((p, TILE) for p in self._places), (self._places[state], AGENT)]:
            (x0, y0), (x1, y1) = ((place + d - low) * scale for d in (-HALF, HALF))
            picture[height - round(y1) : height - round(y0), round(x0) : round(x1)] = colour
        return picture

    def close(self) -> None:
        """Nothing to free."""
