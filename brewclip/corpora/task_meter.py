"""How far tasks are on Ray's workers, and whether they are to go on: one small actor that the driver and they share."""

import contextlib
from collections.abc import Sequence
from typing import Any

_ANSWER_SECONDS = 1.0
_STOP_SECONDS = 20.0  # within which workers leave their tasks


class Stopped(Exception):
    """The driver wants no more of a task."""


class TaskMeter:
    """Made by the driver, and sent to the workers with their tasks.

    Workers ask whether they are to stop, since `ray.cancel` would raise KeyboardInterrupt anywhere on them: within a
    callback of libsndfile it is printed and forgotten, and the recording is truncated without notice.
    """

    def __init__(self) -> None:
        import ray

        self._counts: Any = ray.remote(_Counts).options(num_cpus=0, max_restarts=-1).remote()

    def report(self, name: str, count: int) -> None:
        """Note on a worker how far a task is.

        Raises:
            Stopped: if the driver wants no more of it.
        """
        import ray

        with contextlib.suppress(ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
            if ray.get(self._counts.set.remote(name, count), timeout=_ANSWER_SECONDS):
                raise Stopped

    def counts(self, names: Sequence[str]) -> list[int] | None:
        """Return how far tasks are, 0 for one that has not begun; None if that is not known just now."""
        import ray

        try:
            return ray.get(self._counts.get.remote(list(names)), timeout=_ANSWER_SECONDS)
        except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
            return None

    def end(self, references: Sequence[Any]) -> None:
        """Let workers leave the tasks that still run, so that they remove their temporary files."""
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
