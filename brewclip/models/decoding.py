"""Decoding of Whisper's features: retries as in whisper.transcribe, and stricter rejection of unreliable text.

`whisper.transcribe` keeps the text of its last attempt even if that fails the checks of repetition and confidence, and
drops only what it takes for silence. Here the transcript is then empty, and the text is stored as `unfiltered`.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from whisper.decoding import DecodingOptions, DecodingResult, DecodingTask, GreedyDecoder
from whisper.model import Whisper
from whisper.tokenizer import get_tokenizer

TASKS = ("transcribe", "translate")  # Whisper translates to English only

# The defaults of whisper.transcribe.
TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
MAX_COMPRESSION_RATIO = 2.4
MIN_AVG_LOGPROB = -1.0
MAX_NO_SPEECH_PROB = 0.6

_UNCERTAIN = {"low_confidence", "repetitive"}  # text that is decoded again with sampling

# Whisper's own rule lets "you" over silence and "Thank you." over half a second of noise pass, as they are
# confident (log probability -0.6 to -0.9). Measured with base: silence, hum and short noise 0.75 to 0.95; of
# 120 clean spoken digits, at most 0.67.
CERTAIN_NO_SPEECH_PROB = 0.7

# Other readings of a chunk are sampled at this temperature, unless Whisper is this certain of its greedy text. Through
# babble at 2 dB 28 % of 280 captions were above it, and R@10 with them sampled too was the same; of clear ones, all.
ALTERNATIVES_TEMPERATURE = 0.5
CERTAIN_AVG_LOGPROB = -0.3

# A decoder that repeats itself runs to the limit and delays its batch. English speech has at most 7 words a
# second.
_TOKENS_PER_SECOND = 10
_SPARE_TOKENS = 24


class Alternative(NamedTuple):
    """One of several texts that Whisper reads in a recording.

    Attributes:
        text: may be empty.
        avg_logprob: mean log probability of a token.
        num_tokens: without the end of the text.
    """

    text: str
    avg_logprob: float
    num_tokens: int


@dataclass(frozen=True)
class Reading:
    """Decoded text of one chunk, with its confidence.

    Attributes:
        transcript: empty if rejected.
        unfiltered: text of the last attempt as `whisper.transcribe` returns it, rejected or not; empty for silence.
        greedy: text of the first attempt, which does not sample, rejected or not; empty for silence.
        avg_logprob: mean log probability of a token, of the last attempt.
        no_speech_prob: probability of silence.
        compression_ratio: of the last attempt's text; repetition has a high one.
        temperature: of the last attempt.
        num_tokens: of the last attempt.
        rejected: "no_speech", "repetitive", "low_confidence", or None.
        alternatives: the greedy text, and those sampled beside it if it is not certain; empty if none were asked for.
    """

    transcript: str
    unfiltered: str
    greedy: str
    avg_logprob: float
    no_speech_prob: float
    compression_ratio: float
    temperature: float
    num_tokens: int
    rejected: str | None
    alternatives: tuple[Alternative, ...] = ()


class _EncodedTask(DecodingTask):
    """Whisper's decoding of features from `encode_mel`, which may be shorter than 30 s."""

    def _get_audio_features(self, mel: Tensor) -> Tensor:
        return mel


class _SeededDecoder(GreedyDecoder):
    """Whisper's sampling, in which each row has its own generator, so that results do not depend on the batch.

    Source: `whisper.decoding.GreedyDecoder` above a temperature of 0.
    """

    def __init__(self, temperature: float, eot: int, generators: Sequence[torch.Generator]) -> None:
        super().__init__(temperature, eot)
        self.generators = generators

    def update(self, tokens: Tensor, logits: Tensor, sum_logprobs: Tensor) -> tuple[Tensor, bool]:
        """Append a token to each row (B, n) and add its log probability; return tokens and whether all rows ended."""
        rows = (logits / self.temperature).softmax(dim=-1).split(1)
        drawn = [row.multinomial(1, generator=generator) for row, generator in zip(rows, self.generators, strict=True)]
        is_over = tokens[:, -1:] == self.eot
        picked = torch.cat(drawn).masked_fill(is_over, self.eot)
        sum_logprobs += (logits.float().log_softmax(dim=-1).gather(1, picked) * ~is_over)[:, 0]
        return torch.cat([tokens, picked], dim=1), bool((picked == self.eot).all())


def detect_languages(model: Whisper, features: Tensor) -> list[str]:
    """Return the likeliest language of each chunk (B, T, audio_dim), as codes such as "en".

    Source: `whisper.decoding.detect_language`, which takes 30 s only.
    """
    if not model.is_multilingual:
        return ["en"] * len(features)
    tokenizer = get_tokenizer(True, num_languages=model.num_languages)
    start = torch.full((len(features), 1), tokenizer.sot, device=features.device)
    logits = model.logits(start, features)[:, 0, list(tokenizer.all_language_tokens)]
    return [tokenizer.all_language_codes[index] for index in logits.argmax(dim=-1).tolist()]


def decode_chunks(
    model: Whisper,
    features: Tensor,
    language: str,
    padded_seconds: int,
    waveforms: Sequence[NDArray[np.float32]],
    *,
    retries: int = len(TEMPERATURES) - 1,
    task: str = "transcribe",
    leave_repetitive: bool = False,
    alternatives: int = 0,
) -> list[Reading]:
    """Decode chunks of one padded length greedily as a batch, then the failed ones with sampling.

    Sampling is seeded by the chunk's own samples, so a chunk decodes to the same text in any batch.

    Args:
        model: Whisper.
        features: (B, T, audio_dim) float32.
        language: that is spoken, a code such as "en".
        padded_seconds: of the chunks; bounds the number of tokens.
        waveforms: the B chunks without padding.
        retries: how often failed chunks are decoded again, each time at the next of `TEMPERATURES`.
        task: one of `TASKS`.
        leave_repetitive: do not sample repetitive chunks, as they are decoded again with more padding.
        alternatives: other texts to sample of each chunk whose greedy text is not certain.
    """
    options = {
        "language": language,
        "task": task,
        "sample_len": _max_tokens(model, "en" if task == "translate" else language, padded_seconds),
        "without_timestamps": True,
        "fp16": False,
    }
    chunks = _Chunks(model, options, waveforms, features, _project_audio(model, features))
    readings = [_judge(result) for result in chunks.decode()]
    again = {"repetitive"} if leave_repetitive else set()
    if alternatives:
        readings = _add_alternatives(chunks, readings, alternatives, {"no_speech"} | again)
    for temperature in TEMPERATURES[1 : 1 + retries]:
        failed = [row for row, reading in enumerate(readings) if reading.rejected in _UNCERTAIN - again]
        if not failed:
            break
        for row, result in zip(failed, chunks.select(failed).decode(temperature), strict=True):
            first = readings[row]
            readings[row] = replace(_judge(result), greedy=first.greedy, alternatives=first.alternatives)
    return readings


@dataclass(frozen=True)
class _Chunks:
    """Chunks of one padded length, which the decoder may go through several times.

    Attributes:
        model: Whisper.
        options: of every pass.
        waveforms: the B chunks without padding.
        features: (B, T, audio_dim) float32.
        audio_cache: see `_project_audio`.
    """

    model: Whisper
    options: dict[str, Any]
    waveforms: Sequence[NDArray[np.float32]]
    features: Tensor
    audio_cache: dict[nn.Module, Tensor]

    def select(self, rows: list[int]) -> "_Chunks":
        """Return some of the chunks."""
        return replace(
            self,
            waveforms=[self.waveforms[row] for row in rows],
            features=self.features[rows],
            audio_cache={layer: values[rows] for layer, values in self.audio_cache.items()},
        )

    def decode(self, temperature: float = 0.0, number: int = 0) -> list[DecodingResult]:
        """Decode all; above a temperature of 0, texts depend on the chunk and on a number."""
        task = _EncodedTask(self.model, DecodingOptions(temperature=temperature, **self.options))
        # Attributes of Whisper's own inference, which fills and removes them; it takes a cache that is there.
        task.inference.kv_cache, task.inference.hooks = self.model.install_kv_cache_hooks(self.audio_cache)
        if temperature:
            generators = [_generator_of(one, self.features.device, number) for one in self.waveforms]
            task.decoder = _SeededDecoder(temperature, task.tokenizer.eot, generators)
        return task.run(self.features)


def _project_audio(model: Whisper, features: Tensor) -> dict[nn.Module, Tensor]:
    """Return keys and values of the chunks for the decoder's layers, as the hooks of Whisper's cache store them.

    The first entry is of the first layer's attention to the text, still empty: the decoder takes its length for the
    number of tokens that it has seen.
    """
    empty = features.new_zeros(len(features), 0, model.dims.n_text_state)
    layers = [layer for block in model.decoder.blocks for layer in (block.cross_attn.key, block.cross_attn.value)]
    return {model.decoder.blocks[0].attn.key: empty} | {layer: layer(features) for layer in layers}


def _add_alternatives(chunks: _Chunks, readings: list[Reading], count: int, left_out: set[str]) -> list[Reading]:
    """Add the greedy text to each reading, and the sampled ones to those whose text is unsure; not to rejected ones."""
    found = [[Alternative(one.greedy, one.avg_logprob, one.num_tokens)] for one in readings]
    unsure = [
        row
        for row, one in enumerate(readings)
        if one.avg_logprob < CERTAIN_AVG_LOGPROB and one.rejected not in left_out
    ]
    part = chunks.select(unsure)
    for number in range(1, count + 1 if unsure else 0):
        for row, result in zip(unsure, part.decode(ALTERNATIVES_TEMPERATURE, number), strict=True):
            found[row].append(Alternative(result.text, float(result.avg_logprob), len(result.tokens)))
    return [replace(one, alternatives=tuple(texts)) for one, texts in zip(readings, found, strict=True)]


def join_alternatives(parts: Sequence[tuple[Alternative, ...]]) -> tuple[tuple[str, float], ...]:
    """Join the texts of chunks: the first of each, the second and so on; a chunk that is certain has one for all.

    Args:
        parts: alternatives of each chunk, at least one of each.

    Returns:
        Each text with the mean log probability of its tokens.
    """
    joined = []
    for number in range(max(map(len, parts))):
        chosen = [part[number if len(part) > 1 else 0] for part in parts]
        weights = [one.num_tokens + 1 for one in chosen]  # the end of the text is a token too
        avg_logprob = float(np.average([one.avg_logprob for one in chosen], weights=weights))
        joined.append((" ".join(one.text for one in chosen if one.text), avg_logprob))
    return tuple(joined)


def _max_tokens(model: Whisper, language: str, padded_seconds: int) -> int:
    most = model.dims.n_text_ctx // 2
    # Scripts that Whisper encodes in bytes take several tokens per letter.
    return min(most, _SPARE_TOKENS + _TOKENS_PER_SECOND * padded_seconds) if language == "en" else most


def _is_silence_to_whisper(result: DecodingResult) -> bool:
    return result.no_speech_prob > MAX_NO_SPEECH_PROB and result.avg_logprob < MIN_AVG_LOGPROB


def _find_rejection(result: DecodingResult) -> str | None:
    if _is_silence_to_whisper(result) or result.no_speech_prob > CERTAIN_NO_SPEECH_PROB:
        return "no_speech"
    if result.compression_ratio > MAX_COMPRESSION_RATIO:
        return "repetitive"
    return "low_confidence" if result.avg_logprob < MIN_AVG_LOGPROB else None


def _judge(result: DecodingResult) -> Reading:
    rejected, text = _find_rejection(result), "" if _is_silence_to_whisper(result) else result.text
    return Reading(
        transcript="" if rejected else result.text,
        unfiltered=text,
        greedy=text,
        avg_logprob=float(result.avg_logprob),
        no_speech_prob=float(result.no_speech_prob),
        compression_ratio=float(result.compression_ratio),
        temperature=float(result.temperature),
        num_tokens=len(result.tokens),
        rejected=rejected,
    )


def _generator_of(waveform: NDArray[np.float32], device: torch.device, number: int = 0) -> torch.Generator:
    """Return a generator that depends on the samples, and on which of several texts it draws."""
    content = np.ascontiguousarray(waveform, np.float32).tobytes() + number.to_bytes(4, "little") * (number > 0)
    digest = hashlib.sha256(content).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "little") >> 1)
