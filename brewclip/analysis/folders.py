"""Where the results of an evaluation or study are stored: a folder for each, and a pointer to the latest of its kind.

The folder is named after the systems and a hash of all that decides the results, so that the same evaluation done again
writes the same folder, and another one never overwrites it.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from typing import Any

from brewclip.analysis.systems import System
from brewclip.config import Config, UserError, flatten
from brewclip.data.manifest import open_manifest
from brewclip.data.storage import ObjectMissing, open_storage

# Where and how fast it is computed, and what checkpoints already say.
_NOT_IN_RESULTS = ("storage", "tracking.", "cluster.", "run.", "optim.", "loss.", "systems")
_LONGEST_NAME = 80


def file_name(name: str) -> str:
    """Return a name as one that files and MLflow's metrics may have."""
    return re.sub(r"[^\w.-]+", "_", name)


def study_url(config: Config, study: str, group: str, splits: Sequence[str], systems: Sequence[System]) -> str:
    """Return the folder of an evaluation.

    Args:
        config: its settings, with those of the job.
        study: its kind, such as `evaluate` or `emotion`.
        group: folder of related evaluations, such as CORPUS-SPLIT-TRANSCRIPT.
        splits: of features that are read.
        systems: that are evaluated.
    """
    content: dict[str, Any] = {
        "study": study,
        "settings": {name: value for name, value in flatten(config).items() if not name.startswith(_NOT_IN_RESULTS)},
        "manifests": [open_manifest(f"{config.features_url}/{split}").sha256 for split in splits],
        "systems": [(one.name, one.url, one.step, one.weights_sha256) for one in systems],
    }
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]
    names = "+".join(file_name(one.name) for one in systems)[:_LONGEST_NAME]
    return f"{config.storage.rstrip('/')}/evaluations/{group}/{study}-{names}-{digest}"


def evaluation_group(config: Config, split: str) -> str:
    """Return the folder of the evaluations of a split."""
    return f"{config.data.corpus}-{split}-{config.data.transcript}"


def name_latest(url: str, study: str) -> None:
    """Note a folder as the latest of its kind, once it is written."""
    group, _, name = url.rpartition("/")
    open_storage(group).write(f"latest-{study}", name.encode())


def latest_url(storage: str, group: str, study: str) -> str:
    """Return the folder that was written last.

    Raises:
        UserError: if there is none.
    """
    url = f"{storage.rstrip('/')}/evaluations/{group}"
    try:
        name = open_storage(url).read(f"latest-{study}").decode()
    except ObjectMissing:
        raise UserError(f"no evaluation at {url}: run jobs/{study}.py first") from None
    return f"{url}/{name}"
