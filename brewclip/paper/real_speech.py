"""Real speech: word errors of the extraction compared with whisper.transcribe, and emotions of held-out speakers.

Needs neither a corpus nor Ray.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import whisper
import whisper.normalizers
from numpy.typing import NDArray

from brewclip.config import Config
from brewclip.config.probe import ProbeConfig
from brewclip.evaluation.intervals_figure import Panel, Value, draw_intervals
from brewclip.evaluation.pages import Page, Section
from brewclip.evaluation.publish import Publication
from brewclip.evaluation.systems import System, check_reads_features, describe_systems
from brewclip.evaluation.wer import count_errors
from brewclip.intervals import NUM_RESAMPLES, paired_difference
from brewclip.models.acoustic import AcousticEncoder
from brewclip.models.encoder_layers import pool_layers
from brewclip.models.whisper import Speech, SpeechReader
from brewclip.paper.page import publish_table
from brewclip.paper.real_recordings import EMOTIONS, FOUR_CLASSES, RAVDESS, SpokenClip, load_kinds
from brewclip.pretrained.whisper import load_whisper
from brewclip.studies.emotion.clips import Clip, ClipSplit, hold_out_each_speaker
from brewclip.studies.emotion.layers import LayerFeatures
from brewclip.studies.emotion.results import accuracy_panel
from brewclip.studies.emotion.study import (
    EmotionResult,
    hears,
    probe_features,
    probe_layers,
    probe_plainly,
    probe_system,
    probe_whisper,
)

TITLE: Final = "Real speech"
TRANSCRIBE: Final = "whisper.transcribe"
EXTRACTION: Final = "extraction"
UNFILTERED: Final = "extraction, rejected text kept"
WHOLE: Final = "extraction, all chunks padded to 30 s"
WAYS: Final = (EXTRACTION, UNFILTERED, WHOLE, TRANSCRIBE)
_WIDTHS: Final = (128, 768)  # of the scenes CLIP, and of the paper's ViT-L-14


@dataclass(frozen=True)
class WordErrors:
    """Word errors of a transcription method on one kind of speech, in percent with 95 % bootstrap intervals over clips.

    Attributes:
        kind: kind of speech.
        way: transcription method, one of `WAYS`.
        num_clips, num_words: number of clips and of spoken words.
        rate: WER, low, high.
        above_transcribe: points above `whisper.transcribe`, low, high; paired over clips.
        num_rejected: clips whose transcript Whisper's rules emptied; their words count as deletions.
    """

    kind: str
    way: str
    num_clips: int
    num_words: int
    rate: tuple[float, float, float]
    above_transcribe: tuple[float, float, float]
    num_rejected: int


def measure_word_errors(
    kind: str, clips: Sequence[SpokenClip], heard: dict[str, list[str]], rejected: dict[str, int]
) -> list[WordErrors]:
    """Count word errors of each transcription method, after Whisper's English normaliser.

    Args:
        kind: kind of speech.
        clips: clips with their spoken text.
        heard: way -> one transcript per clip; must contain `whisper.transcribe`.
        rejected: way -> number of rejected transcripts.
    """
    normalise = whisper.normalizers.EnglishTextNormalizer()
    spoken = [normalise(clip.text) for clip in clips]
    words = np.array([len(text.split()) for text in spoken])
    errors = {
        way: np.array([count_errors(text, normalise(one)) for text, one in zip(spoken, texts, strict=True)])
        for way, texts in heard.items()
    }
    return [
        WordErrors(
            kind,
            way,
            len(clips),
            int(words.sum()),
            _rate(own, words),
            _rate(own - errors[TRANSCRIBE], words),
            rejected.get(way, 0),
        )
        for way, own in errors.items()
    ]


def read_in_every_way(
    reader: SpeechReader, kind: str, clips: Sequence[SpokenClip]
) -> tuple[dict[str, list[str]], dict[str, int], list[Speech]]:
    """Transcribe clips with the extraction's reader, with that reader padding to 30 s, and with `whisper.transcribe`.

    Returns:
        way -> transcripts; way -> number of rejected clips; and the output of the extraction's reader.
    """
    waveforms = [clip.waveform for clip in clips]
    whole = SpeechReader(reader.model, reader.language, reader.batch_size, first_30_seconds=True)
    speeches = {}
    for way, one in ((EXTRACTION, reader), (WHOLE, whole)):
        speeches[way] = one.read(waveforms)
        _say(f"{kind}: {len(clips)} clips read by {way}")
    options: dict[str, Any] = {"language": reader.language, "fp16": reader.model.device.type == "cuda"}
    transcribed = [str(whisper.transcribe(reader.model, waveform, **options)["text"]) for waveform in waveforms]
    _say(f"{kind}: {len(clips)} clips read by {TRANSCRIBE}")
    texts = {way: [speech.transcript for speech in found] for way, found in speeches.items()}
    rejected = {way: sum(speech.rejected is not None for speech in found) for way, found in speeches.items()}
    texts[UNFILTERED] = [speech.unfiltered_transcript for speech in speeches[EXTRACTION]]
    texts[TRANSCRIBE] = transcribed
    return {way: texts[way] for way in WAYS}, rejected, speeches[EXTRACTION]


def emotion_folds(clips: Sequence[SpokenClip], speeches: Sequence[Speech], names: dict[str, str]) -> list[ClipSplit]:
    """Return folds of the clips of some emotions, with each speaker held out once.

    Args:
        clips: clips with speaker and emotion.
        speeches: output of the extraction's reader for each clip.
        names: emotion -> class; clips of other emotions are skipped.
    """
    return hold_out_each_speaker(
        [
            Clip(clip.name, clip.speaker, names[clip.emotion], clip.text, speech.features)
            for clip, speech in zip(clips, speeches, strict=True)
            if clip.emotion in names
        ]
    )


def probe_emotions(
    config: Config, systems: Sequence[System], folds: list[ClipSplit], layers: LayerFeatures
) -> list[EmotionResult]:
    """Probe Whisper's mean frame (scikit-learn's default, and ours), its layers, and what each system hears.

    Untrained acoustic layers are probed as well, to show the effect of their width alone.
    """
    probe = ProbeConfig()
    results = [probe_plainly(folds), probe_whisper(folds, probe), probe_layers(folds, layers)]
    for width in _WIDTHS:
        embed = _untrained_layer(folds[0].train[0].audio.shape[1], width)
        results.append(probe_features("initial weights", f"acoustic, width {width}", folds, probe, embed))
    for one in filter(hears, systems):
        results.append(probe_system(config, one, channel="acoustic", probe=probe, folds=folds))
        results.append(probe_system(config, one, channel="pooled", probe=probe, folds=folds))
        results.append(probe_system(config, one, channel="acoustic", probe=probe, folds=folds, beside=layers))
    return results


def _untrained_layer(audio_dim: int, width: int) -> Callable[[list[Clip]], NDArray[Any]]:
    """Return a function that embeds clips with an untrained acoustic layer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = AcousticEncoder(audio_dim, width, width).eval()

    def embed(clips: list[Clip]) -> NDArray[Any]:
        with torch.inference_mode():
            frames = [torch.from_numpy(clip.audio.astype(np.float32))[None] for clip in clips]
            rows = [encoder(one, torch.ones(one.shape[:2], dtype=torch.bool))[0] for one in frames]
            return torch.stack(rows).numpy()

    return embed


def reproduce_real_speech(config: Config, folder: Path, names: Sequence[str], command: str) -> Page:
    """Measure word errors and emotion accuracy on real speech; publish them in STORAGE/experiments/real_speech.

    Args:
        config: settings with Whisper, language and CLIP.
        folder: folder of recordings, see `load_kinds`.
        names: systems whose acoustic channel is probed for emotions.
        command: command shown on the page.
    """
    systems = describe_systems(config, names) if names else []
    check_reads_features(systems, "real_speech")
    kinds = load_kinds(folder)
    model = load_whisper(config.model.whisper).to("cuda" if torch.cuda.is_available() else "cpu")
    reader = SpeechReader(model, config.model.language or None, config.extraction.batch_size)
    errors: list[WordErrors] = []
    emotions: dict[str, list[EmotionResult]] = {}
    for kind, clips in kinds.items():
        heard, rejected, speeches = read_in_every_way(reader, kind, clips)
        errors += measure_word_errors(kind, clips, heard, rejected)
        if kind == RAVDESS and len({clip.speaker for clip in clips}) > 2:
            pooled = {clip.name: pool_layers(model, clip.waveform) for clip in clips}
            layers = LayerFeatures(pooled, ProbeConfig())
            for title, classes in (
                ("four classes", FOUR_CLASSES),
                ("eight emotions", {e: e for e in EMOTIONS.values()}),
            ):
                emotions[title] = probe_emotions(config, systems, emotion_folds(clips, speeches, classes), layers)
                _say(f"{kind}: {title} probed")
    page = real_speech_page(command, config.model.whisper, errors, emotions)
    record = {
        "word_errors": [asdict(one) for one in errors],
        "emotions": {title: [one.record() for one in results] for title, results in emotions.items()},
    }
    figures = {"real_speech.png": draw_intervals(TITLE, _panels(errors, emotions))}
    publish_table(config, "real_speech", Publication("table", record, page, figures=figures))
    return page


def real_speech_page(
    command: str, whisper_name: str, errors: Sequence[WordErrors], emotions: dict[str, list[EmotionResult]]
) -> Page:
    """Return the page of word errors and emotions."""
    about = (
        "In %, after Whisper's English normaliser, with the 95 % interval over clips. A rejected clip has an empty "
        "transcript, and all its words count as errors; `whisper.transcribe` keeps text that its checks distrust."
    )
    sections = [Section(f"Word errors of Whisper {whisper_name}", about, word_error_rows(errors))]
    for title, results in emotions.items():
        first = results[0]
        about = (
            f"{first.num_test} clips of RAVDESS, {first.split}. Accuracy in % with the 95 % interval over clips; the "
            f"majority class is right in {first.majority:.1f} %. C is chosen on the speakers learned from."
        )
        sections.append(Section(f"Emotions, {title}", about, real_emotion_rows(results)))
    return Page(TITLE, sections=sections, command=command)


def _panels(errors: Sequence[WordErrors], emotions: dict[str, list[EmotionResult]]) -> list[Panel]:
    """Return the panels of the figure: WER of each kind of speech, accuracy of each set of emotions."""
    kinds = dict.fromkeys(one.kind for one in errors)
    panels = [
        Panel(f"{kind}, WER in %", [Value(one.way, *one.rate) for one in errors if one.kind == kind]) for kind in kinds
    ]
    return panels + [accuracy_panel(f"emotions, {title}: accuracy in %", one) for title, one in emotions.items()]


def word_error_rows(errors: Sequence[WordErrors]) -> list[list[str]]:
    """Return a header and one row per kind and transcription method."""
    header = ["speech", "clips", "words", "read by", "WER", f"points above {TRANSCRIBE}", "rejected"]
    return [header] + [
        [
            one.kind,
            str(one.num_clips),
            str(one.num_words),
            one.way,
            "{:.2f} [{:.2f}, {:.2f}]".format(*one.rate),
            "" if one.way == TRANSCRIBE else "{:+.2f} [{:+.2f}, {:+.2f}]".format(*one.above_transcribe),
            str(one.num_rejected) if one.way in (EXTRACTION, WHOLE) else "",
        ]
        for one in errors
    ]


def real_emotion_rows(results: Sequence[EmotionResult]) -> list[list[str]]:
    """Return a header and one row per probe; differences are from the first probe, paired over clips."""
    speakers = results[0].test_speakers
    header = ["features", "regularisation", "accuracy", f"points above {results[0].method}", "C"]
    rows = [header + [f"speaker {name}" for name in speakers]]
    for one in results:
        above = [100 * value for value in paired_difference(one.hits, results[0].hits)]
        rows.append(
            [
                f"{one.system}, {one.channel}",
                "chosen by speaker" if one.method == "probe" else one.method,
                f"{one.accuracy:.1f} [{one.low:.1f}, {one.high:.1f}]",
                "" if one is results[0] else "{:+.1f} [{:+.1f}, {:+.1f}]".format(*above),
                ", ".join(f"{value:g}" for value in dict.fromkeys(one.inverse_regularisation)),
                *(f"{one.by_speaker[name]:.1f}" for name in speakers),
            ]
        )
    return rows


def _rate(errors: NDArray[np.int64], words: NDArray[np.int64]) -> tuple[float, float, float]:
    """Return errors / words in percent and its bootstrap interval over clips, of zero width for a single clip."""
    count = len(words)
    drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=NUM_RESAMPLES)
    low, high = np.quantile(100.0 * (drawn @ errors) / (drawn @ words), [0.025, 0.975])
    return 100.0 * float(errors.sum() / words.sum()), float(low), float(high)


def _say(line: str) -> None:
    print(f"real speech: {line}", flush=True)
