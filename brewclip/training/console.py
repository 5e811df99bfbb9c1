"""Lines that a training run prints: its start, its steps, its evaluations."""

import time

from brewclip.config import Config
from brewclip.losses import loss_of_chance
from brewclip.progress import describe_seconds


def describe_run(config: Config, step: int, world_size: int, device: str, num_pairs: int, num_trained: int) -> str:
    """Return the first lines of a run: step, workers, data, size of what is trained, loss of chance.

    Args:
        config: of the run.
        step: optimiser steps done.
        world_size: number of workers.
        device: type of device that they train on.
        num_pairs: pairs of the training split.
        num_trained: trained parameters.
    """
    separate = config.model.trains_channels_apart
    chance = loss_of_chance(config.run.global_batch_size, config.loss.reduction, separate_channels=separate)
    return (
        f"train {config.run_name}: step {step} of {config.optim.total_steps}, {world_size} workers on {device}, "
        f"{num_pairs} pairs, {num_trained:,} trained parameters\n"
        f"train {config.run_name}: loss of chance {chance:.3f}"
    )


def describe_start(config: Config, submitted: float, started: float, built: float) -> str:
    """Return the seconds spent before the first step: starting the workers, loading, reading the first batch.

    Args:
        config: of the run.
        submitted, started, built: when the workers were requested, when they ran, and when their parts were built, in
            seconds since 1970.
    """
    now = time.time()
    return (
        f"train {config.run_name}: first batch {now - submitted:.1f} s after the start: workers up "
        f"{started - submitted:.1f} s, weights and data {built - started:.1f} s, batch {now - built:.1f} s"
    )


def describe_memory(config: Config, kept_bytes: int, weights_bytes: int) -> str:
    """Return how much memory a worker takes in a step.

    Args:
        config: of the run.
        kept_bytes: kept for the backward pass of a batch.
        weights_bytes: of the model with its frozen parts.
    """
    return (
        f"train {config.run_name}: about {kept_bytes / 1e9:.2g} GB for the backward pass of a batch, "
        f"{weights_bytes / 1e9:.2g} GB of weights"
    )


def describe_step(metrics: dict[str, float], step: int, config: Config) -> str:
    """Return one line of metrics: loss and rate with the time left, or recall on dev."""
    total = config.optim.total_steps
    if "train/loss" not in metrics:
        recalls = ", ".join(f"{name} {metrics[name]:.1f}" for name in sorted(metrics) if name.endswith(("/R1", "/R10")))
        weights = ", ".join(
            f"{name} {metrics[name]:g}" for name in sorted(metrics) if name.startswith(("dev/acoustic", "dev/adapter"))
        )
        return f"train {config.run_name}: step {step}/{total}, {recalls}{weights and ', ' + weights}"
    rate = metrics["train/samples_per_second"]
    left = describe_seconds((total - step) * config.run.global_batch_size / max(rate, 1e-9))
    return (
        f"train {config.run_name}: step {step}/{total}, loss {metrics['train/loss']:.3f}, "
        f"lr {metrics['train/lr']:.2g}, {rate:.0f} pairs/s, {left} left"
    )
