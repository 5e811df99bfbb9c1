"""Names of Whisper models and languages, so that a wrong one is refused before torch is loaded and Ray started.

Equal to `whisper.available_models()` and `whisper.tokenizer.LANGUAGES` (20250625), held by tests/test_ranges.py.
"""

import difflib
from dataclasses import dataclass

MODELS = (
    *("tiny.en", "tiny", "base.en", "base", "small.en", "small", "medium.en", "medium"),
    *("large-v1", "large-v2", "large-v3", "large", "large-v3-turbo", "turbo"),
)
_WITH_CANTONESE = ("large-v3", "large", "large-v3-turbo", "turbo")
_WITHOUT_TRANSLATION = ("large-v3-turbo", "turbo")  # they return the language that was spoken
_CODES = (
    "af am ar as az ba be bg bn bo br bs ca cs cy da de el en es et eu fa fi fo fr gl gu ha haw he hi hr ht hu hy id "
    "is it ja jw ka kk km kn ko la lb ln lo lt lv mg mi mk ml mn mr ms mt my ne nl nn no oc pa pl ps pt ro ru sa sd si "
    "sk sl sn so sq sr su sv sw ta te tg th tk tl tr tt uk ur uz vi yi yo yue zh"
)
LANGUAGES = frozenset(_CODES.split())


@dataclass(frozen=True)
class WhisperName:
    """Mark of a setting that names a Whisper model, in `Annotated` behind its type."""

    def problem(self, value: str) -> str:
        """Return what is wrong with the name; paths are checked where the file is read."""
        if value in MODELS or "/" in value or value.endswith(".pt"):
            return ""
        near = difflib.get_close_matches(value, MODELS, n=1)
        hint = f"did you mean {near[0]}? There" if near else "there"
        return f"is no Whisper model: {hint} are {', '.join(MODELS)}, or the path of a checkpoint file"


WHISPER = WhisperName()


def language_problem(language: str, whisper: str) -> str:
    """Return what is wrong with a language for a Whisper model; empty detects it."""
    if language and language not in LANGUAGES:
        return "is no language of Whisper: give a code such as en, de or zh, or '' to detect it"
    if language not in ("", "en") and whisper.endswith(".en"):
        return f"does not fit --model.whisper {whisper}, which knows English only: choose {whisper[:-3]}"
    if language == "yue" and whisper in MODELS and whisper not in _WITH_CANTONESE:
        return f"is known to {', '.join(_WITH_CANTONESE)} only, not to --model.whisper {whisper}"
    return ""


def task_problem(task: str, whisper: str) -> str:
    """Return what is wrong with a task for a Whisper model."""
    if task != "translate":
        return ""
    if whisper.endswith(".en"):
        return f"does not fit --model.whisper {whisper}, which knows English only: choose {whisper[:-3]}"
    if whisper in _WITHOUT_TRANSLATION:
        return f"does not fit --model.whisper {whisper}, which was not trained to translate: choose large-v3"
    return ""
