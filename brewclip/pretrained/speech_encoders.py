"""Frozen speech encoders by name: HuBERT through transformers, from a hub or a folder, and Whisper's encoder."""

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from brewclip.config.extras import check_installed
from brewclip.config.speech_encoders import HUBERTS, WHISPER_PREFIX
from brewclip.models.speech_encoders import HubertEncoder, SpeechEncoder
from brewclip.pretrained.clip_identity import weights_sha256
from brewclip.pretrained.whisper import load_whisper


@dataclass(frozen=True)
class LoadedSpeechEncoder:
    """A frozen speech encoder.

    Attributes:
        name: the name it was loaded by.
        model: float32, eval mode, on the CPU.
        sha256: hash of its weights.
    """

    name: str
    model: SpeechEncoder
    sha256: str


def load_speech_encoder(name: str) -> LoadedSpeechEncoder:
    """Load a speech encoder.

    Args:
        name: `hubert_large_ll60k` or `hubert_base_ls960`, downloaded once and cached by transformers; the folder of a
            `transformers.HubertModel`; `whisper-NAME` for the encoder of a Whisper, as `load_whisper` knows it.

    Raises:
        UserError: if transformers is needed and not installed.
        ValueError: if the name is unknown, or the folder holds another model.
        FileNotFoundError: if the weights are neither here nor downloadable.
    """
    if name.startswith(WHISPER_PREFIX):
        from brewclip.models.whisper_encoder import WhisperEncoder  # its package takes a second of a core

        whisper = load_whisper(name.removeprefix(WHISPER_PREFIX))
        return LoadedSpeechEncoder(name, WhisperEncoder(whisper), weights_sha256(whisper.encoder))
    hubert = _load_hubert(name)
    sha256 = weights_sha256(hubert)
    return LoadedSpeechEncoder(name, HubertEncoder(hubert), sha256)


def _load_hubert(name: str) -> nn.Module:
    check_installed("transformers", f"the speech encoder {name}", extra="baselines")
    place = HUBERTS.get(name) or str(Path(name).expanduser())
    if name not in HUBERTS and not Path(place).is_dir():
        raise FileNotFoundError(
            f"there is no folder {place!r} of a HuBERT (config.json and its weights): choose {', '.join(HUBERTS)}, "
            f"{WHISPER_PREFIX}base, or a folder that is here"
        )
    try:
        try:
            return _read_hubert(place, local_files_only=True)
        except OSError:  # not cached yet
            return _read_hubert(place, local_files_only=name not in HUBERTS)
    except OSError as error:
        raise FileNotFoundError(
            f"cannot load the speech encoder {name!r} ({' '.join(str(error).split())[:200]}); connect to the network "
            f"once, give the folder of a HuBERT, or choose {WHISPER_PREFIX}base"
        ) from error


def _read_hubert(place: str, *, local_files_only: bool) -> nn.Module:
    from transformers import HubertConfig, HubertModel

    config = HubertConfig.from_pretrained(place, local_files_only=local_files_only)
    if config.model_type != "hubert":
        raise ValueError(f"{place} holds a model of type {config.model_type!r}; a HuBERT is needed")
    return HubertModel.from_pretrained(place, config=config, local_files_only=local_files_only).float().eval()
