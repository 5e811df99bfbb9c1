"""Conversion of a CTranslate2 Whisper file to openai-whisper's state dict.

Source: the layout of CTranslate2's binary model, version 6, and the names of its WhisperSpec.
"""

import struct
from typing import Any

import numpy as np
import torch
from torch import Tensor

# By the file's type number; bfloat16 (5) has no numpy type and does not occur in Whisper files.
_DTYPES = (np.float32, np.int8, np.int16, np.int32, np.float16)

_LAYER_NAMES = {  # inside a layer; cross attention is "attention" there and "cross_attn" here
    "self_attention/linear_1": "attn.out",
    "self_attention/layer_norm": "attn_ln",
    "attention/linear_0": "cross_attn.query",
    "attention/linear_2": "cross_attn.out",
    "attention/layer_norm": "cross_attn_ln",
    "ffn/linear_0": "mlp.0",
    "ffn/linear_1": "mlp.2",
    "ffn/layer_norm": "mlp_ln",
}
_TOP_NAMES = {
    "encoder/conv1": "encoder.conv1",
    "encoder/conv2": "encoder.conv2",
    "encoder/layer_norm": "encoder.ln_post",
    "decoder/layer_norm": "decoder.ln",
    "decoder/embeddings": "decoder.token_embedding",
}
_STACKED = {  # projections that CTranslate2 stacks on dimension 0
    "self_attention/linear_0": ("attn.query", "attn.key", "attn.value"),
    "attention/linear_1": ("cross_attn.key", "cross_attn.value"),
}
_PARAMETER_NAMES = {"gamma": "weight", "beta": "bias"}


def read_variables(data: bytes) -> dict[str, np.ndarray]:
    """Read every variable of a model file.

    Raises:
        ValueError: if the file is of another version, is truncated, or holds another model.
    """
    try:
        return _read_variables(data)
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise ValueError("the CTranslate2 file ends too early or is damaged; install it again") from error


def _read_variables(data: bytes) -> dict[str, np.ndarray]:
    position = 0

    def take(layout: str) -> tuple[Any, ...]:
        nonlocal position
        values = struct.unpack_from("<" + layout, data, position)
        position += struct.calcsize("<" + layout)
        return values

    def take_string() -> str:
        (length,) = take("H")
        return take(f"{length}s")[0].rstrip(b"\0").decode()

    (version,) = take("I")
    spec = take_string()
    if version != 6 or spec != "WhisperSpec":
        raise ValueError(f"a CTranslate2 file of version 6 with a WhisperSpec is needed, this is {version}, {spec!r}")
    _revision, count = take("II")
    variables = {}
    for _ in range(count):
        name = take_string()
        (num_dims,) = take("B")
        shape = take(f"{num_dims}I")
        dtype, num_bytes = take("BI")
        values = np.frombuffer(data, _DTYPES[dtype], num_bytes // np.dtype(_DTYPES[dtype]).itemsize, position)
        variables[name] = values.reshape(shape)
        position += num_bytes
    return variables


def to_openai_state(variables: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """Rename (and, for stacked projections, split) the variables of `read_variables`.

    Returns:
        The float32 state dict of `whisper.model.Whisper`.
    """
    state: dict[str, Tensor] = {}
    for name, values in variables.items():
        module, _, parameter = name.rpartition("/")
        tower, _, rest = module.partition("/")
        if parameter == "encodings":
            state[f"{tower}.positional_embedding"] = _float(values)
        elif module in _TOP_NAMES:
            state[f"{_TOP_NAMES[module]}.{_PARAMETER_NAMES.get(parameter, parameter)}"] = _float(values)
        elif rest.startswith("layer_"):
            layer, _, part = rest.removeprefix("layer_").partition("/")
            state.update(_convert_layer(f"{tower}.blocks.{layer}", part, parameter, values))
    return state


def _convert_layer(block: str, part: str, parameter: str, values: np.ndarray) -> dict[str, Tensor]:
    parameter = _PARAMETER_NAMES.get(parameter, parameter)
    if part not in _STACKED:
        return {f"{block}.{_LAYER_NAMES[part]}.{parameter}": _float(values)}
    names = _STACKED[part]
    parts = np.split(values, len(names))
    # Whisper's keys have no bias; the file holds zeros in their place.
    kept = [
        (name, split) for name, split in zip(names, parts, strict=True) if (name[-3:], parameter) != ("key", "bias")
    ]
    return {f"{block}.{name}.{parameter}": _float(split) for name, split in kept}


def _float(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))
