"""The training loop, read from top to bottom: one global batch a step, by the rules of the paper.

It knows nothing of Ray, storage or MLflow: what it needs of them it calls through `LoopHooks`.
"""

import math
import time
from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from brewclip.config import Config
from brewclip.data.batches import Batch
from brewclip.distributed import agree_on_problem, gather_rows, sum_gradients, sum_over_workers
from brewclip.errors import UserError
from brewclip.losses import brewclip_loss
from brewclip.models.brewclip import BrewCLIP
from brewclip.training.optimizer import learning_rate, set_learning_rate
from brewclip.training.state import STOP_REQUESTED, TrainState


class LoopHooks(Protocol):
    """What the loop needs of its surroundings; every worker calls each of them at the same steps."""

    def autocast(self) -> torch.autocast:
        """Return the context of the arithmetic."""

    def evaluate(self) -> dict[str, float]:
        """Return dev metrics on rank 0 and {} elsewhere; collective."""

    def save(self, state: TrainState, best: bool) -> None:
        """Write a checkpoint; `best` says whether it is the best so far."""

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Record metrics of a step."""

    def count_bad(self) -> dict[str, float]:
        """Return metrics of samples that could not be used, on rank 0; collective."""

    def stop_requested(self) -> bool:
        """Return whether this worker was asked to stop; the run then ends with a checkpoint."""

    def preempted(self) -> bool:
        """Return whether a node of the group is about to be preempted; collective. A checkpoint is then written."""

    def report(self, state: TrainState) -> None:
        """Report an evaluation that is not the last, after its checkpoint; the listener may end the run there."""


def train(
    config: Config,
    model: BrewCLIP,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[tuple[Batch, Tensor]],
    state: TrainState,
    hooks: LoopHooks,
) -> TrainState:
    """Train until the last step, a request to stop, or a problem that all workers agree on.

    Args:
        config: the run.
        model: on its device.
        optimizer: over `model.trained_parameters()`.
        batches: from `state.step` on: this worker's part of each global batch, and the positions of its samples.
        state: where the run stands; updated in place.
        hooks: evaluation, checkpoints, metrics and requests to stop.
    """
    optim, run = config.optim, config.run
    parameters = list(model.trained_parameters().values())
    clock, samples_since, data_seconds = time.monotonic(), 0, 0.0
    model.train()
    while state.step < optim.total_steps:
        # ---- data: all workers have their part, or all stop together
        started, batch, positions, problem = time.monotonic(), None, None, ""
        try:
            batch, positions = next(batches)
        except UserError as error:
            problem = str(error)
        data_seconds += time.monotonic() - started
        problem = agree_on_problem(problem or (STOP_REQUESTED if hooks.stop_requested() else ""))
        if problem:
            state.problem = problem
            break
        assert batch is not None and positions is not None

        # ---- loss: this worker's rows against all rows (paper, equations 1 and 2)
        with hooks.autocast():
            seeds = sample_seeds(run.seed, positions)
            features = model(batch.images, batch.tokens, batch.audio, batch.audio_mask, seeds, batch.confidence)
        losses = brewclip_loss(
            features, batch.image_ids, model.logit_scale, config.loss.alpha, gather_rows, config.loss.reduction,
            separate_channels=config.model.fusion != "sum",
        )  # fmt: skip

        # ---- step: gradients summed over workers; a non-finite one stops all of them before the step
        optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        sum_gradients(parameters)
        max_norm = optim.grad_clip_norm or math.inf
        grad_norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm)
        if not torch.isfinite(grad_norm):
            state.problem = f"the gradient is {grad_norm.item()} at step {state.step}: lower --optim.peak-lr"
            break
        rate = learning_rate(optim, state.step)
        set_learning_rate(optimizer, rate)
        optimizer.step()
        model.clamp_logit_scale()
        state.step += 1
        state.metrics = {}
        samples_since += run.global_batch_size

        # ---- curves
        last = state.step == optim.total_steps
        if state.step % run.log_every_steps == 0 or last:
            names = ("loss", "outer", "inner", "effective_negatives")
            sums = sum_over_workers(torch.stack([losses[name].detach().float() for name in names])).tolist()
            seconds = time.monotonic() - clock
            hooks.log(
                {f"train/{name}": value for name, value in zip(names, sums, strict=True)}
                | {
                    "train/lr": rate,
                    "train/grad_norm": grad_norm.item(),
                    "train/logit_scale": model.logit_scale.exp().item(),
                    "train/samples_per_second": samples_since / seconds,
                    "train/data_wait_fraction": data_seconds / seconds,
                }
                | hooks.count_bad(),
                state.step,
            )
            clock, samples_since, data_seconds = time.monotonic(), 0, 0.0

        # ---- selection on dev, checkpoints
        best = False
        leaving = state.step % run.log_every_steps == 0 and hooks.preempted()
        if state.step % run.eval_every_steps == 0 or last:
            paused = time.monotonic()
            state.metrics = hooks.evaluate()
            model.train()
            if state.metrics:
                best = is_better(state.metrics, state.best, run.selection_metric)
                if best:
                    state.best = {
                        run.selection_metric: state.metrics[run.selection_metric],
                        "step": state.step,
                    }
                hooks.log(state.metrics, state.step)
            clock += time.monotonic() - paused
        if best or last or leaving or state.step % run.checkpoint_every_steps == 0:
            hooks.save(state, best)
        if not last and state.step % run.eval_every_steps == 0:
            hooks.report(state)
    if state.problem == STOP_REQUESTED:
        hooks.save(state, False)
    return state


def sample_seeds(seed: int, positions: Tensor) -> Tensor:
    """Return a dropout seed for each position of the stream: another one in every epoch, the same on any worker."""
    mixed = np.random.SeedSequence(seed).generate_state(1, np.uint64)[0] >> np.uint64(2)
    return positions + int(mixed)


def is_better(metrics: dict[str, float], best: dict[str, float], name: str) -> bool:
    """Return whether the selection metric rose; the first evaluation is always the best so far.

    Raises:
        UserError: if there is no metric of that name.
    """
    if name not in metrics:
        raise UserError(f"--run.selection-metric {name!r} is not measured: choose one of {', '.join(sorted(metrics))}")
    return name not in best or metrics[name] > best[name]
