"""Recordings labelled with speaker and emotion: load from a split, divide by speaker, augment."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from brewclip.config import Config
from brewclip.config.probe import ProbeConfig
from brewclip.data.manifest import open_manifest
from brewclip.data.reader import Rejections, SplitReader, iter_split
from brewclip.data.schema import HEARD_FIELDS, TEXT_FIELDS, BadSample, Sample, npy_to_array
from brewclip.errors import ManifestError, UserError

_HELD_OUT_FRACTION = 0.25  # RAVDESS tests on 6 of its 24 actors


@dataclass(frozen=True)
class Clip:
    """One recording with its labels.

    Attributes:
        key: key of the sample.
        speaker: name of the speaker.
        emotion: label.
        text: input of the text channel.
        audio: (frames, dim) float16, Whisper features.
    """

    key: str
    speaker: str
    emotion: str
    text: str
    audio: NDArray[np.float16]


class ClipDecoder:
    """Decode a stored sample into a `Clip`, ignoring its image.

    Args:
        transcript: which text to read, a key of `TEXT_FIELDS`.
        max_audio_frames: number of frames to which speech is truncated.
    """

    def __init__(self, transcript: str, max_audio_frames: int) -> None:
        self.text_field = TEXT_FIELDS[transcript]
        self.max_audio_frames = max_audio_frames

    def __call__(self, sample: Sample) -> Clip:
        """Decode a sample.

        Raises:
            BadSample: with the cause `features`, or the name of the missing field.
        """
        if sample.features is None:
            raise BadSample("features", f"sample {sample.key!r} has no Whisper features: run jobs/extract.py")
        audio = npy_to_array(sample.features)
        if audio.ndim != 2 or audio.dtype != np.float16 or not np.isfinite(audio).all():
            raise BadSample("features", f"sample {sample.key!r} has features of {audio.dtype} {audio.shape}")
        fields = {}
        for name in ("speaker", "emotion", self.text_field):
            value = sample.metadata.get(name)
            if not isinstance(value, str) or (not value and name not in HEARD_FIELDS):
                raise BadSample(name, f"sample {sample.key!r} has no {name}")
            fields[name] = value
        audio = audio[: self.max_audio_frames]
        return Clip(sample.key, fields["speaker"], fields["emotion"], fields[self.text_field], audio)


@dataclass(frozen=True)
class ClipSplit:
    """Training clips, and test clips of other speakers.

    Attributes:
        train, test: the clips.
        labels: the emotions, sorted by name.
        how: one line that describes how speakers were divided.
    """

    train: list[Clip]
    test: list[Clip]
    labels: tuple[str, ...]
    how: str


def load_clips(config: Config, split: str, transcript: str) -> list[Clip]:
    """Read all clips of a split into memory; rejected samples are counted and printed.

    Raises:
        UserError: if no clip can be used, or more are damaged than --data.max-bad-fraction allows.
    """
    reader = SplitReader(open_manifest(f"{config.features_url}/{split}", retry_seconds=10))
    rejections = Rejections(reader.manifest.url, config.data.max_bad_fraction)
    decode = ClipDecoder(transcript, config.data.max_audio_frames)
    clips = [clip for _, clip in iter_split(reader, decode, rejections, num_threads=config.data.num_threads)]
    if not clips:
        raise UserError(
            f"none of the {len(reader.manifest)} samples of {reader.manifest.url} can be used, they lack "
            f"{rejections.counts}: emotions need the columns speaker and emotion of datasets/table.py (and text, or "
            "--probe.transcript asr), datasets/ravdess.py, or datasets/scenes.py --style emotion"
        )
    rejections.check(len(reader.manifest))
    if rejections.counts:
        print(f"emotion: left out of {reader.manifest.url}: {rejections.counts}", flush=True)
    return clips


def load_folds(config: Config, probe: ProbeConfig) -> list[ClipSplit]:
    """Read the clips of a corpus and divide them by speaker, as `--probe.folds` says.

    Returns:
        One fold, from the splits (see `divide_by_speaker`); or one per speaker, whose clips are its test clips.

    Raises:
        UserError: as `load_clips`, or if there are too few speakers or emotions, or no test split.
    """
    splits = splits_of(config, probe)
    loaded = [load_clips(config, split, probe.transcript) for split in splits]
    if probe.folds == "speakers":
        return hold_out_each_speaker([clip for clips in loaded for clip in clips])
    if len(loaded) < 2:
        raise UserError(
            f"{config.features_url} has no split {probe.test_split!r} to test on: name it by --probe.test-split, or "
            "test on each speaker in turn with --probe.folds speakers"
        )
    return [divide_by_speaker(*loaded)]


def splits_of(config: Config, probe: ProbeConfig) -> list[str]:
    """Return the training split and, if it exists, the test split."""
    try:
        open_manifest(f"{config.features_url}/{probe.test_split}", retry_seconds=10)
    except ManifestError:
        return [config.data.train_split]
    return [config.data.train_split, probe.test_split]


def divide_by_speaker(train: list[Clip], test: list[Clip]) -> ClipSplit:
    """Return a division in which no speaker is in both training and test clips.

    Splits with disjoint speakers are not changed (RAVDESS: actors 1-18 and 19-24). Otherwise both are joined, and the
    last quarter of the speakers, sorted by name, is held out for testing, like the actors of RAVDESS.

    Raises:
        UserError: if there are too few speakers, or an emotion of the test clips is not among the training clips.
    """
    speakers = {clip.speaker for clip in train}
    how = "speakers of the test split do not speak in the training split"
    if speakers & {clip.speaker for clip in test}:
        everything = train + test
        held_out = last_speakers(everything)
        train = [clip for clip in everything if clip.speaker not in held_out]
        test = [clip for clip in everything if clip.speaker in held_out]
        speakers = {clip.speaker for clip in train}
        how = f"both splits together, {', '.join(sorted(held_out))} held out, as speakers are in both"
    labels = sorted({clip.emotion for clip in train})
    if len(speakers) < 2 or len(labels) < 2:
        raise UserError(
            f"an emotion probe needs 2 speakers and 2 emotions to learn from, there are {len(speakers)} and "
            f"{len(labels)} without the test speakers"
        )
    unknown = sorted({clip.emotion for clip in test} - set(labels))
    if unknown:
        raise UserError(f"emotion {unknown[0]!r} is tested but no training speaker has it; there are {labels}")
    return ClipSplit(train, test, tuple(labels), how)


def hold_out_each_speaker(clips: list[Clip]) -> list[ClipSplit]:
    """Return one fold per speaker, sorted by name, in which only this speaker is held out for testing.

    Raises:
        UserError: as `divide_by_speaker`.
    """
    speakers = sorted({clip.speaker for clip in clips})
    if len(speakers) < 3:
        raise UserError(
            f"--probe.folds speakers needs 3 speakers, one to test on and 2 to learn from; there are {len(speakers)}"
        )
    folds = []
    for speaker in speakers:
        train, test = ([clip for clip in clips if (clip.speaker == speaker) == own] for own in (False, True))
        fold = divide_by_speaker(train, test)
        folds.append(replace(fold, how=f"each of {len(speakers)} speakers tested on once, learned from all others"))
    return folds


def last_speakers(clips: list[Clip]) -> set[str]:
    """Return the last quarter of the speakers, sorted by name, at least one.

    Raises:
        UserError: if there is only one speaker.
    """
    speakers = sorted({clip.speaker for clip in clips})
    if len(speakers) < 2:
        raise UserError(f"all clips are spoken by {speakers[0]!r}: a split by speaker needs 2 speakers")
    return set(speakers[-max(1, round(_HELD_OUT_FRACTION * len(speakers))) :])


def augment(
    audio: NDArray[np.float16], mask_fraction: float, noise_level: float, rng: np.random.Generator
) -> NDArray[np.float16]:
    """Return an augmented copy of a clip's frames: one span masked, and Gaussian noise added.

    Augmentation is applied to the features, as waveforms are not stored. Masked frames are replaced by the mean frame.

    Args:
        audio: (frames, dim).
        mask_fraction: longest span, as a fraction of the frames; length and position are random.
        noise_level: standard deviation of the noise, relative to that of the frames in each dimension.
        rng: random generator.
    """
    if not len(audio):
        return audio
    frames = audio.astype(np.float32)
    mean, scale = frames.mean(axis=0), frames.std(axis=0)
    length = int(rng.integers(0, int(mask_fraction * len(frames)) + 1))
    start = int(rng.integers(0, len(frames) - length + 1))
    frames[start : start + length] = mean
    frames += noise_level * scale * rng.standard_normal(frames.shape, dtype=np.float32)
    return frames.astype(np.float16)
