"""Read recordings and images given by users: arrays, PIL images or paths, within size limits."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from brewclip.audio import MAX_BYTES, SAMPLE_RATE_HZ, UndecodableAudio, decode_audio
from brewclip.data.image_modes import to_rgb
from brewclip.data.images import MAX_IMAGE_PIXELS

MAX_SECONDS = 600.0  # longest recording, the limit of the corpora
AudioInput = NDArray[np.floating] | str | Path
ImageInput = Image.Image | NDArray[np.uint8] | str | Path


def read_recording(recording: AudioInput, number: int = 0) -> NDArray[np.float32]:
    """Return a recording as a waveform: float32 mono at 16 kHz.

    Args:
        recording: mono waveform at 16 kHz, float in [-1, 1], or the path of a sound file.
        number: index in its list, for the message.

    Raises:
        ValueError: if it cannot be read, is empty, not finite, out of range or longer than ten minutes.
    """
    if isinstance(recording, str | Path):
        try:
            return decode_audio(_read_file(Path(recording)), max_seconds=MAX_SECONDS)
        except UndecodableAudio as error:
            raise ValueError(f"recording {str(recording)!r}: {error}") from None
    waveform = np.asarray(recording)
    wrong = ""
    if waveform.ndim != 1 or not np.issubdtype(waveform.dtype, np.floating):
        wrong = f"is {waveform.dtype} of shape {waveform.shape}; float samples (n,), mono at 16 kHz, are needed"
    elif not 0 < len(waveform) <= MAX_SECONDS * SAMPLE_RATE_HZ:
        wrong = f"lasts {len(waveform) / SAMPLE_RATE_HZ:.1f} s; up to {MAX_SECONDS:.0f} s can be read"
    elif not np.isfinite(waveform).all():
        wrong = "holds samples that are not finite"
    elif np.abs(waveform).max() > _LOUDEST:
        wrong = f"reaches {np.abs(waveform).max():.3g}; samples are in [-1, 1]: divide 16-bit ones by 32768"
    if wrong:
        raise ValueError(f"recording number {number} {wrong}")
    return np.clip(waveform, -1.0, 1.0).astype(np.float32)


def read_image(image: ImageInput, number: int = 0) -> bytes:
    """Return an image as the encoded bytes of an image file.

    Args:
        image: a PIL image, an array (H, W, 3) or (H, W) of uint8, or the path of a file.
        number: index in its list, for the message.

    Raises:
        ValueError: if it has another type, cannot be read, or is too large.
    """
    if isinstance(image, str | Path):
        return _read_file(Path(image))
    try:
        return _encode(image)
    except (OSError, TypeError) as error:
        raise ValueError(f"image number {number}: {error}") from None


def check_listed(items: Any, name: str) -> Sequence[Any]:
    """Check that an argument is a list, not a single item, and return it.

    Raises:
        ValueError: if it is none.
    """
    if isinstance(items, str | Path) or not hasattr(items, "__len__") or getattr(items, "ndim", 1) == 0:
        raise ValueError(f"{name} must be a list of them, not {type(items).__name__}")
    return items


_LOUDEST = 2.0  # resampling overshoots 1 a little; integer samples are far above


def _read_file(path: Path) -> bytes:
    """Return the bytes of a file.

    Raises:
        ValueError: if it is not a file, is too large, or cannot be read.
    """
    if not path.is_file():
        raise ValueError(f"{path} is not a file")
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ValueError(f"{path} has {size} bytes, the limit is {MAX_BYTES}")
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None


def _encode(image: Image.Image | NDArray[np.uint8]) -> bytes:
    """Encode an image in memory without loss, so that it is decoded like image files."""
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3):
            raise TypeError(f"{image.dtype} of shape {image.shape}; uint8 of (H, W, 3) or (H, W) is needed")
        image = Image.fromarray(image)
    if not isinstance(image, Image.Image):
        raise TypeError(f"{type(image).__name__} is no image: give a PIL image, a uint8 array or a path")
    if not 0 < image.width * image.height <= MAX_IMAGE_PIXELS:
        raise TypeError(f"{image.width} x {image.height} pixels; 1 to {MAX_IMAGE_PIXELS} are possible")
    buffer = io.BytesIO()
    to_rgb(ImageOps.exif_transpose(image)).save(buffer, "BMP")
    return buffer.getvalue()
