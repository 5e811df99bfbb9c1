"""Scan of tars over Ray, each read once: its samples, their positions, and whether the tar can be adopted.

The scan of a tar is stored below `parts/` of the destination until the corpus is complete, so that an interrupted run
resumes with the remaining tars. A compressed tar is stored uncompressed below `tars/`.
"""

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import orjson

from brewclip.cluster import available, connect
from brewclip.containers.digest import Digest, make_digest
from brewclip.containers.samples import Rules, SampleFinder
from brewclip.containers.sources import SourceTar, open_object
from brewclip.corpora.task_meter import TaskMeter
from brewclip.data.storage import Storage, open_storage
from brewclip.data.stream import one_ahead
from brewclip.data.tars import DamagedTar, TarBytes, is_compressed, iter_decompressed, iter_tar
from brewclip.errors import ObjectMissing, UserError
from brewclip.progress import ProgressReporter

_PIECE_BYTES = 8 * 2**20


@dataclass(frozen=True)
class ScanTask:
    """A tar to be read.

    Attributes:
        tar: where it is.
        dest: URL of the corpus.
        rules: naming rules of its members.
    """

    tar: SourceTar
    dest: str
    rules: Rules

    @property
    def plan(self) -> str:
        """Hash of all that determines the result, except the bytes of the tar."""
        return hashlib.sha256(repr((self.tar.url, self.tar.size_bytes, self.rules)).encode()).hexdigest()[:16]

    @property
    def part_name(self) -> str:
        """Name of the object that stores the scan."""
        return f"parts/{self.plan}.jsonl"


def scan_tars(label: str, tasks: list[ScanTask]) -> list[Digest]:
    """Scan all tars over the CPUs of the cluster; reuse the scans of an earlier run.

    Returns:
        Digests, in the order of the tasks.

    Raises:
        UserError: if a file is no tar.
    """
    connect()
    import ray

    meter = TaskMeter()
    remote = ray.remote(_scan_on_worker).options(max_retries=3)
    progress = ProgressReporter(label, max(1, sum(_megabytes(task) for task in tasks)), "MB")
    found: dict[int, Digest] = {}
    num_done_bytes = 0
    pending = iter(enumerate(tasks))
    waiting: dict[Any, int] = {}
    try:
        while len(found) < len(tasks):
            while len(waiting) < 2 * max(1, available("CPU")) and (following := next(pending, None)):
                waiting[remote.remote(following[1], meter)] = following[0]
            done, _ = ray.wait(list(waiting), timeout=1.0)
            for one in done:
                try:
                    number = waiting.pop(one)
                    found[number] = ray.get(one)
                    num_done_bytes += tasks[number].tar.size_bytes
                except ray.exceptions.RayTaskError as error:
                    if isinstance(error.cause, UserError):
                        raise error.cause from None
                    raise
            running = sum(meter.counts([tasks[number].plan for number in waiting.values()]) or [0])
            read_megabytes = min((num_done_bytes + running) // 10**6, progress.total - 1)
            whole = progress.total if len(found) == len(tasks) else read_megabytes
            if whole > progress.done:
                progress.advance(whole - progress.done, f"{len(found)} of {len(tasks)} tars")
    finally:
        meter.end(list(waiting))
    return [found[number] for number in range(len(tasks))]


def _megabytes(task: ScanTask) -> int:
    return task.tar.size_bytes // 10**6


def _scan_on_worker(task: ScanTask, meter: TaskMeter) -> Digest:
    num_bytes = 0

    def advance(count: int) -> None:
        nonlocal num_bytes
        num_bytes += count
        meter.report(task.plan, num_bytes)

    return scan_tar(task, advance)


def scan_tar(task: ScanTask, advance: Callable[[int], None]) -> Digest:
    """Scan a tar, unless an earlier run did, and store the scan.

    Args:
        task: which.
        advance: called with the number of further bytes read.

    Raises:
        UserError: if it is no tar, or changes while it is read.
    """
    storage = open_storage(task.dest)
    try:
        header, rows = read_scan(storage, task)
        advance(task.tar.size_bytes)
    except ObjectMissing:
        header, rows = _scan(task, storage, advance)
        lines = [orjson.dumps(line, option=orjson.OPT_SORT_KEYS) for line in chain([header], rows)]
        storage.write(task.part_name, b"\n".join(lines))
    return make_digest(task.tar, header, rows)


def read_scan(storage: Storage, task: ScanTask) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return header and rows of the stored scan of a tar; raises `ObjectMissing` if there is none."""
    header, *rows = [orjson.loads(line) for line in storage.read(task.part_name).split(b"\n")]
    return header, rows


def scan_first(tar: SourceTar, rules: Rules) -> Digest:
    """Scan one tar in this process and write nothing."""
    pieces, beginning = _open(tar, lambda count: None)
    if is_compressed(beginning):
        pieces = iter_decompressed(pieces, beginning)
    header, rows = find_samples(tar.url, pieces, rules)
    return make_digest(tar, header, rows)


def _scan(
    task: ScanTask, storage: Storage, advance: Callable[[int], None]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    pieces, beginning = _open(task.tar, advance)
    if not is_compressed(beginning):
        return find_samples(task.tar.url, pieces, task.rules)
    name = f"tars/{task.plan}.tar"
    with tempfile.NamedTemporaryFile(suffix=".tar") as file:
        damage: DamagedTar | None = None
        try:
            for piece in iter_decompressed(pieces, beginning):
                file.write(piece)
        except DamagedTar as error:
            damage = error
        file.flush()
        file.seek(0)
        header, rows = find_samples(task.tar.url, iter(lambda: file.read(_PIECE_BYTES), b""), task.rules, damage)
        storage.upload(Path(file.name), name)
    return header | {"url": f"{storage.url}/{name}"}, rows


def _open(tar: SourceTar, advance: Callable[[int], None]) -> tuple[Iterator[bytes], bytes]:
    """Return the bytes of a tar in pieces, read one ahead, and the first of them."""

    def read() -> Iterator[bytes]:
        storage, name = open_object(tar.url)
        for start in range(0, tar.size_bytes, _PIECE_BYTES):
            stop = min(start + _PIECE_BYTES, tar.size_bytes)
            piece, size = storage.read_part(name, start, stop)
            if size != tar.size_bytes or len(piece) != stop - start:
                raise UserError(f"{tar.url} had {tar.size_bytes} bytes and has {size} now: is it being written?")
            yield piece
            advance(len(piece))

    pieces = one_ahead(read())
    first = next(pieces, b"")
    return chain([first], pieces), first[:8]


def find_samples(
    url: str, pieces: Iterator[bytes], rules: Rules, damage: DamagedTar | None = None
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Find the samples in the bytes of a tar.

    Args:
        url: of the tar.
        pieces: its bytes.
        rules: naming rules of its members.
        damage: damage found before.

    Returns:
        The header of the scan, and a row for each recording.

    Raises:
        UserError: if it is no tar.
    """
    tar = TarBytes(pieces)
    finder = SampleFinder(rules, tar)
    try:
        for member in iter_tar(tar, finder.wanted):
            finder.add(member)
    except DamagedTar as error:
        if not error.position:
            raise UserError(f"{url} is no tar ({error}): copy it again, or leave it out of --source") from None
        damage = damage or error
    finder.close(str(damage or ""))
    position = tar.position
    tar.drain()
    rows = list(finder.rows())
    if damage and not any(row.get("problem") == "damaged_tar" for row in rows):
        rows.append({"key": "", "problem": "damaged_tar", "detail": str(damage)})
    lost = (tar.position - position) * len(rows) // max(1, position) if damage else 0
    return {
        "url": url,
        "size_bytes": tar.position,
        "sha256": tar.sha256.hexdigest(),
        "obstacle": finder.obstacle,
        "damage": str(damage or ""),
        "num_lost": lost,
        "num_others": finder.num_others,
    }, rows


def plan_of(tasks: list[ScanTask], flags: dict[str, Any]) -> str:
    """Return a hash of all that determines a corpus: its tars, the rules, and some flags."""
    return hashlib.sha256(json.dumps([[task.plan for task in tasks], flags], sort_keys=True).encode()).hexdigest()[:16]


def rules_of(options: Any) -> Rules:
    """Return the naming rules among the flags of a recipe."""
    return Rules(**{name: getattr(options, name) for name in asdict(Rules())})
