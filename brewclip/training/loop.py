"""The training loop, read from top to bottom: one global batch a step, by the rules of the paper.

It knows nothing of Ray, storage or MLflow: what it needs of them it calls through `LoopHooks`.
"""

import math
import time
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from brewclip.config import Config
from brewclip.data.batches import Batch
from brewclip.distributed import GradientSum, RowGather, agree_on_problem, sum_over_workers
from brewclip.errors import UserError
from brewclip.losses import brewclip_loss
from brewclip.models.brewclip import BrewCLIP
from brewclip.training.guard import StepGuard
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

    def observe(self, batch: Batch) -> None:
        """Record the shape of a step's batch, for FLOP counts."""

    def achieved(self, seconds: float) -> dict[str, float]:
        """Return throughput and memory metrics since the last call, `seconds` ago."""

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

    The host never waits for the step that the device computes, but for metrics, evaluations and checkpoints. A worker
    takes the next batch before it starts a step, so that all know of a problem with it before anyone starts the next
    step: no step is half done, and the run stands where a checkpoint says. A request to stop is met after the step that
    was about to start.

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
    guard, gradients = StepGuard(optimizer, model.logit_scale.device), GradientSum(model.gradient_groups())
    clock, samples_since, data_seconds = time.monotonic(), 0, 0.0
    first_step = state.step
    model.train()

    # ---- the first batch: all workers have their part, or none begins
    upcoming = _fetch(batches) if state.step < optim.total_steps else Fetched()
    problem = agree_on_problem(upcoming.problem or (STOP_REQUESTED if hooks.stop_requested() else ""))
    if upcoming.batch is not None and not problem:
        gather = RowGather(len(upcoming.batch.image_ids), upcoming.batch.image_ids.device)
    while state.step < optim.total_steps and not problem:
        # ---- data: every worker has this batch; whether it has the next one travels with the image ids of this one
        batch, positions = upcoming.batch, upcoming.positions
        assert batch is not None and positions is not None
        hooks.observe(batch)
        started = time.monotonic()
        last = state.step + 1 == optim.total_steps
        upcoming = Fetched() if last else _fetch(batches)
        data_seconds += time.monotonic() - started
        problem = upcoming.problem or (STOP_REQUESTED if hooks.stop_requested() and not last else "")
        shared = gather.start(batch.image_ids, bool(problem))

        # ---- loss: this worker's rows against all rows (paper, equations 1 and 2)
        with hooks.autocast():
            seeds = sample_seeds(run.seed, positions)
            features = model(
                batch.images, batch.tokens, batch.audio, batch.audio_mask, seeds, batch.confidence, batch.num_tokens
            )
        losses = brewclip_loss(
            features, batch.image_ids, model.logit_scale, config.loss.alpha, gather, config.loss.reduction,
            separate_channels=config.model.trains_channels_apart, all_ids=shared.numbers(), first_row=gather.first_row,
        )  # fmt: skip

        # ---- step: gradients summed over workers; from the first one that is not finite on, none is taken
        optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        gradients.finish()
        max_norm = optim.grad_clip_norm or math.inf
        grad_norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm)
        rate = learning_rate(optim, state.step)
        set_learning_rate(optimizer, rate)
        guard.step(grad_norm)
        model.clamp_logit_scale()
        state.step += 1
        state.metrics = {}
        samples_since += run.global_batch_size

        # ---- what the host has to know: all of this step is on its way, so the device does not wait for it
        problem = agree_on_problem(problem) if shared.anyone_raised() else ""
        evaluating = state.step % run.eval_every_steps == 0 or last
        logging = state.step % run.log_every_steps == 0 or last
        saving = state.step % run.checkpoint_every_steps == 0 or last
        bad = guard.first_bad() if problem or evaluating or logging or saving else None
        if bad is not None:
            state.step = first_step + bad[0]
            problem = f"the gradient is {bad[1]} at step {state.step}: lower --optim.peak-lr"
            break

        # ---- curves
        if logging:
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
                | hooks.achieved(seconds)
                | hooks.count_bad(),
                state.step,
            )
            clock, samples_since, data_seconds = time.monotonic(), 0, 0.0

        # ---- selection on dev, checkpoints
        best = False
        leaving = state.step % run.log_every_steps == 0 and hooks.preempted()
        if evaluating:
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
        if best or leaving or saving:
            hooks.save(state, best)
        if evaluating and not last:
            hooks.report(state)
    gradients.close()
    state.problem = problem
    if problem == STOP_REQUESTED:
        hooks.save(state, False)
    return state


class Fetched(NamedTuple):
    """A batch with the positions of its samples, or why there is none."""

    batch: Batch | None = None
    positions: Tensor | None = None
    problem: str = ""


def _fetch(batches: Iterator[tuple[Batch, Tensor]]) -> Fetched:
    try:
        return Fetched(*next(batches))
    except UserError as error:
        return Fetched(problem=str(error))


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
