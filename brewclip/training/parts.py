"""What one worker trains with: data, frozen CLIP, model and optimiser, built in this order."""

from dataclasses import dataclass

import torch

from brewclip.config import Config
from brewclip.data.batches import Batch, Pair, PairDecoder, collate
from brewclip.data.manifest import Manifest, open_manifest
from brewclip.data.reader import SplitReader
from brewclip.factory import audio_dim_of, build_decoder, build_model, check_images
from brewclip.models.brewclip import BrewCLIP
from brewclip.models.clip import PromptedCLIP
from brewclip.pretrained.clip_identity import ClipIdentity, identify_clip
from brewclip.pretrained.load import LoadedClip, load_clip
from brewclip.training.optimizer import build_optimizer


@dataclass(frozen=True)
class Parts:
    """Data, frozen CLIP, model and optimiser of one worker.

    Attributes:
        device: that the model is on.
        manifest: of the training split.
        dev: reader of the split that checkpoints are selected on.
        audio_dim: width of the Whisper features.
        clip: frozen, with its tokenizer and image transform.
        clip_identity: what its features depend on.
        decoder: from stored samples to pairs.
        model: on the device.
        optimizer: over `model.trained_parameters()`.
    """

    device: torch.device
    manifest: Manifest
    dev: SplitReader
    audio_dim: int
    clip: LoadedClip
    clip_identity: ClipIdentity
    decoder: PairDecoder
    model: BrewCLIP
    optimizer: torch.optim.Optimizer

    @property
    def frozen_sha256(self) -> dict[str, str]:
        """Hash of the frozen weights, by the name of their model."""
        return {self.clip_identity.name: self.clip_identity.weights_sha256}

    def to_batch(self, pairs: list[Pair]) -> Batch:
        """Collate pairs on the device."""
        return collate(pairs, self.clip.mean, self.clip.std, self.device)


def build_parts(config: Config, device: torch.device) -> Parts:
    """Open the data, load the frozen CLIP, and build the model with its initial weights.

    Raises:
        UserError, ValueError, FileNotFoundError: if settings, data and weights do not fit together.
    """
    manifest = _open(config, config.data.train_split)
    audio_dim = audio_dim_of(manifest)
    dev = SplitReader(_open(config, config.data.dev_split))
    clip = load_clip(config.model.clip)
    check_images(manifest, clip)
    model = build_model(config, PromptedCLIP(clip.model), audio_dim).to(device)
    left_bytes = config.data.memory_bytes - manifest.summary.size_bytes  # by a split that is read once
    return Parts(
        device=device,
        manifest=manifest,
        dev=dev,
        audio_dim=audio_dim,
        clip=clip,
        clip_identity=identify_clip(clip),
        decoder=build_decoder(config, clip, cache_bytes=max(0, left_bytes), audio_dim=audio_dim),
        model=model,
        optimizer=build_optimizer(model.trained_parameters(), config.optim),
    )


def _open(config: Config, split: str) -> Manifest:
    return open_manifest(f"{config.features_url}/{split}", retry_seconds=config.data.retry_seconds)
