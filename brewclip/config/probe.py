"""Settings of the emotion probe, and their checks. No torch here, as in all of the command line."""

from dataclasses import dataclass
from typing import Annotated, Literal

from brewclip.config.names import FOLDER
from brewclip.config.ranges import FRACTION_BELOW_1, SEED, Range
from brewclip.config.settings import Transcript


@dataclass(frozen=True)
class ProbeConfig:
    """Settings of emotion recognition: a linear probe, or the model finetuned with a linear head."""

    test_split: Annotated[str, FOLDER] = "test"
    """Split whose speakers are tested on; if they speak in the training split as well, speakers are held out."""
    folds: Literal["split", "speakers"] = "split"
    """`split` tests once, on the speakers of the test split. `speakers` is for few speakers: the clips of both splits,
    each speaker tested in turn by a probe trained on all others."""
    transcript: Transcript = "ground_truth"
    """Text of the channels that use it: the sentence spoken, the same for all emotions, or Whisper's transcript."""
    skip_layers: bool = False
    """Do not probe Whisper's encoder layers, which are read from the corpus's recordings once and kept."""
    layers: tuple[Annotated[int, Range(1, 64)], ...] = ()
    """Encoder layers that are probed beside each other, from 1; none named: all."""
    pooling: Literal["mean", "mean_std"] = "mean"
    """Over the frames of a layer: their mean, or mean and standard deviation."""
    frames: Literal["speech", "all"] = "speech"
    """Frames of a layer that are pooled: those within 30 dB of the loudest, or all of the recording."""
    augmented_copies: Annotated[int, Range(0, 1000)] = 0
    """Augmented copies of each training clip's features, not of encoder layers; finetuning draws new ones in each
    epoch. 0 augments nothing."""
    mask_fraction: Annotated[float, FRACTION_BELOW_1] = 0.2
    """Longest run of frames masked in an augmented copy, as a share of the clip, in 0..1."""
    noise_level: Annotated[float, Range(0, 100)] = 0.1
    """Gaussian noise in an augmented copy, relative to the standard deviation of its frames."""
    max_epochs: Annotated[int, Range(1, 1000)] = 10
    """Maximum epochs of finetuning; their number is chosen by cross-validation over training speakers."""
    lrs: tuple[Annotated[float, Range(0, 10, above=True)], ...] = (1e-5, 1e-4)
    """Candidate learning rates of finetuning, chosen in the same way."""
    batch_size: Annotated[int, Range(1, 65_536)] = 32
    """Clips in one step of finetuning."""
    seed: Annotated[int, SEED] = 0
    """Seed of augmentation, order and dropout."""


def check_probe(probe: ProbeConfig, train_split: str) -> None:
    """Check what the ranges of single settings do not say.

    Raises:
        ValueError: if a setting is invalid; one line that names it, its value and what is allowed.
    """
    if not probe.lrs:
        raise ValueError("--probe.lrs is empty: give one or more learning rates")
    if len(set(probe.layers)) < len(probe.layers):
        raise ValueError(f"--probe.layers {' '.join(map(str, probe.layers))} names a layer twice")
    if probe.test_split.casefold() == train_split.casefold():
        raise ValueError(f"--probe.test-split and --data.train-split are both {train_split!r}: test on another split")


def ignored_probe_settings(probe: ProbeConfig, finetunes: bool) -> list[str]:
    """Return a line for each changed setting that has no effect."""
    default = ProbeConfig()
    lines = []
    for name in ("mask_fraction", "noise_level"):
        if not probe.augmented_copies and getattr(probe, name) != getattr(default, name):
            lines.append(f"--probe.{name.replace('_', '-')} has no effect: --probe.augmented-copies is 0")
    for name in ("max_epochs", "lrs", "batch_size"):
        if not finetunes and getattr(probe, name) != getattr(default, name):
            lines.append(f"--probe.{name.replace('_', '-')} has no effect: --methods does not name finetune")
    for name in ("layers", "pooling", "frames"):
        if probe.skip_layers and getattr(probe, name) != getattr(default, name):
            lines.append(f"--probe.{name} has no effect: --probe.skip-layers")
    return lines
