"""Layout of a saved index: which files the folder has, what index.json says of them, and the table of images.

    index.json             facts and the names of the other files; replaced last, so that a save is whole or absent
    vectors-TOKEN.npy      (N, E) float16, unit length
    images-TOKEN.arrow     one row for each image, see `IMAGES`; Arrow's file format, for reading in place
    thumbnails-TOKEN.bin   JPEGs one behind the other; a save that adds images adds a file and keeps the others
    unusable-TOKEN.json    files that are no usable images, so that they are not read again before they change
    nearby-TOKEN.faiss     optional approximate index of the same vectors

TOKEN is of the save that wrote the file. Files that index.json does not name are left from a save that did not end.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from brewclip.checkpoints.locate import ZERO_SHOT
from brewclip.errors import UserError

FORMAT = 2  # 1 was a single .npz file
FACTS = "index.json"
REMEDY = "rebuild it with brewclip index"
IMAGES = pa.schema(
    [
        ("id", pa.uint64()),
        ("name", pa.large_string()),  # absolute path, or s3:// URL
        ("sha256", pa.binary(32)),
        ("size_bytes", pa.int64()),
        ("modified_ns", pa.int64()),  # since 1970
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("thumbnail_file", pa.int32()),  # position in IndexFacts.thumbnails
        ("thumbnail_start", pa.int64()),
        ("thumbnail_bytes", pa.int32()),
    ]
)


@dataclass(frozen=True)
class IndexFacts:
    """Content of index.json.

    Attributes:
        identity: everything that the vectors depend on, weights and preprocessing, see `Embedder.identity`.
        checkpoint: name or URL that the system was loaded by.
        version: digest of identity and images.
        num_images: N.
        embed_dim: width E.
        vectors, images, unusable, nearby: names of files; `nearby` is empty without an approximate index.
        thumbnails: names of files.
        file_bytes: size of each file.
        format: of the folder.
    """

    identity: dict[str, Any]
    checkpoint: str
    version: str
    num_images: int
    embed_dim: int
    vectors: str
    images: str
    unusable: str
    thumbnails: list[str]
    nearby: str = ""
    file_bytes: dict[str, int] = field(default_factory=dict)
    format: int = FORMAT

    def files(self) -> list[str]:
        """Return the names of all files but index.json."""
        return [self.vectors, self.images, self.unusable, *self.thumbnails, *filter(None, [self.nearby])]

    def system(self, checkpoint: str = "") -> tuple[str, str]:
        """Return what `brewclip.load` takes for the system that made the index: its name, and the CLIP of zero-shot.

        Args:
            checkpoint: new name or URL of the system; empty is the recorded one.
        """
        name = checkpoint or self.checkpoint
        return name, next(iter(self.identity["frozen_sha256"]), "") if name == ZERO_SHOT else ""

    def to_json(self) -> bytes:
        """Serialize to the bytes of index.json."""
        return json.dumps(asdict(self), indent=1).encode()


def parse_facts(data: bytes, where: str) -> IndexFacts:
    """Read the bytes of an index.json.

    Raises:
        UserError: if they are none of this format.
    """
    try:
        values = json.loads(data)
        if values.get("format") != FORMAT:
            raise UserError(f"index {where} has format {values.get('format')!r}, this version reads {FORMAT}: {REMEDY}")
        facts = IndexFacts(**values)
        bare = all(Path(name).name == name for name in facts.files())  # the file may name no other folder
        if not bare or set(facts.files()) - facts.file_bytes.keys() or min(facts.num_images, facts.embed_dim) < 0:
            raise ValueError("it names files outside of the folder or without a size")
        return facts
    except UserError:
        raise
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{where} is not an index that can be read ({error}): {REMEDY}") from None


def read_facts(folder: Path) -> IndexFacts:
    """Read index.json of a folder.

    Raises:
        UserError: if there is none, or it cannot be used.
    """
    if folder.is_file():
        raise UserError(f"{folder} is a file, an index is a folder since 2026-11-27: {REMEDY}")
    try:
        data = (folder / FACTS).read_bytes()
    except FileNotFoundError:
        raise UserError(f"index {folder} does not exist: make it with brewclip index") from None
    except OSError as error:
        raise UserError(f"index {folder} cannot be read: {error.strerror}") from None
    return parse_facts(data, str(folder))
