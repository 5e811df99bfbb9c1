"""Identity of a result: everything it depends on, so that a saved one is reused for the same and only for the same.

Folders of evaluations and cached results of the paper's tables share it.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from brewclip.config import Config, flatten
from brewclip.data.manifest import open_manifest
from brewclip.data.storage import open_storage
from brewclip.errors import ObjectMissing
from brewclip.evaluation.systems import System
from brewclip.pretrained.load import shipped_sha256

# Raise it when the code gives another result for the same settings, weights and data: nothing older is reused.
RESULTS_VERSION = 1
# Settings of a system that affect its results; the others affect location and speed only.
_SETTINGS = ("model.", "data.corpus", "data.transcript", "data.long_text", "data.max_audio_frames",
             "data.image_transform", "data.max_bad_fraction", "run.precision", "extraction.frames")  # fmt: skip
_HASH_DIGITS = 8


def identify(config: Config, systems: Sequence[System], splits: Sequence[str], **settings: Any) -> dict[str, Any]:
    """Return the identity of a result as plain JSON: code version, systems, hashes of splits, settings.

    Args:
        config: settings of the evaluation.
        systems: evaluated systems.
        splits: splits that are read.
        settings: further settings that the result depends on; plain JSON.

    Raises:
        ManifestError: if a split is missing.
    """
    urls = [config.splits_url, *sorted({one.config.splits_url for one in systems} - {config.splits_url})]
    hashes = [{split: open_manifest(f"{url}/{split}", retry_seconds=10).sha256 for split in splits} for url in urls]
    identity = {
        "version": RESULTS_VERSION,
        "systems": [_identity_of(system) for system in systems],
        "splits": hashes[0],
        "settings": settings,
    }
    if len(hashes) > 1:
        identity["other_splits"] = hashes[1:]
    return json.loads(json.dumps(identity))  # as read from storage


def digest_of(identity: dict[str, Any]) -> str:
    """Return a short hash of an identity, for names of folders."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:_HASH_DIGITS]


def _identity_of(system: System) -> dict[str, Any]:
    settings = {name: value for name, value in flatten(system.config).items() if name.startswith(_SETTINGS)}
    return {
        "name": system.name,
        "step": system.step,
        "weights_sha256": system.weights_sha256,
        "clip_sha256": shipped_sha256(system.config.model.clip),
        "settings": settings | ({"channel": system.channel} if system.channel else {}),
    }


class ResultCache:
    """Results below STORAGE/experiments, each in one object with its identity: a line of JSON, then the result.

    Args:
        config: its storage is used.
        study: name of the folder.
    """

    def __init__(self, config: Config, study: str) -> None:
        self.storage = open_storage(f"{config.storage.rstrip('/')}/experiments/{study}")

    def load(self, name: str, identity: dict[str, Any] | None) -> bytes | None:
        """Return a result with this identity, None if there is none; identity None accepts any."""
        try:
            line, _, result = self.storage.read(f"{name}.cached").partition(b"\n")
            known = json.loads(line)
        except (ObjectMissing, ValueError):
            return None
        return result if identity in (None, known) else None

    def save(self, name: str, identity: dict[str, Any], result: bytes) -> None:
        """Save a result, replacing another one of the name."""
        self.storage.write(f"{name}.cached", json.dumps(identity).encode() + b"\n" + result)
