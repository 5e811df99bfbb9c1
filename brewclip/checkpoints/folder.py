"""Names below `checkpoints/` of a run: folders of steps, and the pointers `latest` and `best`."""

import re

from brewclip.checkpoints.facts import FACTS
from brewclip.data.storage import Storage
from brewclip.errors import ObjectMissing

FOLDER = "checkpoints"
# Written before a run's checkpoints are removed, removed after them: whoever finds it removes the rest.
REMOVAL = f"{FOLDER}/removing"
POINTERS = ("latest", "best")
_LONGEST_NAME = 64


def step_name(step: int) -> str:
    """Return the folder name of a step."""
    return f"step-{step:08d}"


def read_pointer(storage: Storage, which: str) -> tuple[str, str]:
    """Return the name that `latest` or `best` holds, or what is wrong with it; two empty texts if it is missing."""
    try:
        data, _ = storage.read_part(f"{FOLDER}/{which}", 0, _LONGEST_NAME)
    except ObjectMissing:
        return "", ""
    name = data.decode(errors="replace")
    if is_step_name(name):
        return name, ""
    return "", f"{storage.url}/{FOLDER}/{which} is damaged: it holds {name[:20]!r}, no name of a checkpoint"


def is_step_name(name: str) -> bool:
    """Return whether a name is that of a checkpoint's folder."""
    return re.fullmatch("step-[0-9]{8,15}", name) is not None


def whole_by_name(listed: list[str]) -> list[str]:
    """Return the folders that have their json, newest first."""
    folders = {name.split("/")[1] for name in listed if name.endswith(f"/{FACTS}") and name.count("/") == 2}
    return sorted(filter(is_step_name, folders), key=lambda name: int(name[5:]), reverse=True)
