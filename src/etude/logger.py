"""Where numbers and pictures of a run go: TensorBoard and a CSV file, over environment steps."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from etude.checkpoint import write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure


HEAD = ["step", "seconds", "key", "value"]


class Logger:
    """Writes `folder/tb/` (TensorBoard) and `folder/metrics.csv` (step, seconds, key, value)."""

    def __init__(self, folder: Path, begin: int | None = None, rows: int | None = None) -> None:
        """Log to a folder; a run that goes on drops what it once logged later.

        Args:
            folder: of the run.
            begin: step that the run goes on from.
            rows: number of rows when it was saved there; None keeps those up to step `begin`.
        """
        from torch.utils.tensorboard import SummaryWriter

        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = SummaryWriter(
            str(folder / "tb"), purge_step=None if begin is None else begin + 1
        )
        path = folder / "metrics.csv"
        kept: list[list[str]] = []
        if path.is_file():
            with path.open(newline="") as file:
                kept = [row for row in list(csv.reader(file))[1:] if _kept(row, begin)][:rows]
        self.rows = len(kept)
        """rows in the file"""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([HEAD, *kept])
        write_text(path, text.getvalue())
        self._file = path.open("a", newline="")
        self._csv = csv.writer(self._file, lineterminator="\n")
        self._start = time.monotonic()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log numbers under slash-separated tags at environment step `step`."""
        seconds = f"{time.monotonic() - self._start:.1f}"
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)
            self._csv.writerow([step, seconds, key, f"{value:.6g}"])
        self.rows += len(values)
        self._file.flush()

    def figure(self, step: int, tag: str, figure: Figure) -> None:
        """Log a matplotlib figure to TensorBoard's *Images*."""
        self._writer.add_figure(tag, figure, step, close=False)

    def close(self) -> None:
        """Flush and close every file."""
        self._writer.close()
        self._file.close()


def _kept(row: list[str], begin: int | None) -> bool:
    """Whether a row is whole (a killed run may leave half of one) and not later than `begin`."""
    whole = len(row) == len(HEAD) and row[0].isdigit()
    return whole and (begin is None or int(row[0]) <= begin)
