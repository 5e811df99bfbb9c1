"""A small split of features with emotions for tests: no images, synthetic Whisper frames."""

import numpy as np

from brewclip.data.schema import Sample, array_to_npy
from brewclip.data.shards import finish_split, shard_name, write_shard
from brewclip.data.storage import open_storage

AUDIO_DIM = 32
EMOTIONS = ("angry", "happy", "neutral")


def write_clips(
    url: str, split: str, speakers: list[str], *, repetitions: int = 4, heard: bool = True, labelled: bool = True
) -> None:
    """Write each speaker saying one of two sentences in each emotion; `neutral` twice as often.

    Args:
        url: folder of the splits.
        split: name of the split.
        speakers: names; each speaker has a constant offset in the frames.
        repetitions: of each sentence and emotion.
        heard: whether frames carry the emotion.
        labelled: whether samples have a field `emotion`.
    """
    storage = open_storage(f"{url}/{split}")
    samples = [
        make_clip(split, speaker, sentence, emotion, number, heard=heard, labelled=labelled)
        for speaker in speakers
        for sentence in range(2)
        for emotion in (*EMOTIONS, "neutral")
        for number in range(repetitions)
    ]
    keyed = [Sample(f"{split}{row}-0", sample.metadata, features=sample.features) for row, sample in enumerate(samples)]
    record = write_shard(storage, shard_name(split, 0, 0), 0, iter(keyed))
    assert record is not None
    finish_split(storage, [record], corpus="clips", split=split, kind="features", num_images=0)


def make_clip(
    split: str, speaker: str, sentence: int, emotion: str, number: int, *, heard: bool = True, labelled: bool = True
) -> Sample:
    """Return one recording; its frames depend on speaker, sentence and emotion."""
    name = f"{split}-{speaker}-{sentence}-{emotion}-{number}"
    rng = np.random.default_rng(list(name.encode()))
    frames = 0.3 * rng.normal(size=(int(rng.integers(6, 12)), AUDIO_DIM))
    frames += 0.3 * np.random.default_rng(list(speaker.encode())).normal(size=AUDIO_DIM)
    frames[:, sentence] += 1.0
    if heard:
        frames[:, 4 + EMOTIONS.index(emotion)] += 4.0
    metadata = {
        "image_id": name,
        "caption_id": name,
        "split": split,
        "duration_seconds": 1.0,
        "text": f"sentence number {sentence}",
        "transcript": f"sentence number {sentence} {emotion}",
        "speaker": speaker,
    }
    return Sample(
        name,
        metadata | ({"emotion": emotion} if labelled else {}),
        features=array_to_npy(frames.astype(np.float16)),
    )
