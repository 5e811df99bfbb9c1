"""Embed recordings and images with a trained system, without Ray or a corpus."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from brewclip.checkpoints.facts import Checkpoint
from brewclip.config import Config
from brewclip.data.batches import Pair, collate, normalised_images
from brewclip.data.images import open_image, transform_image
from brewclip.data.schema import BadSample, Sample, array_to_npy, heard_text
from brewclip.factory import (
    build_autocast,
    build_decoder,
    build_model,
    build_towers,
    build_waveform_decoder,
    load_own_speech_encoder,
    restore_model,
)
from brewclip.models.whisper import SpeechReader
from brewclip.pretrained.clip_identity import identify_clip
from brewclip.pretrained.load import load_clip
from brewclip.serving.hearing import Heard
from brewclip.serving.identity import identity_of_images
from brewclip.serving.index import ImageIndex, Match
from brewclip.serving.index.build import BuildReport, build_index
from brewclip.serving.index.sources import list_images
from brewclip.serving.media import AudioInput, ImageInput, check_listed, read_image, read_recording
from brewclip.serving.speech_readers import SpeechReaders, heard_as

_BATCH = 64


class Embedder:
    """Embed speech and images with a system; built by `brewclip.load`. Whisper is loaded on first use.

    Args:
        name: name or URL that it was loaded by.
        config: its settings.
        checkpoint: trained weights; None for zero-shot CLIP.
        device: device to compute on.
        precision: of Whisper's encoder, see `SpeechReaders`.

    Attributes:
        identity: everything that embeddings of images depend on, see `identity_of_images`.
        near_cosine: cosine that 95 % of dev's recordings reached with their own image; None for zero-shot CLIP, and for
            checkpoints before 2026-11-27.

    Raises:
        UserError, ValueError, FileNotFoundError: if the frozen weights are missing or differ from the checkpoint's.
    """

    def __init__(
        self, name: str, config: Config, checkpoint: Checkpoint | None, device: torch.device, precision: str = "float32"
    ) -> None:
        self.name, self.config, self.device = name, config, device
        self.near_cosine = checkpoint.facts.metrics.get("dev/near_cosine") if checkpoint else None
        self._clip = load_clip(config.model.clip)
        # Zero-shot CLIP has no acoustic channel, so the width of the frames does not matter.
        towers = build_towers(config, self._clip)
        speech_encoder = load_own_speech_encoder(config)
        model = build_model(config, towers, checkpoint.facts.audio_dim if checkpoint else 1, speech_encoder)
        clip = identify_clip(self._clip)
        self.identity = identity_of_images(config, clip, checkpoint)
        if checkpoint is not None:
            restore_model(model, checkpoint, clip, speech_encoder)
        if config.data.transcript == "ground_truth":  # there is none but Whisper's
            config = replace(config, data=replace(config.data, transcript="asr"))
        self._decoder = build_decoder(config, self._clip)
        self._waveform_decoder = build_waveform_decoder(config, self._clip) if speech_encoder is not None else None
        self._model = model.to(device).eval()
        self._readers = SpeechReaders(
            config.model.whisper,
            device,
            first_30_seconds=config.extraction.frames == "first_30_seconds",
            precision=precision,
            alternatives=config.num_alternatives if config.data.transcript == "asr_mean" else 0,
        )

    @property
    def embed_dim(self) -> int:
        """Width E of the embeddings."""
        return self._model.clip.embed_dim

    @property
    def reads_text(self) -> bool:
        """Whether the system reads transcripts and texts."""
        return self._model.reads_text

    @property
    def hears_sound(self) -> bool:
        """Whether the system has an acoustic channel."""
        return self._model.acoustic is not None

    @property
    def task(self) -> str:
        """What Whisper writes unless it is asked for something else: "transcribe" or "translate"."""
        return self.config.model.task

    @property
    def language(self) -> str:
        """Language of recordings unless another is given; empty if it is detected."""
        return self.config.model.language

    def embed_speech(self, recordings: Sequence[AudioInput]) -> NDArray[np.float32]:
        """Embed recordings.

        Args:
            recordings: float waveforms of shape (samples,), mono at 16 kHz in [-1, 1], or paths of sound files; at most
                ten minutes each.

        Returns:
            (n, E) float32, unit length.

        Raises:
            ValueError: for the first recording that cannot be used, with the cause.
        """
        heard = self.listen(recordings)
        return np.stack([one.fused for one in heard]) if heard else np.zeros((0, self.embed_dim), np.float32)

    def listen(self, recordings: Sequence[AudioInput], *, task: str = "", language: str | None = None) -> list[Heard]:
        """Transcribe and embed recordings, each channel by itself and both together.

        Args:
            recordings: as in `embed_speech`.
            task: "transcribe", or "translate" to English; empty is the system's own.
            language: that is spoken, a code such as "de"; empty detects it; None is the system's own.

        Raises:
            ValueError: for the first recording that cannot be used, with the cause; if Whisper does not know the
                language or the task.
        """
        recordings = check_listed(recordings, "recordings")
        own_ears = self._waveform_decoder is not None
        reader = None if own_ears else self._readers.reader(*heard_as(self.config.model, task, language))
        heard: list[Heard] = []
        for at in range(0, len(recordings), _BATCH):
            waveforms = [read_recording(one, n) for n, one in enumerate(recordings[at : at + _BATCH], at)]
            heard += self._hear(waveforms) if reader is None else self._listen_to(waveforms, reader)
        return heard

    def embed_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed texts as transcripts that are certain.

        Args:
            texts: none of them empty; what CLIP does not read of a long one is truncated.

        Returns:
            (n, E) float32, unit length.

        Raises:
            ValueError: for the first text that is empty; if the system reads no text.
        """
        texts = check_listed(texts, "texts")
        if not self._model.reads_text:
            raise ValueError(f"{self.name} has the acoustic channel alone and reads no text: search with a recording")
        for number, text in enumerate(texts):
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"text number {number} is {text!r}; words are needed")
        return self._embed_in_batches(texts, lambda _, part: self._encode_texts(part))

    def embed_images(self, images: Sequence[ImageInput]) -> NDArray[np.float32]:
        """Embed images.

        Args:
            images: PIL images, uint8 arrays of shape (H, W, 3) or (H, W), or paths; at most 100 megapixels each.

        Returns:
            (n, E) float32, unit length.

        Raises:
            ValueError: for the first image that cannot be used, with the cause.
        """
        images = check_listed(images, "images")
        return self._embed_in_batches(
            images,
            lambda at, part: self.encode_transformed([self._read_image(one, n) for n, one in enumerate(part, at)]),
        )

    def build_index(self, images: Sequence[str | Path], out: str | Path) -> tuple[ImageIndex, BuildReport]:
        """Build an index of image files, or bring it up to date: only files that are new or changed are read.

        Args:
            images: folders, files or globs, and `s3://` prefixes.
            out: folder or `s3://` prefix of the index.

        Returns:
            The index, and what was done, with the files that are no usable images.

        Raises:
            UserError: if there is no usable image, or the index was built by another system.
        """
        return build_index(self, list_images([str(one) for one in check_listed(images, "images")]), out)

    def transform_image(self, image: Image.Image) -> NDArray[np.uint8]:
        """Transform an RGB image as in training, to (3, S, S); safe in threads."""
        one = self._decoder
        return transform_image(image, one.image_size, one.image_transform, one.fill, one.interpolation)

    @torch.inference_mode()
    def encode_transformed(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Embed images that `transform_image` returned, in one batch; (n, E) float32 of unit length."""
        if not images:
            return np.zeros((0, self.embed_dim), np.float32)
        batch = normalised_images(images, self._clip.mean, self._clip.std, self.device)
        with build_autocast(self.config, self.device):
            return _unit(self._model.encode_image(batch).float().cpu().numpy())

    def search(
        self, index: ImageIndex, queries: Sequence[AudioInput] | NDArray[np.floating], k: int = 5
    ) -> list[list[Match]]:
        """Find the k nearest images of each query, nearest first.

        Args:
            index: index built by this system.
            queries: recordings as in `embed_speech`, or their embeddings, (n, E).
            k: images per query; fewer if the index is smaller.

        Raises:
            UserError: if the index was built by another system.
            ValueError: if k is less than 1, or a query cannot be used.
        """
        index.check_made_by(self.identity, self.name)
        if isinstance(queries, np.ndarray) and queries.ndim == 2:
            return index.nearest(_unit(queries.astype(np.float32)), k)
        return index.nearest(self.embed_speech(check_listed(queries, "queries")), k)

    def _embed_in_batches(self, items: Sequence[Any], embed: Any) -> NDArray[np.float32]:
        rows = [embed(at, items[at : at + _BATCH]) for at in range(0, len(items), _BATCH)]
        return np.concatenate([np.zeros((0, self.embed_dim), np.float32), *rows])

    @torch.inference_mode()
    def _hear(self, waveforms: list[NDArray[np.float32]]) -> list[Heard]:
        """Embed recordings by their sound alone, without Whisper's words."""
        assert self._waveform_decoder is not None
        start, blank = time.perf_counter(), Sample("", {"image_id": ""}, image=_BLANK_IMAGE)
        pairs = [self._waveform_decoder.pair_of(blank, waveform) for waveform in waveforms]
        batch = collate(pairs, self._clip.mean, self._clip.std, self.device)
        with build_autocast(self.config, self.device):
            sound, _, _ = self._model.encode_speech(batch.tokens, batch.audio, batch.audio_mask)
        timings = {"sound": time.perf_counter() - start}
        rows = _unit(sound.float().cpu().numpy())
        return [Heard("", self.language, 0.0, "", row, None, row, 0.0, timings) for row in rows]

    @torch.inference_mode()
    def _listen_to(self, waveforms: list[NDArray[np.float32]], reader: SpeechReader) -> list[Heard]:
        start = time.perf_counter()
        speeches = reader.read(waveforms)
        read = time.perf_counter()
        pairs = [self._decode(_BLANK_IMAGE, speech.metadata(), speech.features) for speech in speeches]
        batch = collate(pairs, self._clip.mean, self._clip.std, self.device)
        with build_autocast(self.config, self.device):
            fused, sound, text = self._model.encode_speech(
                batch.tokens, batch.audio, batch.audio_mask, confidence=batch.confidence
            )
            weights = torch.zeros(len(pairs))
            if sound is not None and text is not None:
                weights = self._model.fusion.acoustic_weight(text, sound, batch.confidence).float().cpu()
        timings = {"whisper": read - start, "clip": time.perf_counter() - read}
        channels = (_rows(features, len(pairs)) for features in (fused, text, sound))
        return [
            Heard(
                transcript=pair.text,
                language=speech.language,
                confidence=pair.confidence,
                rejection=speech.rejected or "",
                fused=row,
                text=text_row,
                sound=sound_row,
                weight=weight,
                timings_seconds=timings,
            )
            for pair, speech, row, text_row, sound_row, weight in zip(
                pairs, speeches, *channels, weights.tolist(), strict=True
            )
        ]

    @torch.inference_mode()
    def _encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        pairs = [self._decode(_BLANK_IMAGE, heard_text(text), _NO_FRAMES) for text in texts]
        batch = collate(pairs, self._clip.mean, self._clip.std, self.device)
        with build_autocast(self.config, self.device):
            return _unit(self._model.encode_text(batch.tokens).float().cpu().numpy())

    def _read_image(self, image: ImageInput, number: int) -> NDArray[np.uint8]:
        try:
            return self.transform_image(open_image(read_image(image, number)))
        except BadSample as error:
            name = repr(str(image)) if isinstance(image, str | Path) else f"number {number}"
            raise ValueError(f"image {name}: {error.detail}") from None

    def _decode(self, image: bytes, heard: dict[str, Any], frames: NDArray[np.float16]) -> Pair:
        """Decode a pair exactly as in training, so that all settings of texts, frames and images apply."""
        return self._decoder(Sample("", {"image_id": ""} | heard, image=image, features=array_to_npy(frames)))


# Placeholders for the missing half of a pair.
_NO_FRAMES = np.zeros((0, 2), np.float16)
_BLANK_IMAGE = read_image(np.zeros((1, 1), np.uint8))


def _rows(features: torch.Tensor | None, count: int) -> Any:
    """Return the rows of features (n, E), float32 of unit length; as many None if there are none."""
    return [None] * count if features is None else _unit(features.float().cpu().numpy())


def _unit(features: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    if not (np.isfinite(lengths) & (lengths > 0)).all():
        raise ValueError("an embedding is zero or not finite: check the checkpoint")
    return features / lengths
