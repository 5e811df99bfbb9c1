"""Detection of identical images under several names: listed within a split, refused across splits.

A recall over a gallery that holds an image twice has two right answers and counts one of them; an image of test that
is also in train leaks. Names do not show this, so bytes are compared: workers, which read every image anyway, compute
a digest of what is stored, and `images.parquet` next to the manifest stores the digests for splits written later.
"""

import hashlib
import io
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from brewclip.corpora.rounds import FileCorpus, Recording
from brewclip.corpora.source import Source
from brewclip.data.storage import Storage
from brewclip.errors import ObjectMissing, UserError

DIGESTS = "images.parquet"
LIST = "identical_images.jsonl"
_MOST_BYTES_READ_BEFORE = 2**30  # by the driver; workers compare the rest


@dataclass(frozen=True)
class _Shared:
    """An image in two splits, with its name in each."""

    image: str
    split: str
    other_image: str
    other_split: str


def add_digests(images: dict[str, str], new: dict[str, str], label: str) -> None:
    """Add the digests of a shard's images to those of its split.

    Args:
        images: image_id -> digest of the shards so far, hexadecimal.
        new: likewise, of one more.
        label: corpus and split, for the message.

    Raises:
        UserError: if one name has two images, whose captions would be merged.
    """
    for image_id in images.keys() & new.keys():
        if images[image_id] != new[image_id]:
            raise UserError(
                f"{label} has two different images of the name {image_id!r}: "
                "give every image its own name, in a table by a column image_id"
            )
    images |= new


def compare_and_save(
    storage: Storage, images: dict[str, str], label: str, others: dict[str, Storage], *, refuse: bool
) -> dict[str, int]:
    """Save the digests of a split next to its shards, and print a warning about identical images.

    Args:
        storage: folder of the split.
        images: image_id -> digest, hexadecimal.
        label: corpus and split.
        others: splits that are written already; one without digests is skipped.
        refuse: whether an image that another split holds is an error.

    Returns:
        Counts for the manifest; none for a split without images.

    Raises:
        UserError: naming one of the images that other splits hold.
    """
    if not images:
        return {}
    shared = list(_find_shared(label.rpartition("/")[2], images, others))
    _report_shared(shared, refuse)
    table = pa.table({"image_id": sorted(images), "blake2b": [images[name] for name in sorted(images)]})
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    storage.write(DIGESTS, buffer.getvalue())
    names = defaultdict(list)
    for image_id, digest in sorted(images.items()):
        names[digest].append(image_id)
    several = [ids for ids in names.values() if len(ids) > 1]
    if several:
        lines = "".join(json.dumps({"image_ids": ids}, ensure_ascii=False) + "\n" for ids in several)
        storage.write(LIST, lines.encode())
        print(
            f"warning: {label}: {len(several)} images have several names, e.g. {', '.join(several[0][:3])}; "
            f"each name counts as its own image; all of them: {storage.url}/{LIST}",
            flush=True,
        )
    return {"images_of_several_names": len(several), "images_of_other_splits": len(shared)}


def check_files(corpus: FileCorpus, *, refuse: bool) -> None:
    """Compare the image files of a local corpus before anything is written: those of equal size by their bytes.

    Files on object storage, and more than 1 GiB of files of equal size, are left to the workers.

    Args:
        corpus: all of its splits are compared.
        refuse: whether an image in two splits is an error; else a warning is printed.

    Raises:
        UserError: naming one of them.
    """
    split_of = {item.image: item.split for item in _usable(corpus)}
    by_size = defaultdict(list)
    for image in split_of:
        size = corpus.source.local_size(image)
        if size:
            by_size[size].append(image)
    alike = {size: images for size, images in by_size.items() if len(images) > 1}
    if sum(size * len(images) for size, images in alike.items()) > _MOST_BYTES_READ_BEFORE:
        return
    shared = []
    for images in alike.values():
        first: dict[bytes, str] = {}
        for image in images:
            other = first.setdefault(_digest(corpus.source, image), image)
            if split_of[other] != split_of[image]:
                shared.append(_Shared(image, split_of[image], other, split_of[other]))
    _report_shared(shared, refuse)


def _find_shared(split: str, images: dict[str, str], others: dict[str, Storage]) -> Iterator[_Shared]:
    ids = {digest: image_id for image_id, digest in images.items()}
    for other, storage in others.items():
        try:
            table = pq.read_table(io.BytesIO(storage.read(DIGESTS)))
        except ObjectMissing:
            continue
        for name, digest in zip(table["image_id"].to_pylist(), table["blake2b"].to_pylist(), strict=True):
            if digest in ids:
                yield _Shared(ids[digest], split, name, other)


def _report_shared(shared: list[_Shared], refuse: bool) -> None:
    if not shared:
        return
    one = shared[0]
    has = "one image has the same bytes" if len(shared) == 1 else f"{len(shared)} images have the same bytes"
    text = f"{has} in two splits, e.g. {one.other_image!r} in {one.other_split} and {one.image!r} in {one.split}"
    if refuse:
        raise UserError(f"{text}: give both the same split, or --identical-images warn to write them as they are")
    print(f"warning: {text}", flush=True)


def _usable(corpus: FileCorpus) -> Iterable[Recording]:
    for split in corpus.splits():
        for items in corpus.rounds(split):
            yield from (item for item in items if item.image and not item.problem)


def _digest(source: Source, image: str) -> bytes:
    return hashlib.blake2b(source.read(image, "image"), digest_size=16).digest()
