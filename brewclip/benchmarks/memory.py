"""Peak memory of Python code, run in a separate process and measured from outside."""

import subprocess
import sys
import time
from dataclasses import dataclass

import psutil

_POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Peak:
    """Result of a watched process.

    Attributes:
        rss_bytes: largest observed resident memory.
        seconds: duration.
        finished: False if it was ended at its time limit.
        output: its stdout.
    """

    rss_bytes: int
    seconds: float
    finished: bool
    output: str


def watch(statement: str, *, max_seconds: float = 0.0) -> Peak:
    """Run Python code in a fresh process and return its peak of resident memory.

    Args:
        statement: the code.
        max_seconds: time limit, after which the process is killed; 0 for none.

    Raises:
        RuntimeError: if it fails.
    """
    started, peak = time.monotonic(), 0
    with subprocess.Popen(
        [sys.executable, "-c", statement], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        watched, finished = psutil.Process(process.pid), True
        while process.poll() is None:
            try:
                peak = max(peak, watched.memory_info().rss)
            except psutil.NoSuchProcess:
                break
            if max_seconds and time.monotonic() - started > max_seconds:
                process.kill()
                finished = False
                break
            time.sleep(_POLL_SECONDS)
        output, errors = process.communicate()
    if finished and process.returncode:
        raise RuntimeError(f"the watched process failed: {errors.strip()[-2000:]}")
    return Peak(peak, time.monotonic() - started, finished, output)
