"""One program at a time trains a run: a small object beside it that changes while its program lives.

No clocks are compared: whoever finds the object watches whether it changes. A program that was killed leaves one that
does not, and costs the next one `STALE_SECONDS`.
"""

import contextlib
import json
import os
import platform
import secrets
import threading
import time
from collections.abc import Iterator

from brewclip.data.storage import Storage
from brewclip.errors import ObjectMissing, StorageError, UserError

LEASE = "lease.json"
BEAT_SECONDS = 2.0
STALE_SECONDS = 10.0


def check_free(storage: Storage, run_name: str) -> None:
    """Return when no living program trains the run; a lease that was left behind is removed.

    Raises:
        UserError: if one does.
    """
    before = _read(storage)
    if not before:
        return
    print(f"run {run_name!r} was not ended in order: looking whether its program lives", flush=True)
    deadline = time.monotonic() + STALE_SECONDS
    while time.monotonic() < deadline:
        time.sleep(BEAT_SECONDS / 2)
        now = _read(storage)
        if not now:
            return
        if now != before:
            raise _taken(run_name, now)
    storage.delete(LEASE)


@contextlib.contextmanager
def holding_lease(storage: Storage, run_name: str) -> Iterator[None]:
    """Keep other programs from training the run; call `check_free` first.

    Raises:
        UserError: if another program has begun in the same moment.
    """
    owner, done = f"{platform.node()}, process {os.getpid()}, {secrets.token_hex(4)}", threading.Event()
    _write(storage, owner, 0)
    time.sleep(BEAT_SECONDS / 2)
    now = _read(storage)
    if now and json.loads(now)["owner"] != owner:
        raise _taken(run_name, now)
    beats = threading.Thread(target=_keep_alive, args=(storage, owner, done), name="lease", daemon=True)
    beats.start()
    try:
        yield
    finally:
        done.set()
        beats.join()
        with contextlib.suppress(StorageError):
            storage.delete(LEASE)


def _keep_alive(storage: Storage, owner: str, done: threading.Event) -> None:
    beat = 0
    while not done.wait(BEAT_SECONDS):
        beat += 1
        with contextlib.suppress(StorageError):  # nobody can take it while storage is away
            _write(storage, owner, beat)


def _write(storage: Storage, owner: str, beat: int) -> None:
    storage.write(LEASE, json.dumps({"owner": owner, "beat": beat}).encode())


def _read(storage: Storage) -> bytes:
    try:
        return storage.read(LEASE)
    except ObjectMissing:
        return b""


def _taken(run_name: str, lease: bytes) -> UserError:
    owner = json.loads(lease)["owner"]
    return UserError(
        f"run {run_name!r} is being trained by another program ({owner}): wait for its end, stop it, or choose "
        "another --run.name"
    )
