"""Files with secrets: only their owner can read them."""

import os
from pathlib import Path


def write_private(path: Path, text: str) -> Path:
    """Write a file of mode 0600 in place of one that exists, and return its path."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    return path
