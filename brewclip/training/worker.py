"""One worker of a training run: its parts, and the hooks that the loop calls."""

import functools
import logging
import threading
import time
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from brewclip.checkpoints.facts import Checkpoint, CheckpointFacts
from brewclip.config import Config, flatten
from brewclip.config.masking import without_secrets
from brewclip.data.batches import Batch, Pair
from brewclip.data.order import SampleOrder
from brewclip.data.reader import Rejections
from brewclip.data.storage import open_storage
from brewclip.data.stream import Stream, one_ahead
from brewclip.data.transfer import CopyStream, to_device
from brewclip.data.truncation import TruncationCounts
from brewclip.distributed import sum_over_workers, world_rank, world_size
from brewclip.evaluation.choose import choose_weights, fuse_channels, mean_recall
from brewclip.evaluation.embed import Embeddings, embed_split, gather_embeddings
from brewclip.factory import build_autocast
from brewclip.training.assignment import Assignment
from brewclip.training.console import describe_memory, describe_run, describe_start, describe_step
from brewclip.training.cost import StepCost, peak_memory_bytes, peak_tflops
from brewclip.training.exported import ExportedMetrics
from brewclip.training.lease import LeaseLost
from brewclip.training.loop import train
from brewclip.training.optimizer import optimizer_state
from brewclip.training.parts import Parts, build_parts
from brewclip.training.record import RunRecord
from brewclip.training.resume import resume
from brewclip.training.state import TrainState, report_of
from brewclip.training.stop import StopFlag
from brewclip.training.upload import CheckpointSaver, PendingCheckpoint


def build_worker(config: Config, assignment: Assignment | None = None) -> "Worker":
    """Build the parts of one worker, and the worker over them.

    Raises:
        UserError, ValueError, FileNotFoundError: if settings, data, weights and checkpoint do not fit together.
    """
    return Worker(config, build_parts(config, worker_device(config)), assignment)


class Worker:
    """One worker of a run, resumed where the run stands, and the loop's hooks over its parts (`LoopHooks`).

    Args:
        config: of the run.
        parts: of this worker.
        assignment: from the driver; None: one worker that reports to nobody.

    Raises:
        UserError, ValueError: if the checkpoint does not fit settings, data and weights.
    """

    def __init__(self, config: Config, parts: Parts, assignment: Assignment | None = None) -> None:
        self.config, self.started = config, time.time()
        self.assignment = assignment or Assignment(flatten(config))
        self.rank, self.world_size = world_rank(), world_size()
        self.storage = open_storage(config.run_url, retry_seconds=config.data.retry_seconds)
        self.parts = parts
        self.state = resume(config, self.storage, parts)
        self.first_step = self.state.step
        self.rejections = Rejections(self.parts.manifest.url, config.data.max_bad_fraction)
        self.truncation = TruncationCounts()
        fence = self.assignment.fence
        self.stop_flag = StopFlag(self.storage, fence) if self.rank == 0 else threading.Event()
        self._preemption_seen = False
        self.saver = CheckpointSaver(
            self.storage, config.run.keep_checkpoints, (lambda: fence.check(self.storage)) if fence else (lambda: None)
        )
        self.record = RunRecord(config, self.rank)
        self.record.start(self.parts, self.assignment.environment, self.world_size)
        self.exported = ExportedMetrics(config.run_name, config.run.global_batch_size) if self.rank == 0 else None
        self.cost = StepCost(self.parts.model, self.autocast, config.run.global_batch_size)
        self._flops, self._is_first_batch = 0.0, True
        self.built = time.time()

    def run(self) -> TrainState:
        """Train from the current step."""
        parts = self.parts
        if self.rank == 0:
            num_trained = sum(parameter.numel() for parameter in parts.model.trained_parameters().values())
            device, num_pairs = parts.device.type, len(parts.manifest)
            line = describe_run(self.config, self.state.step, self.world_size, device, num_pairs, num_trained)
            print(line, flush=True)
        return train(self.config, parts.model, parts.optimizer, self.iter_batches(), self.state, self)

    def iter_batches(self) -> Iterator[tuple[Batch, Tensor]]:
        """Yield this worker's part of each global batch, with the positions of its samples."""
        data, run, parts = self.config.data, self.config.run, self.parts
        order = SampleOrder(parts.manifest, run.seed, run.global_batch_size)
        stream = Stream(
            parts.train, order, parts.decoder, self.rejections, rank=self.rank,
            world_size=self.world_size, memory_bytes=data.memory_bytes, num_threads=data.num_threads,
            at_position=parts.at_position,
        )  # fmt: skip
        copies = CopyStream(parts.device)

        def build(step: int, pairs: list[Pair]) -> tuple[Batch, Tensor]:
            positions = torch.from_numpy(step * run.global_batch_size + stream.slots)
            return parts.to_batch(pairs), to_device(positions, parts.device)

        steps = (
            (step, pairs, copies.start(functools.partial(build, step, pairs)))
            for step, pairs in stream.iter_from(self.state.step)
        )
        for step, pairs, copying in one_ahead(steps):
            self.truncation.add(pair.lengths for pair in pairs)
            if step == self.first_step and self.rank == 0:
                print(describe_start(self.config, self.assignment.submitted, self.started, self.built), flush=True)
            yield copies.finish(copying)

    # ------------------------------------------------------------------ hooks of the loop

    def autocast(self) -> torch.autocast:
        """Return the context of the arithmetic."""
        return build_autocast(self.config, self.parts.device)

    def evaluate(self) -> dict[str, float]:
        """Return dev metrics on rank 0, {} elsewhere; collective."""
        parts = self.parts
        rejections = Rejections(parts.dev.manifest.url)
        with self.autocast():
            own = embed_split(
                parts.model, parts.dev, parts.decoder, parts.to_batch, rejections, rank=self.rank,
                world_size=self.world_size, num_threads=self.config.data.num_threads,
                keep_channels=bool(parts.model.chosen_weights()),
            )  # fmt: skip
        bad = sum_over_workers(torch.tensor(float(rejections.total), device=parts.device)).item()
        dev = self._with_chosen_weights(gather_embeddings(own))
        if dev is None:
            return {}
        summary = dev.rank().summary() | parts.model.described_weights()
        metrics = {f"dev/{name}": value for name, value in summary.items()}
        metrics |= {"dev/mean_recall": mean_recall(summary), "dev/near_cosine": dev.near_cosine()}
        return metrics | {"dev/bad_samples": bad}

    def _with_chosen_weights(self, dev: Embeddings | None) -> Embeddings | None:
        """Choose the model's weights of this kind on dev, rank 0 for all; return what it then makes of dev."""
        weights = self.parts.model.chosen_weights()
        if not weights:
            return dev
        chosen = choose_weights(dev) if dev is not None else {}
        for name, weight in weights.items():
            weight.copy_(sum_over_workers(chosen.get(name, torch.zeros_like(weight)).to(weight)))
        return None if dev is None else fuse_channels(dev, chosen)

    def save(self, state: TrainState, best: bool) -> None:
        """Hand a checkpoint to the background upload; rank 0 only."""
        if self.rank != 0:
            return
        parts = self.parts
        facts = CheckpointFacts(
            step=state.step,
            config={name: _without_secrets(value) for name, value in flatten(self.config).items()},
            frozen_sha256=parts.frozen_sha256,
            frozen_settings={parts.clip_identity.name: parts.clip_identity.settings},
            audio_dim=parts.audio_dim,
            mlflow_run_id=self.record.tracker.run_id,
            metrics=dict(state.metrics),
            best=dict(state.best),
        )
        model = {name: tensor.cpu().contiguous() for name, tensor in parts.model.trained_state().items()}
        optimizer = optimizer_state(parts.optimizer, list(parts.model.trained_parameters()))
        self.saver.put(PendingCheckpoint(Checkpoint(facts, model, optimizer), best))

    def report(self, state: TrainState) -> None:
        """Report an evaluation to Ray Train, if asked to, once its checkpoint and metrics are stored."""
        if not self.assignment.report:
            return
        import ray.train

        logging.getLogger().setLevel(logging.WARNING)  # Ray would print each report, by a logger below the root
        if self.rank == 0:
            self.saver.wait()
            self.record.tracker.flush(10.0)
        ray.train.report(report_of(state.step, state.best, self.config) if self.rank == 0 else {})

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Record metrics and print a line; rank 0 only."""
        if self.exported is not None:
            self.exported.update(metrics, step)
            self.record.tracker.log_metrics(metrics, step)
            print(describe_step(metrics, step, self.config), flush=True)

    def observe(self, batch: Batch) -> None:
        """Count the operations of a step; before the first one, print the memory that a batch takes."""
        if self._is_first_batch:
            self._is_first_batch = False
            if self.rank == 0:
                weights = sum(parameter.nbytes for parameter in self.parts.model.parameters())
                print(describe_memory(self.config, self.cost.kept_bytes(batch), weights), flush=True)
        self._flops += self.cost.flops(batch)

    def achieved(self, seconds: float) -> dict[str, float]:
        """Return the device's rate since the last call, its share of the card's peak if that is known, its memory."""
        tflops, self._flops = self._flops / seconds / 1e12, 0.0
        metrics = {"train/tflops": tflops, "train/peak_memory_gb": peak_memory_bytes(self.parts.device) / 1e9}
        peak = peak_tflops(self.parts.device, self.autocast())
        return metrics | ({"train/mfu": tflops / peak} if peak else {})

    def count_bad(self) -> dict[str, float]:
        """Return the unusable and truncated samples of all workers on rank 0; collective."""
        return self.record.count_bad(self.rejections, self.truncation, self.first_step)

    def stop_requested(self) -> bool:
        """Return whether this worker was asked to stop."""
        return self.stop_flag.is_set()

    def preempted(self) -> bool:
        """Return, once, that Ray announced the preemption of a node of this group; collective."""
        import ray.train

        if self._preemption_seen or ray.train.get_preemption_info() is None:
            return False
        self._preemption_seen = True
        if self.rank == 0:
            print(f"train {self.config.run_name}: a machine will go, writing a checkpoint", flush=True)
        return True

    def close(self) -> None:
        """Upload queued checkpoints, then deliver the record, also if the upload failed."""
        self.stop_flag.set()
        try:
            self.saver.close()
        except LeaseLost:  # the record is that of another driver now
            raise
        except Exception:
            self.record.finish(self.storage, done=False)
            raise
        self.record.finish(self.storage, done=self.state.step >= self.config.optim.total_steps)


def _without_secrets(value: Any) -> Any:
    return without_secrets(value) if isinstance(value, str) else value


def worker_device(config: Config) -> torch.device:
    """Return this worker's device; on a CPU, torch gets the worker's share of the cores."""
    import ray.train.torch

    device = ray.train.torch.get_device() if dist.is_initialized() else torch.device("cpu")
    if device.type == "cpu":
        torch.set_num_threads(max(1, int(config.cluster.cpus_per_worker)))
    return device
