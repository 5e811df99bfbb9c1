"""Store a dump of MLflow's database under backups/ of the storage, and keep the newest ones.

    python /app/k8s/store_backup.py --file /backup/mlflow.dump

Storage and credentials come by the environment (`BREWCLIP_STORAGE`, `AWS_*`).
"""

import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from brewclip.config import exit_on_user_error, parse_options
from brewclip.config.ranges import COUNT
from brewclip.data.storage import open_storage
from brewclip.errors import UserError


@dataclass(frozen=True)
class BackupOptions:
    """Which file, and how many of its predecessors stay."""

    file: Path
    """Dump to store."""
    keep: Annotated[int, COUNT] = 14
    """Number of backups to keep."""


def main() -> None:
    """Upload the file as backups/mlflow-TIME.dump, then delete what is too old."""
    with exit_on_user_error():
        options = parse_options(__doc__, BackupOptions)
        url = os.environ.get("BREWCLIP_STORAGE", "")
        if not url:
            raise UserError("BREWCLIP_STORAGE is not set: the URL of the storage, such as s3://bucket")
        if not options.file.is_file() or not options.file.stat().st_size:
            raise UserError(f"--file {options.file} is no dump: it is missing or empty")
        storage = open_storage(f"{url}/backups")
        name = f"mlflow-{datetime.now(UTC):%Y-%m-%dT%H-%M-%S}.dump"
        storage.write(name, options.file.read_bytes())
        print(f"backup: {url}/backups/{name}, {options.file.stat().st_size} bytes", flush=True)
        for old in sorted(storage.list_names("mlflow-"))[: -options.keep]:
            storage.delete(old)


if __name__ == "__main__":
    main()
