"""Systems under evaluation (a checkpoint or zero-shot CLIP): find, load, and evaluate them on the cluster."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import cast, get_args

import numpy as np
import torch

from brewclip.checkpoints.folder import FOLDER
from brewclip.checkpoints.locate import ZERO_SHOT, nearest_run, open_system
from brewclip.config import Config, Transcript, unflatten
from brewclip.data.batches import Batch, Pair, collate
from brewclip.data.manifest import Manifest, open_manifest
from brewclip.data.reader import Rejections, SplitReader
from brewclip.data.truncation import TruncationCounts
from brewclip.errors import UserError
from brewclip.evaluation.embed import Embeddings, embed_split, join_embeddings
from brewclip.evaluation.ranks import Ranking
from brewclip.factory import audio_dim_of, build_autocast, build_decoder, build_model, check_images, restore_model
from brewclip.metrics import RetrievalResult
from brewclip.models.brewclip import BrewCLIP
from brewclip.models.clip import PromptedCLIP
from brewclip.pretrained.clip_identity import identify_clip
from brewclip.pretrained.load import LoadedClip, load_clip
from brewclip.tracking.registry import resolve_model

_RECORDINGS_PER_TASK = 2_000
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
    """

    name: str
    url: str
    config: Config
    step: int = 0
    mlflow_run_id: str = ""
    trained_on: str = ""
    weights_sha256: str = ""


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
        name: `zero_shot`, the name of a run below STORAGE/runs, or the URL of a run or checkpoint; a suffix `@asr` or
            `@ground_truth` overrides `--data.transcript`.

    Raises:
        UserError: if there is no such checkpoint, or it was trained on another CLIP or Whisper.
    """
    name, config, suffix = _split_transcript(config, name)
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
    for part in ("clip", "whisper"):
        here, there = getattr(config.model, part), getattr(trained.model, part)
        if here != there:
            raise UserError(f"checkpoint {url} was trained with --model.{part} {there}, here it is {here}")
    _note_other_inputs(name, trained, config)
    own = replace(
        config, model=trained.model, loss=trained.loss, run=replace(config.run, precision=trained.run.precision)
    )
    return System(
        name=_label(url) + suffix,
        url=url,
        config=own,
        step=checkpoint.facts.step,
        mlflow_run_id=checkpoint.facts.mlflow_run_id,
        trained_on=trained.data.corpus,
        weights_sha256=checkpoint.facts.files.get("model.safetensors", ""),
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
    model = build_model(system.config, PromptedCLIP(clip.model), audio_dim)
    if system.url:
        restore_model(model, open_system(system.url), identify_clip(clip))
    return model.eval(), clip


@dataclass(frozen=True)
class Share:
    """Result of a worker on its share of a split.

    Attributes:
        embeddings: embeddings of the usable samples; None if a user error stopped the worker.
        counts, listed: rejected samples, as in `Rejections`.
        truncation: counts of truncated inputs.
        problem: message of the user error, or empty.
    """

    embeddings: Embeddings | None = None
    counts: dict[str, int] = field(default_factory=dict)
    listed: list[dict[str, str | int]] = field(default_factory=list)
    truncation: TruncationCounts = field(default_factory=TruncationCounts)
    problem: str = ""


def evaluate_system(system: System, split: str) -> SystemResult:
    """Embed a split with a system on all workers of the cluster, and rank it.

    Raises:
        UserError: as `rank_shares`, or if the split is missing or empty.
    """
    import ray

    from brewclip.cluster import Demand, available, check_resources, uses_gpu

    manifest = open_manifest(f"{system.config.features_url}/{split}")
    if not len(manifest):
        raise UserError(f"{manifest.url} holds no recordings: write and extract the split again")
    gpus = available("GPU") if uses_gpu(system.config.cluster) else 0
    check_resources(Demand("evaluation", 1, 1, 1 if gpus else 0))
    world_size = max(1, min(gpus or available("CPU"), -(-len(manifest) // _RECORDINGS_PER_TASK)))
    task = ray.remote(embed_share).options(num_cpus=1, num_gpus=1 if gpus else 0, max_retries=3)
    shares = ray.get([task.remote(system, split, rank, world_size) for rank in range(world_size)])
    return rank_shares(system, manifest, shares)


def embed_share(system: System, split: str, rank: int, world_size: int) -> Share:
    """Embed one share of a split on a worker; return user errors as `Share.problem`."""
    torch.set_num_threads(1)
    try:
        reader = SplitReader(open_manifest(f"{system.config.features_url}/{split}"))
        audio_dim = audio_dim_of(reader.manifest)
        model, clip = load_system(system, audio_dim)
        check_images(reader.manifest, clip)
    except (UserError, ValueError, FileNotFoundError) as error:
        return Share(problem=str(error))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    rejections, truncation = Rejections(reader.manifest.url), TruncationCounts()

    def to_batch(pairs: list[Pair]) -> Batch:
        truncation.add(pair.lengths for pair in pairs)
        return collate(pairs, clip.mean, clip.std, device)

    decode = build_decoder(system.config, clip, audio_dim=audio_dim)
    with build_autocast(system.config, device):
        share = embed_split(model, reader, decode, to_batch, rejections, rank=rank, world_size=world_size)
    return Share(share, rejections.counts, rejections.listed, truncation)


def rank_shares(system: System, manifest: Manifest, shares: Sequence[Share]) -> SystemResult:
    """Join the shares of all workers and rank; print which recordings are left out.

    Raises:
        UserError: if split and system do not match, or as `check_rankable`.
    """
    problems = [share.problem for share in shares if share.problem]
    if problems:
        raise UserError(problems[0])
    rejections = Rejections(manifest.url, system.config.data.max_bad_fraction)
    for share in shares:
        rejections.listed += share.listed
        for cause, count in share.counts.items():
            rejections.counts[cause] = rejections.counts.get(cause, 0) + count
    embeddings = join_embeddings([share.embeddings for share in shares if share.embeddings is not None])
    check_rankable(system.name, manifest, embeddings, rejections)
    if rejections.total:
        first = "; ".join(str(row["detail"]) for row in rejections.listed[:3])
        print(f"{system.name}: left out {rejections.total} of {len(manifest)} recordings: {first}", flush=True)
    result, truncation = embeddings.rank(), sum((share.truncation for share in shares), TruncationCounts())
    return SystemResult(system, embeddings, result, result.summary(), rejections.counts, truncation)


def check_rankable(name: str, manifest: Manifest, embeddings: Embeddings, rejections: Rejections) -> None:
    """Check that the embeddings of a split can be ranked.

    Raises:
        UserError: if too many recordings are rejected, there is only one image, or a feature is zero or not finite.
    """
    if not embeddings.keys:
        detail = rejections.listed[0]["detail"] if rejections.listed else ""
        raise UserError(f"none of {len(manifest)} recordings of {manifest.url} can be used by {name}: {detail}")
    rejections.check(len(manifest))
    if len(embeddings.image_ids) < 2:
        raise UserError(f"{manifest.url} has one image, which every recording finds: at least 2 make a gallery")
    for what, names, features in (
        ("recordings", embeddings.keys, embeddings.speech),
        ("images", embeddings.image_ids, embeddings.images),
    ):
        lengths = np.linalg.norm(features, axis=1)
        bad = np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0)))
        if len(bad):
            raise UserError(
                f"{name} gives features that are zero or not finite for {len(bad)} of {len(names)} {what} of "
                f"{manifest.url}, such as {names[bad[0]]!r}: check the checkpoint, or use --run.precision float32"
            )
