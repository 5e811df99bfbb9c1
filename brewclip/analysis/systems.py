"""A system under evaluation: a checkpoint or plain CLIP, loaded, and run over a split by the whole cluster."""

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch

from brewclip.assembly import audio_dim_of, build_autocast, build_decoder, build_model, check_pictures
from brewclip.config import Config, UserError, unflatten
from brewclip.data.batches import Batch, Pair, collate
from brewclip.data.manifest import open_manifest
from brewclip.data.reader import Rejections, SplitReader
from brewclip.data.storage import open_storage
from brewclip.evaluation import Embeddings, embed_split, join_embeddings
from brewclip.metrics import RetrievalResult
from brewclip.models.brewclip import BrewCLIP
from brewclip.models.clip import PromptedCLIP
from brewclip.pretrained import LoadedClip, load_clip, weights_sha256
from brewclip.training.checkpoint import Checkpoint, check_frozen, load_checkpoint, open_checkpoint

ZERO_SHOT: Final = "zero_shot"
_RECORDINGS_PER_TASK = 2_000


@dataclass(frozen=True)
class System:
    """What is evaluated.

    Attributes:
        name: for tables.
        url: of the run or checkpoint; empty for plain CLIP.
        config: its settings, with the storage and the data of the evaluation.
        step: optimiser steps it was trained for.
        mlflow_run_id: where its training is recorded, or empty.
    """

    name: str
    url: str
    config: Config
    step: int = 0
    mlflow_run_id: str = ""


@dataclass(frozen=True)
class SystemResult:
    """A system and what became of every query of a split."""

    system: System
    embeddings: Embeddings
    result: RetrievalResult
    metrics: dict[str, float]
    bad_samples: dict[str, int]


def describe_system(config: Config, name: str) -> System:
    """Find out what a name given to `--systems` stands for.

    Args:
        config: settings of the evaluation; its storage, data and model names apply where a checkpoint says nothing.
        name: `zero_shot`, the name of a run below STORAGE/runs, or the URL of a run or checkpoint.

    Raises:
        UserError: if there is no such checkpoint, or it was trained on another CLIP or Whisper.
    """
    if name == ZERO_SHOT:
        model = replace(config.model, variant=ZERO_SHOT, prompt_length=0)
        return System(ZERO_SHOT, "", replace(config, model=model))
    url = name if "://" in name else f"{config.storage.rstrip('/')}/runs/{name}"
    checkpoint = _open(url)
    trained = unflatten(checkpoint.facts.config)
    for part in ("clip", "whisper"):
        here, there = getattr(config.model, part), getattr(trained.model, part)
        if here != there:
            raise UserError(f"checkpoint {url} was trained with --model.{part} {there}, here it is {here}")
    label = trained.model.variant if not trained.run.name else trained.run.name
    own = replace(
        config, model=trained.model, loss=trained.loss, run=replace(config.run, precision=trained.run.precision)
    )
    return System(label, url, own, checkpoint.facts.step, checkpoint.facts.mlflow_run_id)


def load_system(system: System, audio_dim: int) -> tuple[BrewCLIP, LoadedClip]:
    """Build the model of a system with its weights, in eval mode.

    Raises:
        UserError, ValueError: if checkpoint, frozen weights and model do not fit.
    """
    clip = load_clip(system.config.model.clip)
    model = build_model(system.config, PromptedCLIP(clip.model), audio_dim)
    if system.url:
        checkpoint = _open(system.url)
        check_frozen(checkpoint, {system.config.model.clip: weights_sha256(clip.model)})
        model.load_trained_state(checkpoint.model)
    return model.eval(), clip


def evaluate_system(system: System, split: str) -> SystemResult:
    """Embed a split with a system on all workers of the cluster, and rank.

    Raises:
        UserError: if split and system do not fit together.
    """
    import ray

    from brewclip.cluster import available

    num_samples = len(open_manifest(f"{system.config.features_url}/{split}"))
    gpus = available("GPU") if system.config.cluster.use_gpu else 0
    world_size = max(1, min(gpus or available("CPU"), -(-num_samples // _RECORDINGS_PER_TASK)))
    task = ray.remote(_embed_share).options(num_cpus=1, num_gpus=1 if gpus else 0, max_retries=3)
    done = ray.get([task.remote(system, split, rank, world_size) for rank in range(world_size)])
    problems = [problem for _, _, problem in done if problem]
    if problems:
        raise UserError(problems[0])
    embeddings = join_embeddings([share for share, _, _ in done if share is not None])
    bad: dict[str, int] = {}
    for _, counts, _ in done:
        bad = {cause: bad.get(cause, 0) + counts.get(cause, 0) for cause in bad.keys() | counts.keys()}
    result = embeddings.rank()
    return SystemResult(system, embeddings, result, result.summary(), bad)


def _embed_share(
    system: System, split: str, rank: int, world_size: int
) -> tuple[Embeddings | None, dict[str, int], str]:
    """Embed one share on a worker; mistakes of the user come back as a text."""
    torch.set_num_threads(1)
    try:
        reader = SplitReader(open_manifest(f"{system.config.features_url}/{split}"))
        model, clip = load_system(system, audio_dim_of(reader.manifest))
        check_pictures(reader.manifest, clip)
    except (UserError, ValueError, FileNotFoundError) as error:
        return None, {}, str(error)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    rejections = Rejections(reader.manifest.url)

    def to_batch(pairs: list[Pair]) -> Batch:
        return collate(pairs, clip.mean, clip.std, device)

    with build_autocast(system.config, device):
        share = embed_split(
            model, reader, build_decoder(system.config, clip), to_batch, rejections, rank=rank, world_size=world_size
        )
    return share, rejections.counts, ""


def top_pictures(embeddings: Embeddings, queries: list[int], count: int) -> list[list[str]]:
    """Return the ids of the nearest pictures of some recordings, nearest first."""
    speech = embeddings.speech[queries]
    speech = speech / np.linalg.norm(speech, axis=1, keepdims=True)
    images = embeddings.images / np.linalg.norm(embeddings.images, axis=1, keepdims=True)
    nearest = np.argsort(-(speech @ images.T), axis=1, kind="stable")[:, :count]
    return [[embeddings.image_ids[column] for column in row] for row in nearest]


def _open(url: str) -> Checkpoint:
    """Open a checkpoint by URL; a run without a best one gives its latest."""
    try:
        return open_checkpoint(url)
    except UserError:
        latest = load_checkpoint(open_storage(url))
        if latest is None:
            raise
        return latest
