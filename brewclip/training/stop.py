"""Requests to stop a run: the object `stop` that the driver writes, and the loss of the driver's lease."""

import contextlib
import itertools
import threading

from brewclip.data.storage import Storage, exists
from brewclip.errors import StorageError
from brewclip.training.lease import Fence

STOP = "stop"
_FENCE_EVERY_SECONDS = 5


class StopFlag(threading.Event):
    """Set once the object `stop` exists in the folder of the run, or another driver has taken the run over."""

    def __init__(self, storage: Storage, fence: Fence | None = None, every_seconds: float = 1.0) -> None:
        super().__init__()
        self._storage, self._fence, self._every_seconds = storage, fence, every_seconds
        threading.Thread(target=self._watch, name="stop-flag", daemon=True).start()

    def _watch(self) -> None:
        for number in itertools.count(1):
            if self.wait(self._every_seconds):
                return
            with contextlib.suppress(StorageError):
                fence = self._fence if number % _FENCE_EVERY_SECONDS == 0 else None
                if exists(self._storage, STOP) or (fence is not None and not fence.is_held(self._storage)):
                    self.set()
