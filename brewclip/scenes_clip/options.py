"""Settings of the scenes CLIP's training; imports no torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from brewclip.config.ranges import COUNT, COUNT_OR_0, FRACTION, SEED, THREADS, Range
from brewclip.errors import UserError

CONFIG_PATH = Path(__file__).parents[1] / "scenes" / "clip.json"
WEIGHTS_PATH = CONFIG_PATH.with_suffix(".safetensors")


@dataclass(frozen=True)
class TrainScenesClip:
    """Flags of the scenes CLIP training."""

    output: Path = WEIGHTS_PATH
    """Output file of the weights (float16 safetensors)."""
    steps: Annotated[int, COUNT] = 550
    """Optimiser steps; the learning rate decays to zero at the last one."""
    batch_size: Annotated[int, Range(2, 65_536)] = 256
    """Pairs per step, all negatives of each other."""
    num_images: Annotated[int, Range(4, 10**7)] = 60_000
    """Training scenes, rendered once before the first step (27,648 bytes each)."""
    peak_lr: Annotated[float, Range(0, 10, above=True)] = 1e-3
    """Learning rate after the warm-up."""
    warmup_steps: Annotated[int, COUNT_OR_0] = 100
    """Steps of linear warm-up."""
    weight_decay: Annotated[float, Range(0, 10)] = 0.1
    """Weight decay of matrices; token embeddings, gains and biases have none."""
    word_loss: Annotated[float, Range(0, 1000)] = 1.0
    """Weight of the word loss, added to CLIP's loss."""
    joined_every_steps: Annotated[int, COUNT] = 5
    """Every so many steps a text is two captions of its image, so that later positions are trained, too."""
    unstopped: Annotated[float, FRACTION] = 0.2
    """Fraction of captions without their full stop, as Whisper sometimes omits it."""
    keep_clear: tuple[str, ...] = ("clip-heldout", "scenes/dev", "scenes/test")
    """World namespaces whose scenes are excluded from training."""
    keep_clear_scenes: Annotated[int, Range(0, 10**7)] = 5_000
    """Number of scenes of each of them."""
    seed: Annotated[int, SEED] = 0
    """Seed of initial weights, order and captions."""
    num_threads: Annotated[int, THREADS] = 2
    """Threads, each with its part of the batch; another number changes rounding."""
    save_every_steps: Annotated[int, COUNT] = 100
    """Steps between two saves."""
    log_every_seconds: Annotated[float, Range(0, 86_400)] = 20.0
    """Seconds between two progress lines."""

    def check(self) -> None:
        """Raise a `UserError` for incompatible sizes."""
        if self.batch_size % self.num_threads:
            raise UserError(f"--batch-size {self.batch_size} must be a multiple of --num-threads {self.num_threads}")
        if self.num_images < 2 * self.batch_size:
            raise UserError(
                f"--num-images {self.num_images} must be at least two batches of --batch-size {self.batch_size}"
            )
