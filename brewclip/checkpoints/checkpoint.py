"""Checkpoints: what is trained, the optimiser, the step and the settings, as safetensors and json.

Below the folder of a run:

    checkpoints/step-00000500/model.safetensors      what is trained
    checkpoints/step-00000500/optimizer.safetensors  state of Adam
    checkpoints/step-00000500/README.md              model card, of the best so far
    checkpoints/step-00000500/checkpoint.json        step, settings, hashes of all of it; written last
    checkpoints/latest, checkpoints/best             name of a checkpoint; written after it is whole

A folder without a checkpoint.json, or with files that differ from it, is not a checkpoint and is never loaded.
"""

import sys
from collections.abc import Callable
from dataclasses import replace

from brewclip.checkpoints.facts import (
    FACTS,
    LARGEST_FACTS_BYTES,
    MODEL,
    OPTIMIZER,
    Checkpoint,
    CheckpointFacts,
    check_usable,
    facts_from_bytes,
    facts_to_bytes,
    sha256_of,
)
from brewclip.checkpoints.folder import FOLDER, POINTERS, REMOVAL, is_step_name, read_pointer, step_name, whole_by_name
from brewclip.checkpoints.model_card import CARD, model_card
from brewclip.checkpoints.removal import remove_old
from brewclip.checkpoints.tensors import check_header, check_optimizer, header_bytes, tensors_from_bytes
from brewclip.data.storage import Storage, open_storage
from brewclip.errors import CheckpointError, NoCheckpoint, ObjectMissing
from brewclip.tracking.registry import resolve_model

_HEAD_BYTES = 2**16  # holds the header of a few hundred tensors


def save_checkpoint(
    storage: Storage, checkpoint: Checkpoint, *, best: bool, keep: int, fence: Callable[[], None] = lambda: None
) -> str:
    """Write a checkpoint, then point `latest` (and `best`) at it, then remove old ones.

    Args:
        storage: folder of the run.
        checkpoint: what is saved.
        best: whether it is the best so far.
        keep: newest checkpoints to keep, in addition to the best.
        fence: raises if another program has taken the run over; called before the pointers are written.

    Returns:
        The name of the checkpoint.
    """
    from safetensors.torch import save

    name = step_name(checkpoint.facts.step)
    files = {MODEL: save(checkpoint.model), OPTIMIZER: save(checkpoint.optimizer)}
    for file, data in files.items():
        storage.write(f"{FOLDER}/{name}/{file}", data)
    facts = replace(checkpoint.facts, files={file: sha256_of(data) for file, data in files.items()})
    if best:
        storage.write(f"{FOLDER}/{name}/{CARD}", model_card(facts).encode())
    storage.write(f"{FOLDER}/{name}/{FACTS}", facts_to_bytes(facts))
    fence()
    # `best` first: a run that is interrupted between the two does the steps again and finds the same best one.
    if best:
        storage.write(f"{FOLDER}/best", name.encode())
    storage.write(f"{FOLDER}/latest", name.encode())
    remove_old(storage, checkpoint.facts, keep)
    return name


def load_checkpoint(storage: Storage, which: str = "latest") -> Checkpoint | None:
    """Load `latest`, `best` or a named checkpoint of a run.

    A `latest` that is missing or damaged, or names what is, gives the newest whole checkpoint, with a line.

    Returns:
        The checkpoint, or None if the run has none of that name.

    Raises:
        CheckpointError: if its files are not those that its json names, or a run has checkpoints and none is whole.
    """
    if which == "latest":
        return _load_latest(storage)
    if which != "best":
        return _load_named(storage, which)
    name = checkpoint_name(storage, "best")
    try:
        best = _load_named(storage, name) if name else None
    except CheckpointError as error:
        raise CheckpointError(f"the best checkpoint cannot be used: {error}; {_what_is_there(storage)}") from None
    if name and best is None:
        raise CheckpointError(
            f"{storage.url}/{FOLDER}/best names {name}, which is not there: {_what_is_there(storage)}"
        )
    return best


def load_resume_point(storage: Storage) -> Checkpoint | None:
    """Load what a run goes on from, and point `latest` at it if that was damaged; None if the run is to begin.

    Raises:
        CheckpointError: if there were checkpoints, but none is whole.
    """
    checkpoint = load_checkpoint(storage)
    if checkpoint is not None:
        name = step_name(checkpoint.facts.step)
        if read_pointer(storage, "latest")[0] != name:
            storage.write(f"{FOLDER}/latest", name.encode())
    return checkpoint


def checkpoint_name(storage: Storage, which: str = "latest") -> str:
    """Return the name of the `latest` or `best` checkpoint without reading it; empty if the run has none.

    Raises:
        CheckpointError: if what is stored there is no name of a checkpoint.
    """
    name, problem = read_pointer(storage, which)
    if not name and not problem and f"{FOLDER}/{which}" in storage.list_names(f"{FOLDER}/"):
        name, problem = read_pointer(storage, which)  # it was missing for a moment
        problem = problem or ("" if name else f"{storage.url}/{FOLDER}/{which} is listed and cannot be read")
    if problem:
        raise CheckpointError(f"{problem}: {_what_is_there(storage)}")
    return name


def read_facts(storage: Storage, name: str) -> CheckpointFacts | None:
    """Read what a named checkpoint says of itself, without its tensors; None if there is no such checkpoint.

    Raises:
        CheckpointError: if it cannot be read.
    """
    if not name:
        return None
    url = f"{storage.url}/{FOLDER}/{name}/{FACTS}"
    try:
        data, size = storage.read_part(f"{FOLDER}/{name}/{FACTS}", 0, LARGEST_FACTS_BYTES)
    except ObjectMissing:
        return None
    if size > LARGEST_FACTS_BYTES:
        raise CheckpointError(f"{url} cannot be read: it has {size} bytes, at most {LARGEST_FACTS_BYTES} are expected")
    facts = facts_from_bytes(data, url)
    if is_step_name(name) and name != step_name(facts.step):
        raise CheckpointError(f"{url} is damaged: it is of step {facts.step}")
    return facts


def read_files(storage: Storage, name: str) -> dict[str, bytes]:
    """Return what is needed to use a checkpoint: its weights and its json as they are stored, and its model card."""
    files = {file: storage.read(f"{FOLDER}/{name}/{file}") for file in (MODEL, FACTS)}
    facts = facts_from_bytes(files[FACTS], f"{storage.url}/{FOLDER}/{name}/{FACTS}")
    return files | {CARD: model_card(facts).encode()}


def open_checkpoint(url: str, tracking_uri: str = "") -> Checkpoint:
    """Load a checkpoint by the URL of a run (its best one) or of one checkpoint folder, or by its name in MLflow.

    Args:
        url: of the run or of the folder, or `models:/NAME@ALIAS`.
        tracking_uri: where such a name is looked up; empty takes MLFLOW_TRACKING_URI.

    Raises:
        NoCheckpoint: if there is none.
        CheckpointError: if it is damaged, or its settings and tensors do not belong together.
    """
    url = resolve_model(url, tracking_uri)
    run_url, separator, name = url.rstrip("/").partition(f"/{FOLDER}/")
    checkpoint = load_checkpoint(open_storage(run_url), name if separator else "best")
    if checkpoint is None:
        raise NoCheckpoint(f"no checkpoint at {url}: give the URL of a run or of RUN/{FOLDER}/step-...")
    check_usable(checkpoint, url)
    return checkpoint


def _load_latest(storage: Storage) -> Checkpoint | None:
    name, problem = read_pointer(storage, "latest")
    try:
        checkpoint = _load_named(storage, name) if name else None
    except CheckpointError as error:
        checkpoint, problem = None, str(error)
    if checkpoint is not None:
        return checkpoint
    listed = storage.list_names(f"{FOLDER}/")
    folders = whole_by_name(listed)
    if REMOVAL in listed or not (folders or any(f"{FOLDER}/{pointer}" in listed for pointer in POINTERS)):
        return None  # nothing was ever whole: the run was interrupted before its first checkpoint, or starts over
    problem = problem or f"{storage.url}/{FOLDER}/latest " + (
        f"names {name}, which is not there" if name else "is missing"
    )
    for folder in folders:
        try:
            checkpoint = _load_named(storage, folder)
        except CheckpointError as error:
            problem = str(error) if folder == folders[0] else problem
            continue
        if checkpoint is not None:
            if folder != name:
                print(
                    f"note: {problem}; {folder} is the newest whole checkpoint and is used", file=sys.stderr, flush=True
                )
            return checkpoint
    raise CheckpointError(f"{problem}; {_what_is_there(storage)}, none is whole: start over with --run.fresh")


def _load_named(storage: Storage, name: str) -> Checkpoint | None:
    facts = read_facts(storage, name)
    if facts is None:
        return None
    url = f"{storage.url}/{FOLDER}/{name}"
    shapes, data = {}, {}
    for file, sha256 in facts.files.items():
        try:
            shapes[file], data[file] = _read_tensors(storage, f"{FOLDER}/{name}/{file}", sha256)
        except ObjectMissing as error:
            raise CheckpointError(f"checkpoint {url} is not whole: {error}") from error
    check_optimizer(shapes[MODEL], shapes[OPTIMIZER], url)
    tensors = {file: tensors_from_bytes(content, f"{url}/{file}") for file, content in data.items()}
    return Checkpoint(facts, tensors[MODEL], tensors[OPTIMIZER])


def _read_tensors(storage: Storage, name: str, sha256: str) -> tuple[dict[str, tuple[int, ...]], bytes]:
    """Return shapes and bytes of a safetensors file; the whole is read when its header fits its size."""
    url = f"{storage.url}/{name}"
    head, size = storage.read_part(name, 0, _HEAD_BYTES)
    if len(head) < min(size, header_bytes(head)):
        head = storage.read_range(name, 0, header_bytes(head))
    shapes = check_header(head, size, url)
    data = head if len(head) == size else storage.read(name)
    if sha256_of(data) != sha256:
        raise CheckpointError(f"{url} is damaged: its sha256 is not {sha256[:80]}")
    return shapes, data


def _what_is_there(storage: Storage) -> str:
    folders = whole_by_name(storage.list_names(f"{FOLDER}/"))
    return f"there are {', '.join(folders[:5])}" if folders else "there is no checkpoint"
