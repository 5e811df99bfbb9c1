"""Progress and stopping of tasks on Ray workers, through one small actor shared with the driver."""

import contextlib
from collections.abc import Sequence
from typing import Any

_ANSWER_SECONDS = 1.0
_STOP_SECONDS = 20.0  # within which workers end their tasks


class Stopped(Exception):
    """The driver stopped a task."""


class TaskMeter:
    """Handle to the actor; created by the driver and sent to the workers with their tasks.

    Workers ask whether to stop, since `ray.cancel` would raise KeyboardInterrupt anywhere on them: within a
    callback of libsndfile it is printed and forgotten, and the recording is truncated without notice.
    """

    def __init__(self) -> None:
        import ray

        self._counts: Any = ray.remote(_Counts).options(num_cpus=0, max_restarts=-1).remote()

    def report(self, name: str, count: int) -> None:
        """Report the progress of a task from a worker.

        Raises:
            Stopped: if the driver stopped the tasks.
        """
        import ray

        with contextlib.suppress(ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
            if ray.get(self._counts.set.remote(name, count), timeout=_ANSWER_SECONDS):
                raise Stopped

    def counts(self, names: Sequence[str]) -> list[int] | None:
        """Return the progress of tasks, 0 for one that has not started; None if the actor does not answer."""
        import ray

        try:
            return ray.get(self._counts.get.remote(list(names)), timeout=_ANSWER_SECONDS)
        except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
            return None

    def end(self, references: Sequence[Any]) -> None:
        """Stop the running tasks, so that workers remove their temporary files."""
        import ray

        if references:
            self._counts.stop.remote()
            ray.wait(list(references), num_returns=len(references), timeout=_STOP_SECONDS)
        ray.kill(self._counts)


class _Counts:
    """The actor."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._stopped = False

    def set(self, name: str, count: int) -> bool:
        self._counts[name] = count
        return self._stopped

    def get(self, names: list[str]) -> list[int]:
        return [self._counts.get(name, 0) for name in names]

    def stop(self) -> None:
        self._stopped = True
