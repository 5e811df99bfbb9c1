"""The fastest precision of a device is one that it multiplies."""

import pytest
import torch

from brewclip.pretrained.precision import resolve_precision


@pytest.mark.parametrize(
    ("found", "precision"), [({"amx_bf16": True}, "bfloat16"), ({"avx512_bf16": True}, "bfloat16"), ({}, "float32")]
)
def test_the_fastest_precision_is_one_that_the_device_multiplies(found, precision, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    assert resolve_precision("auto", torch.device("cpu")) == precision
    assert resolve_precision("float16", torch.device("cpu")) == "float16"
