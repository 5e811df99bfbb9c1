"""Settings of the emotion probe, and their checks. No torch here, as in all of the command line."""

from dataclasses import dataclass
from typing import Literal

from brewclip.config.names import describe_name, is_safe_name
from brewclip.config.settings import Transcript


@dataclass(frozen=True)
class ProbeConfig:
    """Settings of emotion recognition: a linear probe, or the model finetuned with a linear head."""

    test_split: str = "test"
    """Split whose speakers are tested on; if they speak in the training split as well, speakers are held out."""
    folds: Literal["split", "speakers"] = "split"
    """`split` tests once, on the speakers of the test split. `speakers` is for few speakers: the clips of both splits,
    each speaker tested in turn by a probe trained on all others."""
    transcript: Transcript = "ground_truth"
    """Text of the channels that use it: the sentence spoken, the same for all emotions, or Whisper's transcript."""
    augmented_copies: int = 0
    """Augmented copies of each training clip; finetuning draws new ones in each epoch. 0 augments nothing."""
    mask_fraction: float = 0.2
    """Longest run of frames masked in an augmented copy, as a share of the clip, in 0..1."""
    noise_level: float = 0.1
    """Gaussian noise in an augmented copy, relative to the standard deviation of its frames."""
    max_epochs: int = 10
    """Maximum epochs of finetuning; their number is chosen by cross-validation over training speakers."""
    lrs: tuple[float, ...] = (1e-5, 1e-4)
    """Candidate learning rates of finetuning, chosen in the same way."""
    batch_size: int = 32
    """Clips in one step of finetuning."""
    seed: int = 0
    """Seed of augmentation, order and dropout."""


def check_probe(probe: ProbeConfig, train_split: str) -> None:
    """Check the settings.

    Raises:
        ValueError: if a setting is invalid; one line that names it, its value and what is allowed.
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
    """Return a line for each changed setting that has no effect."""
    default = ProbeConfig()
    lines = []
    for name in ("mask_fraction", "noise_level"):
        if not probe.augmented_copies and getattr(probe, name) != getattr(default, name):
            lines.append(f"--probe.{name.replace('_', '-')} has no effect: --probe.augmented-copies is 0")
    for name in ("max_epochs", "lrs", "batch_size"):
        if not finetunes and getattr(probe, name) != getattr(default, name):
            lines.append(f"--probe.{name.replace('_', '-')} has no effect: --methods does not name finetune")
    return lines
