"""Data, frozen CLIP, model and optimiser of one worker, built in this order."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from brewclip.config import Config
from brewclip.data.batches import Batch, EmbeddingDecoder, Pair, collate, collate_embeddings
from brewclip.data.manifest import Manifest, open_manifest
from brewclip.data.reader import SplitReader
from brewclip.data.schema import Sample
from brewclip.data.waveforms import RandomCrop
from brewclip.errors import UserError
from brewclip.factory import (
    attach_layer_cache,
    audio_dim_of,
    build_decoder,
    build_model,
    build_towers,
    build_waveform_decoder,
    check_alternatives,
    check_images,
    load_own_speech_encoder,
    open_embeddings,
)
from brewclip.models.adapter import EmbeddingAdapter
from brewclip.models.brewclip import BrewCLIP
from brewclip.pretrained.clip_identity import ClipIdentity, identify_clip
from brewclip.pretrained.load import LoadedClip, load_clip
from brewclip.pretrained.speech_encoders import LoadedSpeechEncoder
from brewclip.training.compiled import compile_encoders
from brewclip.training.optimizer import build_optimizer


@dataclass(frozen=True)
class Parts:
    """Data, frozen CLIP, model and optimiser of one worker.

    Attributes:
        device: that the model is on.
        train: reader of the training split.
        dev: reader of the split that checkpoints are selected on.
        audio_dim: width of the Whisper features, or of the speech encoder's.
        clip_identity: what the features of the frozen CLIP depend on.
        decoder: from stored samples to pairs.
        to_batch: collates pairs on the device.
        model: on the device.
        optimizer: over `model.trained_parameters()`.
        speech_encoder: frozen, if the variant hears waveforms.
        at_position: what training makes of a pair at a position of the order, see `Stream`.
    """

    device: torch.device
    train: SplitReader
    dev: SplitReader
    audio_dim: int
    clip_identity: ClipIdentity
    decoder: Callable[[Sample], Pair]
    to_batch: Callable[[list[Pair]], Batch]
    model: BrewCLIP
    optimizer: torch.optim.Optimizer
    speech_encoder: LoadedSpeechEncoder | None = None
    at_position: Callable[[Pair, int], Pair] = lambda pair, position: pair

    @property
    def manifest(self) -> Manifest:
        """The training split."""
        return self.train.manifest

    @property
    def frozen_sha256(self) -> dict[str, str]:
        """Hash of the frozen weights, by the name of their model."""
        speech = self.speech_encoder
        return {self.clip_identity.name: self.clip_identity.weights_sha256} | (
            {speech.name: speech.sha256} if speech is not None else {}
        )


def build_parts(config: Config, device: torch.device) -> Parts:
    """Open the data, load the frozen CLIP or its cached embeddings, and build the model with its initial weights.

    Raises:
        UserError, ValueError, FileNotFoundError: if settings, data and weights do not fit together.
    """
    train, dev = _open(config, config.data.train_split), _open(config, config.data.dev_split)
    if config.model.variant == "speechclip":
        return _parts_of_waveforms(config, device, train, dev)
    check_alternatives(train, config)
    audio_dim = audio_dim_of(train)
    build = _parts_of_embeddings if config.model.adaptation == "adapter" else _parts_of_towers
    return build(config, device, train, dev, audio_dim)


def _parts_of_towers(config: Config, device: torch.device, train: Manifest, dev: Manifest, audio_dim: int) -> Parts:
    clip = load_clip(config.model.clip)
    check_images(train, clip)
    model = build_model(config, build_towers(config, clip), audio_dim).to(device)
    if config.run.compile:
        compile_encoders(model)
    decoder = build_decoder(config, clip, cache_bytes=_cache_bytes(config, train), audio_dim=audio_dim)
    return _parts_of_images(config, device, train, dev, clip, model, audio_dim, decoder)


def _parts_of_waveforms(config: Config, device: torch.device, train: Manifest, dev: Manifest) -> Parts:
    """Build the parts of a model that reads the corpus before its extraction."""
    clip, speech = load_clip(config.model.clip), load_own_speech_encoder(config)
    assert speech is not None
    audio_dim = speech.model.width
    model = build_model(config, build_towers(config, clip), audio_dim, speech).to(device)
    decoder = build_waveform_decoder(config, clip, cache_bytes=_cache_bytes(config, train))
    parts = _parts_of_images(config, device, train, dev, clip, model, audio_dim, decoder)
    crop = RandomCrop(config.data.crop_samples, config.run.seed)
    if attach_layer_cache(model, config, device):
        crop = replace(crop, step=max(1, crop.num_samples // 2))
    return replace(parts, speech_encoder=speech, at_position=crop)


def _parts_of_images(
    config: Config,
    device: torch.device,
    train: Manifest,
    dev: Manifest,
    clip: LoadedClip,
    model: BrewCLIP,
    audio_dim: int,
    decoder: Callable[[Sample], Pair],
) -> Parts:
    """Return the parts of a model that reads images, not embeddings of them."""
    return Parts(
        device=device,
        train=SplitReader(train, config.data.cache_directory),
        dev=SplitReader(dev),
        audio_dim=audio_dim,
        clip_identity=identify_clip(clip),
        decoder=decoder,
        to_batch=lambda pairs: collate(pairs, clip.mean, clip.std, device),
        model=model,
        optimizer=build_optimizer(model.trained_parameters(), config.optim),
    )


def _cache_bytes(config: Config, train: Manifest) -> int:
    """Return the memory that is left for decoded images by a split that is read once."""
    return max(0, config.data.memory_bytes - train.summary.size_bytes)


def _parts_of_embeddings(config: Config, device: torch.device, train: Manifest, dev: Manifest, audio_dim: int) -> Parts:
    cached, cached_dev = open_embeddings(config, train, config.data.cache_directory), open_embeddings(config, dev)
    if cached.clip_identity != cached_dev.clip_identity:
        raise UserError(f"{train.url} and {dev.url} hold embeddings of different {config.model.clip}: extract again")
    model = build_model(config, EmbeddingAdapter(cached.embed_dim), audio_dim).to(device)
    return Parts(
        device=device,
        train=cached.reader,
        dev=cached_dev.reader,
        audio_dim=audio_dim,
        clip_identity=cached.clip_identity,
        decoder=EmbeddingDecoder(config.data.transcript, config.data.max_audio_frames, audio_dim),
        to_batch=lambda pairs: collate_embeddings(pairs, device),
        model=model,
        optimizer=build_optimizer(model.trained_parameters(), config.optim),
    )


def _open(config: Config, split: str) -> Manifest:
    return open_manifest(f"{config.splits_url}/{split}", retry_seconds=config.data.retry_seconds)
