"""The worlds: grids, a ring, rooms, a lever and a T-maze, each with an answer known beforehand.

They are stand-ins for the stochastic settings of work on empowerment, such as the four rooms of
Levy et al. 2024 (arXiv:2410.11155), small enough for every open-loop block to be multiplied out:
`etude.evaluate.capacity` turns `Testbed.channel` into the number that a method should report.

Shapes: n rows of the call, A primitive actions, S states.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from etude.envs.spec import Field
from etude.envs.testbeds.body import ANYWHERE, Testbed
from etude.envs.testbeds.table import Table
from etude.errors import UsageError

STILL = 0.3
"""Length of a control below which it means "stay"."""
COMPASS = np.array([[0, 0], [1, 0], [-1, 0], [0, 1], [0, -1]], np.float64)
"""Stay, east, west, north, south: the controls that mean the primitive actions, and the moves."""
ROOMS = 4


def compass(action: np.ndarray) -> np.ndarray:
    """Indices (n,) into `COMPASS` of controls (n, 2): stay, or the nearest of four directions."""
    x, y = action.T
    along = np.where(x > 0, 1, 2)
    across = np.where(y > 0, 3, 4)
    move = np.where(np.abs(x) >= np.abs(y), along, across)
    return np.where(np.hypot(x, y) < STILL, 0, move)


def hands(k: int) -> np.ndarray:
    """Unit vectors (k, 2) at equal angles from (1, 0): the controls that mean k choices."""
    angle = 2 * np.pi * np.arange(k) / k
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def pointed(k: int, action: np.ndarray) -> np.ndarray:
    """Indices (n,) of the nearest of k `hands` to controls (n, 2)."""
    turn = np.arctan2(action[:, 1], action[:, 0]) / (2 * np.pi)
    return np.asarray(np.rint(turn * k).astype(int) % k)


def moves(side: int, slip: float = 0.0) -> np.ndarray:
    """p(s' | s, a), (5, S, S), on a square of S = side^2 cells that walls close; s = x + side y.

    With probability `slip` a uniformly drawn action takes the place of the chosen one.

    Raises:
        UsageError: `side` is below 2, or `slip` is no probability.
    """
    if side < 2 or not 0 <= slip <= 1:
        raise UsageError(f"side = {side}, slip = {slip}: choose side >= 2 and slip in [0, 1].")
    x, y = np.arange(side**2) % side, np.arange(side**2) // side
    exact = np.zeros((len(COMPASS), side**2, side**2))
    for a, (dx, dy) in enumerate(COMPASS.astype(int)):
        to = (x + dx).clip(0, side - 1) + side * (y + dy).clip(0, side - 1)
        exact[a, np.arange(side**2), to] = 1
    chosen: np.ndarray = (1 - slip) * exact + slip * exact.mean(axis=0)
    return chosen


def squares(side: int) -> np.ndarray:
    """Coordinates (S, 2) of the cells of a square, the first at (0, 0)."""
    cells = np.arange(side**2)
    return np.stack([cells % side, cells // side], axis=1).astype(np.float64)


def cells(count: int) -> dict[str, Any]:
    """How a world shows which of `count` cells it is in: one-hot."""
    return {"fields": (Field("cell", count),)}


def grid(side: int, slip: float = 0.0, bits: int = 0, start: str = ANYWHERE) -> Testbed:
    """`grid-5` and its kin: without slip, the capacity of n steps is ln(cells in reach).

    Starts: "anywhere", "corner" (0, 0), "edge" (its middle) and "centre".
    """
    middle = side // 2
    return Testbed(
        f"grid-{side}" + ("-slip" if slip else "") + ("-bits" if bits else ""),
        Table(moves(side, slip), squares(side), np.eye(side**2)),
        actions=COMPASS,
        decode=compass,
        **cells(side**2),
        starts={
            ANYWHERE: range(side**2),
            "corner": (0,),
            "edge": (middle,),
            "centre": (middle * (side + 1),),
        },
        start=start,
        bits=bits,
        constants={"world": "grid", "side": side, "slip": slip},
    )


def ring(count: int = 12, bits: int = 0) -> Testbed:
    """`ring-12`: turn by any number of cells, then one back, none or one on: (1/4, 1/2, 1/4).

    n steps have the capacity ln 12 - H(noise of n steps): from anywhere 1.44519 nats for one.
    """
    shift = np.arange(count)[None] - np.arange(count)[:, None]  # from s to s'
    noise = {-1: 0.25, 0: 0.5, 1: 0.25}
    turned = [
        sum(p * ((shift - a - d) % count == 0) for d, p in noise.items()) for a in range(count)
    ]
    places = np.round(count / 4 * hands(count), 9)  # neighbours are about a unit apart
    return Testbed(
        f"ring-{count}" + ("-bits" if bits else ""),
        Table(np.array(turned), places, np.eye(count)),
        actions=hands(count),
        decode=partial(pointed, count),
        **cells(count),
        starts={ANYWHERE: range(count), "first": (0,)},
        bits=bits,
        constants={"world": "ring", "cells": count, "noise": list(noise.values())},
    )


def four_rooms(side: int = 5, bits: int = 0, start: str = ANYWHERE) -> Testbed:
    """`four-rooms-stochastic`: a move within the room, then the same cell of a random room.

    The capacity is that of one room: ln(cells in reach). Starts: "anywhere", "corner", "centre" (of
    the first room).
    """
    size = side**2
    thrown = np.full((ROOMS, ROOMS), 1 / ROOMS)
    rooms = np.repeat(squares(2) * (side + 1), size, axis=0)  # an empty line between them
    return Testbed(
        "four-rooms-stochastic" + ("-bits" if bits else ""),
        Table(
            np.array([np.kron(thrown, move) for move in moves(side)]),
            rooms + np.tile(squares(side), (ROOMS, 1)),
            np.eye(ROOMS * size),
        ),
        actions=COMPASS,
        decode=compass,
        **cells(ROOMS * size),
        starts={
            ANYWHERE: range(ROOMS * size),
            "corner": (0,),
            "centre": (side // 2 * (side + 1),),
        },
        start=start,
        bits=bits,
        constants={"world": "four rooms", "side": side, "rooms": ROOMS},
    )


def room_teleport(count: int = 6, bits: int = 0) -> Testbed:
    """`room-teleport`: any of `count` cells at will, in a random one of four rooms: ln 6 nats."""
    chosen = np.repeat(np.eye(count)[:, None], count, axis=1)  # wherever one was
    thrown = np.full((ROOMS, ROOMS), 1 / ROOMS)
    states = np.arange(ROOMS * count)
    return Testbed(
        "room-teleport" + ("-bits" if bits else ""),
        Table(
            np.array([np.kron(thrown, jump) for jump in chosen]),
            np.stack([states % count, states // count], axis=1).astype(np.float64),
            np.eye(ROOMS * count),
        ),
        actions=hands(count),
        decode=partial(pointed, count),
        **cells(ROOMS * count),
        starts={ANYWHERE: range(ROOMS * count)},
        bits=bits,
        constants={"world": "room teleport", "cells": count, "rooms": ROOMS},
    )


def noisy_lever(bits: int = 8) -> Testbed:
    """`noisy-lever`: two levers lead to cells 0 and 1, the third to any of 0, 1 and 2.

    The noisy lever tells little, but cell 2 is reached by it alone: of 0.71150 nats it earns a
    share of 0.055. Static fills the screen (`bits`).
    """
    levers = np.array([[1, 0, 0], [0, 1, 0], [1 / 3, 1 / 3, 1 / 3]])
    return Testbed(
        "noisy-lever",
        Table(
            np.repeat(levers[:, None], 3, axis=1),
            np.array([[0, 0], [1, 0], [2, 0]], np.float64),
            np.eye(3),
        ),
        actions=hands(3),
        decode=partial(pointed, 3),
        **cells(3),
        starts={ANYWHERE: range(3)},
        bits=bits,
        constants={"world": "noisy lever"},
    )


def t_maze(stem: int = 3, bits: int = 0) -> Testbed:
    """`t-maze`: what is east at the junction was shown by a cue at the start, and then no more.

    Cells 0 … stem are the way up, the next two the left and the right end, which are never left.
    With the second cue, east and west lead to the other end. `stem + 1` steps reach stem + 3 cells,
    ln(stem + 3) nats, for those who remember the cue; to others the ends are one lottery, and the
    cell is worth ln(stem + 2).

    A state is cell + cells * (cue + 2 * hidden). Starts: "anywhere" (at the foot with either cue)
    and "first cue", "second cue".
    """
    left, right = stem + 1, stem + 2
    count = stem + 3
    to = np.tile(np.arange(count), (2, len(COMPASS), 1))  # of cue, action and cell
    to[:, 3, :stem] += 1  # north
    to[:, 4, 1 : stem + 1] -= 1  # south
    to[0, [1, 2], stem] = right, left
    to[1, [1, 2], stem] = left, right
    known = np.eye(count)[to]  # (2, A, cells, cells)
    transition = np.zeros((len(COMPASS), 4 * count, 4 * count))
    for block, cue in enumerate((0, 1, 0, 1)):
        now, then = (slice(b * count, (b + 1) * count) for b in (block, cue + 2))
        transition[:, now, then] = known[cue]
    column = [(0, y) for y in range(stem + 1)]
    shown = np.kron(np.array([[1, 0], [0, 1], [0, 0], [0, 0]]), np.ones((count, 1)))
    return Testbed(
        "t-maze" + ("-bits" if bits else ""),
        Table(
            transition,
            np.tile(np.array([*column, (-1, stem), (1, stem)], np.float64), (4, 1)),
            np.concatenate([np.tile(np.eye(count), (4, 1)), shown], axis=1),
        ),
        actions=COMPASS,
        decode=compass,
        fields=(Field("cell", count), Field("cue", 2)),
        starts={ANYWHERE: (0, count), "first cue": (0,), "second cue": (count,)},
        bits=bits,
        constants={"world": "T-maze", "stem": stem},
    )
