"""BrewCLIP: speech-image retrieval with frozen Whisper, frozen CLIP and what is learned between them.

Importing the package is cheap: nothing heavy is loaded before it is asked for.
"""

from typing import TYPE_CHECKING

from brewclip.version import __version__

if TYPE_CHECKING:
    from brewclip.serving.embedder import Embedder

__all__ = ["__version__", "load"]


def load(url_or_name: str, *, clip: str = "", whisper: str = "", device: str = "") -> "Embedder":
    """Load a trained system that embeds speech and images, and searches.

    Args:
        url_or_name: URL of a run (its best checkpoint) or of one checkpoint, a run's folder on this machine, the name
            of a run below BREWCLIP_STORAGE, `models:/NAME@ALIAS` of MLflow, or `zero_shot`.
        clip: CLIP of `zero_shot`, such as `scenes`; a checkpoint names its own.
        whisper: Whisper of `zero_shot`; a checkpoint names its own.
        device: such as `cuda:1`; empty takes a GPU if there is one.

    Returns:
        An object with embed_speech, embed_images, build_index and search.

    Raises:
        UserError, ValueError, FileNotFoundError: if there is no such checkpoint, or no frozen models for it.
    """
    from brewclip.serving.embedder import load_embedder

    return load_embedder(url_or_name, clip=clip, whisper=whisper, device=device)
