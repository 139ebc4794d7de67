"""Finite worlds for options: a line, and four rooms, whose values can be computed exactly.

The rooms are those of Sutton, Precup and Singh 1999, "Between MDPs and semi-MDPs": a move succeeds
with probability 2/3, else it goes in one of the other three directions. Deviations: to stay where
one is, which no move of theirs is, always succeeds; and the goal is a corner.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from etude.envs.maps import FOUR_ROOMS
from etude.envs.spec import Field
from etude.envs.testbeds.body import ANYWHERE, Testbed
from etude.envs.testbeds.table import Table
from etude.envs.testbeds.worlds import COMPASS, compass

LENGTH = 24
"""Cells of the line, the last of which is the goal."""
SUCCESS = 2 / 3
"""Probability that a move in the rooms goes where it was meant to."""
BITS = 8
"""Random bits on show, without which every episode on the line would look the same."""
PLACE = (Field("x", 1), Field("y", 1))


def line() -> Testbed:
    """`line-24`: cells 0 … 23 in a row; every episode begins in the first."""
    cells = np.arange(LENGTH)
    to = [(cells + int(dx)).clip(0, LENGTH - 1) for dx, _ in COMPASS]
    places = np.stack([cells, np.zeros(LENGTH)], axis=1)
    bed = Testbed(
        f"line-{LENGTH}",
        Table(np.array([np.eye(LENGTH)[ahead] for ahead in to]), places, places),
        actions=COMPASS,
        decode=compass,
        fields=PLACE,
        starts={ANYWHERE: (0,)},
        bits=BITS,
        constants={"world": "line", "cells": LENGTH},
    )
    bed.spec = replace(bed.spec, max_steps=60)
    return bed


def four_rooms() -> Testbed:
    """`four-rooms`: 104 cells, four of them doors; episodes begin anywhere but at the goal."""
    maze = FOUR_ROOMS
    cells = maze.free_cells()
    index = {cell: i for i, cell in enumerate(cells)}
    exact = np.zeros((len(COMPASS), len(cells), len(cells)))
    for a, (dx, dy) in enumerate(COMPASS.astype(int).tolist()):
        for (row, col), i in index.items():
            exact[a, i, index.get((row - dy, col + dx), i)] = 1
    moves = exact[1:]
    others = (moves.sum(axis=0) - moves) / (len(moves) - 1)
    slippery = SUCCESS * moves + (1 - SUCCESS) * others
    places = np.array([maze.cell_centre(*cell) for cell in cells])
    bed = Testbed(
        "four-rooms",
        Table(np.concatenate([exact[:1], slippery]), places, places),
        actions=COMPASS,
        decode=compass,
        fields=PLACE,
        starts={ANYWHERE: [i for cell, i in index.items() if cell != maze.goal_cell]},
        constants={
            "world": "four rooms",
            "map": maze.name,
            "map_version": maze.version,
            "map_sha256": maze.sha256,
            "success": SUCCESS,
        },
    )
    bed.spec = replace(bed.spec, max_steps=100)
    return bed
