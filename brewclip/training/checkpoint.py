"""Checkpoints: what is trained, the optimiser, the step and the settings, as safetensors and json.

Below the folder of a run:

    checkpoints/step-00000500/model.safetensors      what is trained
    checkpoints/step-00000500/optimizer.safetensors  state of Adam
    checkpoints/step-00000500/checkpoint.json        step, settings, hashes of all of it; written last
    checkpoints/latest, checkpoints/best             name of a checkpoint; written after it is whole

A folder without a checkpoint.json, or with files that differ from it, is not a checkpoint and is never loaded.
"""

import contextlib
import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from brewclip.config import Config, UserError, flatten
from brewclip.data.storage import ObjectMissing, Storage, open_storage
from brewclip.registry import resolve_model

if TYPE_CHECKING:  # it loads open_clip, which reading a checkpoint does not need
    from brewclip.clip_identity import ClipIdentity

FOLDER = "checkpoints"
# Settings that may differ when a run goes on: they change neither data nor arithmetic.
_FREE_SETTINGS = (
    *("storage", "cluster.", "tracking.", "extraction.", "run.name", "run.fresh", "run.log_every_steps"),
    *("run.eval_every_steps", "run.checkpoint_every_steps", "run.keep_checkpoints", "data.memory_bytes"),
    *("data.num_threads", "data.cache_directory", "data.retry_seconds", "data.max_bad_fraction"),
)
_NOT_OF_THE_SHAPE = ("model.dropout", "model.language", "model.cls_std")
_MODEL, _OPTIMIZER, _FACTS = "model.safetensors", "optimizer.safetensors", "checkpoint.json"


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged, or does not fit; the message names it and the remedy."""


@dataclass(frozen=True)
class CheckpointFacts:
    """The content of checkpoint.json.

    Attributes:
        step: optimiser steps done; the stream goes on from here.
        config: the settings of the run, flattened.
        frozen_sha256: hash of the frozen weights by the name of their model; checked on load.
        audio_dim: width of Whisper's features.
        mlflow_run_id: where the run is recorded, or empty.
        metrics: dev metrics at this step, if it was evaluated.
        best: metric and step of the best checkpoint so far.
        files: sha256 of the files beside it.
        frozen_settings: what the features of a frozen model depend on beside its weights, by its name, see
            `clip_identity.ClipIdentity`; checked on load. Checkpoints before 2026-11-26 have none.
    """

    step: int
    config: dict[str, Any]
    frozen_sha256: dict[str, str]
    audio_dim: int
    mlflow_run_id: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    frozen_settings: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint in memory: tensors on the CPU."""

    facts: CheckpointFacts
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]


def step_name(step: int) -> str:
    """Return the folder name of a step."""
    return f"step-{step:08d}"


def save_checkpoint(storage: Storage, checkpoint: Checkpoint, *, best: bool, keep: int) -> str:
    """Write a checkpoint, then point `latest` (and `best`) at it, then remove old ones.

    Args:
        storage: folder of the run.
        checkpoint: what is saved.
        best: whether it is the best so far.
        keep: newest checkpoints kept, beside the best.

    Returns:
        The name of the checkpoint.
    """
    name = step_name(checkpoint.facts.step)
    files = {_MODEL: save(checkpoint.model), _OPTIMIZER: save(checkpoint.optimizer)}
    for file, data in files.items():
        storage.write(f"{FOLDER}/{name}/{file}", data)
    facts = asdict(checkpoint.facts) | {"files": {file: _sha256(data) for file, data in files.items()}}
    storage.write(f"{FOLDER}/{name}/{_FACTS}", json.dumps(facts, indent=1, sort_keys=True).encode())
    storage.write(f"{FOLDER}/latest", name.encode())
    if best:
        storage.write(f"{FOLDER}/best", name.encode())
    _remove_old(storage, keep)
    return name


def load_checkpoint(storage: Storage, which: str = "latest") -> Checkpoint | None:
    """Load `latest`, `best` or a named checkpoint of a run.

    Returns:
        The checkpoint, or None if the run has none of that name.

    Raises:
        CheckpointError: if its files are not those that its json names.
    """
    name = checkpoint_name(storage, which) if which in ("latest", "best") else which
    facts = read_facts(storage, name)
    if facts is None:
        return None
    tensors = {}
    for file, sha256 in facts.files.items():
        try:
            data = storage.read(f"{FOLDER}/{name}/{file}")
        except ObjectMissing as error:
            raise CheckpointError(f"checkpoint {storage.url}/{FOLDER}/{name} is not whole: {error}") from error
        if _sha256(data) != sha256:
            raise CheckpointError(f"{storage.url}/{FOLDER}/{name}/{file} is damaged: its sha256 is not {sha256}")
        tensors[file] = load(data)
    return Checkpoint(facts, tensors[_MODEL], tensors[_OPTIMIZER])


def checkpoint_name(storage: Storage, which: str = "latest") -> str:
    """Return the name of the `latest` or `best` checkpoint without reading it; empty if the run has none."""
    try:
        return storage.read(f"{FOLDER}/{which}").decode()
    except ObjectMissing:
        return ""


def read_facts(storage: Storage, name: str) -> CheckpointFacts | None:
    """Read what a named checkpoint says of itself, without its tensors; None if there is no such checkpoint.

    Raises:
        CheckpointError: if it cannot be read.
    """
    if not name:
        return None
    try:
        return CheckpointFacts(**json.loads(storage.read(f"{FOLDER}/{name}/{_FACTS}")))
    except ObjectMissing:
        return None
    except (TypeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{storage.url}/{FOLDER}/{name}/{_FACTS} cannot be read: {error}") from error


def read_files(storage: Storage, name: str) -> dict[str, bytes]:
    """Return what is needed to use a checkpoint, as it is stored: its weights and its json, not its optimiser."""
    return {file: storage.read(f"{FOLDER}/{name}/{file}") for file in (_MODEL, _FACTS)}


def open_checkpoint(url: str, tracking_uri: str = "") -> Checkpoint:
    """Load a checkpoint by the URL of a run (its best one) or of one checkpoint folder, or by its name in MLflow.

    Args:
        url: of the run or of the folder, or `models:/NAME@ALIAS`.
        tracking_uri: where such a name is looked up; empty takes MLFLOW_TRACKING_URI.

    Raises:
        CheckpointError: if there is none.
    """
    url = resolve_model(url, tracking_uri)
    run_url, separator, name = url.rstrip("/").partition(f"/{FOLDER}/")
    checkpoint = load_checkpoint(open_storage(run_url), name if separator else "best")
    if checkpoint is None:
        raise CheckpointError(f"no checkpoint at {url}: give the URL of a run or of RUN/{FOLDER}/step-...")
    return checkpoint


def remove_checkpoints(storage: Storage) -> None:
    """Remove every checkpoint of a run, the pointers first."""
    for name in ("latest", "best"):
        storage.delete(f"{FOLDER}/{name}")
    for name in storage.list_names(f"{FOLDER}/"):
        storage.delete(name)


def check_frozen(checkpoint: Checkpoint, clip: "ClipIdentity") -> None:
    """Compare the frozen CLIP at hand with the one that a checkpoint was trained on: weights, and how they are used.

    Raises:
        CheckpointError: if they differ.
    """
    for name, sha256 in checkpoint.facts.frozen_sha256.items():
        if (name, sha256) != (clip.name, clip.weights_sha256):
            here = clip.weights_sha256[:12] if name == clip.name else clip.name
            raise CheckpointError(
                f"the checkpoint was trained on {name} with sha256 {sha256[:12]}, here it is {here}: "
                "use the same frozen weights"
            )
    recorded = checkpoint.facts.frozen_settings.get(clip.name)
    trained = clip.unrecorded if recorded is None else recorded
    for setting, here in clip.settings.items():
        if trained.get(setting, here) != here:
            remedy = "use the version of open_clip_torch that it was trained with, or train again (--run.fresh)"
            if recorded is None:
                remedy = f"an earlier version of brewclip built {clip.name} wrongly; train again (--run.fresh)"
            raise CheckpointError(
                f"the checkpoint was trained on {clip.name} with {setting} {trained[setting]}, here it is {here}: "
                f"{remedy}"
            )


def check_same_run(config: Config, facts: CheckpointFacts) -> None:
    """Refuse to go on with a run under other settings; one that did not exist yet had its default.

    Raises:
        CheckpointError: naming the first setting that changed what the run is.
    """
    now = flatten(config)
    for name, before in (flatten(Config()) | facts.config).items():
        if name.startswith(_FREE_SETTINGS) or name not in now or now[name] == before:
            continue
        flag = f"--{name.replace('_', '-')}"
        raise CheckpointError(
            f"run {config.run_name!r} was started with {flag} {before}, now it is {now[name]}: choose another "
            f"--run.name, or start over with --run.fresh"
        )


def check_initial(config: Config, url: str, initial: Checkpoint) -> None:
    """Refuse to start from the weights of a checkpoint whose model is another one.

    Raises:
        CheckpointError: naming the first setting of the model that differs.
    """
    now = flatten(config)
    for name, before in initial.facts.config.items():
        if name.startswith("model.") and name not in _NOT_OF_THE_SHAPE and now.get(name, before) != before:
            flag = f"--{name.replace('_', '-')}"
            raise CheckpointError(
                f"--run.init-from {url} is a model with {flag} {before}, here it is {now[name]}: give {flag} {before}"
            )


def optimizer_state(optimizer: torch.optim.Optimizer, names: list[str]) -> dict[str, Tensor]:
    """Return Adam's moments and step counts by parameter name, `name|exp_avg` and so on, on the CPU."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = {}
    for name, parameter in zip(names, parameters, strict=True):
        for key, value in optimizer.state.get(parameter, {}).items():
            state[f"{name}|{key}"] = value.detach().cpu().clone().contiguous()
    return state


def load_optimizer_state(optimizer: torch.optim.Optimizer, names: list[str], state: dict[str, Tensor]) -> None:
    """Give Adam back what `optimizer_state` returned."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for name, parameter in zip(names, parameters, strict=True):
        prefix = f"{name}|"
        own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        if own:
            # Adam keeps its step count on the CPU whatever the device.
            optimizer.state[parameter] = {
                key: value.clone() if key == "step" else value.to(parameter.device).clone()
                for key, value in own.items()
            }


def _remove_old(storage: Storage, keep: int) -> None:
    """Remove all but the newest checkpoints and the best; a folder loses its json first, so it is whole or none."""
    folders = sorted({name.split("/")[1] for name in storage.list_names(f"{FOLDER}/step-")}, reverse=True)
    kept = set(folders[:keep])
    with contextlib.suppress(ObjectMissing):
        kept.add(storage.read(f"{FOLDER}/best").decode())
    for folder in folders:
        if folder not in kept:
            for file in (_FACTS, _MODEL, _OPTIMIZER):
                storage.delete(f"{FOLDER}/{folder}/{file}")


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
