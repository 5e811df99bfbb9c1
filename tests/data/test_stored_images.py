"""Stored images: CLIP sees in them what it sees in the original, on real photographs."""

import io
from importlib.resources import files

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from brewclip.corpora.extraction_worker import shrink_image
from brewclip.data.images import CLIP_SIDES, decode_image, open_image, reduce_image, stored_size
from brewclip.pretrained.load import load_clip

PHOTOGRAPHS = {
    "china": files("sklearn.datasets") / "images" / "china.jpg",
    "flower": files("sklearn.datasets") / "images" / "flower.jpg",
    "hopper": files("matplotlib") / "mpl-data" / "sample_data" / "grace_hopper.jpg",
}
FIRST_SIDE = 336  # of the recipes


def file_of(image: Image.Image, form: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def photographs() -> dict[str, bytes]:
    """Real photographs as they are, on their side, and parts of them of an awkward size."""
    found = {}
    for name, path in PHOTOGRAPHS.items():
        found[name] = path.read_bytes()
        image = Image.open(io.BytesIO(found[name])).convert("RGB")
        found[f"{name}, portrait"] = file_of(image.transpose(Image.Transpose.ROTATE_90))
        found[f"{name}, part"] = file_of(image.crop((11, 3, 399, 420)))
    return found


@pytest.fixture(scope="module")
def vit() -> tuple[torch.nn.Module, int]:
    """A random ViT of 224 pixels, small."""
    torch.manual_seed(0)
    model = open_clip.CLIP(
        embed_dim=64,
        vision_cfg={"image_size": 224, "layers": 2, "width": 128, "head_width": 64, "patch_size": 16},
        text_cfg={"context_length": 8, "vocab_size": 16, "width": 32, "heads": 2, "layers": 1},
    )
    return model.eval(), 224


@pytest.fixture(scope="module")
def scenes() -> tuple[torch.nn.Module, int]:
    clip = load_clip("scenes")
    return clip.model, clip.image_size


@torch.inference_mode()
def features(clip: tuple[torch.nn.Module, int], images: list[bytes], transform: str) -> torch.Tensor:
    model, side = clip
    pixels = torch.from_numpy(np.stack([decode_image(image, side, transform) for image in images])).float() / 255
    return torch.nn.functional.normalize(model.encode_image((pixels - 0.45) / 0.27), dim=-1)


def by_recipe(image: bytes) -> bytes:
    return reduce_image(image, FIRST_SIDE, exact=False)


WAYS = {
    "exact": ("crop", lambda image, side: shrink_image(image, side, exact=True)),
    "exact, after a recipe": ("crop", lambda image, side: shrink_image(by_recipe(image), side, exact=True)),
    "large": ("crop", lambda image, side: shrink_image(image, 2 * side, exact=False)),
    "letterbox": ("letterbox", lambda image, side: shrink_image(image, 2 * side, exact=False)),
    "letterbox, after a recipe": (
        "letterbox",
        lambda image, side: shrink_image(by_recipe(image), 2 * side, exact=False),
    ),
}


@pytest.mark.parametrize("name", ["scenes", "vit"])
def test_features_of_stored_photographs_are_those_of_the_originals(name, photographs, request):
    """Stored by the extraction alone or after a recipe, at the model's side or at twice of it."""
    clip = request.getfixturevalue(name)
    expected = {how: features(clip, list(photographs.values()), how) for how in ("crop", "letterbox")}
    for way, (transform, store) in WAYS.items():
        stored = [store(image, clip[1]) for image in photographs.values()]
        if way.startswith("exact"):
            assert {min(open_image(image).size) for image in stored} == {clip[1]}
        cosines = (features(clip, stored, transform) * expected[transform]).sum(dim=1).tolist()
        assert min(cosines) >= 0.9995, (way, min(zip(cosines, photographs, strict=True)))


def test_an_image_of_a_clip_s_side_is_the_one_that_its_transform_makes():
    theirs = open_clip.image_transform(224, is_train=False)
    resize = theirs.transforms[0]
    rng = np.random.default_rng(0)
    for width, height in rng.integers(225, 2000, (200, 2)).tolist():
        width, height = min(width, 8 * height), min(height, 8 * width)
        assert stored_size((width, height), 224, exact=True) == resize(Image.new("1", (width, height))).size


def test_images_stored_for_several_clips_lead_each_to_its_size():
    rng = np.random.default_rng(1)
    kept = 0
    for size in map(tuple, rng.integers(337, 5000, (300, 2)).tolist()):
        stored = stored_size(size, FIRST_SIDE, exact=False)
        assert FIRST_SIDE <= min(stored) < 2 * FIRST_SIDE or stored == size
        kept += stored == size
        for side in (side for side in CLIP_SIDES if side <= FIRST_SIDE):
            assert stored_size(stored, side, exact=True) == stored_size(size, side, exact=True)
    assert kept <= 3


def test_every_clip_that_takes_prompts_is_thought_of():
    configs = map(open_clip.get_model_config, open_clip.list_models())
    sides = {one["vision_cfg"].get("image_size") for one in configs if "timm_model_name" not in one["vision_cfg"]}
    assert sides | {load_clip("scenes").image_size} == set(CLIP_SIDES)


def test_what_is_small_enough_keeps_its_bytes_and_the_rest_becomes_jpeg(photographs):
    large = photographs["china, portrait"]
    with Image.open(io.BytesIO(reduce_image(large, FIRST_SIDE, exact=False))) as image:
        assert image.format == "JPEG" and image.size == (337, 505)
        assert {sampling[1:3] for sampling in image.layer} == {(1, 1)}, "no chroma subsampling"
    assert open_image(reduce_image(large, FIRST_SIDE, exact=True)).size == (336, 503)
    assert reduce_image(large, 0, exact=False)[:3] == b"\xff\xd8\xff"
    jpeg = photographs["hopper"]
    assert reduce_image(jpeg, 0, exact=False) == reduce_image(jpeg, 512, exact=True) == jpeg
    assert reduce_image(jpeg, FIRST_SIDE, exact=False) == jpeg, "it takes fewer bytes than a good one with fewer pixels"
    assert open_image(reduce_image(jpeg, FIRST_SIDE, exact=True)).size == (336, 393)
