"""Captions and narratives: length, truth, and the same again for the same generator."""

import re

import numpy as np
import pytest

from brewclip.scenes.captions import (
    EMOTION_SENTENCES,
    EMOTIONS,
    PLACES,
    emotion_sentence,
    narrative,
    noun_phrase,
    read_captions,
    with_article,
)
from brewclip.scenes.world import COLOURS, THINGS, Item, sample_scene, scene_generator

SCENES = [sample_scene(11, index) for index in range(300)]


def captions_of(index: int, count: int = 5) -> list[str]:
    return read_captions(SCENES[index], scene_generator(11, index, "captions"), count)


def test_captions_have_3_to_15_words_and_differ():
    for index in range(len(SCENES)):
        captions = captions_of(index)
        assert len(set(captions)) == 5
        assert all(3 <= len(caption.split()) <= 15 for caption in captions)
        assert all(re.fullmatch(r"[A-Z][A-Za-z ,]*\.", caption) for caption in captions)


def test_captions_are_a_function_of_the_generator():
    assert captions_of(3) == captions_of(3)


def test_captions_name_only_things_and_colours_of_the_scene():
    for index, scene in enumerate(SCENES):
        shown = {item.thing for item in scene.items}
        known = {name for thing in shown for n in thing.names for name in (n, thing.plural_of(n))}
        absent = {n for thing in THINGS if thing not in shown for n in (thing.name, thing.plural_of(thing.name))}
        colours = {item.colour for item in scene.items}
        for caption in captions_of(index):
            words = f" {re.sub('[,.]', '', caption.lower())} "
            assert any(f" {name} " in words for name in known), caption
            assert not [name for name in absent - known if f" {name} " in words], caption
            assert not [colour for colour in set(COLOURS) - colours if f" {colour} " in words], caption


def test_every_thing_can_be_named_alone_and_in_numbers():
    rng = np.random.default_rng(0)
    for thing in THINGS:
        one = noun_phrase(Item(thing, None, "medium", 1, 0, 0, ((0.0, 0.0),)), rng)
        three = noun_phrase(Item(thing, None, "medium", 3, 0, 0, ((0.0, 0.0),) * 3), rng)
        assert one in {with_article(name) for name in thing.names}
        assert three.split(" ", 1)[0] in ("three", "a")
        assert any(three.endswith(thing.plural_of(name)) for name in thing.names)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("orange car", "an orange car"),
        ("umbrella", "an umbrella"),
        ("red apple", "a red apple"),
        ("owl", "an owl"),
    ],
)
def test_article(words, expected):
    assert with_article(words) == expected


def test_all_nine_places_have_names():
    assert len({phrase for phrases in PLACES.values() for phrase in phrases}) == 18


def test_captions_paraphrase():
    starts = {caption.split()[0] for index in range(200) for caption in captions_of(index)}
    assert {"There", "I", "A", "Two", "In", "Three"} <= starts


def test_narratives_are_long_and_halting_and_wander_off():
    texts = [narrative(scene, scene_generator(11, i, "narrative")) for i, scene in enumerate(SCENES)]
    lengths = [len(text.split()) for text in texts]
    assert min(lengths) >= 20
    assert 40 <= np.mean(lengths) <= 70
    assert all(re.search(r"\b(um|uh|well|so|okay|right|oh|alright)\b", text.lower()) for text in texts)
    assert 0.2 < np.mean([bool(re.search(r"no,|no wait,|sorry,|or rather,|hang on,", text)) for text in texts]) < 0.9
    absent = [
        sum(t.name in text for t in THINGS if t not in {item.thing for item in scene.items})
        for scene, text in zip(SCENES, texts, strict=True)
    ]
    assert np.mean([count > 0 for count in absent]) > 0.7  # words that mislead whoever takes them at their word


def test_narrative_is_a_function_of_the_generator():
    first, second = (narrative(SCENES[0], scene_generator(1, 0, "narrative")) for _ in range(2))
    assert first == second


def test_emotion_sentences_give_no_emotion_away():
    assert EMOTIONS == ("neutral", "happy", "sad", "angry")
    assert emotion_sentence(0) == EMOTION_SENTENCES[0] == emotion_sentence(len(EMOTION_SENTENCES))


def test_no_caption_is_an_error():
    with pytest.raises(ValueError, match="got 0"):
        read_captions(SCENES[0], np.random.default_rng(0), 0)
