"""The lease of a run: one driver trains it at a time, and one that lost its lease changes nothing any more.

Below the folder of the run, `lease/00000007.json` names the driver that holds the run and the epoch of its lease. It is
created by a conditional write, so of two drivers that start together one is refused. Where the store ignores the
condition (rclone's server does), the last writer holds the lease: both read it again after `SETTLE_SECONDS`.

The holder rewrites its file every `BEAT_SECONDS`. No clocks are compared: another driver watches whether the file
changes, and after `STALE_SECONDS` without a change creates the next epoch. The epoch is a fencing token: a driver that
was stopped for longer finds a later epoch, and its rank 0 checks before each pointer that it writes. (Between the check
and the write is a moment that object storage cannot close; the pointer then names a whole checkpoint of the same run.)
"""

import contextlib
import json
import os
import platform
import secrets
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

from brewclip.data.storage import Storage
from brewclip.errors import ObjectMissing, StorageError, UserError

FOLDER = "lease"
BEAT_SECONDS = 2.0
SETTLE_SECONDS = 1.0
STALE_SECONDS = 10.0


class LeaseLost(UserError):
    """Another driver took the run over."""


@dataclass(frozen=True)
class Fence:
    """What the workers of a driver check before they change the run.

    Attributes:
        run_name: for messages.
        epoch: of the driver's lease.
        owner: of it.
    """

    run_name: str
    epoch: int
    owner: str

    @property
    def name(self) -> str:
        """Object that holds the lease."""
        return f"{FOLDER}/{self.epoch:08d}.json"

    def check(self, storage: Storage) -> None:
        """Return if the lease is still held.

        Raises:
            LeaseLost: if another driver took the run over.
            StorageError: if storage does not answer.
        """
        found = _leases(storage)
        owner = _owner(_read(storage, found[-1])) if found else "a driver that has ended"
        if not found or found[-1] != self.name or owner != self.owner:
            raise LeaseLost(
                f"run {self.run_name!r} was taken over by another program ({owner}) while this one was stopped or cut "
                "off: this one ends, and its steps since the last checkpoint are lost"
            )

    def is_held(self, storage: Storage) -> bool:
        """Return whether the lease is still held; during an outage of storage it is."""
        try:
            self.check(storage)
        except StorageError:
            return True
        except LeaseLost:
            return False
        return True


@contextlib.contextmanager
def holding_lease(storage: Storage, run_name: str) -> Iterator[Fence]:
    """Hold the lease of a run; removed at the end.

    Raises:
        UserError: if another driver holds it.
    """
    fence = _take(storage, run_name)
    done = threading.Event()
    beats = threading.Thread(target=_keep_alive, args=(storage, fence, done), name="lease", daemon=True)
    beats.start()
    try:
        yield fence
    finally:
        done.set()
        beats.join()
        with contextlib.suppress(StorageError):
            if fence.is_held(storage):
                storage.delete(fence.name)


def _take(storage: Storage, run_name: str) -> Fence:
    before = _leases(storage)
    if before:
        _wait_until_stale(storage, run_name, before[-1])
    epoch = 1 + max((int(name[len(FOLDER) + 1 : -len(".json")]) for name in before), default=0)
    fence = Fence(run_name, epoch, f"{platform.node()}, process {os.getpid()}, {secrets.token_hex(4)}")
    created = storage.create(fence.name, _content(fence, 0))
    if not created and _owner(_read(storage, fence.name)) != fence.owner:  # ours, if the answer to it was lost
        raise _taken(run_name, _read(storage, fence.name))
    time.sleep(SETTLE_SECONDS)
    now = _leases(storage)
    if not now or now[-1] != fence.name or _owner(_read(storage, now[-1])) != fence.owner:
        raise _taken(run_name, _read(storage, now[-1]) if now else b"")
    for name in before:
        storage.delete(name)
    return fence


def _wait_until_stale(storage: Storage, run_name: str, name: str) -> None:
    """Return when nothing has changed the lease for `STALE_SECONDS`, or it is gone."""
    print(f"run {run_name!r} did not end cleanly: checking whether its program is alive", flush=True)
    before, deadline = _read(storage, name), time.monotonic() + STALE_SECONDS
    while time.monotonic() < deadline:
        time.sleep(BEAT_SECONDS / 2)
        leases = _leases(storage)
        if not leases:
            return
        now = _read(storage, leases[-1])
        if leases[-1] != name or now != before:
            raise _taken(run_name, now)


def _keep_alive(storage: Storage, fence: Fence, done: threading.Event) -> None:
    beat = 0
    while not done.wait(BEAT_SECONDS):
        beat += 1
        with contextlib.suppress(StorageError):  # nobody can take it while storage is away
            if not fence.is_held(storage):
                return
            storage.write(fence.name, _content(fence, beat))


def _content(fence: Fence, beat: int) -> bytes:
    return json.dumps({"owner": fence.owner, "beat": beat}).encode()


def _leases(storage: Storage) -> list[str]:
    """Return the leases of a run, by epoch."""
    names = storage.list_names(f"{FOLDER}/")
    return [name for name in names if name.endswith(".json") and name[len(FOLDER) + 1 : -len(".json")].isdigit()]


def _read(storage: Storage, name: str) -> bytes:
    try:
        return storage.read(name)
    except ObjectMissing:
        return b""


def _owner(lease: bytes) -> str:
    try:
        return str(json.loads(lease)["owner"])
    except (ValueError, TypeError, KeyError):
        return "unknown"


def _taken(run_name: str, lease: bytes) -> UserError:
    return UserError(
        f"run {run_name!r} is being trained by another program ({_owner(lease)}): wait for its end, stop it, or choose "
        "another --run.name"
    )
