"""Removal of checkpoints, safe to interrupt after any storage operation."""

from brewclip.checkpoints.facts import FACTS, MODEL, OPTIMIZER, CheckpointFacts
from brewclip.checkpoints.folder import FOLDER, POINTERS, REMOVAL, read_pointer, step_name, whole_by_name
from brewclip.checkpoints.model_card import CARD
from brewclip.data.storage import Storage, exists


def begin_removal(storage: Storage) -> None:
    """Mark all checkpoints of a run for removal; from then on the run starts from step 0, even if interrupted."""
    storage.write(REMOVAL, b"")


def is_being_removed(storage: Storage) -> bool:
    """Return whether a removal was started and did not end."""
    return exists(storage, REMOVAL)


def finish_removal(storage: Storage) -> None:
    """Remove every checkpoint of a run: the pointers first, then json before tensors, and last the note of removal."""
    for name in POINTERS:
        storage.delete(f"{FOLDER}/{name}")
    for name in sorted(storage.list_names(f"{FOLDER}/"), key=lambda name: (not name.endswith(f"/{FACTS}"), name)):
        if name != REMOVAL:
            storage.delete(name)
    storage.delete(REMOVAL)


def remove_checkpoints(storage: Storage) -> None:
    """Remove every checkpoint of a run; interrupted, it leaves the old run whole or one that starts anew."""
    begin_removal(storage)
    finish_removal(storage)


def remove_old(storage: Storage, facts: CheckpointFacts, keep: int) -> None:
    """Remove all but the newest checkpoints up to the one just written, and the best.

    Later ones are left: they are of a run that was pointed back, and are written again when it comes there. A folder
    loses its json first, so it is whole or none.
    """
    listed = storage.list_names(f"{FOLDER}/")
    best, _ = read_pointer(storage, "best")
    whole, own = whole_by_name(listed), step_name(facts.step)
    if f"{FOLDER}/best" in listed and best not in whole:
        return  # which one it means is not known
    kept = {own, best, *[name for name in whole if int(name[5:]) <= facts.step][:keep]}
    kept |= {name for name in whole if int(name[5:]) > facts.step}
    if "step" in facts.best:
        kept.add(step_name(int(facts.best["step"])))
    folders = {name.split("/")[1] for name in listed if name.startswith(f"{FOLDER}/step-")}
    for folder in sorted(folders - kept):
        for file in (FACTS, MODEL, OPTIMIZER, CARD):
            storage.delete(f"{FOLDER}/{folder}/{file}")
