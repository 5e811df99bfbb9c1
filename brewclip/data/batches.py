"""Decoding and collation: stored samples to batches of tensors, with images cropped, text tokenised, frames padded."""

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from brewclip.data.images import ImageCache, decode_image
from brewclip.data.schema import BadSample, Sample, read_features
from brewclip.data.texts import confidence_of, readings_of, text_of
from brewclip.data.transfer import to_device
from brewclip.pretrained.token_layout import CLIP_LAYOUT, TokenLayout

_CACHED_TEXTS = 2**15  # 20 MB at 77 tokens; an epoch of more tokenises all of them again


class InputLengths(NamedTuple):
    """Lengths of text and speech of a sample, and how much of each is truncated.

    Attributes:
        tokens, truncated_tokens: of the text, with start and end token; zero where no text is read.
        frames, truncated_frames: of the speech.
    """

    tokens: int = 0
    truncated_tokens: int = 0
    frames: int = 0
    truncated_frames: int = 0


NO_LENGTHS = InputLengths()


@dataclass(frozen=True)
class Pair:
    """One decoded sample.

    Attributes:
        key: of the sample.
        image_id: of its image.
        image: (3, S, S) uint8.
        tokens: (L,) int64, or (W, L) for a text in W chunks, or several texts.
        audio: (frames, dim) float16 Whisper features, or (samples,) float32 of a waveform.
        text: what the pipeline channel reads.
        lengths: before truncation.
        confidence: of the text, in 0..1, see `confidence_of`.

    Where embeddings are read instead of images and texts, `image` and `tokens` are those, (E,) float32 each.
    """

    key: str
    image_id: str
    image: np.ndarray
    tokens: Tensor
    audio: np.ndarray
    text: str
    lengths: InputLengths = NO_LENGTHS
    confidence: float = 1.0


@dataclass(frozen=True)
class Batch:
    """n pairs as tensors.

    Attributes:
        keys, texts, image_names: one for each pair.
        images: (n, 3, S, S) float32, normalised.
        tokens: (n, L) int64, or (n, W, L) with chunks of zeros behind those of shorter texts.
        audio: (n, T, dim) float32, or (n, T) of waveforms, zero where padded.
        audio_mask: (n, T) bool, True for a real frame or sample.
        image_ids: (n,) int64, equal for equal images.
        confidence: (n,) float32 in 0..1, of the texts.
        num_tokens: of the longest text, known on the host; 0 if no text is read, or texts have chunks.

    Where embeddings are read, `images` and `tokens` are those, (n, E) float32 each.
    """

    keys: list[str]
    texts: list[str]
    image_names: list[str]
    images: Tensor
    tokens: Tensor
    audio: Tensor
    audio_mask: Tensor
    image_ids: Tensor
    confidence: Tensor
    num_tokens: int = 0


class EmbeddingDecoder:
    """Decode a stored sample with its cached embeddings to a `Pair`; neither image nor text is decoded.

    Args:
        transcript: whose embedding it is, a key of `TEXT_FIELDS`.
        max_audio_frames: longest speech; more is truncated; 0 keeps all.
        audio_dim: width of the features that the model takes; 0 takes any.
    """

    def __init__(self, transcript: str, max_audio_frames: int, audio_dim: int = 0) -> None:
        self.transcript, self.max_audio_frames, self.audio_dim = transcript, max_audio_frames, audio_dim

    def __call__(self, sample: Sample) -> Pair:
        """Decode a sample; raises `BadSample` with the cause features, text or embedding."""
        audio, num_frames = frames_of(sample, self.audio_dim, self.max_audio_frames)
        text = text_of(sample, self.transcript)
        if sample.embeddings is None:
            raise BadSample("embedding", f"sample {sample.key!r} has no embeddings")
        of_text, of_image = sample.embeddings
        lengths = InputLengths(frames=num_frames, truncated_frames=num_frames - len(audio))
        confidence, image_id = confidence_of(sample, self.transcript), str(sample.metadata["image_id"])
        return Pair(sample.key, image_id, of_image, torch.from_numpy(of_text), audio, text, lengths, confidence)


class PairDecoder:
    """Decode a stored sample to a `Pair`.

    Args:
        tokenize: list of n texts -> (n, L) int64, padded; with a second argument, L is that.
        image_size: side of the square image, in pixels.
        transcript: which text is read, a key of `TEXT_FIELDS`.
        max_audio_frames: longest speech; more is truncated; 0 keeps all.
        text_room_tokens: longest text that the model reads, with start and end token; 0 if it reads none.
        layout: of the tokens.
        long_text: `truncate` keeps the first tokens of a longer text, `chunks` divides it.
        image_transform: `crop`, `squash` or `letterbox`, see `decode_image`.
        fill: colour of the bars of a letterboxed image, red, green and blue in 0..255.
        interpolation: `bicubic` or `bilinear`.
        cache_bytes: bound of the cache of decoded images, so that a later epoch need not decode them.
        audio_dim: width of the features that the model takes; 0 takes any.
    """

    def __init__(
        self,
        tokenize: Callable[..., Tensor],
        image_size: int,
        transcript: str,
        max_audio_frames: int,
        *,
        text_room_tokens: int = 0,
        layout: TokenLayout = CLIP_LAYOUT,
        long_text: str = "truncate",
        image_transform: str = "crop",
        fill: tuple[int, int, int] = (0, 0, 0),
        interpolation: str = "bicubic",
        cache_bytes: int = 0,
        audio_dim: int = 0,
    ) -> None:
        if long_text == "chunks" and 0 < text_room_tokens < 3:
            raise ValueError(f"{text_room_tokens} tokens leave no room for words in a chunk: take fewer prompts")
        self.tokenize, self.image_size = tokenize, image_size
        self.transcript, self.max_audio_frames = transcript, max_audio_frames
        self.text_room_tokens, self.layout, self.long_text = text_room_tokens, layout, long_text
        self.audio_dim = audio_dim
        self.image_transform, self.fill, self.interpolation = image_transform, fill, interpolation
        self._tokens_of = functools.lru_cache(_CACHED_TEXTS)(self._make_tokens)
        self._image_cache = ImageCache(cache_bytes) if cache_bytes else None

    def __call__(self, sample: Sample) -> Pair:
        """Decode a sample; raises `BadSample` with the cause image, features or text."""
        audio, num_frames = frames_of(sample, self.audio_dim, self.max_audio_frames)
        text = text_of(sample, self.transcript)
        image = self.image_of(sample)
        tokens, num_tokens, truncated_tokens = self._tokens_of(readings_of(sample, self.transcript))
        lengths = InputLengths(num_tokens, truncated_tokens, num_frames, num_frames - len(audio))
        confidence, image_id = confidence_of(sample, self.transcript), str(sample.metadata["image_id"])
        return Pair(sample.key, image_id, image, tokens, audio, text, lengths, confidence)

    def image_of(self, sample: Sample) -> np.ndarray:
        """Decode the image of a sample to (3, S, S) uint8; raises `BadSample` with the cause image."""

        def decode() -> np.ndarray:
            return decode_image(sample.image, self.image_size, self.image_transform, self.fill, self.interpolation)

        data = sample.image
        return decode() if data is None or self._image_cache is None else self._image_cache.get(data, decode)

    def tokens_of(self, sample: Sample) -> tuple[Tensor, InputLengths]:
        """Tokenise the text of a sample to (L,) or (W, L) int64; raises `BadSample` with the cause text."""
        tokens, num_tokens, truncated_tokens = self._tokens_of(readings_of(sample, self.transcript))
        return tokens, InputLengths(num_tokens, truncated_tokens)

    def _make_tokens(self, readings: tuple[str, ...]) -> tuple[Tensor, int, int]:
        """Return the tokens of a text, or of several as chunks; how many the first has, and how many are truncated."""
        first, *others = map(self._make_tokens_of_one, readings)
        if not others:
            return first
        return torch.cat([tokens.view(-1, tokens.shape[-1]) for tokens, _, _ in (first, *others)]), *first[1:]

    def _make_tokens_of_one(self, text: str) -> tuple[Tensor, int, int]:
        tokens, room, layout = self.tokenize([text])[0], self.text_room_tokens, self.layout
        if not room:
            return tokens, 0, 0
        full = tokens
        if layout.count(tokens) == len(tokens):  # perhaps truncated by the tokenizer; a byte has at most one token
            full = self.tokenize([text], 2 * len(text.encode()) + 2)[0]
        num_tokens = layout.count(full)
        if num_tokens <= room:
            return tokens, num_tokens, 0
        if self.long_text == "chunks":
            return _chunks(layout, full[:num_tokens], room, len(tokens)), num_tokens, 0
        return tokens, num_tokens, num_tokens - room


def frames_of(sample: Sample, audio_dim: int, most: int) -> tuple[np.ndarray, int]:
    """Return the first `most` Whisper frames of a sample (0: all), (frames, dim) float16, and how many there are.

    Raises:
        BadSample: with the cause features.
    """
    if sample.features is None:
        raise BadSample("features", f"sample {sample.key!r} has no Whisper features: run jobs/extract.py")
    try:
        audio = read_features(sample.features, audio_dim)
    except BadSample as error:
        raise BadSample("features", f"sample {sample.key!r}: {error.detail}") from error
    return audio[: most or None], len(audio)


def _chunks(layout: TokenLayout, tokens: Tensor, room: int, length: int) -> Tensor:
    """Divide a text (n,) into chunks (W, length), each with start and end token, of equal lengths.

    Equal lengths, because a mean over chunks weighs a short last one like a full one.
    """
    start, end = len(layout.start), len(layout.end)
    before, words, behind = tokens.tensor_split((start, len(tokens) - end))
    chunks = torch.tensor_split(words, -(-len(words) // (room - start - end)))
    rows = torch.full((len(chunks), length), layout.pad, dtype=tokens.dtype)
    for row, chunk in zip(rows, chunks, strict=True):
        row[: start + len(chunk) + end] = torch.cat([before, chunk, behind])
    return rows


def collate(pairs: Sequence[Pair], mean: Sequence[float], std: Sequence[float], device: torch.device) -> Batch:
    """Collate pairs to a batch on a device.

    Args:
        pairs: at least one.
        mean: per channel, of images in 0..1.
        std: per channel, of images in 0..1.
        device: where the tensors go.
    """
    images = normalised_images([pair.image for pair in pairs], mean, std, device)
    return _collate(pairs, images, to_device(_stack_tokens([pair.tokens for pair in pairs]), device))


def normalised_images(
    images: Sequence[np.ndarray], mean: Sequence[float], std: Sequence[float], device: torch.device
) -> Tensor:
    """Stack images, (3, S, S) uint8, to (n, 3, S, S) float32 on a device, with CLIP's mean and deviation."""
    stacked = to_device(torch.from_numpy(np.stack(images)), device)  # a byte of a colour travels, not four
    shift, scale = (to_device(torch.tensor(values), device).view(3, 1, 1) for values in (mean, std))
    return stacked.float().div_(255).sub_(shift).div_(scale)  # in place: new memory costs more than dividing


def collate_embeddings(pairs: Sequence[Pair], device: torch.device) -> Batch:
    """Collate pairs of embeddings to a batch on a device."""
    images = to_device(torch.from_numpy(np.stack([pair.image for pair in pairs])), device)
    return _collate(pairs, images, to_device(torch.stack([pair.tokens for pair in pairs]), device))


def _collate(pairs: Sequence[Pair], images: Tensor, tokens: Tensor) -> Batch:
    device = images.device
    lengths, first = torch.tensor([len(pair.audio) for pair in pairs]), pairs[0].audio
    audio = np.zeros((len(pairs), max(1, int(lengths.max())), *first.shape[1:]), first.dtype)
    for row, pair in enumerate(pairs):
        audio[row, : len(pair.audio)] = pair.audio
    return Batch(
        keys=[pair.key for pair in pairs],
        texts=[pair.text for pair in pairs],
        image_names=[pair.image_id for pair in pairs],
        images=images,
        tokens=tokens,
        audio=to_device(torch.from_numpy(audio), device).float(),
        audio_mask=to_device(torch.arange(audio.shape[1]) < lengths[:, None], device),
        image_ids=to_device(torch.tensor([number_of(pair.image_id) for pair in pairs]), device),
        confidence=to_device(torch.tensor([pair.confidence for pair in pairs], dtype=torch.float32), device),
        num_tokens=max(min(pair.lengths.tokens, len(pair.tokens)) for pair in pairs) if tokens.ndim == 2 else 0,
    )


def _stack_tokens(tokens: list[Tensor]) -> Tensor:
    """Stack tokens (L,) to (n, L); if a text has chunks (W, L), all to (n, W, L) with zeros behind."""
    most = max(len(rows) if rows.ndim == 2 else 0 for rows in tokens)
    if not most:
        return torch.stack(tokens)
    stacked = tokens[0].new_zeros(len(tokens), most, tokens[0].shape[-1])
    for row, chunks in zip(stacked, tokens, strict=True):
        chunks = chunks.view(-1, chunks.shape[-1])
        row[: len(chunks)] = chunks
    return stacked


def number_of(image_id: str) -> int:
    """Return the number of an image_id: the first 63 bits of its blake2b."""
    return int.from_bytes(hashlib.blake2b(image_id.encode(), digest_size=8).digest(), "little") >> 1
