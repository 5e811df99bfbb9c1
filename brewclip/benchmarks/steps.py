"""Training steps on synthetic data with the project's own loop, for benchmarks."""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from brewclip.benchmarks.corpus import AUDIO_DIM
from brewclip.config import Config, preset
from brewclip.config.settings import Precision
from brewclip.data.batches import Batch, Pair, collate
from brewclip.data.manifest import open_manifest
from brewclip.data.order import Extent
from brewclip.data.reader import SplitReader
from brewclip.data.schema import BadSample
from brewclip.factory import build_autocast, build_decoder, build_model
from brewclip.losses import brewclip_loss
from brewclip.models.adapter import EmbeddingAdapter
from brewclip.models.brewclip import BrewCLIP
from brewclip.models.clip import PromptedCLIP
from brewclip.pretrained.load import LoadedClip, load_clip
from brewclip.training.loop import train
from brewclip.training.optimizer import build_optimizer
from brewclip.training.state import TrainState


def build_config(storage: str, global_batch_size: int, num_steps: int, num_workers: int = 1) -> Config:
    """Return the `scenes` preset over the corpus `benchmark`, for training only: no evaluation, no checkpoint."""
    start = preset("scenes")
    never = num_steps + 1
    run = replace(
        start.run,
        name=f"benchmark-{num_workers}",
        global_batch_size=global_batch_size,
        log_every_steps=10,
        eval_every_steps=never,
        checkpoint_every_steps=never,
    )
    return replace(
        start,
        storage=storage,
        data=replace(start.data, corpus="benchmark"),
        optim=replace(start.optim, total_steps=num_steps, warmup_steps=0),
        run=run,
        cluster=replace(start.cluster, num_workers=num_workers),
        tracking=replace(start.tracking, uri=""),
    )


@dataclass(frozen=True)
class Trainee:
    """A model that can be trained in this process.

    Attributes:
        config: of `build_config`.
        clip: its frozen part, with the tokenizer.
        model, optimizer: updated by a step.
    """

    config: Config
    clip: LoadedClip
    model: BrewCLIP
    optimizer: torch.optim.Optimizer

    def rate(self, batches: Iterator[Batch], *, precision: Precision = "float32") -> float:
        """Train for the configured steps; return pairs per second.

        Args:
            batches: at least as many as there are steps.
            precision: of the arithmetic.
        """
        config = replace(self.config, run=replace(self.config.run, precision=precision))
        size = config.run.global_batch_size
        positions = (torch.arange(size) + step * size for step in itertools.count())
        started = time.perf_counter()
        train_only(config, self.model, self.optimizer, zip(batches, positions, strict=False))
        return config.optim.total_steps * size / (time.perf_counter() - started)


def build_trainee(config: Config, device: torch.device) -> Trainee:
    """Build the model of a configuration; one with an adapter takes cached embeddings, see `cached_batches`."""
    clip = load_clip(config.model.clip)
    towers = PromptedCLIP(clip.model)
    own = EmbeddingAdapter(towers.embed_dim) if config.model.adaptation == "adapter" else towers
    model = build_model(config, own, AUDIO_DIM).to(device)
    return Trainee(config, clip, model, build_optimizer(model.trained_parameters(), config.optim))


def cached_batches(trainee: Trainee, batches: Sequence[Batch]) -> list[Batch]:
    """Return batches with CLIP's embeddings in place of images and tokens, as the extraction caches them."""
    towers = PromptedCLIP(trainee.clip.model)
    with torch.no_grad():
        return [
            replace(
                batch, images=towers.encode_image(batch.images), tokens=towers.encode_text(batch.tokens), num_tokens=0
            )
            for batch in batches
        ]


class Unattended:
    """Hooks of a loop without curves, stop, evaluation or checkpoint."""

    def __init__(self, config: Config, device: torch.device) -> None:
        self._config, self._device = config, device

    def autocast(self) -> torch.autocast:
        """Return the context of the arithmetic."""
        return build_autocast(self._config, self._device)

    def evaluate(self) -> dict[str, float]:
        """Return no metrics."""
        return {}

    def save(self, state: TrainState, best: bool) -> None:
        """Write nothing."""

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Record nothing."""

    def observe(self, batch: Batch) -> None:
        """Count nothing."""

    def achieved(self, seconds: float) -> dict[str, float]:
        """Return no metrics."""
        return {}

    def count_bad(self) -> dict[str, float]:
        """Return no counts."""
        return {}

    def stop_requested(self) -> bool:
        """Return False."""
        return False

    def preempted(self) -> bool:
        """Return False."""
        return False

    def report(self, state: TrainState) -> None:
        """Report nothing."""


def train_only(
    config: Config,
    model: BrewCLIP,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[tuple[Batch, Tensor]],
) -> None:
    """Run the training loop alone: no curves, no stop, no evaluation, no checkpoint."""
    device = next(model.parameters()).device
    state = train(config, model, optimizer, batches, TrainState(), Unattended(config, device))
    assert not state.problem, state.problem


def compute_loss(config: Config, model: BrewCLIP, batch: Batch) -> Tensor:
    """Return the loss of one batch on one worker; the model is set to train."""
    with build_autocast(config, batch.images.device):
        features = model.train()(
            batch.images, batch.tokens, batch.audio, batch.audio_mask, batch.image_ids, batch.confidence,
            batch.num_tokens,
        )  # fmt: skip
    losses = brewclip_loss(
        features, batch.image_ids, model.logit_scale, config.loss.alpha, lambda rows: rows,
        separate_channels=config.model.trains_channels_apart,
    )  # fmt: skip
    return losses["loss"]


def forward_and_backward(config: Config, model: BrewCLIP, batch: Batch) -> None:
    """Add the gradients of one batch on one worker to those of the model, which is set to train."""
    compute_loss(config, model, batch).backward()


def count_flops(config: Config, model: BrewCLIP, batch: Batch) -> int:
    """Return the floating-point operations of one step's matrix products, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        forward_and_backward(config, model, batch)
    return int(counter.get_total_flops())


def read_pairs(trainee: Trainee, split: str, count: int) -> list[Pair]:
    """Decode the first pairs of a split of the corpus."""
    reader = SplitReader(open_manifest(f"{trainee.config.features_url}/{split}"))
    decode = build_decoder(trainee.config, trainee.clip)
    samples = [sample for _, sample in reader.load(Extent(0, 0, count))]
    return [decode(sample) for sample in samples if not isinstance(sample, BadSample)]


def make_batches(trainee: Trainee, pairs: Sequence[Pair], device: torch.device) -> list[Batch]:
    """Collate pairs into batches."""
    size = trainee.config.run.global_batch_size
    return [
        collate(pairs[start : start + size], trainee.clip.mean, trainee.clip.std, device)
        for start in range(0, len(pairs) - size + 1, size)
    ]


def changed(batches: Sequence[Batch], change: Callable[[Batch], Batch] | None) -> list[Batch]:
    """Return batches with a change applied to each."""
    return [batch if change is None else change(batch) for batch in batches]
