"""Build model, decoder and autocast from a configuration, for training, evaluation and serving."""

import math

import torch

from brewclip.checkpoints.compatibility import check_frozen
from brewclip.checkpoints.facts import Checkpoint
from brewclip.config import Config
from brewclip.data.batches import PairDecoder
from brewclip.data.manifest import Manifest
from brewclip.data.order import Extent
from brewclip.data.reader import SplitReader
from brewclip.data.schema import BadSample, read_features
from brewclip.errors import UserError
from brewclip.models.brewclip import BrewCLIP
from brewclip.models.clip import PromptedCLIP
from brewclip.pretrained.clip_identity import ClipIdentity
from brewclip.pretrained.load import LoadedClip

# Resize mode of a CLIP -> what `--data.image-transform crop` means for it.
_OWN_TRANSFORM = {"shortest": "crop", "squash": "squash", "longest": "letterbox"}


def build_model(config: Config, clip: PromptedCLIP, audio_dim: int) -> BrewCLIP:
    """Build the model of a configuration; its initial weights depend on the seed only."""
    model, loss = config.model, config.loss
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.run.seed)
        return BrewCLIP(
            clip,
            variant=model.variant,
            audio_dim=audio_dim,
            prompt_length=model.prompt_length,
            num_layers=model.num_layers,
            num_heads=model.num_heads,
            ff_dim=model.ff_dim,
            dropout=model.dropout,
            cls_std=model.cls_std,
            init_logit_scale=math.log(1 / loss.temperature),
            learn_logit_scale=loss.learn_temperature,
        )


def restore_model(model: BrewCLIP, checkpoint: Checkpoint, clip: ClipIdentity) -> None:
    """Load trained weights into a model, after checking that its frozen CLIP is the checkpoint's.

    Raises:
        CheckpointError: if the CLIP differs.
        ValueError: if the checkpoint does not fit the model.
    """
    check_frozen(checkpoint, clip)
    model.load_trained_state(checkpoint.model)


def build_decoder(config: Config, clip: LoadedClip, *, cache_bytes: int = 0, audio_dim: int = 0) -> PairDecoder:
    """Build the decoder from stored samples to pairs for this CLIP.

    Args:
        config: settings of the run.
        clip: model whose tokenizer and image transform are used.
        cache_bytes: size limit of the cache of decoded images.
        audio_dim: feature width of the model; samples of another width are rejected. 0 accepts any.
    """
    data, model = config.data, config.model
    prompts = 0 if model.variant == "zero_shot" else model.prompt_length
    red, green, blue = (round(255 * value) for value in clip.mean)  # zero after normalisation
    return PairDecoder(
        clip.tokenize,
        clip.image_size,
        data.transcript,
        data.max_audio_frames,
        text_room_tokens=0 if model.variant == "acoustic" else clip.context_length - prompts,
        long_text=data.long_text,
        image_transform=_OWN_TRANSFORM[clip.resize_mode] if data.image_transform == "crop" else data.image_transform,
        fill=(red, green, blue),
        interpolation=clip.interpolation,
        cache_bytes=cache_bytes,
        audio_dim=audio_dim,
    )


def build_autocast(config: Config, device: torch.device) -> torch.autocast:
    """Build the autocast context of a run: bfloat16 if set, or if `auto` and the device supports it."""
    precision = config.run.precision
    if precision == "auto":
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported()
        precision = "bfloat16" if fast else "float32"
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def check_images(manifest: Manifest, clip: LoadedClip) -> None:
    """Check that the stored images are large enough for a CLIP.

    Raises:
        UserError: if they were reduced below its input size.
    """
    stored = int(manifest.summary.details.get("image_side_pixels", 0))
    if 0 < stored < clip.image_size:
        raise UserError(
            f"images of {manifest.url} were reduced to {stored} pixels, {clip.name} needs {clip.image_size}: "
            f"extract again with --extraction.image-side-pixels {clip.image_size}"
        )


def audio_dim_of(manifest: Manifest) -> int:
    """Return the width of the Whisper features of a split, from the first readable sample of its first shard.

    Raises:
        UserError: if no sample has features.
    """
    reader, problem = SplitReader(manifest), "they have no features"
    for index in range(int(manifest.num_samples[0])):
        ((_, sample),) = reader.load(Extent(0, index, 1))
        if isinstance(sample, BadSample):
            problem = str(sample)
        elif sample.features is None:
            break
        else:
            try:
                return int(read_features(sample.features).shape[1])
            except BadSample as error:
                problem = str(error)
    raise UserError(f"{manifest.url} holds no Whisper features ({problem}): run jobs/extract.py first")
