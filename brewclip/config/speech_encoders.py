"""Names of frozen speech encoders, so that a wrong one is refused before torch is loaded."""

import difflib
from dataclasses import dataclass

from brewclip.config.whisper_names import WHISPER

# Name -> repository of a hub.
HUBERTS = {
    "hubert_large_ll60k": "facebook/hubert-large-ll60k",
    "hubert_base_ls960": "facebook/hubert-base-ls960",
}
WHISPER_PREFIX = "whisper-"


@dataclass(frozen=True)
class SpeechEncoderName:
    """Mark of a setting that names a speech encoder, in `Annotated` behind its type."""

    def problem(self, value: str) -> str:
        """Return what is wrong with the name; folders and files are checked where they are read."""
        if value.startswith(WHISPER_PREFIX):
            return WHISPER.problem(value.removeprefix(WHISPER_PREFIX))
        if value in HUBERTS or "/" in value:
            return ""
        near = difflib.get_close_matches(value, HUBERTS, n=1)
        hint = f"did you mean {near[0]}? There" if near else "there"
        return f"is no speech encoder: {hint} are {', '.join(HUBERTS)}, whisper-NAME, or the folder of a HuBERT"


SPEECH_ENCODER = SpeechEncoderName()
