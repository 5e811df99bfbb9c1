"""The scenes world as a corpus: who says what in which split."""

from collections import Counter

import numpy as np

from brewclip.audio import decode_audio
from tests.datasets.miniatures import load_recipe

scenes = load_recipe("scenes")


def test_emotions_of_a_split_are_balanced_over_its_speakers():
    recipe = scenes.Scenes(scenes.ScenesOptions(style="emotion", num_train=32, num_dev=4, num_test=12))
    speakers = {}
    for split in recipe.splits():
        said = Counter()
        for number, items in enumerate(recipe.rounds(split)):
            for item in items:
                said[scenes.emotion_speaker(split, item.index), item.index % 2, number] += 1
        speakers[split] = {speaker for speaker, _, _ in said}
        by_emotion = Counter()
        for (_, _, number), count in said.items():
            by_emotion[number] += count
        assert len(set(by_emotion.values())) == 1
        assert len(said) == len(speakers[split]) * 2 * 4  # each says both sentences in four emotions
    assert not speakers["train"] & speakers["test"]
    assert not speakers["dev"] & (speakers["train"] | speakers["test"])


def test_the_four_emotions_of_a_sentence_are_one_speaker_and_one_text():
    recipe = scenes.Scenes(scenes.ScenesOptions(style="emotion", num_train=1, num_dev=0, num_test=1))
    samples = [recipe.make_sample(items[0]) for items in recipe.rounds("test")]
    assert {sample.metadata["speaker"] for sample in samples} == {scenes.emotion_speaker("test", 0)}
    assert len({sample.metadata["text"] for sample in samples}) == 1
    assert {sample.metadata["emotion"] for sample in samples} == {"neutral", "happy", "sad", "angry"}
    assert all(sample.image is None for sample in samples)


def test_each_caption_is_spoken_at_every_noise_level_with_the_same_words_and_voice():
    options = scenes.ScenesOptions(
        num_train=1,
        num_dev=0,
        num_test=1,
        captions_per_image=1,
        noise_snr_db=(99.0, 2.0),
        test_noise_snr_db=(60, 5, -5),
    )
    recipe = scenes.Scenes(options)
    assert [len(recipe.rounds(split)) for split in ("train", "test")] == [2, 3]
    samples = [recipe.make_sample(item) for (item,) in recipe.rounds("test")]
    assert [sample.metadata["condition"] for sample in samples] == ["clear", "babble", "babble"]
    assert [sample.metadata["snr_db"] for sample in samples] == ["clear", "5", "-5"]
    assert len({sample.key for sample in samples}) == 3
    assert len({(sample.metadata["text"], sample.metadata["speaker"], sample.image) for sample in samples}) == 1
    clear, *noisy = (decode_audio(sample.audio) for sample in samples)
    cosines = [float(clear @ one / np.linalg.norm(clear) / np.linalg.norm(one)) for one in noisy]
    assert cosines[0] > 0.8 > cosines[1] > 0.3


def test_one_noise_level_adds_no_fields():
    recipe = scenes.Scenes(scenes.ScenesOptions(num_train=1, num_dev=0, num_test=0, noise_snr_db=(2.0,)))
    metadata = recipe.make_sample(recipe.rounds("train")[0][0]).metadata
    assert not {"condition", "snr_db"} & metadata.keys()
