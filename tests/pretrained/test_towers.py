"""Every family of open_clip's models as frozen towers: features, images, tokens and identity are open_clip's own."""

import json
from importlib.resources import files
from pathlib import Path

import open_clip
import pytest
import torch
from open_clip.pretrained import get_pretrained_cfg
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F

from brewclip.data.images import decode_image
from brewclip.models.clip import PromptedCLIP
from brewclip.models.towers import FrozenTowers
from brewclip.pretrained.clip_identity import identify_clip
from brewclip.pretrained.clip_names import split_clip_name, tokenizer_of_a_hub
from brewclip.pretrained.image_sizes import clip_image_size, clip_stored_side
from brewclip.pretrained.load import load_clip, shipped_sha256
from brewclip.pretrained.token_layout import CLIP_LAYOUT, TokenLayout, find_layout

PHOTOGRAPH = files("sklearn.datasets") / "images" / "china.jpg"
TEXTS = ["a brown dog runs, over there!", "", "very " * 300 + "long"]
TRANSFORMS = {"shortest": "crop", "squash": "squash", "longest": "letterbox"}
# The smallest of each family by its parameters. Those of a hub's tokenizers are tested with a stand-in for it.
FAMILIES = {
    "CLIP": "ViT-S-32-alt",
    "ResNet": "RN50",
    "ConvNeXt": "convnext_tiny",
    "EVA": "EVA02-B-16",
    "MobileCLIP": "MobileCLIP-S1",
    "MobileCLIP 2": "MobileCLIP2-S0",
    "PE-Core": "PE-Core-T-16-384",
    "ViTamin": "ViTamin-S",
    "CoCa": "coca_ViT-B-32",
    "ViT of timm": "vit_relpos_medium_patch16_cls_224",
    "SigLIP": "ViT-B-16-SigLIP",
    "SigLIP 2": "ViT-B-16-SigLIP2",
    "CLIPA": "ViT-L-14-CLIPA",
    "CLIP, worldwide": "ViT-L-14-worldwide",
}
FROM_A_HUB = ("SigLIP", "SigLIP 2", "CLIPA", "CLIP, worldwide")
QUICK = ("CLIP", "PE-Core")
NUM_WORDS = 1000
LAYOUTS = {
    "SigLIP": TokenLayout((), (1,), 1),
    "SigLIP 2": TokenLayout((), (1,), 0),
    "CLIPA": TokenLayout((101,), (0,), 0),
    "CLIP, worldwide": TokenLayout((), (1,), 0),
    "RoBERTa": TokenLayout((0,), (2,), 1),
    "NLLB": TokenLayout((900,), (2,), 1),
}


class WordTokenizer:
    """A stand-in for a tokenizer of a hub: a number for each word, framed as that tokenizer does."""

    def __init__(self, layout: TokenLayout, context_length: int) -> None:
        self.layout, self.context_length = layout, context_length
        self.encoder = {"a": 0}

    def __call__(self, texts, context_length=None):
        length = context_length or self.context_length
        most = length - len(self.layout.start) - len(self.layout.end)
        numbers = [[200 + sum(word.encode()) % 600 for word in text.split()][:most] for text in texts]
        return torch.stack([self.layout.frame(torch.tensor(one, dtype=torch.long), length) for one in numbers])


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in FAMILIES]
)
def family(request):
    """A family with its towers as loaded and as open_clip builds them, of the same random weights."""
    name, architecture = request.param, FAMILIES[request.param]
    config_of = open_clip.get_model_config
    with pytest.MonkeyPatch.context() as patch:
        if name in FROM_A_HUB:
            context = config_of(architecture)["text_cfg"]["context_length"]
            patch.setattr(open_clip, "get_tokenizer", lambda *_, **__: WordTokenizer(LAYOUTS[name], context))
            patch.setattr(open_clip.factory, "get_model_config", lambda one: with_few_words(config_of(one)))
        torch.manual_seed(0)
        clip = load_clip(f"{architecture}/random")
        torch.manual_seed(0)
        reference, _, transform = open_clip.create_model_and_transforms(architecture)
        tokenizer = open_clip.get_tokenizer(architecture)
    return name, clip, reference.eval(), transform, tokenizer


def with_few_words(config):
    """Return a configuration with a few words and few layers: vocabularies of a hub have up to 900,000."""
    config["text_cfg"] |= {"vocab_size": NUM_WORDS, "layers": 1}
    config["vision_cfg"] |= {"layers": 1} if "timm_model_name" not in config["vision_cfg"] else {}
    return config


def prepare(clip, data: bytes) -> torch.Tensor:
    """Return an image as batches hold it."""
    image = decode_image(data, clip.image_size, TRANSFORMS[clip.resize_mode], interpolation=clip.interpolation)
    shift, scale = (torch.tensor(values).view(3, 1, 1) for values in (clip.mean, clip.std))
    return ((torch.from_numpy(image) / 255 - shift) / scale)[None]


def relative_error(actual, expected) -> float:
    return float(((actual - expected).norm(dim=-1) / expected.norm(dim=-1)).max())


@torch.no_grad()
def test_features_are_open_clip_s(family):
    name, clip, reference, _, tokenizer = family
    images, tokens = prepare(clip, PHOTOGRAPH.read_bytes()), tokenizer(TEXTS)
    towers = FrozenTowers(clip.model)
    assert torch.equal(clip.tokenize(TEXTS), tokens) and tokens.shape[1] == towers.context_length == clip.context_length
    expected = [reference.encode_image(images, normalize=True), reference.encode_text(tokens, normalize=True)]
    actual = [towers.encode_image(images), towers.encode_text(tokens)]
    for one, other in zip(actual, expected, strict=True):
        assert relative_error(F.normalize(one, dim=-1), other) < 2e-6
        assert one.shape[1] == towers.embed_dim == open_clip.get_model_config(FAMILIES[name])["embed_dim"]
        assert (one.norm(dim=-1) - 1).abs().min() > 1e-3, "not normalised"
    assert not any(parameter.requires_grad for parameter in towers.parameters())
    assert not any(module.training for module in towers.train().modules())


@torch.no_grad()
def test_images_are_those_of_its_own_transform(family):
    name, clip, reference, transform, _ = family
    tags = open_clip.list_pretrained_tags_by_model(FAMILIES[name])
    if tags:
        table = get_pretrained_cfg(FAMILIES[name], tags[0])
        own = {key: table[key] for key in ("mean", "std", "interpolation", "resize_mode")}
        transform = image_transform_v2(PreprocessCfg(size=clip.image_size, **own), is_train=False)
    expected, actual = transform(Image.open(PHOTOGRAPH))[None], prepare(clip, PHOTOGRAPH.read_bytes())
    torch.testing.assert_close(actual, expected, rtol=0, atol=0.01)
    features = (reference.encode_image(images, normalize=True) for images in (actual, expected))
    assert F.cosine_similarity(*features) >= 0.9996
    assert clip_image_size(clip.name) == clip.image_size <= clip_stored_side(clip.name)


def test_layout_counts_and_frames_texts(family):
    name, clip, _, _, _ = family
    layout = clip.layout
    assert layout == LAYOUTS.get(name, CLIP_LAYOUT)
    short, empty, long = clip.tokenize(TEXTS)
    frame = len(layout.start) + len(layout.end)
    assert (layout.count(empty), layout.count(long)) == (frame, clip.context_length)
    assert layout.count(short) == len(layout.words(short)) + frame > frame + 5
    assert all(torch.equal(layout.frame(layout.words(one), len(one)), one) for one in (short, empty, long))
    whole = clip.tokenize(TEXTS[2:], 700)[0]
    assert layout.count(whole) == 301 + frame, "known before truncation"


def test_identity_is_stable_and_says_what_the_weights_do_not(family):
    name, clip, _, _, _ = family
    identity = identify_clip(clip)
    assert identity == identify_clip(clip)
    assert identity.settings == json.loads(json.dumps(identity.settings)) == identity.unrecorded
    takes_prompts = name in ("CLIP", "CLIP, worldwide")
    assert ("image_tower" in identity.settings) == (not takes_prompts)
    with torch.no_grad():
        next(clip.model.visual.parameters()).flatten()[0] += 1e-3
    assert identify_clip(clip).weights_sha256 != identity.weights_sha256
    if takes_prompts:
        PromptedCLIP(clip.model)
    else:
        with pytest.raises(ValueError, match=r"or train an adapter: --model\.adaptation adapter$"):
            PromptedCLIP(clip.model)


@torch.no_grad()
def test_towers_that_take_prompts_are_those_of_the_prompted_clip():
    clip = load_clip("scenes")
    towers, prompted = FrozenTowers(clip.model), PromptedCLIP(clip.model)
    images, tokens = prepare(clip, PHOTOGRAPH.read_bytes()), clip.tokenize(TEXTS)
    assert torch.equal(towers.encode_image(images), prompted.encode_image(images))
    assert torch.equal(towers.encode_text(tokens), prompted.encode_text(tokens))
    with pytest.raises(ValueError, match=r"must be \(batch, 77\)"):
        towers.encode_text(tokens[:, :20])
    with pytest.raises(ValueError, match="a Linear has no image and text tower"):
        FrozenTowers(torch.nn.Linear(2, 2))


# Recorded before other towers than CLIP's could be loaded: checkpoints compare these.
CLIP_SETTINGS = {
    "activation": "GELU",
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
    "tokenizer": "SimpleTokenizer 4d0ca9ea39b0f15e",
    "context_length": 77,
}


@pytest.mark.parametrize(
    ("name", "changed"), [("scenes", {"image_size": 96}), ("ViT-B-32/random", {"image_size": 224})]
)
def test_identity_of_a_plain_clip_stays(name, changed):
    identity = identify_clip(load_clip(name))
    assert identity.settings == identity.unrecorded == CLIP_SETTINGS | changed
    if name == "scenes":
        assert identity.weights_sha256 == "59170b460c8b5b752eedc7728f9028791f79296ba323a2c870bbf0c3c4c43dd8"


def kind_of(config) -> tuple:
    """Return what distinguishes the towers of an architecture, apart from their size."""
    vision, text = config["vision_cfg"], config["text_cfg"]
    timm = str(vision.get("timm_model_name")).rstrip("0123456789_")
    pooling = (
        vision.get("timm_pool"),
        vision.get("timm_proj"),
        vision.get("pool_type"),
        vision.get("attentional_pool"),
    )
    words = (text.get("pool_type"), text.get("no_causal_mask"), text.get("embed_cls"))
    return timm.split("_")[0], pooling, isinstance(vision.get("layers"), list), words, config.get("custom_text")


@pytest.mark.slow
def test_every_kind_of_architecture_is_taken():
    """Built without memory, on torch's meta device; those of Transformers' towers need files of a hub."""
    configs = {name: open_clip.get_model_config(name) for name in open_clip.list_models()}
    kinds = {kind_of(config): name for name, config in configs.items() if "hf_model_name" not in config["text_cfg"]}
    classes = set()
    for name in kinds.values():
        config = configs[name]
        config["text_cfg"]["layers"] = 1
        with torch.device("meta"), pytest.MonkeyPatch.context() as patch:
            patch.setattr(open_clip.factory, "get_model_config", lambda _, config=config: config)
            towers = FrozenTowers(open_clip.create_model(name, device="meta"))
        assert towers.embed_dim == open_clip.get_model_config(name)["embed_dim"], name
        assert towers.image_size == clip_image_size(f"{name}/random"), name
        classes.add(type(towers.towers).__name__)
    assert classes == {"PromptedCLIP", "CLIP", "CustomTextCLIP", "CoCa"} and len(kinds) > 15


def test_images_that_are_not_square_are_refused(monkeypatch):
    config = open_clip.get_model_config("ViT-S-32-alt")
    config["vision_cfg"]["image_size"] = [224, 336]
    monkeypatch.setattr(open_clip.factory, "get_model_config", lambda _: config)
    with pytest.raises(ValueError, match="takes 224 x 336 pixels; images are made square, choose another model"):
        load_clip("ViT-S-32-alt/random")


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (
            ModuleNotFoundError("No module named 'transformers'"),
            r"install transformers \(pip install 'brewclip\[towers\]'\)",
        ),
        (OSError("We couldn't\nconnect"), "connect to the network once"),
    ],
)
def test_a_tokenizer_that_is_not_here_is_one_line(error, remedy, monkeypatch):
    def nothing_here(*_args, **_options):
        raise error

    monkeypatch.setattr(open_clip, "get_tokenizer", nothing_here)
    line = rf"cannot load 'timm/ViT-B-16-SigLIP', the tokenizer of CLIP 'ViT-B-16-SigLIP/random' \(.*\); {remedy}"
    with pytest.raises(FileNotFoundError, match=line) as raised:
        load_clip("ViT-B-16-SigLIP/random")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", [*FROM_A_HUB, "RoBERTa", "NLLB"])
def test_layout_is_found_whatever_a_tokenizer_pads_with(name):
    assert find_layout(WordTokenizer(LAYOUTS[name], 16)) == LAYOUTS[name]


def test_every_tag_is_a_name():
    for architecture, tag in open_clip.list_pretrained():
        assert split_clip_name(f"{architecture}/{tag}") == (architecture, tag)
    assert not tokenizer_of_a_hub("PE-Core-L-14-336") and tokenizer_of_a_hub("ViT-L-16-SigLIP-256")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ViT-L-15/openai", r"unknown CLIP 'ViT-L-15/openai'.* such as ViT-L-1\d.* or "),
        ("PE-Core-L-14/meta", r"PE-Core-L-14-336"),
        ("ViT-L-14/laion2b", r"did you mean laion2b_s32b_b82k; write ViT-L-14/TAG with one of"),
        ("ViT-S-32/openai", r"write ViT-S-32/random for an untrained model, or ViT-S-32/FILE"),
        ("ViT-B-32//no/such.safetensors", r"there is no file of weights '/no/such\.safetensors'"),
    ],
)
def test_wrong_names_are_explained(name, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_clip(name)


SMALL = {"layers": 1, "width": 64}


@pytest.fixture
def small_towers(monkeypatch):
    """Shrink what open_clip builds by name."""
    config_of = open_clip.get_model_config

    def small_config(name):
        config = config_of(name) | {"embed_dim": 64}
        config["vision_cfg"] |= SMALL | {"head_width": 32, "patch_size": 32}
        config["text_cfg"] |= SMALL | {"heads": 2}
        return config

    monkeypatch.setattr(open_clip.factory, "get_model_config", small_config)
    return small_config


def build_long_clip(config) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """Return a CLIP of 248 tokens, and its weights in Long-CLIP's form: positions in two parts."""
    torch.manual_seed(5)
    config["text_cfg"]["context_length"] = 248
    model = open_clip.CLIP(**config).eval()
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    positions = weights["positional_embedding"]
    weights["positional_embedding_res"] = positions.clone()
    weights["positional_embedding_res"][:20] = 7
    positions[20:] = 7
    return model, weights


@torch.no_grad()
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_long_clip_reads_248_tokens_from_a_file(suffix, small_towers, tmp_path: Path):
    model, weights = build_long_clip(small_towers("ViT-B-32-quickgelu"))
    path = tmp_path / f"long.{suffix}"
    if suffix == "pt":
        torch.save({"state_dict": {f"module.{key}": value.half() for key, value in weights.items()}}, path)
    else:
        save_file(weights, path)
    name = f"ViT-B-32-quickgelu/{path}"
    clip = load_clip(name)
    tokens, images = clip.tokenize(["word " * 200, "a dog"]), torch.randn(2, 3, 224, 224)
    assert tokens.shape == (2, 248) and clip.layout.count(tokens[0]) == 202 and clip.context_length == 248
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if suffix == "pt" else {"rtol": 1e-5, "atol": 1e-5}
    for towers in (FrozenTowers(clip.model), PromptedCLIP(clip.model)):
        torch.testing.assert_close(towers.encode_text(tokens), model.encode_text(tokens), **tolerance)
        torch.testing.assert_close(towers.encode_image(images), model.encode_image(images), **tolerance)
    identity = identify_clip(clip)
    assert (identity.settings["context_length"], identity.settings["activation"]) == (248, "QuickGELU")
    assert identity == identify_clip(load_clip(name)) and len(shipped_sha256(name)) == 64


def test_weights_of_a_text_tower_of_its_own_are_read(small_towers, tmp_path: Path):
    torch.manual_seed(5)
    model = open_clip.create_model("MobileCLIP2-S0")
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, tmp_path / "mine.safetensors")
    clip = load_clip(f"MobileCLIP2-S0/{tmp_path / 'mine.safetensors'}")
    same = ((clip.model.state_dict()[key], value) for key, value in model.state_dict().items())
    assert all(torch.equal(one, other) for one, other in same)
    assert (clip.mean, clip.interpolation, clip.resize_mode) == ((0.0, 0.0, 0.0), "bilinear", "shortest")


class Code:
    """Something that a file of weights must not contain."""

    def __reduce__(self):
        return print, ("unpickled",)


def test_files_that_hold_no_fitting_weights_are_refused(small_towers, tmp_path: Path, capsys):
    weights = build_long_clip(small_towers("ViT-B-32"))[1]
    contents = {
        "none": {},
        "numbers": {"a": 1},
        "code": {"a": Code()},
        "other": {"a": torch.zeros(1)},
        "part": {key: value for key, value in weights.items() if "ln_final" not in key},
        "wide": weights | {"text_projection": torch.zeros(64, 32)},
    }
    for name, content in contents.items():
        torch.save(content, tmp_path / f"{name}.pt")
    (tmp_path / "text.pt").write_text("weights")
    (tmp_path / "text.safetensors").write_text("weights")
    messages = {
        "none.pt": "holds no tensors by name",
        "numbers.pt": "holds no tensors by name",
        "code.pt": "cannot read weights",
        "other.pt": "are of another architecture: .* is missing",
        "part.pt": r"another architecture: ln_final\.\w+ is missing \(1 of 2\)",
        "wide.pt": "do not fit the architecture: .*text_projection",
        "text.pt": "cannot read weights",
        "text.safetensors": "cannot read weights",
    }
    for file, message in messages.items():
        with pytest.raises(ValueError, match=message) as raised:
            load_clip(f"ViT-B-32/{tmp_path / file}")
        assert "\n" not in str(raised.value)
    assert "unpickled" not in capsys.readouterr().out
