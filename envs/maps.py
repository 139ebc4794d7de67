"""Mazes as text: versioned ASCII maps with cells of one metre, or of another size.

`#` is wall, `.` is free, `S` marks the start and `G` the goal. The map's centre is the origin, x
grows to the right and y upwards, so that the picture in this file is the picture seen from above.
A map never changes under its name and version: results carry its hash.
"""

from __future__ import annotations

import hashlib
from collections import deque
from dataclasses import dataclass, replace

import numpy as np

Cell = tuple[int, int]
"""Row (from the top) and column (from the left)."""
Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 in metres."""


@dataclass(frozen=True)
class Map:
    """One map; every length is in metres."""

    name: str
    version: int
    rows: tuple[str, ...]
    cell: float = 1.0
    """Edge of a cell."""

    def __post_init__(self) -> None:
        edge = self.rows[0] + self.rows[-1] + "".join(row[0] + row[-1] for row in self.rows)
        assert len(set(map(len, self.rows))) == 1, f"map {self.name}: rows differ in length"
        assert set(edge) == {"#"}, f"map {self.name}: the outer wall has a gap"
        assert set("".join(self.rows)) <= set("#.SG"), f"map {self.name}: unknown symbol"

    @property
    def sha256(self) -> str:
        """Hash of the drawing, and of the cell's size unless it is one metre."""
        scale = () if self.cell == 1 else (f"{self.cell:g}",)
        return hashlib.sha256("\n".join((*self.rows, *scale)).encode()).hexdigest()

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns, outer walls included."""
        return len(self.rows), len(self.rows[0])

    @property
    def size(self) -> tuple[float, float]:
        """Width (x) and height (y), outer walls included."""
        rows, columns = self.shape
        return columns * self.cell, rows * self.cell

    @property
    def start(self) -> tuple[float, float]:
        """Centre of the cell marked S; the map's centre where no cell is marked."""
        cells = self._marked("S")
        return self.cell_centre(*cells[0]) if cells else (0.0, 0.0)

    @property
    def goal(self) -> tuple[float, float]:
        """Centre of the cell marked G."""
        return self.cell_centre(*self.goal_cell)

    @property
    def goal_cell(self) -> Cell:
        """The cell marked G."""
        cells = self._marked("G")
        assert len(cells) == 1, f"map {self.name}: no goal, or more than one"
        return cells[0]

    def is_free(self, row: int, col: int) -> bool:
        """Whether the cell is no wall."""
        return self.rows[row][col] != "#"

    def free_cells(self) -> list[Cell]:
        """All cells that are no wall, row by row."""
        rows, columns = self.shape
        return [(r, c) for r in range(rows) for c in range(columns) if self.is_free(r, c)]

    def cell_centre(self, row: int, col: int) -> tuple[float, float]:
        """The point in the middle of a cell."""
        rows, columns = self.shape
        return (col + 0.5 - columns / 2) * self.cell, (rows / 2 - row - 0.5) * self.cell

    def cell_at(self, x: float, y: float) -> Cell:
        """The cell that holds a point."""
        rows, columns = self.shape
        row, col = rows / 2 - y / self.cell, x / self.cell + columns / 2
        return int(np.floor(row)), int(np.floor(col))

    def walls(self) -> list[Box]:
        """The wall cells merged into few disjoint boxes: few pairs for the collision engine."""
        rows, columns = self.shape
        left = {(r, c) for r in range(rows) for c in range(columns) if not self.is_free(r, c)}
        boxes: list[Box] = []
        while left:
            row, col = min(left)
            right, bottom = col, row
            while (row, right + 1) in left:
                right += 1
            while all((bottom + 1, c) in left for c in range(col, right + 1)):
                bottom += 1
            left -= {(r, c) for r in range(row, bottom + 1) for c in range(col, right + 1)}
            x0, y1 = col - columns / 2, rows / 2 - row
            box = (x0, y1 - (bottom - row + 1), x0 + (right - col + 1), y1)
            west, south, east, north = (edge * self.cell for edge in box)
            boxes.append((west, south, east, north))
        return boxes

    def distances(self, goal: Cell) -> np.ndarray:
        """Cells to walk from every cell to `goal`, (rows, columns); inf where there is no way."""
        steps = np.full(self.shape, np.inf)
        steps[goal] = 0
        queue = deque([goal])
        while queue:
            row, col = queue.popleft()
            for cell in ((row + 1, col), (row - 1, col), (row, col + 1), (row, col - 1)):
                if self.is_free(*cell) and np.isinf(steps[cell]):
                    steps[cell] = steps[row, col] + 1
                    queue.append(cell)
        return steps

    def _marked(self, symbol: str) -> list[Cell]:
        return [(r, c) for r, c in self.free_cells() if self.rows[r][c] == symbol]


OPEN = Map("open", 1, ("#" * 12, *("#" + "." * 10 + "#",) * 10, "#" * 12))
"""A square arena with sides of 10 m; the start is its centre."""

MAZE_U = Map(
    "maze-u",
    1,
    (
        "#####",
        "#S..#",
        "###.#",
        "#G..#",
        "#####",
    ),
)
"""One wall between start and goal: 6 m of way, two turns."""

MAZE_LARGE = Map(
    "maze-large",
    1,
    (
        "############",
        "#S..#....###",
        "#.#.#.######",
        "#.#...#....#",
        "#.###.#.##.#",
        "#...#...#..#",
        "#####.#.####",
        "##....#...G#",
        "############",
    ),
)
"""15 m of way with six turns and four dead ends; no straight part is longer than 4 m."""

FOUR_ROOMS = Map(
    "four-rooms",
    1,
    (
        "#############",
        "#.....#.....#",
        "#.....#.....#",
        "#...........#",
        "#.....#.....#",
        "#.....#.....#",
        "##.####.....#",
        "#.....###.###",
        "#.....#.....#",
        "#.....#.....#",
        "#...........#",
        "#.....#....G#",
        "#############",
    ),
)
"""Four rooms with a door between neighbours: 104 cells (Sutton, Precup and Singh 1999)."""

ANT_MAZE_U = replace(MAZE_U, name="ant-maze-u", cell=4.0)
"""The U for a robot: corridors of 4 m, 24 m of way."""

ANT_MAZE_LARGE = replace(MAZE_LARGE, name="ant-maze-large", cell=4.0)
"""The large maze for a robot: corridors of 4 m, 60 m of way."""
