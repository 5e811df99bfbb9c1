"""Records of a sweep, mirrored to storage so that any machine can resume it.

Storage is written through `brewclip.data.storage`, with its retries: an outage delays the copy, not the sweep.
"""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from brewclip.data.storage import Storage
from brewclip.errors import ObjectMissing, UserError


class FileMirror:
    """Copies an append-only file to storage in the background whenever it has grown, until `close`.

    Args:
        storage: holds the copy, under the same name.
        path: the file.
        every_seconds: time between two checks.
        check: called before each copy; an error that it raises prevents the copy.
    """

    def __init__(
        self, storage: Storage, path: Path, every_seconds: float = 2.0, check: Callable[[], None] = lambda: None
    ) -> None:
        self.storage, self.path, self.every_seconds, self.check = storage, path, every_seconds, check
        self._copied_bytes = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="sweep-records", daemon=True)

    def fetch(self) -> None:
        """Copy the file from storage, if it is there."""
        try:
            data = self.storage.read(self.path.name)
        except ObjectMissing:
            return
        self.path.write_bytes(data[: data.rfind(b"\n") + 1])  # the copy may end inside a line
        self._copied_bytes = self.path.stat().st_size

    def start(self) -> None:
        """Start copying in the background."""
        self._thread.start()

    def close(self) -> None:
        """Copy what was appended last and stop; raise `StorageError` if storage cannot be written."""
        self._done.set()
        self._thread.join()
        self.copy()

    def copy(self) -> None:
        """Copy the file if it has grown."""
        data = self.path.read_bytes() if self.path.exists() else b""
        if len(data) > self._copied_bytes:
            self.check()
            self.storage.write(self.path.name, data)
            self._copied_bytes = len(data)

    def _watch(self) -> None:
        while not self._done.wait(self.every_seconds):
            try:
                self.copy()
            except UserError as error:
                print(f"sweep: its records are not copied, retrying: {error}", flush=True)


def read_json(storage: Storage, name: str) -> Any:
    """Return the content of a JSON object, None if there is none."""
    try:
        return json.loads(storage.read(name))
    except ObjectMissing:
        return None
