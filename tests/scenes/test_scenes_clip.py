"""The shipped CLIP: loads as plain open_clip, is small, good but not saturated; and its training's parts."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file

from brewclip.config import parse_options
from brewclip.errors import UserError
from brewclip.scenes.captions import read_captions
from brewclip.scenes.world import sample_scene, world_seed
from brewclip.scenes_clip import training
from brewclip.scenes_clip.options import WEIGHTS_PATH, TrainScenesClip

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def clip():
    model = training.build_clip()
    model.load_state_dict({name: tensor.float() for name, tensor in load_file(WEIGHTS_PATH).items()})
    return model.eval()


def test_weights_are_small_and_say_where_they_come_from():
    assert WEIGHTS_PATH.stat().st_size <= 20_000_000
    with safe_open(WEIGHTS_PATH, "pt") as file:
        metadata = file.metadata()
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}  # noqa: SIM118
    assert "jobs/train_scenes_clip.py" in metadata["command"]
    assert 40 <= json.loads(metadata["figures"])["200/text_to_image/R1"] <= 75


def test_zero_shot_recall_is_good_and_not_saturated(clip):
    figures = training.measure(clip, every_seconds=60)
    assert 40 <= figures["200/text_to_image/R1"] <= 75
    assert figures["200/text_to_image/R10"] > figures["200/text_to_image/R5"] > figures["200/text_to_image/R1"]


def test_words_that_no_caption_uses_stay_distinct(clip):
    rows = clip.token_embedding.weight[open_clip.tokenize(["quantum parliament velvet"])[0, 1:4]]
    assert torch.pdist(rows).min() > 0.1


def test_trimmed_text_equals_open_clips_own(clip):
    rng = np.random.default_rng(0)
    tokens = open_clip.tokenize([read_captions(sample_scene(0, i), rng, 1)[0] for i in range(8)])
    assert torch.allclose(training.encode_text(clip, tokens), clip.encode_text(tokens), atol=1e-5)


def test_training_leaves_out_scenes_to_keep_clear(capsys):
    flags = TrainScenesClip(batch_size=4, num_images=50, keep_clear=("clip-train", "scenes/test"), keep_clear_scenes=20)
    chosen = {scene.signature for scene in training.choose_scenes(flags)}
    assert len(chosen) == 30
    assert not chosen & {sample_scene(world_seed("clip-train"), i).signature for i in range(20)}
    assert "20 left out" in capsys.readouterr().out


def test_gradients_in_parts_equal_one_pass_over_the_batch():
    torch.manual_seed(0)
    clip, flags = training.build_clip(), TrainScenesClip(num_threads=2, word_loss=0.5)
    scenes = [sample_scene(1, index) for index in range(6)]
    tokens = open_clip.tokenize(training.write_texts(scenes, 1, flags))
    images, head = torch.randn(6, 3, 96, 96), training.WordHead(128, tokens)
    with ThreadPoolExecutor(2) as pool:
        loss, word_loss = training.compute_gradients(clip, head, images, tokens, pool, flags)
    in_parts = {name: parameter.grad.clone() for name, parameter in clip.named_parameters()}
    clip.zero_grad()
    image_features = F.normalize(clip.encode_image(images), dim=1)
    text_features = F.normalize(clip.encode_text(tokens), dim=1)
    whole = training.compute_loss(image_features, text_features, clip.logit_scale)
    whole_words = (head(image_features, tokens) + head(text_features, tokens)) / 2
    (whole + 0.5 * whole_words).backward()
    assert (loss.item(), word_loss.item()) == pytest.approx((whole.item(), whole_words.item()), abs=1e-4)
    for name, parameter in clip.named_parameters():
        assert torch.allclose(in_parts[name], parameter.grad, atol=1e-5), name


def test_word_head_weighs_rare_words_more():
    tokens = torch.tensor([[7, 3, 0], [7, 4, 0], [7, 3, 0], [7, 5, 9]])
    head = training.WordHead(2, tokens)
    assert head.words.tolist() == [3, 4, 5, 7, 9]
    assert head.rarity.tolist() == pytest.approx([np.log(2), np.log(4), np.log(4), 0.0, np.log(4)])
    head.weight.data = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    feature = torch.tensor([[1.0, 0.0]])  # names token 3, of the first text, and not token 4, of the second
    assert head(feature, tokens[:1]).item() < 0.01 < head(feature, tokens[1:2]).item()


def test_batches_show_every_scene_once_in_an_epoch():
    batches = training.iter_batches(num_scenes=12, batch_size=4, seed=0)
    epochs = [np.concatenate([next(batches) for _ in range(3)]) for _ in range(2)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert (epochs[0] != epochs[1]).any()


def test_learning_rate_warms_up_and_ends_at_zero():
    flags = TrainScenesClip(steps=100, warmup_steps=10, peak_lr=1.0)
    rates = [training.compute_lr(step, flags) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == rates[10] == 1.0
    assert rates[100] == pytest.approx(0.0)


def test_a_tiny_training_runs_and_saves(tmp_path):
    output = tmp_path / "clip.safetensors"
    flags = TrainScenesClip(
        output=output,
        steps=2,
        batch_size=4,
        num_images=8,
        keep_clear_scenes=5,
        warmup_steps=1,
        num_threads=1,
    )
    training.run(flags)
    training.build_clip().load_state_dict(load_file(output))


@pytest.mark.parametrize("wrong", [{"batch_size": 1}, {"batch_size": 500, "num_images": 100}])
def test_flags_that_cannot_work_together_are_refused(wrong):
    with pytest.raises(UserError, match=r"--(batch-size|num-images)"):
        TrainScenesClip(**wrong).check()


def test_a_flag_out_of_its_range_is_refused():
    with pytest.raises(UserError, match="--steps 0 must be"):
        parse_options(None, TrainScenesClip, ["--steps", "0"])
