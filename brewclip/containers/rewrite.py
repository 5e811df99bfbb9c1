"""Rewriting of tars that cannot be adopted: their recordings and images as a corpus of a recipe."""

from collections import Counter
from collections.abc import Iterator

from brewclip.containers.adopt import name_of, write_rejected
from brewclip.containers.digest import Digest
from brewclip.containers.plan import Plan, SplitDraw
from brewclip.containers.scan import ScanTask, read_scan
from brewclip.containers.sources import open_object
from brewclip.corpora.rounds import FileCorpus, Recording, safe_id
from brewclip.corpora.shard_tasks import rejection
from brewclip.corpora.source import Source
from brewclip.data.schema import BadSample
from brewclip.data.storage import open_storage
from brewclip.errors import ObjectMissing


class TarSource(Source):
    """Files within tars, named `URL#FIRST-STOP` by their first byte and the one after the last.

    Args:
        location: name in messages.
    """

    def __init__(self, location: str) -> None:
        self.location = location

    def __reduce__(self) -> tuple[type["TarSource"], tuple[str]]:
        return TarSource, (self.location,)

    def read(self, name: str, kind: str) -> bytes:
        url, _, span = name.rpartition("#")
        start, stop = (int(byte) for byte in span.split("-"))
        storage, tar = open_object(url)
        try:
            data = storage.read_range(tar, start, stop)
        except ObjectMissing as error:
            raise BadSample(f"missing_{kind}", str(error)) from error
        if len(data) != stop - start:
            raise BadSample(f"missing_{kind}", f"{url} ends before byte {stop}")
        return data


def tar_corpus(
    corpus: str,
    dest: str,
    tasks: list[ScanTask],
    digests: list[Digest],
    plan: Plan,
    draw: SplitDraw,
    image_side_pixels: int,
) -> FileCorpus:
    """Build the corpus of the samples of scanned tars.

    Raises:
        UserError: if no recording can be used, or an image is in two splits.
    """
    source = TarSource(", ".join(task.tar.url for task in tasks[:3]) + (", ..." if len(tasks) > 3 else ""))
    return FileCorpus(corpus, source, _recordings(dest, tasks, digests, plan, draw), image_side_pixels)


def _recordings(
    dest: str, tasks: list[ScanTask], digests: list[Digest], plan: Plan, draw: SplitDraw
) -> Iterator[Recording]:
    """Yield a recording for each row; all captions of an image share the bytes of the first."""
    storage = open_storage(dest)
    image_ids: dict[tuple[str, str, str], str] = {}
    images: dict[str, str] = {}
    for task, digest in zip(tasks, digests, strict=True):
        for row in read_scan(storage, task)[1]:
            name = name_of(row, task.tar.label, plan.keys_repeat)
            split = task.tar.split or row.get("split", "")
            identities = [(split, kind, row[kind]) for kind in ("id", "image_hash") if kind in row]
            known = next((image_ids[identity] for identity in identities if identity in image_ids), "")
            own_name = f"{name}.{row['image_part']}" if "image_part" in row else name
            image_id = known or safe_id(row.get("id") or own_name)
            for identity in identities:
                image_ids.setdefault(identity, image_id)
            image = images.setdefault(image_id, _place(digest.url, row["image"])) if "image" in row else ""
            metadata = row.get("metadata", {})
            drawn = "" if task.rules.split_field else draw.split_of(image_id)
            yield Recording(
                split=split or drawn,
                image_id=image_id,
                audio=_place(digest.url, row["audio"]) if "audio" in row else f"{task.tar.url}#{row['key']}",
                image=image,
                text=metadata.get("text", ""),
                speaker=metadata.get("speaker", ""),
                emotion=metadata.get("emotion", ""),
                caption_id=f"{name}.{row['part']}" if row.get("part") else name,
                problem=row.get("problem", ""),
            )


def list_left_out(corpus: FileCorpus, dest: str) -> dict[str, int]:
    """Write the list of recordings without a split next to the splits; return the number of each cause."""
    rows = [rejection(recording, recording.problem, recording.audio) for recording in corpus.left_out]
    write_rejected(open_storage(dest), rows)
    return dict(sorted(Counter(row["cause"] for row in rows).items()))


def _place(url: str, span: list[int]) -> str:
    return f"{url}#{span[0]}-{span[1]}"
