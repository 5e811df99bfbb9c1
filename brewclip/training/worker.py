"""One worker of a training run: its model, data and connections, built before it enters the loop."""

import contextlib
import json
import logging
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from brewclip.checkpoints.checkpoint import (
    Checkpoint,
    CheckpointFacts,
    check_initial,
    check_same_run,
    checkpoint_name,
    load_checkpoint,
    load_optimizer_state,
    open_checkpoint,
    optimizer_state,
    read_files,
    step_name,
)
from brewclip.config import Config, flatten, unflatten
from brewclip.data.batches import Batch, Pair, collate
from brewclip.data.manifest import Manifest, open_manifest
from brewclip.data.order import SampleOrder
from brewclip.data.reader import Rejections, SplitReader
from brewclip.data.storage import Storage, exists, open_storage
from brewclip.data.stream import Stream, one_ahead
from brewclip.data.truncation import TruncationCounts
from brewclip.distributed import agree_on_problem, gather_to_first, sum_over_workers
from brewclip.errors import CheckpointError, StorageError, UserError
from brewclip.evaluation.embed import embed_split, gather_embeddings
from brewclip.factory import audio_dim_of, build_autocast, build_decoder, build_model, check_images, restore_model
from brewclip.losses import loss_of_chance
from brewclip.models.clip import PromptedCLIP
from brewclip.pretrained.clip_identity import identify_clip
from brewclip.pretrained.load import load_clip
from brewclip.tracking.provenance import SystemMetrics, record_origin, repeat_command
from brewclip.tracking.tracker import PARENT_TAG, Tracker, describe_environment, without_secrets
from brewclip.training.loop import TrainState, train
from brewclip.training.optimizer import build_optimizer
from brewclip.training.upload import CheckpointSaver, PendingCheckpoint

RESULT, STOP = "result.json", "stop"
# Folder of the best checkpoint among the artifacts of an MLflow run.
ARTIFACT = "checkpoint"
# Ray starts a group again when a worker dies or raises; these would be raised again.
_NOT_WORTH_A_RETRY = (
    TypeError, ValueError, LookupError, AttributeError, AssertionError, ImportError, NotImplementedError,
)  # fmt: skip


@dataclass(frozen=True)
class Assignment:
    """What the driver tells the workers.

    Attributes:
        config: the run, flattened.
        environment: of the driver: command, commit, versions.
        report: whether evaluations are reported to Ray Train as they come.
        submitted: when the workers were asked for, in seconds since 1970.
    """

    config: dict[str, Any]
    environment: dict[str, str] = field(default_factory=describe_environment)
    report: bool = False
    submitted: float = field(default_factory=time.time)


def train_worker(settings: dict[str, Any]) -> None:
    """Build one worker's parts, train, and leave the result with the run; runs on every worker of the group.

    Args:
        settings: an `Assignment` as a dictionary.
    """
    assignment = Assignment(**settings)
    config, state, run_id, is_bug = unflatten(assignment.config), TrainState(), "", False
    try:
        with _parts_of_worker(config, assignment) as (parts, problem):
            state = TrainState(problem=problem) if parts is None else parts.run()
            run_id = parts.tracker.run_id if parts is not None else ""
    except UserError as error:
        state.problem = str(error)
    except _NOT_WORTH_A_RETRY as error:
        traceback.print_exc()
        state.problem, is_bug = f"{type(error).__name__}: {error}", True
    if not dist.is_initialized() or dist.get_rank() == 0:
        result = {
            "step": state.step,
            "best": state.best,
            "problem": state.problem,
            "is_bug": is_bug,
            "mlflow_run_id": run_id,
        }
        open_storage(config.run_url).write(RESULT, json.dumps(result).encode())


@contextlib.contextmanager
def _parts_of_worker(config: Config, assignment: Assignment) -> Iterator[tuple["Worker | None", str]]:
    """Build a worker; if any of the group cannot be built, all give up with the same problem."""
    worker, problem = None, ""
    try:
        worker = Worker(config, assignment)
    except (UserError, ValueError, FileNotFoundError) as error:
        problem = str(error)
    problem = agree_on_problem(problem)
    try:
        yield (None if problem else worker), problem
    finally:
        if worker is not None:
            worker.close()


class Worker:
    """One worker's model, data and connections.

    Raises:
        UserError, ValueError, FileNotFoundError: if settings, data, weights and checkpoint do not fit together.
    """

    def __init__(self, config: Config, assignment: Assignment | None = None) -> None:
        self.config, self.started = config, time.time()
        self.assignment = assignment or Assignment(flatten(config))
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.world_size = dist.get_world_size() if dist.is_initialized() else 1
        self.device = _device()
        if self.device.type == "cpu":
            torch.set_num_threads(max(1, int(config.cluster.cpus_per_worker)))
        self.storage = open_storage(config.run_url, retry_seconds=config.data.retry_seconds)
        self.manifest = self._open(config.data.train_split)
        self.audio_dim = audio_dim_of(self.manifest)
        self.dev = SplitReader(self._open(config.data.dev_split))
        self.clip = load_clip(config.model.clip)
        check_images(self.manifest, self.clip)
        self.model = build_model(config, PromptedCLIP(self.clip.model), self.audio_dim).to(self.device)
        left_bytes = config.data.memory_bytes - self.manifest.summary.size_bytes  # by a split that is read once
        self.decoder = build_decoder(config, self.clip, cache_bytes=max(0, left_bytes), audio_dim=self.audio_dim)
        self.clip_identity = identify_clip(self.clip)
        self.optimizer = build_optimizer(self.model.trained_parameters(), config.optim)
        self.state, self.run_id = self._resume()
        self.first_step, self.bad_samples = self.state.step, list[dict[str, str | int]]()
        self.rejections = Rejections(self.manifest.url, config.data.max_bad_fraction)
        self.truncation = TruncationCounts()
        self.stop_flag = StopFlag(self.storage) if self.rank == 0 else threading.Event()
        self._preemption_seen = False
        self.saver = CheckpointSaver(self.storage, config.run.keep_checkpoints)
        self.tracker = self._open_tracker()
        self.system_metrics = SystemMetrics(self.tracker)
        self.built = time.time()

    def run(self) -> TrainState:
        """Train from where the run stands."""
        config = self.config
        if self.rank == 0:
            print(
                f"train {config.run_name}: step {self.state.step} of {config.optim.total_steps}, {self.world_size} "
                f"workers on {self.device.type}, {len(self.manifest)} pairs, "
                f"{sum(p.numel() for p in self.model.trained_parameters().values()):,} trained parameters",
                flush=True,
            )
            chance = loss_of_chance(config.run.global_batch_size, config.loss.reduction)
            print(f"train {config.run_name}: loss of chance {chance:.3f}", flush=True)
        return train(
            config,
            self.model,
            self.optimizer,
            self._batches(),
            self.state,
            evaluate=self.evaluate,
            save=self.save,
            count_bad=self.count_bad,
            log=self.log,
            stop_requested=self.stop_flag.is_set,
            preempted=self._preempted,
            autocast=lambda: build_autocast(config, self.device),
            report=self.report if self.assignment.report else None,
        )

    def evaluate(self) -> dict[str, float]:
        """Return dev metrics on rank 0, {} elsewhere."""
        rejections = Rejections(self.dev.manifest.url)
        with build_autocast(self.config, self.device):
            own = embed_split(
                self.model, self.dev, self.decoder, self._to_batch, rejections, rank=self.rank,
                world_size=self.world_size, num_threads=self.config.data.num_threads,
            )  # fmt: skip
        bad = sum_over_workers(torch.tensor(float(rejections.total), device=self.device)).item()
        everything = gather_embeddings(own)
        if everything is None:
            return {}
        return {f"dev/{name}": value for name, value in everything.rank().summary().items()} | {"dev/bad_samples": bad}

    def save(self, state: TrainState, best: bool) -> None:
        """Hand a checkpoint to the background upload; rank 0 only."""
        if self.rank != 0:
            return
        names = list(self.model.trained_parameters())
        facts = CheckpointFacts(
            step=state.step,
            config={name: _without_secrets(value) for name, value in flatten(self.config).items()},
            frozen_sha256=self._frozen_sha256,
            frozen_settings={self.clip_identity.name: self.clip_identity.settings},
            audio_dim=self.audio_dim,
            mlflow_run_id=self.tracker.run_id,
            metrics=dict(state.metrics),
            best=dict(state.best),
        )
        model = {name: tensor.cpu().contiguous() for name, tensor in self.model.trained_state().items()}
        self.saver.put(PendingCheckpoint(Checkpoint(facts, model, optimizer_state(self.optimizer, names)), best))

    def report(self, state: TrainState) -> None:
        """Tell Ray Train of an evaluation, once its checkpoint and records are safe: the run may be ended here."""
        import ray.train

        logging.getLogger().setLevel(logging.WARNING)  # Ray would print each report, by a logger below the root
        if self.rank == 0:
            self.saver.wait()
            self.tracker.flush(10.0)
        ray.train.report(report_of(state.step, state.best, self.config) if self.rank == 0 else {})

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Record metrics and print a line; rank 0 only."""
        if self.rank != 0:
            return
        self.tracker.log_metrics(metrics, step)
        print(describe_step(metrics, step, self.config), flush=True)

    def count_bad(self) -> dict[str, float]:
        """Tell rank 0 of the samples that could not be used or were cut; all workers together.

        It lists those that could not be used in MLflow.
        """
        reports = gather_to_first((dict(self.rejections.counts), list(self.rejections.listed), self.truncation))
        counts = sum((Counter(report[0]) for report in reports), Counter())
        rows = [row for report in reports for row in report[1]]
        if rows != self.bad_samples:
            self.bad_samples = rows
            text = "\n".join(json.dumps(row, sort_keys=True) for row in rows)
            self.tracker.log_text(text, f"bad_samples/from_step_{self.first_step}.jsonl")
        truncation = sum((report[2] for report in reports), TruncationCounts())
        bad = {f"data/bad/{cause}": float(count) for cause, count in counts.items()}
        return bad | {f"data/truncated/{name}": share for name, share in truncation.shares().items()}

    def close(self) -> None:
        """Deliver what is still on its way: checkpoints, then records."""
        self.stop_flag.set()
        self.system_metrics.stop()
        self.saver.close()
        if self.rank == 0:
            done = self.state.step >= self.config.optim.total_steps
            if done:
                self._record_checkpoint()
            self.tracker.finish("FINISHED" if done else "KILLED")

    def _record_checkpoint(self) -> None:
        """Record the best checkpoint as an artifact; the run is done without it, too."""
        try:
            name = checkpoint_name(self.storage, "best") if self.tracker.uri else ""
            files = read_files(self.storage, name) if name else {}
        except (StorageError, CheckpointError) as error:
            print(f"train {self.config.run_name}: its checkpoint is not recorded in MLflow: {error}", flush=True)
            return
        for file, data in files.items():
            self.tracker.log_bytes(data, f"{ARTIFACT}/{file}")

    def _open(self, split: str) -> Manifest:
        return open_manifest(f"{self.config.features_url}/{split}", retry_seconds=self.config.data.retry_seconds)

    def _resume(self) -> tuple[TrainState, str]:
        checkpoint = self._agreed_checkpoint()
        if checkpoint is None:
            self._load_initial_weights()
            return TrainState(), ""
        facts = checkpoint.facts
        check_same_run(self.config, facts)
        restore_model(self.model, checkpoint, self.clip_identity)
        load_optimizer_state(self.optimizer, list(self.model.trained_parameters()), checkpoint.optimizer)
        return TrainState(facts.step, dict(facts.best), dict(facts.metrics)), facts.mlflow_run_id

    def _load_initial_weights(self) -> None:
        """Take over what another run has learned, without its optimiser and its step."""
        url = self.config.run.init_from
        if not url:
            return
        initial = open_checkpoint(url)
        check_initial(self.config, url, initial)
        restore_model(self.model, initial, self.clip_identity)

    def _agreed_checkpoint(self) -> Checkpoint | None:
        """Return the newest whole checkpoint as rank 0 sees it, None if there is none.

        Raises:
            CheckpointError: on every rank if rank 0 finds none whole, or on one that does not see what rank 0 sees.
        """
        checkpoint, problem = None, None
        if self.rank == 0:
            try:
                checkpoint = load_checkpoint(self.storage)
            except Exception as error:  # the others wait for word of it
                problem = error
        told = [step_name(checkpoint.facts.step) if checkpoint is not None else "", str(problem or "")]
        if dist.is_initialized():
            dist.broadcast_object_list(told, src=0)
        if problem is not None:
            raise problem
        name, text = told
        if text:
            raise CheckpointError(text)
        if self.rank != 0 and name:
            checkpoint = load_checkpoint(self.storage, name)
            if checkpoint is None:
                raise CheckpointError(f"rank {self.rank} does not find checkpoint {name} of {self.storage.url}")
        return checkpoint

    def _preempted(self) -> bool:
        """Return, once, that Ray was told that a machine of this group will go; all workers ask together."""
        import ray.train

        if self._preemption_seen or ray.train.get_preemption_info() is None:
            return False
        self._preemption_seen = True
        if self.rank == 0:
            print(f"train {self.config.run_name}: a machine will go, writing a checkpoint", flush=True)
        return True

    def _open_tracker(self) -> Tracker:
        config, uri = self.config, self.config.tracking.uri if self.rank == 0 else ""
        parent = {PARENT_TAG: config.tracking.parent_run} if config.tracking.parent_run else {}
        tracker = Tracker(uri, config.tracking.experiment, config.run_name, config.run_url, tags=parent)
        if self.rank == 0:
            details = {f"data.{name}": value for name, value in self.manifest.summary.details.items()}
            details |= {f"clip.{name}": value for name, value in self.clip_identity.settings.items()}
            tracker.log_params(flatten(config) | details)
            record_origin(
                tracker,
                config,
                "train",
                repeat=repeat_command(config),
                environment=self.assignment.environment | {"brewclip.world_size": str(self.world_size)},
                sha256=self._frozen_sha256 | {"manifest": self.manifest.sha256, "dev": self.dev.manifest.sha256},
            )
        return tracker

    @property
    def _frozen_sha256(self) -> dict[str, str]:
        return {self.clip_identity.name: self.clip_identity.weights_sha256}

    def _to_batch(self, pairs: list[Pair]) -> Batch:
        return collate(pairs, self.clip.mean, self.clip.std, self.device)

    def _batches(self) -> Iterator[tuple[Batch, Tensor]]:
        """Yield this worker's part of each global batch, with the positions of its samples."""
        data, run = self.config.data, self.config.run
        order = SampleOrder(self.manifest, run.seed, run.global_batch_size)
        stream = Stream(
            SplitReader(self.manifest, data.cache_directory), order, self.decoder, self.rejections, rank=self.rank,
            world_size=self.world_size, memory_bytes=data.memory_bytes, num_threads=data.num_threads,
        )  # fmt: skip
        steps = ((step, pairs, self._to_batch(pairs)) for step, pairs in stream.iter_from(self.state.step))
        for step, pairs, batch in one_ahead(steps):
            positions = torch.from_numpy(step * run.global_batch_size + stream.slots)
            self.truncation.add(pair.lengths for pair in pairs)
            if step == self.first_step and self.rank == 0:
                print(self._describe_start(), flush=True)
            yield batch, positions

    def _describe_start(self) -> str:
        """Return what passed before the first step."""
        submitted, now = self.assignment.submitted, time.time()
        return (
            f"train {self.config.run_name}: first batch {now - submitted:.1f} s after the start: workers up "
            f"{self.started - submitted:.1f} s, weights and data {self.built - self.started:.1f} s, "
            f"batch {now - self.built:.1f} s"
        )


class StopFlag(threading.Event):
    """Set when the object `stop` appears beside the run: the driver was asked to end."""

    def __init__(self, storage: Storage, every_seconds: float = 1.0) -> None:
        super().__init__()
        self._storage, self._every_seconds = storage, every_seconds
        threading.Thread(target=self._watch, name="stop-flag", daemon=True).start()

    def _watch(self) -> None:
        while not self.wait(self._every_seconds):
            with contextlib.suppress(StorageError):
                if exists(self._storage, STOP):
                    self.set()


def report_of(step: int, best: dict[str, float], config: Config) -> dict[str, float]:
    """Return what is reported of an evaluation: the step, and the best of the selection metric so far."""
    return {"step": step, config.run.selection_metric: best[config.run.selection_metric]}


def describe_step(metrics: dict[str, float], step: int, config: Config) -> str:
    """Return one line for people: losses and rate with the time left, or recalls on dev."""
    total = config.optim.total_steps
    if "train/loss" not in metrics:
        recalls = ", ".join(f"{name} {metrics[name]:.1f}" for name in sorted(metrics) if name.endswith(("/R1", "/R10")))
        return f"train {config.run_name}: step {step}/{total}, {recalls}"
    from brewclip.progress import describe_seconds

    rate = metrics["train/samples_per_second"]
    left = describe_seconds((total - step) * config.run.global_batch_size / max(rate, 1e-9))
    return (
        f"train {config.run_name}: step {step}/{total}, loss {metrics['train/loss']:.3f}, "
        f"lr {metrics['train/lr']:.2g}, {rate:.0f} pairs/s, {left} left"
    )


def _without_secrets(value: Any) -> Any:
    return without_secrets(value) if isinstance(value, str) else value


def _device() -> torch.device:
    import ray.train.torch

    return ray.train.torch.get_device() if dist.is_initialized() else torch.device("cpu")
