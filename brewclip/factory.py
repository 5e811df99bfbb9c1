"""Build model, decoder and autocast from a configuration, for training, evaluation and serving."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from brewclip.checkpoints.compatibility import check_frozen
from brewclip.checkpoints.facts import Checkpoint
from brewclip.config import Config
from brewclip.data.batches import PairDecoder
from brewclip.data.embeddings import EmbeddingKey, SplitEmbeddings
from brewclip.data.layer_cache import LayerFolder
from brewclip.data.manifest import Manifest
from brewclip.data.order import Extent
from brewclip.data.reader import SplitReader
from brewclip.data.schema import BadSample, read_features
from brewclip.data.waveforms import WaveformDecoder
from brewclip.errors import ManifestError, UserError
from brewclip.models.adapter import EmbeddingAdapter
from brewclip.models.brewclip import BrewCLIP
from brewclip.models.clip import PromptedCLIP, why_no_prompts
from brewclip.models.speechclip import SpeechCLIPEncoder
from brewclip.models.towers import FrozenTowers
from brewclip.pretrained.clip_identity import ClipIdentity, weights_sha256
from brewclip.pretrained.load import LoadedClip, shipped_sha256
from brewclip.pretrained.speech_encoders import LoadedSpeechEncoder, load_speech_encoder
from brewclip.version import __version__

# Resize mode of a CLIP -> what `--data.image-transform crop` means for it.
_OWN_TRANSFORM = {"shortest": "crop", "squash": "squash", "longest": "letterbox"}


def build_model(
    config: Config,
    clip: PromptedCLIP | EmbeddingAdapter,
    audio_dim: int,
    speech_encoder: LoadedSpeechEncoder | None = None,
) -> BrewCLIP:
    """Build the model of a configuration; its initial weights depend on the seed only.

    Args:
        config: settings of the run.
        clip: what reads pixels and tokens.
        audio_dim: width of Whisper's features.
        speech_encoder: of variant `speechclip`, see `load_own_speech_encoder`.
    """
    model, loss = config.model, config.loss
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.run.seed)
        return BrewCLIP(
            clip,
            variant=model.variant,
            audio_dim=audio_dim,
            fusion=model.fusion,
            prompt_length=config.num_prompts,
            num_layers=model.num_layers,
            num_heads=model.num_heads,
            ff_dim=model.ff_dim,
            dropout=model.dropout,
            cls_std=model.cls_std,
            init_logit_scale=math.log(1 / loss.temperature),
            learn_logit_scale=loss.learn_temperature,
            speech_encoder=None if speech_encoder is None else speech_encoder.model,
        )


def load_own_speech_encoder(config: Config) -> LoadedSpeechEncoder | None:
    """Load the speech encoder of a configuration; None if its variant reads Whisper's features.

    Raises:
        UserError, ValueError, FileNotFoundError: as `load_speech_encoder`.
    """
    return load_speech_encoder(config.model.speech_encoder) if config.model.variant == "speechclip" else None


def attach_layer_cache(model: BrewCLIP, config: Config, device: torch.device) -> bool:
    """Let a model read and store its frozen layers as the settings say; return whether it does.

    Raises:
        StorageError: if the folder cannot be made.
    """
    if not config.data.cache_layers or not isinstance(model.acoustic, SpeechCLIPEncoder):
        return False
    encoder = model.acoustic.speech_encoder
    what = (__version__, type(encoder).__name__, weights_sha256(encoder), precision_of(config, device), device.type)
    model.acoustic.layer_cache = LayerFolder(Path(config.data.cache_directory).expanduser() / "layers", what)
    return True


def build_towers(config: Config, clip: LoadedClip) -> PromptedCLIP | EmbeddingAdapter:
    """Return the part of a model that reads pixels and tokens, over a CLIP; one that is not prompted may be any.

    Raises:
        ValueError: if the CLIP takes no prompts, and the configuration has them.
    """
    as_it_is = config.model.variant in ("zero_shot", "speechclip") and why_no_prompts(clip.model)
    if config.model.adaptation == "prompts" and not as_it_is:
        return PromptedCLIP(clip.model, recompute=config.model.recompute)
    towers = FrozenTowers(clip.model)
    return EmbeddingAdapter(towers.embed_dim, towers)


def restore_model(
    model: BrewCLIP, checkpoint: Checkpoint, clip: ClipIdentity, speech_encoder: LoadedSpeechEncoder | None = None
) -> None:
    """Load trained weights into a model, after checking that its frozen parts are the checkpoint's.

    Raises:
        CheckpointError: if CLIP or speech encoder differs.
        ValueError: if the checkpoint does not fit the model.
    """
    check_frozen(checkpoint, clip, {speech_encoder.name: speech_encoder.sha256} if speech_encoder else {})
    model.load_trained_state(checkpoint.model)


def build_waveform_decoder(config: Config, clip: LoadedClip, *, cache_bytes: int = 0) -> WaveformDecoder:
    """Build the decoder from samples of a corpus to pairs of variant `speechclip`; arguments as in `build_decoder`."""
    return WaveformDecoder(build_decoder(config, clip, cache_bytes=cache_bytes).image_of, config.data.max_audio_frames)


def build_decoder(config: Config, clip: LoadedClip, *, cache_bytes: int = 0, audio_dim: int = 0) -> PairDecoder:
    """Build the decoder from stored samples to pairs for this CLIP.

    Args:
        config: settings of the run.
        clip: model whose tokenizer and image transform are used.
        cache_bytes: size limit of the cache of decoded images.
        audio_dim: feature width of the model; samples of another width are rejected. 0 accepts any.
    """
    data, model = config.data, config.model
    red, green, blue = (round(255 * value) for value in clip.mean)  # zero after normalisation
    return PairDecoder(
        clip.tokenize,
        clip.image_size,
        data.transcript,
        data.max_audio_frames,
        text_room_tokens=clip.context_length - config.num_prompts if model.reads_text else 0,
        layout=clip.layout,
        long_text=data.long_text,
        image_transform=_OWN_TRANSFORM[clip.resize_mode] if data.image_transform == "crop" else data.image_transform,
        fill=(red, green, blue),
        interpolation=clip.interpolation,
        cache_bytes=cache_bytes,
        audio_dim=audio_dim,
    )


def embedding_keys(config: Config, manifest: Manifest) -> tuple[EmbeddingKey, EmbeddingKey]:
    """Return what the embeddings of texts and of images of a split depend on, under a configuration."""
    data, clip = config.data, config.model.clip
    settings = ("texts", (data.transcript, data.long_text)), ("images", (data.image_transform,))
    texts, images = (
        EmbeddingKey(kind, manifest.sha256, clip, shipped_sha256(clip), values) for kind, values in settings
    )
    return texts, images


@dataclass(frozen=True)
class CachedSplit:
    """A split with cached embeddings, as an adapter reads it.

    Attributes:
        reader: of its samples, embeddings added.
        clip_identity: of the CLIP that they are of.
        embed_dim: their width.
    """

    reader: SplitReader
    clip_identity: ClipIdentity
    embed_dim: int


def open_embeddings(config: Config, manifest: Manifest, cache_directory: str = "") -> CachedSplit:
    """Open a split with its cached embeddings.

    Raises:
        ManifestError: if it has none for these settings.
    """
    embeddings = SplitEmbeddings(manifest, embedding_keys(config, manifest))
    try:
        identity = ClipIdentity(**embeddings.facts.clip_identity)
    except TypeError:
        raise ManifestError(
            f"the embeddings of {manifest.url} do not say of which CLIP they are: embed again"
        ) from None
    return CachedSplit(SplitReader(manifest, cache_directory, embeddings), identity, embeddings.embed_dim)


def build_autocast(config: Config, device: torch.device) -> torch.autocast:
    """Build the autocast context of a run on a device."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision_of(config, device) == "bfloat16")


def precision_of(config: Config, device: torch.device) -> str:
    """Return a run's precision on a device: bfloat16 if set, or if `auto` and the device supports it, else float32."""
    if config.run.precision != "auto":
        return config.run.precision
    return "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"


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


def check_alternatives(manifest: Manifest, config: Config) -> None:
    """Check that a split holds as many alternative texts as the configuration reads.

    Raises:
        UserError: if it was extracted with another number.
    """
    found, wanted = int(manifest.summary.details.get("alternatives", 0)), config.num_alternatives
    if config.data.transcript == "asr_mean" and found != wanted:
        raise UserError(
            f"{manifest.url} was extracted with {found} alternatives, --data.transcript asr_mean reads {wanted}: "
            + (f"give --extraction.alternatives {found}, or " if found else "")
            + f"extract it again with --extraction.alternatives {wanted} --extraction.overwrite"
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
