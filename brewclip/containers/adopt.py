"""Adoption of tars in place as splits: an index, a list of members for each, and the manifest."""

import json
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from brewclip.containers.digest import Digest
from brewclip.containers.plan import Plan
from brewclip.containers.scan import ScanTask, read_scan
from brewclip.corpora.recipe import REJECTED
from brewclip.corpora.rounds import safe_id
from brewclip.data.adopted import AdoptedSample, members_name, pack_members
from brewclip.data.manifest import INDEX_ENTRY, open_manifest
from brewclip.data.manifest_writer import ShardRecord
from brewclip.data.shards import finish_split, is_finished, shard_name
from brewclip.data.storage import Storage, open_storage
from brewclip.errors import UserError
from brewclip.progress import ProgressReporter

_THREADS = 16


def name_of(row: dict[str, Any], label: str, keys_repeat: bool) -> str:
    """Return the unique name of a sample: its key, prefixed by its tar where keys repeat."""
    return f"{label}/{row['key']}" if keys_repeat else row["key"]


def adopt(
    corpus: str, dest: str, tasks: list[ScanTask], digests: list[Digest], plan: Plan, plan_hash: str
) -> dict[str, dict[str, Any]]:
    """Write index, members and manifest of every split, and leave the tars in place.

    Returns:
        split -> {"samples": n, "rejected": {cause: n}, ...} for `print_summary`.

    Raises:
        UserError: if a split has no sample, or exists already with another plan.
    """
    summary = {}
    without_split = {task.tar.url for task, split in zip(tasks, plan.splits, strict=True) if not split}
    first = [split for split in ("train", "dev", "test") if split in plan.splits]
    for split in first + sorted(set(plan.splits) - {"", *first}):
        mine = [row for row, of in enumerate(plan.splits) if of == split]
        summary[split] = _adopt_split(
            corpus, dest, split, [(tasks[row], digests[row]) for row in mine], plan, plan_hash
        )
    write_rejected(open_storage(dest), [row for row in rejected_of(digests) if row["file"] in without_split])
    return summary


def rejected_of(digests: list[Digest]) -> list[dict[str, str]]:
    """Return the rejections of all tars."""
    return [row for digest in digests for row in digest.rejected]


def write_rejected(storage: Storage, rows: list[dict[str, str]]) -> None:
    """Write the list of rejections."""
    lines = (json.dumps(row, sort_keys=True, ensure_ascii=False) + "\n" for row in rows)
    storage.write(REJECTED, "".join(lines).encode(errors="backslashreplace"))


def _adopt_split(
    corpus: str, dest: str, split: str, tars: list[tuple[ScanTask, Digest]], plan: Plan, plan_hash: str
) -> dict[str, Any]:
    storage = open_storage(f"{dest}/{split}")
    rejected = sorted((row for _, digest in tars for row in digest.rejected), key=lambda row: (row["file"], row["key"]))
    counts = dict(sorted(Counter(row["cause"] for row in rejected).items()))
    sums: Counter[str] = Counter()
    for _, digest in tars:
        sums.update(digest.sums)
    details: dict[str, Any] = {"rejected": counts, "plan": plan_hash, "adopted_tars": len(tars), **sums}
    num_samples = sum(digest.num_samples for _, digest in tars)
    facts = {"samples": num_samples, "images": num_samples} | details
    if is_finished(storage):
        if open_manifest(storage.url).summary.details.get("plan") != plan_hash:
            raise UserError(f"{storage.url} was written from other files: remove it, or name another --dest")
        return {"state": "already there"} | facts
    used = [(task, digest) for task, digest in tars if digest.num_samples]
    if not used:
        raise UserError(f"{corpus}/{split} has no usable sample: {rejected[:1] or 'its tars are empty'}")
    progress = ProgressReporter(f"adopt {corpus}/{split}", len(used), "tars")
    records = []
    with ThreadPoolExecutor(_THREADS) as pool:
        pending = [
            pool.submit(_adopt_tar, dest, storage, split, number, task, digest, plan)
            for number, (task, digest) in enumerate(used)
        ]
        for one in pending:
            records.append(one.result())
            progress.advance()
    write_rejected(storage, rejected)
    stated = {"corpus": corpus, "split": split, "kind": "recordings", "num_images": num_samples}
    finish_split(storage, records, **stated, details=details)
    return {"state": "adopted"} | facts


def _adopt_tar(
    dest: str, storage: Storage, split: str, number: int, task: ScanTask, digest: Digest, plan: Plan
) -> ShardRecord:
    """Write the list of members of one tar; return its row of the manifest."""
    _, rows = read_scan(open_storage(dest), task)
    rows = sorted((row for row in rows if "range" in row), key=lambda row: row["range"][0])
    members = pack_members(_adopted_sample(row, split, task.tar.label, plan.keys_repeat) for row in rows)
    name = shard_name(split, 0, number)
    storage.write(members_name(name), members)
    index = np.zeros(len(rows), INDEX_ENTRY)
    index["end"], index["crc32"] = [row["range"][0] for row in rows], [row["range"][1] for row in rows]
    below = digest.url.removeprefix(f"{dest}/")
    url = digest.url if below == digest.url else f"../{below}"
    return ShardRecord(
        name, 0, len(rows), digest.size_bytes, digest.sha256, index, url=url, members_crc32=zlib.crc32(members)
    )


def _adopted_sample(row: dict[str, Any], split: str, label: str, keys_repeat: bool) -> AdoptedSample:
    name = name_of(row, label, keys_repeat)
    image_id = safe_id(row.get("id") or name)
    metadata = {"image_id": image_id, "caption_id": name, "split": split} | row["metadata"]
    return AdoptedSample(f"{image_id}-0", metadata, row.get("image"), row["audio"])
