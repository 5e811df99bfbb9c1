"""BrewCLIP: speech-image retrieval with frozen Whisper, frozen CLIP and a small trained model between them.

Importing the package is cheap: torch and the models are loaded on first use.
"""

from typing import TYPE_CHECKING, Any

from brewclip.version import __version__

if TYPE_CHECKING:
    from brewclip.service.client import Client
    from brewclip.serving.embedder import Embedder

__all__ = ["Client", "__version__", "load"]


def __getattr__(name: str) -> Any:
    """Return `Client`, which is imported on first use."""
    if name == "Client":
        from brewclip.service.client import Client

        return Client
    raise AttributeError(f"module 'brewclip' has no attribute {name!r}")


def load(
    url_or_name: str,
    *,
    clip: str = "",
    whisper: str = "",
    device: str = "",
    task: str = "",
    language: str | None = None,
    precision: str = "float32",
) -> "Embedder":
    """Load a trained system that embeds speech and images, and searches.

    Args:
        url_or_name: URL of a run (its best checkpoint) or of one checkpoint, a run's folder on this machine, the name
            of a run below BREWCLIP_STORAGE, `models:/NAME@ALIAS` of MLflow, or `zero_shot`.
        clip: CLIP of `zero_shot`, such as `scenes`; a checkpoint records its own.
        whisper: Whisper of `zero_shot`; a checkpoint records its own.
        device: such as `cuda:1`; empty uses a GPU if there is one.
        task: `transcribe`, or `translate` for Whisper's own translation to English; empty is the system's own.
        language: that is spoken, a code such as `de`; empty detects it; None is the system's own, and detects it where
            `task` is to translate.
        precision: of Whisper's encoder, `float32`, `bfloat16` or `float16`; `auto` is the fastest on the device.

    Returns:
        An `Embedder` with listen, embed_speech, embed_text, embed_images, build_index and search.

    Raises:
        UserError, ValueError, FileNotFoundError: if the checkpoint or its frozen models cannot be found.
    """
    from brewclip.serving.loading import load_embedder

    return load_embedder(
        url_or_name, clip=clip, whisper=whisper, device=device, task=task, language=language, precision=precision
    )
