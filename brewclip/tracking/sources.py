"""The code that runs: its digest, and its commit where there is one.

A job that was submitted with a working directory runs that code in a container whose image has a commit of its own;
the digest tells the two apart.
"""

import hashlib
import os
import subprocess
from pathlib import Path

_FOLDERS = ("brewclip", "datasets", "jobs", "tune")


def source_root() -> Path:
    """Return the folder that `brewclip` is imported from."""
    return Path(__file__).parents[2]


def source_sha256(root: Path | None = None) -> str:
    """Return a hash of the project's Python files below a folder, by default of those that this program imports.

    Jobs, recipes and spaces lie beside the package in a checkout, an image and a submitted working directory; an
    installed package has none.
    """
    folder = root or source_root()
    names = _FOLDERS if (folder / "jobs" / "train.py").is_file() else _FOLDERS[:1]
    digest = hashlib.sha256()
    for path in sorted(path for name in names for path in (folder / name).rglob("*.py")):
        digest.update(f"{path.relative_to(folder).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def git_commit() -> str:
    """Return the commit of the code, with a plus if files are modified; `unknown` outside a checkout.

    In a container, BREWCLIP_GIT_COMMIT is the commit of the code in the folder BREWCLIP_GIT_FOLDER: other code, as a
    submitted working directory, is that commit with a plus.
    """
    try:
        command = ["git", "describe", "--always", "--abbrev=40", "--dirty=+"]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        commit, folder = os.environ.get("BREWCLIP_GIT_COMMIT", "unknown"), os.environ.get("BREWCLIP_GIT_FOLDER", "")
        other = folder and Path(folder).resolve() != source_root() and source_sha256(Path(folder)) != source_sha256()
        return f"{commit}+" if other and commit != "unknown" else commit
