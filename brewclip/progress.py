"""Progress of long work as plain lines for terminals and job logs: count, rate, time left."""

import sys
import time
from typing import TextIO

_BAR_WIDTH, _REDRAWN_SECONDS = 24, 0.2


class ProgressReporter:
    """Prints a line now and then, and one at the end.

    Args:
        label: what is being done.
        total: amount of work, in `unit`.
        unit: what is counted, plural.
        every_seconds: minimum time between two lines.
        stream: where the lines go; stdout by default. On a terminal that is given, a bar is redrawn instead.
    """

    def __init__(
        self, label: str, total: int, unit: str, every_seconds: float = 10.0, stream: TextIO | None = None
    ) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done = 0
        self._stream, self._redraws = stream, stream is not None and stream.isatty()
        self._every_seconds = _REDRAWN_SECONDS if self._redraws else every_seconds
        self._start = self._printed = time.monotonic()

    def advance(self, count: int = 1, note: str = "") -> None:
        """Count finished work; `note` is added to the line if one is printed."""
        self.done += count
        now = time.monotonic()
        if not self.done:
            return  # there is no rate yet
        if now - self._printed < self._every_seconds and self.done < self.total:
            return
        self._printed = now
        seconds = max(now - self._start, 1e-9)
        rate = self.done / seconds
        if self.done < self.total:
            left = f"{describe_seconds((self.total - self.done) / max(rate, 1e-9))} left"
        else:
            left = f"took {describe_seconds(seconds)}"
        line = f"{self.label}: {self.done}/{self.total} {self.unit}, {rate:.3g}/s, {left}"
        line = f"{line}{', ' + note if note else ''}"
        if self._redraws:
            full = round(_BAR_WIDTH * min(1.0, self.done / max(1, self.total)))
            line = f"\r\x1b[K[{'#' * full}{'.' * (_BAR_WIDTH - full)}] {line}"
        end = "" if self._redraws and self.done < self.total else "\n"
        print(line, file=self._stream or sys.stdout, end=end, flush=True)


def describe_seconds(seconds: float) -> str:
    """Return a readable duration: `42 s`, `3 min 5 s`, `2 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
