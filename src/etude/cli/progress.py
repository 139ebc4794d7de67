"""A progress bar with the time left; plain lines every tenth when nobody watches a terminal."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from types import TracebackType

from tqdm import tqdm


class Progress:
    """Counts up to `total` under a `title`: a bar on a terminal, ten lines in a log file."""

    def __init__(self, title: str, total: int, unit: str = "step") -> None:
        self._tty = sys.stderr.isatty()
        self._title, self._total, self._unit = title, total, unit
        self._done, self._shown, self._start = 0, 0, time.monotonic()
        self._bar = tqdm(
            total=total,
            desc=title,
            unit=f" {unit}s",
            unit_scale=True,
            disable=not self._tty,
            ncols=100,
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with suppress(OSError):
            self._bar.close()

    def to(self, done: int, note: str = "") -> None:
        """Show that `done` of the total are finished, with a short note behind the bar."""
        with suppress(OSError):
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(done - self._done)
        self._done = done
        tenth = 10 * done // max(self._total, 1)
        if not self._tty and tenth > self._shown:
            self._shown = tenth
            elapsed = time.monotonic() - self._start
            left = elapsed / done * (self._total - done)
            text = f"{self._title}: {done:,} of {self._total:,} {self._unit}s"
            say(f"{text}, {elapsed:.0f} s, {max(left, 0):.0f} s left {note}".rstrip())


def say(text: str) -> None:
    """Write a line for whoever watches; if they have gone, and the terminal with them, go on."""
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)
