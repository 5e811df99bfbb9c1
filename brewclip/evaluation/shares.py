"""Evaluation of a system on a split over the cluster: each worker embeds a share, and all shares are ranked."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from brewclip.checkpoints.locate import open_system
from brewclip.data.batches import Batch, EmbeddingDecoder, Pair, collate, collate_embeddings
from brewclip.data.manifest import Manifest, open_manifest
from brewclip.data.reader import Rejections, SplitReader
from brewclip.data.schema import Sample
from brewclip.data.truncation import TruncationCounts
from brewclip.errors import ManifestError, UserError
from brewclip.evaluation.embed import Embeddings, embed_split, join_embeddings
from brewclip.evaluation.systems import System, SystemResult, load_system
from brewclip.factory import (
    attach_layer_cache,
    audio_dim_of,
    build_autocast,
    build_decoder,
    build_model,
    build_waveform_decoder,
    check_images,
    open_embeddings,
    restore_model,
)
from brewclip.models.adapter import EmbeddingAdapter
from brewclip.models.brewclip import BrewCLIP

_RECORDINGS_PER_TASK = 2_000
_ENCODED_PER_TASK = 200  # of a system that encodes waveforms


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

    manifest = open_manifest(f"{system.config.splits_url}/{split}")
    if not len(manifest):
        raise UserError(f"{manifest.url} holds no recordings: write and extract the split again")
    gpus = available("GPU") if uses_gpu(system.config.cluster) else 0
    check_resources(Demand("evaluation", 1, 1, 1 if gpus else 0))
    per_task = _ENCODED_PER_TASK if system.config.model.variant == "speechclip" else _RECORDINGS_PER_TASK
    world_size = max(1, min(gpus or available("CPU"), -(-len(manifest) // per_task)))
    task = ray.remote(embed_share).options(num_cpus=1, num_gpus=1 if gpus else 0, max_retries=3)
    shares = ray.get([task.remote(system, split, rank, world_size) for rank in range(world_size)])
    return rank_shares(system, manifest, shares)


def embed_share(system: System, split: str, rank: int, world_size: int) -> Share:
    """Embed one share of a split on a worker; return user errors as `Share.problem`."""
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        inputs = _open_inputs(system, open_manifest(f"{system.config.splits_url}/{split}"), device)
    except (UserError, ValueError, FileNotFoundError) as error:
        return Share(problem=str(error))
    rejections, truncation = Rejections(inputs.reader.manifest.url), TruncationCounts()

    def to_batch(pairs: list[Pair]) -> Batch:
        truncation.add(pair.lengths for pair in pairs)
        return inputs.collate(pairs)

    try:
        with build_autocast(system.config, device):
            share = embed_split(
                inputs.model.to(device), inputs.reader, inputs.decode, to_batch, rejections, rank=rank,
                world_size=world_size,
            )  # fmt: skip
    except UserError as error:  # such as a shard that is not the one of the manifest
        return Share(problem=str(error))
    return Share(share, rejections.counts, rejections.listed, truncation)


class _Inputs(NamedTuple):
    """A system's model, and what feeds it."""

    model: BrewCLIP
    reader: SplitReader
    decode: Callable[[Sample], Pair]
    collate: Callable[[list[Pair]], Batch]


def _open_inputs(system: System, manifest: Manifest, device: torch.device) -> _Inputs:
    """Open a split for a system: its cached embeddings if the system has an adapter and they are there."""
    config = system.config
    if config.model.variant == "speechclip":
        model, clip = load_system(system, audio_dim=0)
        attach_layer_cache(model, config, device)
        decode = build_waveform_decoder(config, clip)
        return _Inputs(model, SplitReader(manifest), decode, lambda pairs: collate(pairs, clip.mean, clip.std, device))
    audio_dim = audio_dim_of(manifest)
    if config.model.adaptation == "adapter":
        try:
            cached = open_embeddings(config, manifest)
        except ManifestError:
            cached = None
        if cached is not None:
            model = build_model(config, EmbeddingAdapter(cached.embed_dim), audio_dim)
            if system.url:
                restore_model(model, open_system(system.url), cached.clip_identity)
            model.channel = system.channel
            reads = EmbeddingDecoder(config.data.transcript, config.data.max_audio_frames, audio_dim)
            return _Inputs(model.eval(), cached.reader, reads, lambda pairs: collate_embeddings(pairs, device))
    model, clip = load_system(system, audio_dim)
    check_images(manifest, clip)
    decoder = build_decoder(config, clip, audio_dim=audio_dim)
    return _Inputs(model, SplitReader(manifest), decoder, lambda pairs: collate(pairs, clip.mean, clip.std, device))


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
