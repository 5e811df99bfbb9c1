"""The scenes world as a corpus: who says what in which split."""

from collections import Counter

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
