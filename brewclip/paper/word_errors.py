"""The claim of the paper about word errors: recall falls with the word error rate."""

import json
from typing import Any

from brewclip.config import Config
from brewclip.evaluation.identity import ResultCache
from brewclip.evaluation.ranks import Ranking
from brewclip.paper.claims import FAILS, HOLDS, NOT_RUN, NOT_TESTED, Verdict
from brewclip.studies.word_errors.study import HIT_AT, load_utterances, measure_effect, summarise

_CLAIM = "a hit is rarer the more words were misheard (section 5, impact of transcription)"


def judge_word_errors(config: Config, split: str, ranking: Ranking | None, *, only_cached: bool = False) -> Verdict:
    """Return the verdict on the claim for a corpus: the slope of a hit's log-odds on the word error rate.

    Args:
        config: settings of the corpus.
        split: evaluated split.
        ranking: ranking of the zero-shot pipeline on ASR; None if it was not run.
        only_cached: read no split, show the cached result only.
    """
    found = _cached_or_measured(config, split, ranking, only_cached) if ranking is not None else None
    if found is None:
        return Verdict(_CLAIM, config.data.corpus, "", "", "", "", NOT_RUN)
    measure = f"log-odds of R@{HIT_AT} for 100 % WER; WER here {found['corpus_wer']:.1f} %"
    if found["problem"]:
        return Verdict(_CLAIM, config.data.corpus, measure, "", "", "", f"{NOT_TESTED}: {found['problem']}")
    slope = f"{found['slope']:+.2f} [{found['low']:+.2f}, {found['high']:+.2f}]"
    verdict = HOLDS if found["high"] < 0 else FAILS
    return Verdict(_CLAIM, config.data.corpus, measure, slope, "", "below 0", verdict)


def _cached_or_measured(config: Config, split: str, ranking: Ranking, only_cached: bool) -> dict[str, Any] | None:
    """Return slope, interval and WER of a corpus, cached for the identity of the ranking."""
    cache, name = ResultCache(config, "word_errors"), f"{config.data.corpus}-{split}"
    identity = {"ranking": ranking.facts.get("identity"), "hit_at": HIT_AT}
    cached = cache.load(name, identity)
    if cached is not None:
        return json.loads(cached)
    if only_cached:
        return None
    utterances, num_samples = load_utterances(config, split)
    effect, wer = measure_effect(ranking, utterances), summarise(utterances, num_samples)["corpus_wer"]
    fit = effect.fit
    numbers = {"slope": fit.slope, "low": fit.low, "high": fit.high} if fit is not None else {}
    found = {"problem": effect.problem, "corpus_wer": wer or 0.0} | numbers
    cache.save(name, identity, json.dumps(found).encode())
    return found
