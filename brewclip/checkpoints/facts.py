"""checkpoint.json: metadata of a checkpoint, validated before a model is built from it.

Everything that is read is checked before it is used: size, types, finite numbers. What does not fit is a
`CheckpointError` of one line.
"""

import functools
import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from brewclip.config import Config, flatten, unflatten
from brewclip.config.checks import check
from brewclip.config.renamed import with_current_names
from brewclip.errors import CheckpointError

if TYPE_CHECKING:  # 1.5 s of a core, for processes that only ask what a checkpoint is
    from torch import Tensor

MODEL, OPTIMIZER, FACTS = "model.safetensors", "optimizer.safetensors", "checkpoint.json"
LARGEST_FACTS_BYTES = 2**22
# What settings may ask for without tensors that show it: a model is built before its tensors are compared with it.
_LARGEST_WITHOUT_TENSORS = 2**20


@dataclass(frozen=True)
class CheckpointFacts:
    """The content of checkpoint.json.

    Attributes:
        step: optimiser steps done; the stream goes on from here.
        config: the settings of the run, flattened.
        frozen_sha256: hash of the frozen weights by the name of their model; checked on load.
        audio_dim: width of Whisper's features, or of the speech encoder's.
        mlflow_run_id: where the run is recorded, or empty.
        metrics: dev metrics at this step, if it was evaluated.
        best: metric and step of the best checkpoint so far.
        files: sha256 of the other files of the checkpoint.
        frozen_settings: what the features of a frozen model depend on in addition to its weights, by its name, see
            `clip_identity.ClipIdentity`; checked on load. Checkpoints before 2026-11-26 have none.
    """

    step: int
    config: dict[str, Any]
    frozen_sha256: dict[str, str]
    audio_dim: int
    mlflow_run_id: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    frozen_settings: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint in memory: tensors on the CPU."""

    facts: CheckpointFacts
    model: "dict[str, Tensor]"
    optimizer: "dict[str, Tensor]"


def sha256_of(data: bytes) -> str:
    """Return the sha256 of bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def facts_to_bytes(facts: CheckpointFacts) -> bytes:
    """Return checkpoint.json, with a hash of its own content; checkpoints before 2026-11-26 have none."""
    content = asdict(facts)
    return json.dumps(content | {"sha256": _content_sha256(content)}, indent=1, sort_keys=True).encode()


def facts_from_bytes(data: bytes, url: str) -> CheckpointFacts:
    """Read checkpoint.json.

    Args:
        data: at most `LARGEST_FACTS_BYTES`.
        url: of it, for messages.

    Raises:
        CheckpointError: if it is not what `facts_to_bytes` writes, or was changed since.
    """
    content = json_of(data, url)
    if not isinstance(content, dict):
        raise CheckpointError(f"{url} cannot be read: it holds a {type(content).__name__}, not a checkpoint's facts")
    sha256 = content.pop("sha256", None)
    if sha256 is not None and sha256 != _content_sha256(content):
        raise CheckpointError(f"{url} is damaged: its content does not have the sha256 that it names")
    try:
        facts = CheckpointFacts(**content)
    except TypeError as error:
        raise CheckpointError(f"{url} cannot be read: {one_line(error)}") from None
    for fits, what in _rules_of_facts(facts):
        if not fits:
            raise CheckpointError(f"{url} cannot be used: {what}")
    facts = replace(facts, config=with_current_names(facts.config))
    _check_types(facts.config, url)
    return facts


def check_usable(checkpoint: Checkpoint, url: str) -> None:
    """Compare the settings of a checkpoint with its tensors, before a model is built from the settings.

    Raises:
        CheckpointError: if this version does not know a setting, or the tensors are of another model.
    """
    try:
        config = unflatten(checkpoint.facts.config)
        check(replace(Config(), model=config.model, loss=config.loss))
    except ValueError as error:
        raise CheckpointError(f"checkpoint {url} cannot be used: {one_line(error)}") from None
    model, shapes = config.model, {name: tuple(tensor.shape) for name, tensor in checkpoint.model.items()}
    if not shapes:
        if model.num_layers * model.ff_dim > _LARGEST_WITHOUT_TENSORS:
            raise CheckpointError(f"checkpoint {url} cannot be used: it holds no tensors of the model that it names")
        return
    layers = {name.split(".")[2] for name in shapes if name.startswith("acoustic.layers.") and name.count(".") > 2}
    hears = model.variant in ("brewclip", "acoustic", "speechclip")
    projects = model.variant != "speechclip"  # whose layer has the width of the frames
    stored_audio_dim = _side(shapes, "acoustic.input.weight", 1) if projects else _side(shapes, "acoustic.cls", 0)
    found = {
        "num_layers": (len(layers), model.num_layers if hears else 0),
        "ff_dim": (_side(shapes, "acoustic.layers.0.linear1.weight", 0), model.ff_dim if hears else 0),
        "audio_dim": (stored_audio_dim, checkpoint.facts.audio_dim if hears else 0),
        "prompt_length": (_side(shapes, "prompts.text", 0), config.num_prompts),
    }
    for name, (stored, said) in found.items():
        if stored != said:
            raise CheckpointError(
                f"checkpoint {url} cannot be used: {FACTS} says {name} {said} for variant {model.variant}, "
                f"{MODEL} holds {stored}"
            )
    width = _side(shapes, "acoustic.input.weight", 0) if projects else stored_audio_dim
    if width % model.num_heads:
        raise CheckpointError(
            f"checkpoint {url} cannot be used: {model.num_heads} heads do not divide the width {width}"
        )


def json_of(data: bytes, url: str) -> Any:
    """Return what json says, unless it is nested deeper than json can be written again and shown."""
    try:
        content = json.loads(data)
        json.dumps(content), repr(content)
    except (ValueError, RecursionError, MemoryError) as error:
        raise CheckpointError(f"{url} cannot be read: {one_line(error)}") from None
    return content


def _rules_of_facts(facts: CheckpointFacts) -> list[tuple[bool, str]]:
    """Return what must hold of the values of a checkpoint.json, with what to say if it does not."""
    texts = {"frozen_sha256": facts.frozen_sha256, "files": facts.files}
    numbers = {"metrics": facts.metrics, "best": facts.best}
    settings = facts.frozen_settings
    return [
        (is_int(facts.step) and 0 <= facts.step < 10**15, f"step {short(facts.step)} must be a number from 0"),
        (
            is_int(facts.audio_dim) and 0 <= facts.audio_dim <= 2**16,
            f"audio_dim {short(facts.audio_dim)} must be 0..65536",
        ),
        (isinstance(facts.config, dict), f"config is {short(facts.config)}, not the settings of a run"),
        (isinstance(facts.mlflow_run_id, str), f"mlflow_run_id {short(facts.mlflow_run_id)} must be a text"),
        *(
            (_is_dict_of(value, lambda one: isinstance(one, str)), f"{name} {short(value)} must hold texts")
            for name, value in texts.items()
        ),
        *(
            (_is_dict_of(value, _is_number), f"{name} {short(value)} must hold numbers")
            for name, value in numbers.items()
        ),
        (
            _is_dict_of(facts.best, lambda one: _is_number(one) and math.isfinite(one)),
            f"best {short(facts.best)} must be finite",
        ),
        (
            isinstance(facts.files, dict) and facts.files.keys() == {MODEL, OPTIMIZER},
            f"files {short(facts.files)} must be {MODEL} and {OPTIMIZER}",
        ),
        (
            _is_dict_of(settings, lambda one: isinstance(one, dict)),
            f"frozen_settings {short(settings)} must hold settings by the name of a model",
        ),
    ]


def _check_types(settings: dict[str, Any], url: str) -> None:
    """Check the type of each setting that this version knows, and that numbers are finite."""
    kinds = _kinds_of(Config)
    for name, value in settings.items():
        wrong = name in kinds and not _is_of(value, kinds[name])
        if wrong or (isinstance(value, float) and not math.isfinite(value)):
            kind = getattr(kinds.get(name), "__name__", str(kinds.get(name)))
            raise CheckpointError(f"{url} cannot be used: its setting {name[:80]!r} is {short(value)}, not a {kind}")
    seed = settings.get("run.seed", 0)
    if not 0 <= seed < 2**63:
        raise CheckpointError(f"{url} cannot be used: its setting 'run.seed' is {short(seed)}, not 0..2**63")


@functools.cache
def _kinds_of(kind: Any, prefix: str = "") -> dict[str, Any]:
    """Return the type of each setting by its flat name."""
    defaults, kinds = flatten(Config()), {}
    for name, hint in get_type_hints(kind).items():
        if prefix + name in defaults:
            kinds[prefix + name] = hint
        else:
            kinds |= _kinds_of(hint, f"{prefix}{name}.")
    return kinds


def _is_of(value: Any, kind: Any) -> bool:
    """Return whether a value that was read from json is of the type of a setting."""
    if isinstance(kind, UnionType) or str(get_origin(kind)) == "typing.Union":
        return any(_is_of(value, one) for one in get_args(kind))
    if get_origin(kind) is Literal:
        return isinstance(value, str) and value in get_args(kind)
    if get_origin(kind) is tuple:
        return isinstance(value, list) and all(isinstance(one, str) for one in value)
    if kind is float:
        return _is_number(value)
    return is_int(value) if kind is int else isinstance(value, kind)


def _side(shapes: Mapping[str, tuple[int, ...]], name: str, axis: int) -> int:
    shape = shapes.get(name, ())
    return shape[axis] if len(shape) > axis else 0


def _content_sha256(content: dict[str, Any]) -> str:
    return sha256_of(json.dumps(content, sort_keys=True).encode())


def _is_dict_of(value: Any, fits: Any) -> bool:
    return isinstance(value, dict) and all(fits(one) for one in value.values())


def is_int(value: Any) -> bool:
    """Return whether a JSON value is an integer, and not a boolean."""
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or (is_int(value) and abs(value) < 2**63)


def short(value: Any) -> str:
    """Return a value in at most 80 characters, for messages."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def one_line(error: Exception) -> str:
    """Return an error in at most 200 characters without line breaks."""
    return re.sub(r"\s+", " ", f"{type(error).__name__}: {error}")[:200]
