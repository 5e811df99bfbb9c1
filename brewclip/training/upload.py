"""Background checkpoint upload: no step waits for storage."""

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass

from brewclip.checkpoints.checkpoint import save_checkpoint
from brewclip.checkpoints.facts import Checkpoint
from brewclip.data.storage import Storage


@dataclass(frozen=True)
class PendingCheckpoint:
    """A checkpoint on its way to storage."""

    checkpoint: Checkpoint
    best: bool


class CheckpointSaver:
    """Uploads checkpoints one after the other in the background, so that no step waits for storage."""

    def __init__(self, storage: Storage, keep: int, fence: Callable[[], None] = lambda: None) -> None:
        self.storage, self.keep, self.fence = storage, keep, fence
        self._waiting: queue.Queue[PendingCheckpoint | None] = queue.Queue(maxsize=2)
        self._problem: BaseException | None = None
        self._thread = threading.Thread(target=self._upload, name="checkpoint", daemon=True)
        self._thread.start()

    def put(self, saved: PendingCheckpoint) -> None:
        """Queue a checkpoint; waits while two are on their way.

        Raises:
            BaseException: what an earlier upload raised, whatever it is.
        """
        self._raise_problem()
        self._waiting.put(saved)

    def wait(self) -> None:
        """Return when what was handed over so far is written.

        Raises:
            BaseException: what an upload raised, whatever it is.
        """
        self._waiting.join()
        self._raise_problem()

    def close(self) -> None:
        """Wait until everything is written.

        Raises:
            BaseException: what an upload raised, whatever it is.
        """
        if self._thread.is_alive():
            self._waiting.put(None)
            self._thread.join()
        self._raise_problem()

    def _raise_problem(self) -> None:
        if self._problem is not None:
            raise self._problem

    def _upload(self) -> None:
        """Upload until `close`; after a failure the queue is emptied, so that nobody waits for room in it."""
        while (saved := self._waiting.get()) is not None:
            try:
                if self._problem is None:
                    save_checkpoint(self.storage, saved.checkpoint, best=saved.best, keep=self.keep, fence=self.fence)
            except BaseException as error:  # the thread must outlive it: it is raised in the loop
                self._problem = error
            finally:
                self._waiting.task_done()
