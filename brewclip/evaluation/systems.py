"""Systems under evaluation (a checkpoint or zero-shot CLIP): find, load, and evaluate them on the cluster."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import cast, get_args

import numpy as np

from brewclip.checkpoints.folder import FOLDER
from brewclip.checkpoints.locate import ZERO_SHOT, nearest_run, open_system
from brewclip.config import Config, Transcript, unflatten
from brewclip.data.manifest import open_manifest
from brewclip.data.storage import check_reachable
from brewclip.data.truncation import TruncationCounts
from brewclip.errors import UserError
from brewclip.evaluation.embed import Embeddings
from brewclip.evaluation.ranks import Ranking
from brewclip.factory import build_model, build_towers, load_own_speech_encoder, restore_model
from brewclip.metrics import RetrievalResult
from brewclip.models.brewclip import CHANNELS, BrewCLIP
from brewclip.pretrained.clip_identity import identify_clip
from brewclip.pretrained.load import LoadedClip, load_clip
from brewclip.tracking.registry import resolve_model

_INPUT_SETTINGS = ("image_transform", "long_text", "max_audio_frames")


@dataclass(frozen=True)
class System:
    """A system to evaluate.

    Attributes:
        name: label in tables.
        url: URL of the run or checkpoint; empty for zero-shot CLIP.
        config: its settings, with storage and data of the evaluation.
        step: optimiser steps of its training.
        mlflow_run_id: MLflow run of its training, or empty.
        trained_on: training corpus, or empty.
        weights_sha256: hash of the trained weights, or empty.
        channel: `acoustic` or `text` to evaluate that channel alone, or empty.
    """

    name: str
    url: str
    config: Config
    step: int = 0
    mlflow_run_id: str = ""
    trained_on: str = ""
    weights_sha256: str = ""
    channel: str = ""


@dataclass(frozen=True)
class SystemResult:
    """A system with its embeddings, ranks and metrics on a split."""

    system: System
    embeddings: Embeddings
    result: RetrievalResult
    metrics: dict[str, float]
    bad_samples: dict[str, int]
    truncation: TruncationCounts = field(default_factory=TruncationCounts)

    @property
    def ranking(self) -> Ranking:
        """The ranks without the embeddings, as saved."""
        system = self.system
        facts = {
            "system": system.name,
            "url": system.url,
            "step": system.step,
            "weights_sha256": system.weights_sha256,
            "corpus": system.config.data.corpus,
            "transcript": system.config.data.transcript,
            "bad_samples": self.bad_samples,
        }
        return Ranking(np.asarray(self.embeddings.keys, np.str_), self.result, facts)


def open_systems(config: Config, names: Sequence[str], split: str) -> list[System]:
    """Resolve the names given to `--systems`, once storage and the extracted split are known to be there.

    Raises:
        UserError: if storage cannot be reached, or as `describe_systems`.
        ManifestError: if the split that a system reads is not there.
    """
    check_reachable(config.storage)
    open_manifest(f"{config.splits_url}/{split}", retry_seconds=10)
    systems = describe_systems(config, names)
    for url in {system.config.splits_url for system in systems} - {config.splits_url}:
        open_manifest(f"{url}/{split}", retry_seconds=10)
    return systems


def check_reads_features(systems: Sequence[System], study: str) -> None:
    """Check that a study of Whisper's features can look into all systems.

    Raises:
        UserError: for the first that hears waveforms.
    """
    for system in systems:
        if system.config.model.variant == "speechclip":
            raise UserError(f"{study} looks at Whisper's features, which {system.name} does not read: leave it out")


def describe_systems(config: Config, names: Sequence[str]) -> list[System]:
    """Resolve the names given to `--systems`, with distinct labels.

    Raises:
        UserError: as `describe_system`, or if a name is repeated or there is none.
    """
    repeated = {name for name in names if names.count(name) > 1}
    if repeated or not names:
        raise UserError(f"--systems names {', '.join(sorted(repeated))} twice" if repeated else "--systems is empty")
    systems = [describe_system(config, name) for name in names]
    labels = [system.name for system in systems]
    return [
        replace(system, name=name) if labels.count(system.name) > 1 else system
        for system, name in zip(systems, names, strict=True)
    ]


def describe_system(config: Config, name: str) -> System:
    """Resolve a name given to `--systems`.

    Args:
        config: settings of the evaluation; its storage, data and model names apply unless the checkpoint sets them.
        name: `zero_shot`, the name of a run below STORAGE/runs, or the URL of a run or checkpoint; a suffix
            `@TRANSCRIPT` (any value of `--data.transcript`) overrides that setting, and `@acoustic` or `@text` before
            it takes one channel of a full model.

    Raises:
        UserError: if there is no such checkpoint, it was trained on another CLIP or Whisper, or has no such channel.
    """
    name, config, suffix = _split_transcript(config, name)
    name, channel = _split_channel(name)
    if name == ZERO_SHOT:
        model = replace(config.model, variant=ZERO_SHOT, prompt_length=0)
        return System(ZERO_SHOT + suffix, "", replace(config, model=model))
    is_url = ":/" in name
    url = resolve_model(name, config.tracking.uri) if is_url else f"{config.storage.rstrip('/')}/runs/{name}"
    try:
        checkpoint = open_system(url)
    except UserError as error:
        raise error if is_url else UserError(f"{error}{nearest_run(config, name)}") from None
    url = url.rstrip("/")
    trained = unflatten(checkpoint.facts.config)
    if channel and trained.model.variant != "brewclip":
        raise UserError(f"{name} has no two channels, its variant is {trained.model.variant}: leave out @{channel}")
    for part in ("clip", "whisper"):
        here, there = getattr(config.model, part), getattr(trained.model, part)
        if here != there:
            raise UserError(f"checkpoint {url} was trained with --model.{part} {there}, here it is {here}")
    _note_other_inputs(name, trained, config)
    own = replace(
        config, model=trained.model, loss=trained.loss, run=replace(config.run, precision=trained.run.precision)
    )
    return System(
        name=_label(url) + (f"@{channel}" if channel else "") + suffix,
        url=url,
        config=own,
        step=checkpoint.facts.step,
        mlflow_run_id=checkpoint.facts.mlflow_run_id,
        trained_on=trained.data.corpus,
        weights_sha256=checkpoint.facts.files.get("model.safetensors", ""),
        channel=channel,
    )


def _label(url: str) -> str:
    """Return the label of a checkpoint: the name of its run, with the step if the URL has one."""
    run_url, _, step = url.partition(f"/{FOLDER}/")
    return run_url.rpartition("/")[2] + (f"/{step}" if step else "")


def _note_other_inputs(name: str, trained: Config, config: Config) -> None:
    """Print a note on input settings that differ from those of a system's training."""
    for setting in _INPUT_SETTINGS:
        there, here = getattr(trained.data, setting), getattr(config.data, setting)
        if there != here:
            flag = f"--data.{setting.replace('_', '-')}"
            print(f"note: {name} was trained with {flag} {there} and reads the split with {here}", flush=True)


def _split_channel(name: str) -> tuple[str, str]:
    """Return the name of a run without `@CHANNEL`, and the channel."""
    front, _, channel = name.rpartition("@")
    return (front, channel) if front and front != ZERO_SHOT and channel in CHANNELS else (name, "")


def _split_transcript(config: Config, name: str) -> tuple[str, Config, str]:
    """Return the name without `@TRANSCRIPT`, the settings with that transcript, and the suffix for tables."""
    front, _, transcript = name.rpartition("@")
    if not front or transcript not in get_args(Transcript):
        return name, config, ""
    suffix = "" if transcript == config.data.transcript else f"@{transcript}"
    return front, replace(config, data=replace(config.data, transcript=cast(Transcript, transcript))), suffix


def load_system(system: System, audio_dim: int) -> tuple[BrewCLIP, LoadedClip]:
    """Build the model of a system with its weights, in eval mode.

    Raises:
        UserError, ValueError: if checkpoint, frozen weights and model do not match.
    """
    clip = load_clip(system.config.model.clip)
    speech_encoder = load_own_speech_encoder(system.config)
    model = build_model(system.config, build_towers(system.config, clip), audio_dim, speech_encoder)
    if system.url:
        restore_model(model, open_system(system.url), identify_clip(clip), speech_encoder)
    model.channel = system.channel
    return model.eval(), clip
