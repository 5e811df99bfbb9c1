"""The request to stop a run: an object in storage that the driver writes and rank 0 watches."""

import contextlib
import threading

from brewclip.data.storage import Storage, exists
from brewclip.errors import StorageError

STOP = "stop"


class StopFlag(threading.Event):
    """Set once the object `stop` exists in the folder of the run."""

    def __init__(self, storage: Storage, every_seconds: float = 1.0) -> None:
        super().__init__()
        self._storage, self._every_seconds = storage, every_seconds
        threading.Thread(target=self._watch, name="stop-flag", daemon=True).start()

    def _watch(self) -> None:
        while not self.wait(self._every_seconds):
            with contextlib.suppress(StorageError):
                if exists(self._storage, STOP):
                    self.set()
