"""What the embedded servers have in common: started, awaited, stopped and started again on the same port."""

from pathlib import Path
from types import TracebackType
from typing import Self

from brewclip.local.processes import SupervisedProcess, wait_until_ready


class Server:
    """A server on a loopback port: a context manager that can also be stopped and started again.

    Subclasses give `name`, `start_timeout_seconds`, `url`, `launch` and `is_ready`.
    """

    name: str
    start_timeout_seconds: float

    def __init__(self, log_directory: Path) -> None:
        self.log_directory = Path(log_directory).absolute()
        self.process: SupervisedProcess | None = None

    @property
    def url(self) -> str:
        """Where it answers; the same after another start."""
        raise NotImplementedError

    @property
    def log_path(self) -> Path:
        """The file that gets the server's output."""
        return self.log_directory / f"{self.name}.log"

    def launch(self) -> SupervisedProcess:
        """Starts the process without waiting for it."""
        raise NotImplementedError

    def is_ready(self) -> bool:
        """Returns True when the server answers."""
        raise NotImplementedError

    def begin_start(self) -> None:
        """Starts the server without waiting until it answers."""
        if self.process is not None:
            raise RuntimeError(f"{self.name} was started already")
        self.log_directory.mkdir(parents=True, exist_ok=True)
        self.process = self.launch()

    def finish_start(self) -> None:
        """Returns when the server answers; a server that does not is ended.

        Raises:
            RuntimeError: the server ended by itself; the end of its log is quoted.
            TimeoutError: it does not answer.
        """
        what = f"{self.name} (log: {self.log_path})"
        try:
            wait_until_ready(self._answers, what=what, timeout_seconds=self.start_timeout_seconds)
        except BaseException:
            self.stop()
            raise

    def start(self) -> None:
        """Starts the server and returns when it answers; raises what `finish_start` raises."""
        self.begin_start()
        self.finish_start()

    def begin_stop(self) -> None:
        """Begins to end the server without waiting."""
        if self.process is not None:
            self.process.ask_to_stop()

    def stop(self) -> None:
        """Ends the server with all its processes; nothing happens when it does not run."""
        if self.process is not None:
            self.process.stop()
            self.process = None

    def _answers(self) -> bool:
        process = self.process
        if process is not None and process.exit_code is not None:
            ended = f"{self.name} ended with code {process.exit_code} (log: {self.log_path})"
            raise RuntimeError(f"{ended}: {process.last_lines()}")
        return self.is_ready()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
