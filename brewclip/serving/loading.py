"""Find and load a system by its name, URL or folder, with the task and language that it listens with."""

from dataclasses import replace
from pathlib import Path

import torch

from brewclip.checkpoints.checkpoint import checkpoint_name
from brewclip.checkpoints.locate import ZERO_SHOT, nearest_run, open_system
from brewclip.config import Config, ModelConfig, unflatten
from brewclip.config.whisper_names import language_problem, task_problem
from brewclip.data.storage import check_reachable, open_storage
from brewclip.errors import UserError
from brewclip.serving.embedder import Embedder
from brewclip.serving.speech_readers import heard_as


def load_embedder(
    name: str,
    *,
    clip: str = "",
    whisper: str = "",
    device: str = "",
    task: str = "",
    language: str | None = None,
    precision: str = "float32",
) -> Embedder:
    """Load a system; see `brewclip.load`."""
    if name == ZERO_SHOT:
        model = ModelConfig(variant=ZERO_SHOT, prompt_length=0)
        config = Config(model=replace(model, clip=clip or model.clip, whisper=whisper or model.whisper))
        return Embedder(name, _hearing(config, task, language), None, _device(device), precision)
    if clip or whisper:
        raise UserError(f"{name} names its own CLIP and Whisper: give them with {ZERO_SHOT} only")
    url = checkpoint_url(name)
    checkpoint = open_system(url)
    config = _hearing(unflatten(checkpoint.facts.config), task, language)
    return Embedder(url, config, checkpoint, _device(device), precision)


def _hearing(config: Config, task: str, language: str | None) -> Config:
    """Return the settings with another task and language.

    Raises:
        ValueError: if Whisper does not know them.
    """
    model = config.model
    wanted, spoken = heard_as(model, task, language)
    for value, problem in (
        (wanted, task_problem(wanted, model.whisper)),
        (spoken, language_problem(spoken, model.whisper)),
    ):
        if problem:
            raise ValueError(f"{value!r} {problem}")
    return replace(config, model=replace(model, task=wanted, language=spoken))


def checkpoint_url(name: str) -> str:
    """Resolve a name to a URL: a URL itself, a local folder, or a run below BREWCLIP_STORAGE.

    Raises:
        UserError: if there is no such folder or run.
    """
    if ":/" in name:
        if not name.startswith("models:/"):
            check_reachable(name)  # fail early: requests to an unreachable server are retried for minutes
        return name
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder.resolve().as_uri()
    if not name or name[0] in "/~.\\":
        raise UserError(
            f"there is no folder {name!r} on this machine: give the folder of a run, its URL (s3:// or file:///), the "
            f"name of a run below BREWCLIP_STORAGE, models:/NAME@ALIAS, or {ZERO_SHOT}"
        )
    config = Config()
    check_reachable(config.storage)
    url = f"{config.storage.rstrip('/')}/runs/{name}"
    if not checkpoint_name(open_storage(url.partition("/checkpoints/")[0])):
        where = f"{config.storage} (BREWCLIP_STORAGE)"
        raise UserError(f"there is no folder {name!r} here, and no such run below {where}{nearest_run(config, name)}")
    return url


def _device(name: str) -> torch.device:
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
