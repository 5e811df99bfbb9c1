"""The state of a sweep: Tune writes it to a local folder, and it is kept in storage, where any machine finds it.

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
# Tune replaces its files, not always at once: one that changed a moment ago may be half of one.
_SETTLED_SECONDS = 1.0


class StateMirror:
    """Copies files of a folder to storage when they have changed, until `close`.

    Args:
        storage: where the state is kept.
        folder: what Tune writes to.
        every_seconds: time between two looks.
    """

    def __init__(self, storage: Storage, folder: Path, every_seconds: float = 2.0) -> None:
        self.storage, self.folder, self.every_seconds = storage, folder, every_seconds
        self._known: dict[str, tuple[int, int]] = {}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="sweep-state", daemon=True)

    def fetch(self) -> None:
        """Copy what is in storage to the folder."""
        for name in self.storage.list_names():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            self.storage.download(name, path)
            self._known[name] = _stamp(path)

    def start(self) -> None:
        """Begin to copy in the background."""
        self._thread.start()

    def close(self) -> None:
        """Copy what is left and stop; raises `StorageError` if it cannot be written."""
        self._done.set()
        self._thread.join()
        self.copy(settled_seconds=0.0)

    def copy(self, settled_seconds: float = _SETTLED_SECONDS) -> None:
        """Copy the files that have changed, but not within the last seconds."""
        for path in sorted(path for path in self.folder.rglob("*") if path.is_file()):
            name = path.relative_to(self.folder).as_posix()
            try:
                stamp = _stamp(path)
                # Our own notes only grow, and may grow all the time.
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
                print(f"sweep: its state is not copied, it will be tried again: {error}", flush=True)


def append_result(folder: Path, trial_id: str, step: int, value: float) -> None:
    """Note an evaluation of a trial."""
    with open(folder / RESULTS, "a") as file:
        file.write(json.dumps({"trial": trial_id, "step": step, "value": value}) + "\n")


def append_problem(folder: Path, trial_id: str, problem: str) -> None:
    """Note why a trial failed."""
    with open(folder / PROBLEMS, "a") as file:
        file.write(json.dumps({"trial": trial_id, "problem": problem}) + "\n")


def read_problems(folder: Path) -> dict[str, str]:
    """Return why trials failed."""
    return {row["trial"]: row["problem"] for row in _read_notes(folder / PROBLEMS)}


def read_results(folder: Path) -> dict[str, dict[int, float]]:
    """Return the evaluations of each trial by step, in order; one that came twice counts once."""
    results: dict[str, dict[int, float]] = {}
    for row in _read_notes(folder / RESULTS):
        results.setdefault(row["trial"], {})[row["step"]] = row["value"]
    return {trial: dict(sorted(rows.items())) for trial, rows in results.items()}


def _read_notes(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a file of notes; one that was cut while it was written is not there."""
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
