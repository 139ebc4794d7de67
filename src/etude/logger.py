"""Where numbers and pictures of a run go: TensorBoard and a CSV file, over environment steps."""

from __future__ import annotations

import csv
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Logger:
    """Writes `folder/tb/` (TensorBoard) and `folder/metrics.csv` (step, seconds, key, value)."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder.mkdir(parents=True, exist_ok=True)
        self._writer = SummaryWriter(str(folder / "tb"))
        path = folder / "metrics.csv"
        is_new = not path.exists()
        self._file = path.open("a", newline="")
        self._csv = csv.writer(self._file)
        if is_new:
            self._csv.writerow(["step", "seconds", "key", "value"])
        self._start = time.monotonic()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log numbers under slash-separated tags at environment step `step`."""
        seconds = f"{time.monotonic() - self._start:.1f}"
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)
            self._csv.writerow([step, seconds, key, f"{value:.6g}"])
        self._file.flush()

    def figure(self, step: int, tag: str, figure: Figure) -> None:
        """Log a matplotlib figure to TensorBoard's *Images*."""
        self._writer.add_figure(tag, figure, step, close=False)

    def close(self) -> None:
        """Flush and close every file."""
        self._writer.close()
        self._file.close()
