"""Find the checkpoint that a user names: a URL, a run, or a model in MLflow's registry."""

import difflib
import sys
from typing import Final

from brewclip.checkpoints.checkpoint import load_checkpoint, open_checkpoint
from brewclip.checkpoints.facts import Checkpoint, check_usable
from brewclip.config import Config
from brewclip.data.storage import open_storage
from brewclip.errors import NoCheckpoint
from brewclip.tracking.registry import resolve_model

# The name of plain CLIP, where a checkpoint could be named.
ZERO_SHOT: Final = "zero_shot"


def nearest_run(config: Config, name: str) -> str:
    """Return a hint at the run that was meant, among those in storage."""
    storage = open_storage(config.storage)
    runs = sorted({path.split("/")[1] for path in storage.list_names("runs/")} | {ZERO_SHOT})
    near = difflib.get_close_matches(name, runs, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(runs[:10])}"


def open_system(url: str) -> Checkpoint:
    """Open a checkpoint by URL or by its name in MLflow; without a best one, the latest of a run, with a note."""
    url = resolve_model(url)
    try:
        return open_checkpoint(url)
    except NoCheckpoint:
        latest = load_checkpoint(open_storage(url))
        if latest is None:
            raise
        check_usable(latest, url)
        print(f"note: {url} has no best checkpoint, its latest is used: step {latest.facts.step}", file=sys.stderr)
        return latest
