"""State of a sweep: Tune's local folder, mirrored to storage so that any machine can resume the sweep.

Storage is written through `brewclip.data.storage`, with its retries: an outage delays the copy, not the sweep.
"""

import json
import threading
import time
from pathlib import Path
from typing import Any

from brewclip.data.storage import Storage
from brewclip.errors import ObjectMissing, UserError

RESULTS, PROBLEMS = "results.jsonl", "problems.jsonl"
# Tune does not always replace its files atomically: one that has just changed may be incomplete.
_SETTLED_SECONDS = 1.0


class StateMirror:
    """Copies changed files of a folder to storage in the background, until `close`.

    Args:
        storage: holds the state.
        folder: that Tune writes to.
        every_seconds: time between two checks.
    """

    def __init__(self, storage: Storage, folder: Path, every_seconds: float = 2.0) -> None:
        self.storage, self.folder, self.every_seconds = storage, folder, every_seconds
        self._known: dict[str, tuple[int, int]] = {}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="sweep-state", daemon=True)

    def fetch(self) -> None:
        """Copy the state from storage to the folder."""
        for name in self.storage.list_names():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            self.storage.download(name, path)
            self._known[name] = _stamp(path)

    def start(self) -> None:
        """Start copying in the background."""
        self._thread.start()

    def close(self) -> None:
        """Copy remaining changes and stop; raise `StorageError` if storage cannot be written."""
        self._done.set()
        self._thread.join()
        self.copy(settled_seconds=0.0)

    def copy(self, settled_seconds: float = _SETTLED_SECONDS) -> None:
        """Copy changed files, except those changed within the last `settled_seconds`."""
        for path in sorted(path for path in self.folder.rglob("*") if path.is_file()):
            name = path.relative_to(self.folder).as_posix()
            try:
                stamp = _stamp(path)
                # The JSONL records are append-only, and may grow all the time.
                is_settled = path.suffix == ".jsonl" or time.time() - stamp[0] / 1e9 >= settled_seconds
                if stamp == self._known.get(name) or not is_settled:
                    continue
                self.storage.upload(path, name)
            except FileNotFoundError:  # Tune has removed it meanwhile
                continue
            self._known[name] = stamp

    def _watch(self) -> None:
        while not self._done.wait(self.every_seconds):
            try:
                self.copy()
            except UserError as error:
                print(f"sweep: its state is not copied, retrying: {error}", flush=True)


def append_result(folder: Path, trial_id: str, step: int, value: float) -> None:
    """Append an evaluation of a trial."""
    with open(folder / RESULTS, "a") as file:
        file.write(json.dumps({"trial": trial_id, "step": step, "value": value}) + "\n")


def append_problem(folder: Path, trial_id: str, problem: str) -> None:
    """Append the cause of a failed trial."""
    with open(folder / PROBLEMS, "a") as file:
        file.write(json.dumps({"trial": trial_id, "problem": problem}) + "\n")


def read_problems(folder: Path) -> dict[str, str]:
    """Return the causes of failed trials by trial id."""
    return {row["trial"]: row["problem"] for row in _read_lines(folder / PROBLEMS)}


def read_results(folder: Path) -> dict[str, dict[int, float]]:
    """Return the evaluations of each trial by step, in order; duplicates count once."""
    results: dict[str, dict[int, float]] = {}
    for row in _read_lines(folder / RESULTS):
        results.setdefault(row["trial"], {})[row["step"]] = row["value"]
    return {trial: dict(sorted(rows.items())) for trial, rows in results.items()}


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the records of a JSONL file, without an incomplete last line."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def read_json(storage: Storage, name: str) -> Any:
    """Return the content of a JSON object, None if there is none."""
    try:
        return json.loads(storage.read(name))
    except ObjectMissing:
        return None


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size
