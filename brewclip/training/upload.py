"""Checkpoints on their way to storage, in the background: no step waits for an upload."""

import queue
import threading
from dataclasses import dataclass

from brewclip.config import UserError
from brewclip.data.storage import Storage
from brewclip.training.checkpoint import Checkpoint, save_checkpoint


@dataclass(frozen=True)
class PendingCheckpoint:
    """A checkpoint on its way to storage."""

    checkpoint: Checkpoint
    best: bool


class CheckpointSaver:
    """Uploads checkpoints one after the other in the background, so that no step waits for storage."""

    def __init__(self, storage: Storage, keep: int) -> None:
        self.storage, self.keep = storage, keep
        self._waiting: queue.Queue[PendingCheckpoint | None] = queue.Queue(maxsize=2)
        self._problem: UserError | None = None
        self._thread = threading.Thread(target=self._upload, name="checkpoint", daemon=True)
        self._thread.start()

    def put(self, saved: PendingCheckpoint) -> None:
        """Queue a checkpoint; waits while two are on their way.

        Raises:
            UserError: if an earlier one could not be written.
        """
        if self._problem is not None:
            raise self._problem
        self._waiting.put(saved)

    def wait(self) -> None:
        """Return when what was handed over so far is written, or cannot be."""
        self._waiting.join()

    def close(self) -> None:
        """Wait until everything is written.

        Raises:
            UserError: if something could not be written.
        """
        if self._thread.is_alive():
            self._waiting.put(None)
            self._thread.join()
        if self._problem is not None:
            raise self._problem

    def _upload(self) -> None:
        while (saved := self._waiting.get()) is not None:
            try:
                if self._problem is None:
                    save_checkpoint(self.storage, saved.checkpoint, best=saved.best, keep=self.keep)
            except UserError as error:
                self._problem = error
            finally:
                self._waiting.task_done()
