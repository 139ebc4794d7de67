"""Tables of trials, as CSV: a row is on the disk, or it is not."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from etude.checkpoint import sync
from etude.errors import UsageError


def append(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add rows to a CSV file and wait until the disk has them."""
    if not rows:
        return
    is_new = not path.exists()
    if not is_new and path.read_text().partition("\n")[0] != ",".join(rows[0]):
        raise UsageError(f"{path} has other columns than this version writes: take a new folder.")
    torn = not is_new and not path.read_bytes().endswith(b"\n")
    with path.open("a", newline="") as file:
        if torn:
            file.write("\n")
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerows(rows)
    sync(path)


def read(path: Path, text: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of a CSV file that `append` wrote, without those that were cut off."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [
        {key: value if key in text else _number(value) for key, value in row.items()}
        for row in rows
        if None not in row.values()
    ]


def _number(text: str) -> int | float | None:
    if not text:
        return None
    return int(text) if text.lstrip("-").isdigit() else float(text)
