"""Settings of the emotion probe, and the checks on them. No torch here, as in all of the command line."""

from dataclasses import dataclass
from typing import Literal

from brewclip.config.names import describe_name, is_safe_name
from brewclip.config.settings import Transcript


@dataclass(frozen=True)
class ProbeConfig:
    """How emotions are read from features: a linear probe, or the model finetuned with a linear head."""

    test_split: str = "test"
    """Split whose speakers are tested on; if they speak in the training split as well, speakers are held out."""
    folds: Literal["split", "speakers"] = "split"
    """`split` tests once, on the speakers of the test split. `speakers` is for few speakers: the clips of both splits,
    each speaker tested on in turn by a probe that learned from all others."""
    transcript: Transcript = "ground_truth"
    """Text of the channels that read: the sentence spoken, the same for all emotions, or what Whisper heard of it."""
    augmented_copies: int = 0
    """Changed copies of each training clip; finetuning draws its changes anew in each epoch. 0 changes nothing."""
    mask_fraction: float = 0.2
    """Longest stretch of frames that a changed copy loses, as a share of the clip, in 0..1."""
    noise_level: float = 0.1
    """Gaussian noise in a changed copy, relative to the standard deviation of its frames."""
    max_epochs: int = 10
    """Most epochs of finetuning; how many are done is chosen by cross-validation over training speakers."""
    lrs: tuple[float, ...] = (1e-5, 1e-4)
    """Learning rates of finetuning that are chosen from in the same way."""
    batch_size: int = 32
    """Clips in one step of finetuning."""
    seed: int = 0
    """Seed of augmentation, order and dropout."""


def check_probe(probe: ProbeConfig, train_split: str) -> None:
    """Find settings that cannot work.

    Raises:
        ValueError: one line that names the setting, its value and what is allowed.
    """
    rules = [
        (probe.augmented_copies < 0, f"--probe.augmented-copies {probe.augmented_copies} must be 0 or more"),
        (not 0 <= probe.mask_fraction < 1, f"--probe.mask-fraction {probe.mask_fraction} must be in 0..1, below 1"),
        (not probe.noise_level >= 0, f"--probe.noise-level {probe.noise_level} must be 0 or more"),
        (probe.max_epochs < 1, f"--probe.max-epochs {probe.max_epochs} must be 1 or more"),
        (
            not probe.lrs or min(probe.lrs) <= 0,
            f"--probe.lrs {' '.join(map(str, probe.lrs))} must be one or more numbers above 0",
        ),
        (probe.batch_size < 1, f"--probe.batch-size {probe.batch_size} must be 1 or more"),
        (not is_safe_name(probe.test_split), describe_name("--probe.test-split", probe.test_split)),
        (
            probe.test_split.casefold() == train_split.casefold(),
            f"--probe.test-split and --data.train-split are both {train_split!r}: test on another split",
        ),
    ]
    for wrong, message in rules:
        if wrong:
            raise ValueError(message)


def ignored_probe_settings(probe: ProbeConfig, finetunes: bool) -> list[str]:
    """Say which settings that were changed have no effect, one line each."""
    default = ProbeConfig()
    lines = []
    for name in ("mask_fraction", "noise_level"):
        if not probe.augmented_copies and getattr(probe, name) != getattr(default, name):
            lines.append(f"--probe.{name.replace('_', '-')} has no effect: --probe.augmented-copies is 0")
    for name in ("max_epochs", "lrs", "batch_size"):
        if not finetunes and getattr(probe, name) != getattr(default, name):
            lines.append(f"--probe.{name.replace('_', '-')} has no effect: --methods does not name finetune")
    return lines
