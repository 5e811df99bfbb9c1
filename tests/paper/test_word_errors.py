"""The claim about word errors, on a small split whose transcripts and ranks are synthetic."""

import numpy as np
import pytest

from brewclip.config import preset
from brewclip.data.schema import Sample
from brewclip.data.shards import finish_split, write_shard
from brewclip.data.storage import open_storage
from brewclip.evaluation.ranks import Ranking
from brewclip.metrics import RetrievalResult
from brewclip.paper.word_errors import judge_word_errors
from tests.training.features import make_features

WORDS = ["one", "car", "two", "dogs", "three", "birds", "four", "trees", "five", "boats"]


def write_transcripts(url: str, count: int = 40) -> list[str]:
    """Write a split whose recording n has n % 10 of ten words misheard, and return its keys."""
    samples = []
    for number in range(count):
        heard = ["wrong"] * (number % 10) + WORDS[number % 10 :]
        made = make_features("test", 0, number)
        texts = {"text": " ".join(WORDS), "transcript": " ".join(heard)}
        samples.append(Sample(made.key, dict(made.metadata) | texts, made.image, features=made.features))
    records = [write_shard(open_storage(url), "test-00-000000.tar", 0, iter(samples))]
    finish_split(open_storage(url), records, corpus="scenes", split="test", kind="features", num_images=count)
    return [sample.key for sample in samples]


@pytest.mark.parametrize(("is_worse", "verdict"), [(True, "holds"), (False, "fails")])
def test_the_claim_holds_where_misheard_queries_miss(tmp_path, is_worse, verdict):
    config = type(preset("scenes"))(storage=tmp_path.as_uri(), data=preset("scenes").data)
    keys = write_transcripts(f"{config.features_url}/test")
    errors = np.arange(len(keys)) % 10
    hits = np.random.default_rng(0).random(len(keys)) < np.where(is_worse, 0.95 - errors / 10, 0.05 + errors / 10)
    ranks = np.where(hits, 1, 30)
    result = RetrievalResult(ranks, ranks, 1.0 / ranks, 1.0 / ranks, np.array(keys), len(keys))
    ranking = Ranking(np.array(keys), result, {"system": "zero_shot", "identity": {"reads": "asr"}})
    found = judge_word_errors(config, "test", ranking)
    assert found.verdict == verdict
    assert found.measure == "log-odds of R@5 for 100 % WER; WER here 45.0 %"
    assert found.difference.startswith("-" if is_worse else "+")
    for name in open_storage(f"{config.features_url}/test").list_names():
        open_storage(f"{config.features_url}/test").delete(name)
    assert judge_word_errors(config, "test", ranking, only_cached=True) == found, "cached, without the split"


def test_without_a_measurement_it_is_not_run(tmp_path):
    assert judge_word_errors(preset("scenes"), "test", None).verdict == "not run"
