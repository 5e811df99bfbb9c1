"""A frozen CLIP by name, from this package or open_clip. The models themselves read no files."""

import functools
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import open_clip
import torch
from open_clip.hf_model import HFTextEncoder
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import load_file
from torch import Tensor, nn

from brewclip.errors import one_line
from brewclip.models.clip import why_no_prompts
from brewclip.models.towers import square_side
from brewclip.pretrained.clip_files import load_weights, read_weights, sha256_of_file, text_length
from brewclip.pretrained.clip_names import (
    RANDOM,
    image_transform,
    split_clip_name,
    tokenizer_of_a_hub,
    tower_settings,
    uses_quick_gelu,
    weights_file,
)
from brewclip.pretrained.image_sizes import SCENES_DIR
from brewclip.pretrained.token_layout import CLIP_LAYOUT, TokenLayout, find_layout

_TEXTS_TO_CLEAN = ("Two DOGS, running!", "a  caf\u00e9 &amp; 12_bars", "")


@dataclass(frozen=True)
class LoadedClip:
    """A CLIP with its tokenizer and preprocessing.

    Attributes:
        name: the name it was loaded by.
        model: the open_clip model, float32, eval mode, on the CPU.
        tokenize: list of B strings -> (B, L) int64; truncates long captions and keeps their end token. L is the second
            argument, or else `context_length`.
        mean: per channel, of images in [0, 1].
        std: per channel, of images in [0, 1].
        image_size: side of the square image in pixels.
        context_length: longest text in tokens, with start and end token.
        tokenizer: identifies `tokenize`: its kind, and a hash of its vocabulary and of some texts' tokens.
        interpolation: `bicubic` or `bilinear`, as images were resized in its training.
        resize_mode: `shortest` (the center square), `squash` or `longest`, likewise.
        layout: start, end and padding of a text's tokens, which differ between tokenizers. What counts tokens, divides
            a text or fills rows has to ask it: SigLIP pads with its end token 1, RoBERTa's start token is 0.
        towers: settings of the towers by open_clip's table that the weights do not contain, such as pooling; empty for
            towers that take prompts, which differ in none.
        unrecorded: settings, other than those of `clip_identity.identify_clip`, of the model behind a checkpoint that
            recorded none.
    """

    name: str
    model: nn.Module
    tokenize: Callable[..., Tensor]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    image_size: int
    context_length: int
    tokenizer: str
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"
    layout: TokenLayout = CLIP_LAYOUT
    towers: dict[str, str] = field(default_factory=dict)
    unrecorded: dict[str, Any] = field(default_factory=dict)


@functools.cache
def shipped_sha256(name: str) -> str:
    """Return the hash of a CLIP's file of weights, shipped or given; empty for open_clip's, which do not change."""
    file = SCENES_DIR / "clip.safetensors" if name == "scenes" else weights_file(name.partition("/")[2])
    return sha256_of_file(file) if file else ""


def load_clip(name: str) -> LoadedClip:
    """Load a CLIP, or any other model of open_clip with an image and a text tower, in float32 on the CPU.

    Args:
        name: "scenes" for the small CLIP shipped with this package; "ARCHITECTURE/TAG" for open_clip's
            weights, such as "ViT-L-14/openai"; "ARCHITECTURE/FILE" for weights in a file, such as
            "ViT-L-14-quickgelu//data/longclip-L.pt", whose position embeddings say how long a text is;
            "ARCHITECTURE/random" for an untrained one, for tests and timings only.

    Raises:
        ValueError: if the architecture or the tag is unknown, or a file does not fit the architecture.
        FileNotFoundError: if weights or tokenizer are neither here nor downloadable.
    """
    if name == "scenes":
        return _load_scenes_clip()
    architecture, tag = split_clip_name(name)
    options: dict[str, Any] = {"force_quick_gelu": uses_quick_gelu(architecture, tag)}
    file = weights_file(tag)
    weights = read_weights(file) if file else {}
    length = text_length(weights)
    tokenizer = _load_tokenizer(name, architecture, length)
    model = _build_model(name, architecture, tag, options | {"force_context_length": length})
    if file:
        load_weights(model, weights, file)
    if isinstance(getattr(model, "text", None), HFTextEncoder):
        model.context_length = tokenizer.context_length  # its own is that of Transformers' model, up to 1,026
    preprocess = open_clip.get_model_preprocess_cfg(model)
    return LoadedClip(
        name=name,
        model=model.float().eval(),
        tokenize=lambda texts, context_length=None: tokenizer(list(texts), context_length),
        mean=tuple(preprocess["mean"]),
        std=tuple(preprocess["std"]),
        image_size=square_side(model.visual.image_size),
        context_length=model.context_length,
        tokenizer=_describe_tokenizer(tokenizer),
        interpolation=preprocess["interpolation"],
        resize_mode=preprocess["resize_mode"],
        layout=find_layout(tokenizer),
        towers=tower_settings(architecture) if why_no_prompts(model) else {},
        unrecorded=_unrecorded_settings(architecture, tag),
    )


def _load_tokenizer(name: str, architecture: str, context_length: int | None) -> Any:
    """Load the tokenizer of an architecture, for another context length than its own if one is given."""
    try:
        return open_clip.get_tokenizer(architecture, **({"context_length": context_length} if context_length else {}))
    except (OSError, RuntimeError, ValueError, ImportError) as error:
        remedy = "connect to the network once"
        if isinstance(error, ImportError):
            remedy = "install transformers (pip install 'brewclip[towers]')"
        raise FileNotFoundError(
            f"cannot load {tokenizer_of_a_hub(architecture)!r}, the tokenizer of CLIP {name!r} ({one_line(error)}); "
            f"{remedy}, or choose a CLIP whose tokenizer is in open_clip, such as ViT-L-14 or PE-Core-L-14-336"
        ) from error


def _build_model(name: str, architecture: str, tag: str, options: dict[str, Any]) -> Any:
    """Build an open_clip model with the weights of a tag; untrained for a file, and for `random`, always alike."""
    has_tag = tag != RANDOM and not weights_file(tag)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # cached embeddings of `random` are those of any other process
            return open_clip.create_model(
                architecture,
                pretrained=tag if has_tag else None,
                device="cpu",
                force_preprocess_cfg=image_transform(architecture, tag),
                pretrained_text=False,  # a text tower of Transformers comes untrained or with the weights of the tag
                **options,
            )
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(
            f"cannot load CLIP {name!r} ({one_line(error)}); connect to the network once, or choose "
            "'scenes', which needs no download"
        ) from error


def _load_scenes_clip() -> LoadedClip:
    config_path, weights_path = SCENES_DIR / "clip.json", SCENES_DIR / "clip.safetensors"
    for path in (config_path, weights_path):
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing, so the scenes CLIP cannot be loaded; reinstall brewclip")
    config = json.loads(config_path.read_text())
    keys = ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu")
    model = open_clip.CLIP(**{key: config[key] for key in keys if key in config})
    # Only the weights are stored: the causal mask is rebuilt by open_clip.
    model.load_state_dict({key: value.float() for key, value in load_file(weights_path).items()})
    tokenizer = SimpleTokenizer(context_length=model.context_length)
    return LoadedClip(
        name="scenes",
        model=model.eval(),
        tokenize=tokenizer,
        mean=tuple(config["preprocess"]["mean"]),
        std=tuple(config["preprocess"]["std"]),
        image_size=model.visual.image_size[0],
        context_length=model.context_length,
        tokenizer=_describe_tokenizer(tokenizer),
    )


def _unrecorded_settings(architecture: str, tag: str) -> dict[str, Any]:
    """Return where the CLIP built until 2026-11-26, when checkpoints recorded no settings, differs from today's."""
    if tag == RANDOM or weights_file(tag):
        return {}
    same_activation = uses_quick_gelu(architecture, tag) == uses_quick_gelu(architecture, RANDOM)
    return {"interpolation": "bicubic", "resize_mode": "shortest"} | ({} if same_activation else {"activation": "GELU"})


def _describe_tokenizer(tokenizer: Any) -> str:
    """Return the kind of a tokenizer with a hash of its vocabulary and of the tokens of texts that it may normalize."""
    words = getattr(tokenizer, "encoder", None) or tokenizer.tokenizer.get_vocab()
    digest = hashlib.sha256(json.dumps(sorted(words.items(), key=lambda item: item[1])).encode())
    digest.update(json.dumps(tokenizer(list(_TEXTS_TO_CLEAN)).tolist()).encode())
    return f"{type(tokenizer).__name__} {digest.hexdigest()[:16]}"
