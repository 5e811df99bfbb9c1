"""Whisper's encoder layers of the clips of a corpus: read from its recordings once, kept in storage.

Features hold the last layer only, which is what a system is trained on.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from brewclip.audio import UndecodableAudio, decode_audio
from brewclip.config import Config
from brewclip.config.probe import ProbeConfig
from brewclip.data.manifest import Manifest, open_manifest
from brewclip.data.reader import Rejections, SplitReader, iter_split
from brewclip.data.schema import BadSample, Sample, array_to_npy, npy_to_array
from brewclip.errors import ManifestError, UserError
from brewclip.evaluation.identity import ResultCache
from brewclip.models.encoder_layers import pool_layers
from brewclip.pretrained.whisper import load_whisper
from brewclip.progress import ProgressReporter
from brewclip.studies.emotion.clips import Clip

_VERSION = 1  # of what is kept; raise it when the code gives other numbers


class LayerFeatures:
    """Features of clips from Whisper's encoder layers.

    Args:
        pooled: key -> (layers, 2, audio_dim): mean and standard deviation over frames, see `pool_layers`.
        probe: which layers and which of the two.

    Attributes:
        name: label in tables.

    Raises:
        UserError: if there is no such layer.
    """

    def __init__(self, pooled: dict[str, NDArray[Any]], probe: ProbeConfig) -> None:
        num_layers = len(next(iter(pooled.values())))
        wrong = [number for number in probe.layers if number > num_layers]
        if wrong:
            raise UserError(f"--probe.layers {wrong[0]} is not there: this Whisper's encoder has {num_layers} layers")
        numbers = probe.layers or range(1, num_layers + 1)
        self._pooled, self._rows = pooled, [number - 1 for number in numbers]
        self._statistics = slice(0, 2 if probe.pooling == "mean_std" else 1)
        layers = " ".join(map(str, numbers)) if probe.layers else f"1-{num_layers}"
        what = "mean and deviation" if probe.pooling == "mean_std" else "mean"
        self.name = f"layers {layers}, {what} of {'speech' if probe.frames == 'speech' else 'all'} frames"

    def embed(self, clips: list[Clip]) -> NDArray[np.float32]:
        """Return the features (n, D) of clips.

        Raises:
            UserError: if a clip was not among the recordings.
        """
        missing = [clip.key for clip in clips if clip.key not in self._pooled]
        if missing:
            raise UserError(f"clip {missing[0]!r} has features and no recording any more: run jobs/extract.py again")
        pooled = np.stack([self._pooled[clip.key] for clip in clips])[:, self._rows, self._statistics]
        return pooled.reshape(len(clips), -1).astype(np.float32)


def load_layers(config: Config, splits: Sequence[str], probe: ProbeConfig) -> LayerFeatures | None:
    """Return the layers of the clips of some splits, encoding the recordings that were not encoded before.

    Returns:
        None if the splits of recordings are not there, which is printed.

    Raises:
        UserError: if Whisper's weights cannot be loaded, or a key is in two splits.
    """
    pooled: dict[str, NDArray[Any]] = {}
    for split in splits:
        try:
            manifest = open_manifest(f"{config.corpus_url}/{split}", retry_seconds=10)
        except ManifestError as error:
            print(f"emotion: Whisper's encoder layers are left out, they need the recordings: {error}", flush=True)
            return None
        found = _cached_or_encoded(config, manifest, split, probe)
        twice = sorted(set(found) & set(pooled))
        if twice:
            raise UserError(f"sample {twice[0]!r} is in two splits of {config.corpus_url}: --probe.skip-layers")
        pooled |= found
    return LayerFeatures(pooled, probe)


def _cached_or_encoded(config: Config, manifest: Manifest, split: str, probe: ProbeConfig) -> dict[str, NDArray[Any]]:
    """Return key -> pooled layers of a split."""
    cache = ResultCache(config, f"whisper-layers/{config.data.corpus}")
    identity = {
        "version": _VERSION,
        "recordings": manifest.sha256,
        "whisper": config.model.whisper,
        "frames": probe.frames,
        "max_audio_frames": config.data.max_audio_frames,
    }
    name = f"{split}-{probe.frames}"
    known = cache.load(name, identity)
    if known is not None:
        line, _, numbers = known.partition(b"\n")
        return dict(zip(json.loads(line), npy_to_array(numbers), strict=True))
    found = dict(_iter_pooled(config, manifest, probe))
    if not found:
        raise UserError(f"none of the {len(manifest)} samples of {manifest.url} has a recording that can be read")
    array = np.stack(list(found.values())).astype(np.float16)
    cache.save(name, identity, json.dumps(list(found)).encode() + b"\n" + array_to_npy(array))
    return dict(zip(found, array, strict=True))


def _iter_pooled(config: Config, manifest: Manifest, probe: ProbeConfig) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield the key and the pooled layers of each recording; unusable ones are left out, as by the extraction."""
    try:
        model = load_whisper(config.model.whisper).to("cuda" if torch.cuda.is_available() else "cpu")
    except (ValueError, FileNotFoundError) as error:
        raise UserError(str(error)) from error
    progress = ProgressReporter(f"emotion: encoder layers of {manifest.url}", len(manifest), "recordings")
    samples = iter_split(SplitReader(manifest), _decode, Rejections(manifest.url), num_threads=config.data.num_threads)
    for _, (key, waveform) in samples:
        yield key, pool_layers(model, waveform, probe.frames, config.data.max_audio_frames)
        progress.advance()


def _decode(sample: Sample) -> tuple[str, NDArray[np.float32]]:
    if sample.audio is None:
        raise BadSample("audio", f"sample {sample.key!r} has no recording")
    try:
        return sample.key, decode_audio(sample.audio)
    except UndecodableAudio as error:
        raise BadSample(error.cause, str(error)) from error
