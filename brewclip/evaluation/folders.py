"""Output folders of evaluations, one per evaluation, so that results are never overwritten by others.

    STORAGE/evaluations/STUDY/SYSTEMS-IDENTITY/...     results, and evaluation.json: everything they depend on
    STORAGE/evaluations/STUDY/latest.json              name of the last finished folder

A study is CORPUS-SPLIT-TRANSCRIPT, CORPUS-emotion and so on. The identity is a hash of weights, splits and settings:
repeating an evaluation reuses its folder (and its MLflow run) and writes the same files there.
"""

import hashlib
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from brewclip.config import Config, flatten
from brewclip.data.manifest import open_manifest
from brewclip.data.storage import Storage, open_storage
from brewclip.errors import ObjectMissing, UserError
from brewclip.evaluation.systems import System

LATEST = "latest.json"
_RECORD = "evaluation.json"
_LONGEST_NAME = 80  # characters of the system names in a folder name; evaluation.json lists all
_HASH_DIGITS = 8
# Settings of a system that affect its results; the others affect location and speed only.
_SETTINGS = ("model.", "data.corpus", "data.transcript", "data.long_text", "data.max_audio_frames",
             "data.image_transform", "data.max_bad_fraction", "run.precision", "extraction.frames")  # fmt: skip


@dataclass(frozen=True)
class EvaluationFolder:
    """The folder of one evaluation.

    Attributes:
        study: name of the parent folder.
        name: name of the folder.
        parent: storage of the study.
        storage: storage of the evaluation.
        identity: everything the results depend on; plain JSON.
    """

    study: str
    name: str
    parent: Storage
    storage: Storage
    identity: dict[str, Any]

    @property
    def run_name(self) -> str:
        """Name of the evaluation's MLflow run, whose URL is that of the folder."""
        return f"{self.study}-{self.name}"

    def write(self, files: Mapping[str, bytes]) -> None:
        """Write the files and evaluation.json, then point latest.json of the study to this folder."""
        for name, data in files.items():
            self.storage.write(name, data)
        self.storage.write(_RECORD, json.dumps(self.identity, indent=1).encode())
        systems = [system["name"] for system in self.identity["systems"]]
        finished = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        latest = {"folder": self.name, "url": self.storage.url, "systems": systems, "finished": finished}
        self.parent.write(LATEST, json.dumps(latest, indent=1).encode())


def study_name(config: Config, split: str, what: str = "") -> str:
    """Return CORPUS-SPLIT-TRANSCRIPT, with the name of the study as suffix unless it is retrieval."""
    return f"{config.data.corpus}-{split}-{config.data.transcript}" + (f"-{what}" if what else "")


def open_folder(
    config: Config, study: str, systems: Sequence[System], splits: Sequence[str], **settings: Any
) -> EvaluationFolder:
    """Return the folder of an evaluation.

    Args:
        config: settings of the evaluation.
        study: name of the parent folder.
        systems: evaluated systems, with distinct names.
        splits: splits that are read.
        settings: settings of the study; plain JSON.
    """
    manifests = {split: open_manifest(f"{config.features_url}/{split}", retry_seconds=10) for split in splits}
    identity = {
        "study": study,
        "systems": [_identity_of(system) for system in systems],
        "splits": {split: manifest.sha256 for split, manifest in manifests.items()},
        "settings": settings,
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:_HASH_DIGITS]
    names = file_name("--".join(system.name for system in systems))[:_LONGEST_NAME]
    parent = open_storage(f"{config.storage.rstrip('/')}/evaluations/{study}")
    return EvaluationFolder(
        study, f"{names}-{digest}", parent, open_storage(f"{parent.url}/{names}-{digest}"), identity
    )


def latest_evaluation(storage_url: str, study: str) -> Storage:
    """Return the folder of the last finished evaluation of a study.

    Args:
        storage_url: as `--storage`.
        study: such as `scenes-test-asr`.

    Raises:
        UserError: if there is none.
    """
    parent = open_storage(f"{storage_url.rstrip('/')}/evaluations/{study}")
    try:
        return open_storage(f"{parent.url}/{json.loads(parent.read(LATEST))['folder']}")
    except ObjectMissing:
        raise UserError(f"no evaluation is finished at {parent.url}: run jobs/evaluate.py first") from None


def file_name(name: str) -> str:
    """Return a name with characters that are invalid in file names or MLflow metrics replaced by `_`."""
    return re.sub(r"[^\w.-]+", "_", name)


def _identity_of(system: System) -> dict[str, Any]:
    settings = {name: value for name, value in flatten(system.config).items() if name.startswith(_SETTINGS)}
    return {
        "name": system.name,
        "step": system.step,
        "weights_sha256": system.weights_sha256,
        "settings": settings,
    }
