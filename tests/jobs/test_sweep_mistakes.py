"""A user's mistake at a sweep: one clear line, exit code 2, before anything is started."""

import pytest

from tests.jobs.test_mistakes import complaint_of


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "no space given: name one of paper, quick, or a Python file"),
        (("papers", "scenes"), "unknown space 'papers'"),
        (("paper", "flickr9k"), "unknown preset 'flickr9k': did you mean 'flickr8k'"),
        (("quick", "scenes", "--sweep.num-trails", "3"), "did you mean --sweep.num-trials?"),
        (("quick", "scenes", "--sweep.scheduler", "pbt"), "--sweep.scheduler pbt does not fit"),
        (("quick", "scenes", "--run.selection-metric", "test/R1"), "never chosen on test"),
        (("quick", "--data.dev-split", "test"), "never chosen on test"),
    ],
)
def test_one_line(words, message):
    assert message in complaint_of("sweep", *words)


@pytest.mark.slow
def test_the_papers_space_is_swept_on_the_papers_corpus(tmp_path):
    line = complaint_of("sweep", "paper", "--storage", tmp_path.as_uri())
    assert "no whole split at" in line
    assert "/flickr8k/whisper-base/train" in line
