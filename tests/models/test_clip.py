"""PromptedCLIP against open_clip itself, and the places its prompts take."""

import open_clip
import pytest
import torch

from brewclip.models.clip import PromptedCLIP

SCENES_LIKE = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 48, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 24, "vocab_size": 100, "width": 40, "heads": 4, "layers": 2},
}


def build_small(custom_text=False, **text_or_vision):
    torch.manual_seed(0)
    config = {
        "embed_dim": 32,
        "vision_cfg": SCENES_LIKE["vision_cfg"] | text_or_vision.get("vision", {}),
        "text_cfg": SCENES_LIKE["text_cfg"] | text_or_vision.get("text", {}),
        "quick_gelu": text_or_vision.get("quick_gelu", False),
    }
    return (open_clip.CustomTextCLIP if custom_text else open_clip.CLIP)(**config).eval()


def make_tokens(*lengths, context_length=24, vocab_size=100):
    tokens = torch.zeros(len(lengths), context_length, dtype=torch.long)
    generator = torch.Generator().manual_seed(1)
    for row, length in zip(tokens, lengths, strict=True):
        row[:length] = torch.randint(1, vocab_size - 2, (length,), generator=generator)
        row[0], row[length - 1] = vocab_size - 2, vocab_size - 1
    return tokens


def assert_equals_open_clip(clip, tokens):
    images = torch.randn(2, 3, clip.visual.image_size[0], clip.visual.image_size[0])
    prompted = PromptedCLIP(clip)
    with torch.no_grad():
        torch.testing.assert_close(prompted.encode_image(images), clip.encode_image(images), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(prompted.encode_text(tokens), clip.encode_text(tokens), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-L-14"])
def test_without_prompts_equals_open_clip_at_full_size(name):
    clip = open_clip.create_model(name, pretrained=None).eval()
    texts = ["", "a brown dog runs", " ".join(["very"] * 100) + " long"]
    assert_equals_open_clip(clip, open_clip.get_tokenizer(name)(texts))


@pytest.mark.parametrize("custom_text", [False, True])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"quick_gelu": True},
        {"vision": {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True}},
        {"vision": {"ls_init_value": 0.1, "patch_dropout": 0.5, "output_tokens": True}},
        {"text": {"pool_type": "eos", "eos_id": 99, "proj_bias": True}},
    ],
)
def test_without_prompts_equals_open_clip_for_its_options(settings, custom_text):
    clip = build_small(custom_text, **settings)
    tokens = make_tokens(3, 10, 24)
    images = torch.randn(2, 3, 32, 32)
    expected = clip.encode_image(images)
    expected = expected[0] if isinstance(expected, tuple) else expected
    torch.testing.assert_close(PromptedCLIP(clip).encode_image(images), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(PromptedCLIP(clip).encode_text(tokens), clip.encode_text(tokens), rtol=1e-5, atol=1e-5)


def test_text_prompts_equal_words_at_positions_1_to_m():
    """Prompts that hold the embeddings of two words act as a caption that begins with these words."""
    clip = build_small()
    words = torch.tensor([17, 23])
    tokens = make_tokens(6, 12)
    spelled_out = torch.cat([tokens[:, :1], words.expand(2, 2), tokens[:, 1:-2]], dim=1)
    prompts = clip.token_embedding.weight[words].detach()
    actual = PromptedCLIP(clip).encode_text(tokens, prompts)
    torch.testing.assert_close(actual, clip.encode_text(spelled_out), rtol=1e-5, atol=1e-5)


def test_long_caption_is_cut_by_the_prompts_and_keeps_its_end():
    clip = build_small()
    tokens = make_tokens(24)
    shortened = tokens.clone()[:, :21]
    shortened[0, -1] = tokens[0, -1]
    prompts = torch.randn(3, 40)
    prompted = PromptedCLIP(clip)
    torch.testing.assert_close(prompted.encode_text(tokens, prompts), prompted.encode_text(shortened, prompts))
    assert tokens[0, 20] != 99, "the caller's tokens stay as they were"


def test_caption_features_do_not_depend_on_the_rest_of_the_batch():
    prompted, prompts = PromptedCLIP(build_small()), torch.randn(4, 40)
    tokens = make_tokens(3, 10, 24)
    together = prompted.encode_text(tokens, prompts)
    alone = torch.cat([prompted.encode_text(row[None], prompts) for row in tokens])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


def test_a_watched_block_gives_what_it_gives_unwatched():
    """A hook on a block sees all positions, and neither features nor gradients change."""
    clip, tokens, images = build_small(), make_tokens(3, 24), torch.randn(2, 3, 32, 32)
    text, vision = torch.randn(2, 40, requires_grad=True), torch.randn(2, 48, requires_grad=True)
    prompted, seen = PromptedCLIP(clip), []

    def features_and_gradients():
        features = (prompted.encode_text(tokens, text), prompted.encode_image(images, vision))
        return (*features, *torch.autograd.grad(sum(part.square().sum() for part in features), (text, vision)))

    expected = features_and_gradients()
    blocks = (clip.transformer.resblocks[0], clip.visual.transformer.resblocks[1])
    hooks = [block.register_forward_hook(lambda _, inputs, output: seen.append(output)) for block in blocks]
    for actual, other in zip(features_and_gradients(), expected, strict=True):
        torch.testing.assert_close(actual, other, rtol=1e-5, atol=1e-5)
    for hook in hooks:
        hook.remove()
    assert [tuple(output.shape) for output in seen] == [(2, 24, 40), (2, 7, 48)]


def test_vision_prompts_come_after_positions_and_before_the_first_norm():
    clip = build_small()
    images, prompts = torch.randn(2, 3, 32, 32), torch.randn(3, 48)
    seen = []
    hook = clip.visual.ln_pre.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    prompted = PromptedCLIP(clip)
    plain, with_prompts = prompted.encode_image(images), prompted.encode_image(images, prompts)
    hook.remove()
    torch.testing.assert_close(seen[1][:, :5], seen[0])
    torch.testing.assert_close(seen[1][:, 5:], prompts.expand(2, 3, 48))
    assert not torch.allclose(plain, with_prompts, atol=1e-4)


def test_frozen_but_gradients_reach_the_prompts():
    prompted = PromptedCLIP(build_small())
    prompted.train()
    assert not any(module.training for module in prompted.modules())
    assert not any(parameter.requires_grad for parameter in prompted.parameters())
    text, vision = torch.randn(2, 40, requires_grad=True), torch.randn(2, 48, requires_grad=True)
    prompted.encode_text(make_tokens(5), text).sum().backward()
    prompted.encode_image(torch.randn(1, 3, 32, 32), vision).sum().backward()
    assert text.grad.abs().sum() > 0 and vision.grad.abs().sum() > 0


def test_sizes_are_reported():
    prompted = PromptedCLIP(build_small())
    sizes = (prompted.embed_dim, prompted.text_width, prompted.vision_width)
    assert sizes == (32, 40, 48)
    assert (prompted.image_size, prompted.context_length) == (32, 24)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"text": {"no_causal_mask": True}}, "both directions"),
        ({"text": {"pool_type": "last"}}, "pools by 'last'"),
        ({"text": {"embed_cls": True}}, "class token"),
        ({"vision": {"image_size": (32, 48)}}, "square"),
        ({"vision": {"layers": (1, 1, 1, 1)}}, "ModifiedResNet takes no prompts"),
    ],
)
def test_towers_without_a_place_for_prompts_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        PromptedCLIP(build_small(custom_text=True, **settings))


def test_tokens_and_prompts_beyond_the_context_are_refused():
    prompted = PromptedCLIP(build_small())
    with pytest.raises(ValueError, match="at most 24"):
        prompted.encode_text(torch.ones(1, 25, dtype=torch.long))
    with pytest.raises(ValueError, match="leave no room"):
        prompted.encode_text(make_tokens(5), torch.randn(23, 40))
    with pytest.raises(ValueError, match="give an open_clip CLIP"):
        PromptedCLIP(torch.nn.Linear(2, 2))
