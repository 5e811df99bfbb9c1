"""From stored samples to batches of tensors: pictures decoded and cropped, words tokenised, frames padded."""

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from brewclip.data.schema import BadSample, Sample, npy_to_array

MAX_IMAGE_PIXELS = 100_000_000


@dataclass(frozen=True)
class Pair:
    """One decoded sample.

    Attributes:
        key: of the sample.
        image_id: of its picture.
        image: (3, S, S) uint8.
        tokens: (L,) int64.
        audio: (frames, dim) float16, Whisper features.
        text: what the pipeline channel reads.
    """

    key: str
    image_id: str
    image: np.ndarray
    tokens: Tensor
    audio: np.ndarray
    text: str


@dataclass(frozen=True)
class Batch:
    """n pairs as tensors.

    Attributes:
        keys, texts, image_names: one for each pair.
        images: (n, 3, S, S) float32, normalised.
        tokens: (n, L) int64.
        audio: (n, T, dim) float32, zero where padded.
        audio_mask: (n, T) bool, True for a real frame.
        image_ids: (n,) int64, equal for equal pictures.
    """

    keys: list[str]
    texts: list[str]
    image_names: list[str]
    images: Tensor
    tokens: Tensor
    audio: Tensor
    audio_mask: Tensor
    image_ids: Tensor


class PairDecoder:
    """Turns a stored sample into a `Pair`.

    Args:
        tokenize: list of n texts -> (n, L) int64.
        image_size: side of the square picture, in pixels.
        transcript: `asr` reads what Whisper heard, `ground_truth` what the speaker read.
        max_audio_frames: longest speech kept.
    """

    def __init__(
        self, tokenize: Callable[[list[str]], Tensor], image_size: int, transcript: str, max_audio_frames: int
    ) -> None:
        self.tokenize, self.image_size = tokenize, image_size
        self.transcript, self.max_audio_frames = transcript, max_audio_frames

    def __call__(self, sample: Sample) -> Pair:
        """Decode a sample.

        Raises:
            BadSample: with the cause picture, features or text.
        """
        if sample.features is None:
            raise BadSample("features", f"sample {sample.key!r} has no Whisper features: run jobs/extract.py")
        audio = npy_to_array(sample.features)
        if audio.ndim != 2 or audio.dtype != np.float16 or not np.isfinite(audio).all():
            raise BadSample("features", f"sample {sample.key!r} has features of {audio.dtype} {audio.shape}")
        text = self._text(sample)
        image = decode_image(sample.image, self.image_size)
        tokens = self.tokenize([text])[0]
        image_id = str(sample.metadata["image_id"])
        return Pair(sample.key, image_id, image, tokens, audio[: self.max_audio_frames], text)

    def _text(self, sample: Sample) -> str:
        field = "transcript" if self.transcript == "asr" else "text"
        text = sample.metadata.get(field)
        if not isinstance(text, str):
            raise BadSample("text", f"sample {sample.key!r} has no {field}")
        return text


def open_picture(data: bytes | None) -> Image.Image:
    """Decode a picture to RGB, turned as its camera says.

    Raises:
        BadSample: if there is no picture, it cannot be decoded, or it has more than 100 megapixels.
    """
    if data is None:
        raise BadSample("picture", "there is none")
    try:
        with Image.open(io.BytesIO(data)) as opened:
            if opened.width * opened.height > MAX_IMAGE_PIXELS:
                raise BadSample("picture", f"{opened.width} x {opened.height} pixels are too many")
            ImageOps.exif_transpose(opened, in_place=True)
            return opened.convert("RGB")
    except BadSample:
        raise
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadSample("picture", str(error)) from error


def decode_image(data: bytes | None, side_pixels: int) -> np.ndarray:
    """Decode a picture, reduce its short side and cut out the middle, as CLIP's own transform does.

    Source: open_clip.image_transform (bicubic resize, centre crop).

    Returns:
        (3, side, side) uint8.

    Raises:
        BadSample: as `open_picture`.
    """
    picture = open_picture(data)
    width, height = picture.size
    other = int(side_pixels * max(width, height) / min(width, height))
    size = (side_pixels, other) if width <= height else (other, side_pixels)
    if size != picture.size:
        picture = picture.resize(size, Image.Resampling.BICUBIC)
    left, top = round((size[0] - side_pixels) / 2), round((size[1] - side_pixels) / 2)
    picture = picture.crop((left, top, left + side_pixels, top + side_pixels))
    return np.ascontiguousarray(np.asarray(picture).transpose(2, 0, 1))


def collate(pairs: Sequence[Pair], mean: Sequence[float], std: Sequence[float], device: torch.device) -> Batch:
    """Put pairs together on a device.

    Args:
        pairs: at least one.
        mean: per channel, of pictures in 0..1.
        std: per channel, of pictures in 0..1.
        device: where the tensors go.
    """
    images = torch.from_numpy(np.stack([pair.image for pair in pairs])).to(device, non_blocking=True)
    shift, scale = (torch.tensor(values, device=device).view(3, 1, 1) for values in (mean, std))
    lengths = torch.tensor([len(pair.audio) for pair in pairs])
    audio = np.zeros((len(pairs), max(1, int(lengths.max())), pairs[0].audio.shape[1]), dtype=np.float16)
    for row, pair in enumerate(pairs):
        audio[row, : len(pair.audio)] = pair.audio
    return Batch(
        keys=[pair.key for pair in pairs],
        texts=[pair.text for pair in pairs],
        image_names=[pair.image_id for pair in pairs],
        images=(images.float() / 255 - shift) / scale,
        tokens=torch.stack([pair.tokens for pair in pairs]).to(device, non_blocking=True),
        audio=torch.from_numpy(audio).to(device, non_blocking=True).float(),
        audio_mask=(torch.arange(audio.shape[1]) < lengths[:, None]).to(device),
        image_ids=torch.tensor([number_of(pair.image_id) for pair in pairs], device=device),
    )


def number_of(image_id: str) -> int:
    """Return a number that stands for an image_id: the first 63 bits of its blake2b."""
    return int.from_bytes(hashlib.blake2b(image_id.encode(), digest_size=8).digest(), "little") >> 1
