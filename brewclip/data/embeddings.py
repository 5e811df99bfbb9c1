"""Cached CLIP embeddings of a split: one row for each sample, for its texts and for its images.

    SPLIT/embeddings/texts-<digest>/<shard>.npy        (n, E) float32; NaN in the row of a sample that cannot be used
    SPLIT/embeddings/texts-<digest>/embeddings.json    what they depend on; written last
    SPLIT/embeddings/images-<digest>/...               likewise

The digest is of what they depend on, the split among it: after another extraction they are computed again.
"""

import hashlib
import json
import threading
from collections import OrderedDict
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from brewclip.data.manifest import Manifest
from brewclip.data.schema import BadSample, npy_to_array
from brewclip.data.storage import Storage, open_storage
from brewclip.errors import ManifestError, ObjectMissing

KINDS = ("texts", "images")
FOLDER, FACTS = "embeddings", "embeddings.json"
_LARGEST_FACTS_BYTES = 2**20
_CACHED_BYTES = 256 * 2**20  # of each kind


@dataclass(frozen=True)
class EmbeddingKey:
    """What embeddings of a kind depend on.

    Attributes:
        kind: one of `KINDS`.
        split_sha256: of the manifest of the split.
        clip: name of the frozen CLIP.
        clip_version: what its weights are identified by, if their name does not do it; or empty.
        settings: settings of the texts or images.
    """

    kind: str
    split_sha256: str
    clip: str
    clip_version: str
    settings: tuple[str, ...]

    @property
    def folder(self) -> str:
        """Folder of the embeddings below that of the split."""
        content = json.dumps(asdict(self), sort_keys=True)
        return f"{FOLDER}/{self.kind}-{hashlib.sha256(content.encode()).hexdigest()[:16]}"


@dataclass(frozen=True)
class EmbeddingFacts:
    """The content of embeddings.json.

    Attributes:
        key: `EmbeddingKey` as a dictionary.
        embed_dim: width E.
        clip_identity: fields of `pretrained.clip_identity.ClipIdentity`.
    """

    key: dict[str, Any]
    embed_dim: int
    clip_identity: dict[str, Any]


def read_facts(storage: Storage) -> EmbeddingFacts | None:
    """Read embeddings.json of a folder; None if there is none, or it is no such file."""
    try:
        data, size = storage.read_part(FACTS, 0, _LARGEST_FACTS_BYTES)
        facts = EmbeddingFacts(**json.loads(data if size <= _LARGEST_FACTS_BYTES else b""))
    except (ObjectMissing, ValueError, TypeError, RecursionError):
        return None
    kinds = isinstance(facts.embed_dim, int), isinstance(facts.key, dict), isinstance(facts.clip_identity, dict)
    return facts if all(kinds) else None


def array_name(manifest: Manifest, shard: int) -> str:
    """Return the name of the array of a shard in the folder of its embeddings."""
    return f"{manifest.name_of(shard).removesuffix('.tar')}.npy"


class SplitEmbeddings:
    """Embeddings of the texts and images of a split by place; thread-safe.

    A shard's arrays are read when they are first needed, and the latest ones are kept.

    Args:
        manifest: the split.
        keys: of texts and of images.

    Attributes:
        facts: what they depend on, of the texts.

    Raises:
        ManifestError: if there are none, or texts and images are of different CLIPs.
    """

    def __init__(self, manifest: Manifest, keys: tuple[EmbeddingKey, EmbeddingKey]) -> None:
        self.manifest = manifest
        self._folders = [open_storage(f"{manifest.url}/{key.folder}") for key in keys]
        texts, images = (read_facts(folder) for folder in self._folders)
        if texts is None or images is None:
            raise ManifestError(
                f"{manifest.url} holds no embeddings of {keys[0].clip} for its texts and images as they are now: run "
                "jobs/extract.py with the same settings and --model.adaptation adapter"
            )
        if texts.clip_identity != images.clip_identity or texts.embed_dim != images.embed_dim:
            raise ManifestError(
                f"{manifest.url} holds embeddings of different {keys[0].clip}: remove its folder {FOLDER} and run "
                "jobs/extract.py again"
            )
        self.facts = texts
        self._cached: OrderedDict[int, tuple[np.ndarray, np.ndarray]] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def embed_dim(self) -> int:
        """Width E."""
        return self.facts.embed_dim

    def at(self, shard: int, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the embeddings of the text and of the image of a sample, (E,) float32 each.

        Raises:
            BadSample: if the sample has none.
            ManifestError: if the stored array is not of the split.
        """
        texts, images = self._arrays(int(shard))
        text, image = texts[index], images[index]
        if not (np.isfinite(text[0]) and np.isfinite(image[0])):
            raise BadSample("embedding", f"sample {index} of {self.manifest.label_of(shard)} could not be embedded")
        return text, image

    def _arrays(self, shard: int) -> tuple[np.ndarray, np.ndarray]:
        with self._lock:  # also while reading: all threads of a step need the same few shards
            if shard not in self._cached:
                texts, images = (self._read(folder, shard) for folder in self._folders)
                self._cached[shard] = texts, images
                while len(self._cached) > 1 and sum(one.nbytes for one, _ in self._cached.values()) > _CACHED_BYTES:
                    self._cached.popitem(last=False)
            self._cached.move_to_end(shard)
            return self._cached[shard]

    def _read(self, folder: Storage, shard: int) -> np.ndarray:
        name = array_name(self.manifest, shard)
        shape = int(self.manifest.num_samples[shard]), self.embed_dim
        try:
            array = npy_to_array(folder.read(name))
        except (ObjectMissing, BadSample) as error:
            raise ManifestError(f"{folder.url}/{name} cannot be read ({error}): embed the split again") from None
        if array.shape != shape or array.dtype != np.float32:
            raise ManifestError(f"{folder.url}/{name} is {array.dtype} {array.shape}, expected {shape}: embed it again")
        return array
