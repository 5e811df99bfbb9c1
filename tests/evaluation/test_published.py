"""The published numbers, checked against the paper if it is available."""

import re

import pytest

from brewclip.evaluation.published import (
    BREWCLIP,
    CROSS_CORPUS,
    EARLIER,
    describe_source,
    find_cross_corpus,
    find_recalls,
)


def test_every_number_is_in_the_paper(shared_directory):
    text = re.sub(r"<[^>]+>", "", (shared_directory / "paper.md").read_text())
    numbers = " ".join(re.findall(r"\d+\.\d", text))
    for table in (EARLIER, BREWCLIP):
        for system, rows in table.items():
            for corpus, recalls in rows.items():
                assert " ".join(map(str, recalls)) in numbers, f"{system} on {corpus}"
    for pair in CROSS_CORPUS.values():
        assert "/".join(map(str, pair)) in text


def test_the_scenes_world_is_compared_with_other_data():
    assert describe_source("spoken_coco") == "published, SpokenCOCO"
    assert describe_source("scenes_noisy") == "published, LN-COCO (other data)"
    assert describe_source("own") == "" and find_recalls("brewclip", "asr", "own") is None
    assert find_recalls("brewclip", "asr", "scenes_noisy") == find_recalls("brewclip", "asr", "localized_narratives")


@pytest.mark.parametrize("transcript", ["asr", "ground_truth"])
def test_the_acoustic_channel_reads_no_transcript(transcript):
    assert find_recalls("acoustic", transcript, "spoken_coco")[0] == 22.8


def test_cross_corpus_numbers_fit_the_text():
    """The corpora of read captions transfer to each other; training on narratives does not transfer."""
    assert find_cross_corpus("spoken_coco", "flickr8k") == (None, 87.8, None, None, 93.8, None)
    zero_shot = find_recalls("zero_shot", "asr", "flickr8k")
    assert find_cross_corpus("localized_narratives", "flickr8k")[1] < zero_shot[1]
    assert find_cross_corpus("flickr8k", "flickr8k") is None
