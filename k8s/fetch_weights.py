"""Download frozen weights into the cache of the container image while it is built.

python k8s/fetch_weights.py --whisper base --clip ViT-L-14/openai --speech-encoder hubert_large_ll60k
"""

from dataclasses import dataclass
from typing import Annotated

from brewclip.config import exit_on_user_error, parse_options
from brewclip.config.whisper_names import WHISPER


@dataclass(frozen=True)
class FetchOptions:
    """Names as in `--model.whisper`, `--model.clip` and `--model.speech-encoder`."""

    whisper: Annotated[str, WHISPER] = "base"
    """Whisper model."""
    clip: str = "scenes"
    """CLIP architecture and weights, or `scenes`."""
    speech_encoder: str = ""
    """Speech encoder of variant speechclip; empty fetches none."""


def main() -> None:
    """Load the models and print the hashes of their weights."""
    with exit_on_user_error():
        options = parse_options(__doc__, FetchOptions)
    from brewclip.pretrained.clip_identity import weights_sha256
    from brewclip.pretrained.load import load_clip
    from brewclip.pretrained.whisper import load_whisper

    print(f"{options.whisper}: sha256 {weights_sha256(load_whisper(options.whisper))}", flush=True)
    print(f"{options.clip}: sha256 {weights_sha256(load_clip(options.clip).model)}", flush=True)
    if options.speech_encoder:
        from brewclip.pretrained.speech_encoders import load_speech_encoder

        print(f"{options.speech_encoder}: sha256 {load_speech_encoder(options.speech_encoder).sha256}", flush=True)


if __name__ == "__main__":
    main()
