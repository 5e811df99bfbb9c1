"""Load real recordings with known text: clips of RAVDESS, spoken digits, and `jfk.flac`.

A folder holds any of `ravdess/Actor_NN/MM-VV-EE-II-SS-RR-AA.flac` (or .wav), `digits/DIGIT_SPEAKER_TAKE.wav` of the
Free Spoken Digit Dataset, and `jfk.flac` of openai-whisper.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from brewclip.audio import UndecodableAudio, decode_audio
from brewclip.errors import UserError

RAVDESS: Final = "RAVDESS"
DIGITS: Final = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
EMOTIONS: Final = {"01": "neutral", "02": "calm", "03": "happy", "04": "sad", "05": "angry", "06": "fearful",
                   "07": "disgust", "08": "surprised"}  # fmt: skip
# The classes of datasets/ravdess.py.
FOUR_CLASSES: Final = {"neutral": "neutral", "calm": "neutral", "happy": "happy", "sad": "sad", "angry": "angry"}
STATEMENTS: Final = {"01": "Kids are talking by the door", "02": "Dogs are sitting by the door"}
JFK: Final = (
    "And so my fellow Americans, ask not what your country can do for you, ask what you can do for your country."
)
_RAVDESS_NAME = re.compile(r"03-01-(\d\d)-\d\d-(\d\d)-\d\d-(\d\d)")
_DIGIT_NAME = re.compile(r"(\d)_([a-z]+)_\d+")


@dataclass(frozen=True)
class SpokenClip:
    """One recording with its spoken text.

    Attributes:
        name: file name without suffix.
        text: spoken text.
        waveform: float32 mono at 16 kHz.
        speaker, emotion: if known.
    """

    name: str
    text: str
    waveform: NDArray[np.float32]
    speaker: str = ""
    emotion: str = ""


def load_kinds(folder: Path) -> dict[str, list[SpokenClip]]:
    """Load the recordings of a folder, by kind of speech.

    Raises:
        UserError: if the folder is missing or holds none of the kinds, or a file cannot be decoded.
    """
    if not folder.is_dir():
        raise UserError(f"--speech {folder} is not a folder: name one with ravdess/, digits/ or jfk.flac")
    ravdess = [path for path in sorted(folder.glob("ravdess/Actor_*/*")) if _RAVDESS_NAME.fullmatch(path.stem)]
    digits = [path for path in sorted(folder.glob("digits/*.wav")) if _DIGIT_NAME.fullmatch(path.stem)]
    kinds = {
        RAVDESS: [_ravdess_clip(path) for path in ravdess],
        "spoken digits": [_digit_clip(path) for path in digits],
        "jfk": [SpokenClip(path.stem, JFK, _waveform(path)) for path in folder.glob("jfk.flac")],
    }
    found = {kind: clips for kind, clips in kinds.items() if clips}
    if not found:
        raise UserError(f"--speech {folder} holds none of ravdess/Actor_01/*.flac, digits/*.wav and jfk.flac")
    return found


def _ravdess_clip(path: Path) -> SpokenClip:
    fields = _RAVDESS_NAME.fullmatch(path.stem)
    if fields is None or fields[1] not in EMOTIONS or fields[2] not in STATEMENTS:
        raise UserError(f"{path} is not named like a clip of RAVDESS, such as 03-01-05-01-02-01-12")
    return SpokenClip(path.stem, STATEMENTS[fields[2]], _waveform(path), fields[3], EMOTIONS[fields[1]])


def _digit_clip(path: Path) -> SpokenClip:
    digit, speaker, _ = path.stem.split("_")
    return SpokenClip(path.stem, DIGITS[int(digit)], _waveform(path), speaker)


def _waveform(path: Path) -> NDArray[np.float32]:
    try:
        return decode_audio(path.read_bytes())
    except UndecodableAudio as error:
        raise UserError(f"{path} cannot be used: {error}") from None
