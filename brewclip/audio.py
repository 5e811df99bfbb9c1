"""Decoding and encoding of recordings: any sound file that libsndfile reads, as 16 kHz mono."""

import contextlib
import io
import math
import os
import re
import struct
import tempfile
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

SAMPLE_RATE_HZ = 16_000
MAX_BYTES = 1 << 28  # 256 MiB: ten minutes of 96 kHz stereo in 16 bits are 230 MB
# A block that fails is lost entirely. Blocks of 0.1 s for all files would take 13 (Ogg) to 68 % (MP3) longer.
_BLOCK_SECONDS, _BLOCK_SECONDS_IF_DAMAGED = 1.0, 0.05
_SAMPLE_RATES_HZ = (1_000, 384_000)  # what a header may claim; a damaged one asks for absurd resampling
_MAX_CHANNELS = 32
# What may be decoded: ten minutes are 2^25 samples at 48 kHz. A waveform is held twice, as blocks and joined: 0.5 GB.
_MAX_SAMPLES, _MAX_SAMPLES_OF_CHANNELS = 2**26, 2**28
_MAX_CHUNKS = 10_000  # of a WAV or AIFF file, before its sound
# Programs that write WAV to a pipe do not know its size: they write 0, all bits set, or (sox) almost 2 GiB.
_SMALLEST_UNKNOWN_BYTES = 2**31 - 2**16
_DECODER_LINE = re.compile(rb"\[[^\]]*libmpg123/|Note: |Warning: |\s*$")
_STDERR_LOCK = threading.Lock()


class UndecodableAudio(ValueError):
    """A recording that cannot be decoded to a waveform.

    Attributes:
        cause: a short identifier for counting: "empty", "too_many_bytes", "too_long", "not_audio",
            "corrupt", "no_samples".
    """

    def __init__(self, cause: str, message: str) -> None:
        super().__init__(message)
        self.cause = cause


@dataclass(frozen=True)
class DecodedAudio:
    """A waveform and whether it is complete.

    Attributes:
        waveform: float32 mono at `SAMPLE_RATE_HZ`, in [-1, 1].
        missing_seconds: duration that the header gives but that could not be decoded; 0 for a complete file, and where
            the missing length is unknown.
        truncated: the file ends before its end mark (Ogg), so that an unknown length is missing.
        decoder_warnings: warning lines of the MP3 decoder; it has some for most files that players play well.
    """

    waveform: NDArray[np.float32]
    missing_seconds: float
    truncated: bool = False
    decoder_warnings: int = 0


def decode_audio(data: bytes, *, max_seconds: float = 600.0) -> NDArray[np.float32]:
    """Decode a sound file (flac, wav, ogg, mp3, ...); of a damaged one, the part before the damage.

    Args:
        data: the file.
        max_seconds: longer recordings are refused before they are decoded.

    Returns:
        float32 mono at 16 kHz, in [-1, 1]; digital silence is a waveform like any other.

    Raises:
        UndecodableAudio: if the file is empty, too large, too long, no sound file, or damaged from the start.
    """
    return decode_audio_with_damage(data, max_seconds=max_seconds).waveform


def decode_audio_with_damage(data: bytes, *, max_seconds: float = 600.0) -> DecodedAudio:
    """Decode as `decode_audio` does, and return how much of a damaged file is missing."""
    if not data:
        raise UndecodableAudio("empty", "the recording has no bytes")
    if len(data) > MAX_BYTES:
        raise UndecodableAudio("too_many_bytes", f"the recording has {len(data)} bytes, the limit is {MAX_BYTES}")
    data = _with_open_end(data)
    try:
        with _catch_decoder_lines(data) as decoder_lines, soundfile.SoundFile(io.BytesIO(data)) as file:
            promised_seconds, rate_hz = _check_header(file, max_seconds), file.samplerate
            blocks, is_damaged = _read_blocks(file, max_seconds)
            if is_damaged:
                with soundfile.SoundFile(io.BytesIO(data)) as again:
                    blocks, _ = _read_blocks(again, max_seconds, _BLOCK_SECONDS_IF_DAMAGED)
    except (soundfile.LibsndfileError, RuntimeError, TypeError) as error:
        raise UndecodableAudio("not_audio", f"the recording is not a sound file that can be read: {error}") from error
    if not blocks:
        cause = "corrupt" if promised_seconds else "no_samples"
        raise UndecodableAudio(cause, f"the recording decodes to no samples of {promised_seconds:.1f} s promised")
    samples = np.concatenate(blocks)
    decoded_seconds = len(samples) / rate_hz
    missing_seconds = max(0.0, promised_seconds - decoded_seconds) if math.isfinite(promised_seconds) else 0.0
    missing_seconds = max(missing_seconds, decoded_seconds * _missing_share(data))
    if rate_hz != SAMPLE_RATE_HZ:
        samples = soxr.resample(samples, rate_hz, SAMPLE_RATE_HZ, quality="HQ")
    if not len(samples):
        raise UndecodableAudio("no_samples", f"the recording lasts {decoded_seconds * 1000:.3f} ms, less than a sample")
    waveform = np.clip(samples, -1.0, 1.0).astype(np.float32, copy=False)
    return DecodedAudio(waveform, missing_seconds, _is_truncated_ogg(data), len(decoder_lines))


def encode_flac(waveform: NDArray[np.floating]) -> bytes:
    """Encode a 16 kHz mono waveform in [-1, 1] as 16-bit FLAC; the same samples give the same bytes.

    Raises:
        ValueError: if the waveform is not one-dimensional, is empty, or is not finite.
    """
    waveform = np.asarray(waveform)
    if waveform.ndim != 1 or not waveform.size or not np.isfinite(waveform).all():
        raise ValueError(f"a finite waveform of shape (samples,) is needed, got shape {waveform.shape}")
    pcm = np.clip(np.rint(waveform.astype(np.float64) * 32768.0), -32768, 32767).astype(np.int16)
    buffer = io.BytesIO()
    soundfile.write(buffer, pcm, SAMPLE_RATE_HZ, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def _check_header(file: soundfile.SoundFile, max_seconds: float) -> float:
    """Return the duration in seconds that the header gives; infinite if it gives none."""
    low_hz, high_hz = _SAMPLE_RATES_HZ
    if not low_hz <= file.samplerate <= high_hz or not 1 <= file.channels <= _MAX_CHANNELS:
        raise UndecodableAudio(
            "corrupt",
            f"the recording claims {file.samplerate} Hz and {file.channels} channels; its header is damaged, or it is "
            f"outside of {low_hz} to {high_hz} Hz and 1 to {_MAX_CHANNELS} channels",
        )
    # A stream of unknown length has the largest number there is.
    seconds = file.frames / file.samplerate if file.frames < 2**62 else math.inf
    if math.isfinite(seconds):
        _check_length(file, file.frames, max_seconds)
    return seconds


def _check_length(file: soundfile.SoundFile, num_samples: int, max_seconds: float) -> None:
    """Raise if so many samples in each channel are too long, or too many to decode."""
    if num_samples > max_seconds * file.samplerate:
        seconds = num_samples / file.samplerate
        raise UndecodableAudio("too_long", f"the recording lasts {seconds:.1f} s, the limit is {max_seconds:.0f} s")
    most = min(_MAX_SAMPLES, _MAX_SAMPLES_OF_CHANNELS // file.channels)
    if num_samples > most:
        raise UndecodableAudio(
            "too_long",
            f"the recording has {num_samples} samples in each of {file.channels} channels, the limit is {most}: "
            "store it at a lower rate or as mono",
        )


def _read_blocks(
    file: soundfile.SoundFile, max_seconds: float, block_seconds: float = _BLOCK_SECONDS
) -> tuple[list[NDArray[np.float32]], bool]:
    """Read mono blocks up to the end, or up to the first that does not decode; return whether one did not."""
    blocks: list[NDArray[np.float32]] = []
    block_samples = max(1, round(block_seconds * file.samplerate))
    num_read = 0
    while True:
        try:
            block = file.read(block_samples, dtype="float32", always_2d=True)
        except (soundfile.LibsndfileError, RuntimeError):
            return blocks, True
        if not len(block):
            return blocks, False
        num_read += len(block)
        _check_length(file, num_read, max_seconds)
        mono = _downmix(block)
        if not np.isfinite(mono).all():  # a float file can hold anything
            warnings.warn("the recording holds samples that are not finite; they become silence", stacklevel=2)
            mono = np.nan_to_num(mono, nan=0.0, posinf=0.0, neginf=0.0)
        blocks.append(mono)


def _downmix(block: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the mean of the channels of (samples, channels).

    Whole channels are added: `block.mean(axis=1)` adds a few numbers at a time, which takes ten times as long, more
    than decoding does.
    """
    mono = block[:, 0].copy()
    for channel in range(1, block.shape[1]):
        mono += block[:, channel]
    mono /= block.shape[1]
    return mono


# ------------------------------------------------------------------ lengths in headers, unreported by libsndfile


def _find_sound(data: bytes) -> tuple[int, int]:
    """Return where the sound of a WAV or AIFF file begins, and its number of bytes by the header.

    (0, 0) for files of another kind.
    """
    order = {b"RIFF": "<", b"RF64": "<", b"BW64": "<", b"RIFX": ">", b"FORM": ">"}.get(data[:4])
    position, long_size = 12, 0
    for _ in range(_MAX_CHUNKS if order else 0):
        if position + 8 > len(data):
            break
        name, size = struct.unpack_from(f"{order}4sI", data, position)
        position += 8
        if name == b"ds64" and position + 16 <= len(data):
            (long_size,) = struct.unpack_from("<Q", data, position + 8)
        if name in (b"data", b"SSND"):
            return position, long_size if size == 0xFFFFFFFF else size
        position += size + size % 2
    return 0, 0


def _missing_share(data: bytes) -> float:
    """Return the missing bytes of sound of a WAV or AIFF file, as a share of those present.

    libsndfile trusts the size of the file over the header's: half a file is a recording of half the length.
    """
    start, promised = _find_sound(data)
    present = len(data) - start
    known = start and present and promised < _SMALLEST_UNKNOWN_BYTES
    return max(0, promised - present) / present if known else 0.0


def _with_open_end(data: bytes) -> bytes:
    """Return a WAV file without a length, as an interrupted recorder leaves it, with the largest length in its header.

    libsndfile reads no sample without a length, but all of a file whose length is the largest possible.
    """
    start, promised = _find_sound(data)
    rest = len(data) - start
    another_chunk = rest >= 8 and rest - 8 <= int.from_bytes(data[start + 4 : start + 8], "little") <= rest
    if data[:4] in (b"FORM", b"RIFX") or not start or not rest or another_chunk or 0 < promised < 2**63:
        return data
    return b"RIFF" + b"\xff" * 4 + data[8 : start - 4] + b"\xff" * 4 + data[start:]


def _is_truncated_ogg(data: bytes) -> bool:
    """Return whether the last whole page of an Ogg file is not marked as the last of its stream."""
    if data[:4] != b"OggS":
        return False
    position, is_last = 0, False
    while 0 <= position <= len(data) - 27:
        num_segments = data[position + 26]
        end = position + 27 + num_segments + sum(data[position + 27 : position + 27 + num_segments])
        if end > len(data):
            return True
        is_last = bool(data[position + 5] & 4)
        position = end if data.startswith(b"OggS", end) else data.find(b"OggS", end)
    return not is_last


# ------------------------------------------------------------------ messages of the MP3 decoder


@contextlib.contextmanager
def _catch_decoder_lines(data: bytes) -> Iterator[list[bytes]]:
    """Yield a list that receives, at the end, the lines that decoding an MP3 file wrote to stderr; they are not shown.

    libmpg123 prints to descriptor 2 and libsndfile has no switch for it, so the descriptor is another file meanwhile,
    for one thread at a time. What other threads write then appears a moment later.
    """
    lines: list[bytes] = []
    if not (data[:3] == b"ID3" or (data[0] == 0xFF and data[1:2] >= b"\xe0")):
        yield lines
        return
    with _STDERR_LOCK:
        try:
            stderr = os.dup(2)
        except OSError:  # there is none, and nothing is shown
            yield lines
            return
        with tempfile.TemporaryFile() as caught:
            os.dup2(caught.fileno(), 2)
            try:
                yield lines
            finally:
                os.dup2(stderr, 2)
                os.close(stderr)
                caught.seek(0)
                for line in caught:
                    if _DECODER_LINE.match(line):
                        lines.append(line)
                    else:
                        os.write(2, line)
