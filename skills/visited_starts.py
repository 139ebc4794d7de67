"""States reached in training, from which later episodes may begin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from etude import checkpoint


class VisitedStarts:
    """Simulator states reached in training, the newest of each cell of descriptor space."""

    def __init__(self, cell: float, rng: np.random.Generator) -> None:
        self.cell, self.rng = cell, rng
        self.states: dict[tuple[int, ...], np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.states)

    def add(self, descriptors: np.ndarray, states: np.ndarray) -> None:
        """Remember states (N, S) at descriptors (N, D)."""
        cells = np.floor(descriptors / self.cell).astype(int)
        for cell, state in zip(map(tuple, cells.tolist()), states, strict=True):
            self.states[cell] = state.copy()

    def sample(self, n: int) -> np.ndarray:
        """`n` states (n, S), uniform over the cells."""
        states = list(self.states.values())
        return np.stack([states[i] for i in self.rng.integers(len(states), size=n)])

    def checkpoint(self) -> dict[str, Any]:
        """The states and the generator, as a tree."""
        tree: dict[str, Any] = {"rng": checkpoint.generator_state(self.rng)}
        if self.states:
            tree["cells"] = np.array(list(self.states), dtype=np.int64)
            tree["states"] = np.stack(list(self.states.values()))
        return tree

    def restore(self, tree: Mapping[str, Any]) -> None:
        """Take over a tree made by `checkpoint`."""
        checkpoint.set_generator_state(self.rng, tree["rng"])
        cells = map(tuple, np.asarray(tree.get("cells", ())).tolist())
        self.states = dict(zip(cells, tree.get("states", ()), strict=True))
