"""Output folders of evaluations, one per evaluation, so that results are never overwritten by others.

    STORAGE/evaluations/STUDY/SYSTEMS-IDENTITY/...     results, and evaluation.json: everything they depend on
    STORAGE/evaluations/STUDY/latest.json              name of the last finished folder
    STORAGE/experiments/NAME/...                       a table of the paper, replaced by its next run

A study is CORPUS-SPLIT-TRANSCRIPT, CORPUS-emotion and so on. The identity is a hash of weights, splits and settings:
repeating an evaluation reuses its folder (and its MLflow run) and writes the same files there.
"""

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from brewclip.config import Config
from brewclip.data.storage import Storage, open_storage
from brewclip.errors import ObjectMissing, UserError
from brewclip.evaluation.identity import digest_of, identify
from brewclip.evaluation.systems import System

LATEST = "latest.json"
_RECORD = "evaluation.json"
_LONGEST_NAME = 80  # characters of the system names in a folder name; evaluation.json lists all


@dataclass(frozen=True)
class ResultFolder:
    """The folder of one evaluation, or of a table of the paper.

    Attributes:
        study: name of the parent folder.
        name: name of the folder.
        storage: storage of the folder.
        identity: everything the results depend on, see `identify`.
        parent: storage of the study, whose latest.json names the last finished folder; None: it names none.
    """

    study: str
    name: str
    storage: Storage
    identity: dict[str, Any]
    parent: Storage | None = None

    @property
    def run_name(self) -> str:
        """Name of the folder's MLflow run, whose URL is that of the folder."""
        return f"{self.study}-{self.name}"

    def manifest_hashes(self) -> dict[str, str]:
        """Return the hashes of the manifests: `manifest` for a single split, else `manifest.SPLIT`."""
        splits = self.identity.get("splits", {})
        return {"manifest" if len(splits) == 1 else f"manifest.{name}": sha256 for name, sha256 in splits.items()}

    def write(self, files: Mapping[str, bytes]) -> None:
        """Write the files and evaluation.json, then let latest.json of the study name this folder."""
        for name, data in files.items():
            self.storage.write(name, data)
        self.storage.write(_RECORD, json.dumps(self.identity, indent=1).encode())
        if self.parent is None:
            return
        systems = [system["name"] for system in self.identity["systems"]]
        finished = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        latest = {"folder": self.name, "url": self.storage.url, "systems": systems, "finished": finished}
        self.parent.write(LATEST, json.dumps(latest, indent=1).encode())


def study_name(config: Config, split: str, what: str = "") -> str:
    """Return CORPUS-SPLIT-TRANSCRIPT, with the name of the study as suffix unless it is retrieval."""
    return f"{config.data.corpus}-{split}-{config.data.transcript}" + (f"-{what}" if what else "")


def open_folder(
    config: Config, study: str, systems: Sequence[System], splits: Sequence[str], **settings: Any
) -> ResultFolder:
    """Return the folder of an evaluation.

    Args:
        config: settings of the evaluation.
        study: name of the parent folder.
        systems: evaluated systems, with distinct names.
        splits: splits that are read.
        settings: settings of the study; plain JSON.
    """
    identity = identify(config, systems, splits, study=study, **settings)
    names = file_name("--".join(system.name for system in systems))[:_LONGEST_NAME]
    parent = open_storage(f"{config.storage.rstrip('/')}/evaluations/{study}")
    name = f"{names}-{digest_of(identity)}"
    return ResultFolder(study, name, open_storage(f"{parent.url}/{name}"), identity, parent)


def open_experiment(config: Config, name: str, **settings: Any) -> ResultFolder:
    """Return the folder of a table of the paper, STORAGE/experiments/NAME; plain JSON settings are recorded in it."""
    storage = open_storage(f"{config.storage.rstrip('/')}/experiments/{name}")
    return ResultFolder("experiments", name, storage, {"settings": settings})


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
