"""Base class of the local servers: start, wait until ready, stop, restart on the same port."""

import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from brewclip.local.processes import SupervisedProcess, wait_until_ready


class Server:
    """A server on a loopback port: a context manager that can also be restarted.

    Subclasses define `name`, `start_timeout_seconds`, `url`, `launch` and `is_ready`. One whose program may end by
    itself on a starved machine sets `num_starts`.
    """

    name: str
    start_timeout_seconds: float
    num_starts = 1

    def __init__(self, log_directory: Path) -> None:
        self.log_directory = Path(log_directory).absolute()
        self.process: SupervisedProcess | None = None
        self._starts_left = 0

    @property
    def url(self) -> str:
        """The server's URL; unchanged by a restart."""
        raise NotImplementedError

    @property
    def log_path(self) -> Path:
        """The file that gets the server's output."""
        return self.log_directory / f"{self.name}.log"

    def launch(self) -> SupervisedProcess:
        """Start the process without waiting for it."""
        raise NotImplementedError

    def is_ready(self) -> bool:
        """Return whether the server answers."""
        raise NotImplementedError

    def begin_start(self) -> None:
        """Start the server without waiting until it answers."""
        if self.process is not None:
            raise RuntimeError(f"{self.name} was started already")
        self.log_directory.mkdir(parents=True, exist_ok=True)
        self._starts_left = self.num_starts - 1
        self.process = self.launch()

    def finish_start(self) -> None:
        """Wait until the server answers; stop it if it does not.

        Raises:
            RuntimeError: if the server ended by itself at each start; the message quotes the end of its log.
            TimeoutError: if it does not answer.
        """
        what = f"{self.name} (log: {self.log_path})"
        try:
            wait_until_ready(self._answers, what=what, timeout_seconds=self.start_timeout_seconds)
        except BaseException:
            self.stop()
            raise

    def start(self) -> None:
        """Start the server and wait until it answers; raises as `finish_start` does."""
        self.begin_start()
        self.finish_start()

    def begin_stop(self) -> None:
        """Ask the server to end, without waiting."""
        if self.process is not None:
            self.process.ask_to_stop()

    def stop(self) -> None:
        """Stop the server with all its processes; do nothing if it does not run."""
        if self.process is not None:
            self.process.stop()
            self.process = None

    def _answers(self) -> bool:
        process = self.process
        if process is not None and process.exit_code is not None:
            ended = f"{self.name} ended with code {process.exit_code} (log: {self.log_path})"
            if not self._starts_left:
                raise RuntimeError(f"{ended}: {process.last_lines()}")
            self._starts_left -= 1
            print(f"services: {ended} while it started, starting it once more", file=sys.stderr, flush=True)
            self.process = self.launch()
        return self.is_ready()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
