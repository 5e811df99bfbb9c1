"""The driver's part of a training run: find mistakes early, start the workers, say how it ended.

It is light to import: driver and Ray's controller need neither CLIP nor the training loop, which take seconds.
"""

import contextlib
import gc
import json
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any
from urllib.parse import urlsplit

from brewclip.checkpoints.checkpoint import load_checkpoint, load_resume_point, open_checkpoint
from brewclip.checkpoints.compatibility import check_initial, check_same_run
from brewclip.checkpoints.facts import Checkpoint
from brewclip.checkpoints.removal import begin_removal, finish_removal, is_being_removed
from brewclip.cluster import check_resources, demand_of, has_workers
from brewclip.config import Config, flatten
from brewclip.data.manifest import open_manifest
from brewclip.data.order import SampleOrder
from brewclip.data.storage import Storage, check_reachable, exists, open_storage
from brewclip.errors import UserError
from brewclip.tracking.registry import is_registered_name, resolve_model
from brewclip.tracking.tracker import describe_environment, supersede
from brewclip.training.assignment import RESULT, Assignment
from brewclip.training.lease import Fence, holding_lease
from brewclip.training.state import STOP_REQUESTED
from brewclip.training.stop import STOP


def prepare(config: Config) -> Config:
    """Find what cannot work before a worker starts: storage, splits, counts, an earlier run of other settings.

    Returns:
        The settings, with the checkpoint in place of a registered name to start from.

    Raises:
        UserError: one line with the remedy.
    """
    check_reachable(config.storage)
    if config.model.variant == "zero_shot":
        raise UserError("--model.variant zero_shot has nothing to train: evaluate it with jobs/evaluate.py")
    manifest = open_manifest(f"{config.splits_url}/{config.data.train_split}", retry_seconds=10)
    open_manifest(f"{config.splits_url}/{config.data.dev_split}", retry_seconds=10)
    order = SampleOrder(manifest, config.run.seed, config.run.global_batch_size)
    try:
        order.check(config.cluster.num_workers)
    except ValueError as error:
        raise UserError(str(error)) from None
    storage = open_storage(config.run_url)
    latest = None if config.run.fresh or is_being_removed(storage) else load_checkpoint(storage)
    config = _with_checkpoint_url(config, latest)
    if latest is not None:
        check_same_run(config, latest.facts)
    elif config.run.init_from:
        _check_initial_of(config)
    return config


@contextlib.contextmanager
def claim_run(config: Config) -> Iterator[Fence]:
    """Prepare a run and hold its lease, so that no other program trains it; needs no cluster.

    With `--run.fresh`, the earlier run of the name is removed. A pointer that is damaged is repaired.

    Raises:
        UserError: as `prepare`, or if another program trains the run.
    """
    given, config = config.run.init_from, prepare(config)
    if config.run.init_from != given:
        print(f"--run.init-from {given} stands for {config.run.init_from}", flush=True)
    storage = open_storage(config.run_url)
    with holding_lease(storage, config.run_name) as fence:
        storage.delete(RESULT)
        storage.delete(STOP)
        if config.run.fresh or is_being_removed(storage):
            _start_over(config, storage)
        load_resume_point(storage)
        yield fence


def run_training(
    config: Config,
    fence: Fence,
    *,
    environment: dict[str, str] | None = None,
    callbacks: list[Any] | None = None,
) -> dict[str, Any]:
    """Train on the cluster that Ray is joined to; resume an earlier run of the same name.

    Args:
        config: the run.
        fence: of the lease that `claim_run` holds.
        environment: of the program that the user started, by default of this one, see `describe_environment`.
        callbacks: callbacks of Ray Train; with them, workers report each evaluation but the last as it comes.

    Returns:
        step, best (metric and step), url of the run, mlflow_run_id.

    Raises:
        UserError: for data, weights or checkpoints that do not fit, if the run was asked to stop, or if another program
            has taken it over.
    """
    storage = open_storage(config.run_url)
    checkpoint = load_checkpoint(storage)
    config = _with_checkpoint_url(config, checkpoint)
    latest = checkpoint.facts if checkpoint is not None else None
    if latest is not None and latest.step >= config.optim.total_steps:
        print(f"run {config.run_name!r} is finished at step {latest.step}: nothing to do (--run.fresh starts over)")
        return _run_result(config, latest.step, latest.best, latest.mlflow_run_id)
    assignment = Assignment(
        # Starting over is done once; a restarted worker resumes.
        config=flatten(replace(config, run=replace(config.run, fresh=False))),
        environment=environment or describe_environment(),
        report=bool(callbacks),
        fence=fence,
    )
    try:
        _fit(config, assignment, callbacks)
    except Exception:
        if not exists(storage, RESULT):  # else a worker has said what is wrong
            raise
    fence.check(storage)
    result = json.loads(storage.read(RESULT))
    if result["problem"] == STOP_REQUESTED:
        raise UserError(f"run {config.run_name!r} was asked to stop at step {result['step']}; submit it again to go on")
    if result["is_bug"]:
        raise RuntimeError(f"training failed, its traceback stands above: {result['problem']}")
    if result["problem"]:
        raise UserError(result["problem"])
    return _run_result(config, result["step"], result["best"], result["mlflow_run_id"])


def _fit(config: Config, assignment: Assignment, callbacks: list[Any] | None) -> None:
    """Run the workers to their end."""
    cluster = config.cluster
    elastic = 0 < cluster.min_workers < cluster.num_workers
    num_workers: Any = (cluster.min_workers, cluster.num_workers) if elastic else cluster.num_workers
    demand = demand_of("training", cluster, cluster.min_workers if elastic else cluster.num_workers)
    check_resources(demand)
    _warn_of_unreachable(config)
    import ray.train
    from ray.train.torch import TorchTrainer  # seconds, which a demand that is refused does not wait for

    with tempfile.TemporaryDirectory(prefix="brewclip-train-") as folder:
        trainer = TorchTrainer(
            train_worker,
            train_loop_config=asdict(assignment),
            scaling_config=ray.train.ScalingConfig(
                num_workers=num_workers,
                use_gpu=demand.gpus > 0,
                resources_per_worker=demand.bundle(),
                elastic_resize_monitor_interval_s=cluster.resize_every_seconds,  # type: ignore[call-arg]
            ),
            run_config=ray.train.RunConfig(  # type: ignore[call-arg]  # seen by mypy as the old one of ray.air
                name=config.run_name,
                storage_path=folder,
                logging_config=ray.train.LoggingConfig(log_level="WARNING"),
                failure_config=ray.train.FailureConfig(max_failures=cluster.max_failures),
                callbacks=callbacks,
            ),
        )
        with _stopping_on_sigterm(config):
            trainer.fit()


def train_worker(settings: dict[str, Any]) -> None:
    """Train as one worker of a group, see `run_worker`.

    Args:
        settings: an `Assignment` as a dictionary.
    """
    gc.disable()  # a seventh of the imports' time is a search for garbage among objects that stay
    try:
        from brewclip.training.entry import run_worker
    finally:
        gc.enable()
    run_worker(settings)


def _start_over(config: Config, storage: Storage) -> None:
    """Remove what an earlier run of the name left, or finish doing so."""
    if config.run.init_from:
        _check_initial_of(config)
    if config.run.fresh:
        begin_removal(storage)
    else:
        print(f"run {config.run_name!r}: starting over was interrupted and is finished now", flush=True)
    supersede(config.tracking.uri, config.tracking.experiment, config.run_url)
    finish_removal(storage)


def _check_initial_of(config: Config) -> None:
    """Check the checkpoint that a run starts from; it must outlive the start."""
    url = config.run.init_from
    if config.run.fresh and f"{url.rstrip('/')}/".startswith(f"{config.run_url}/"):
        raise UserError(f"--run.init-from {url} is of the run that starts over: choose another --run.name")
    check_initial(config, url, open_checkpoint(url))


def _with_checkpoint_url(config: Config, latest: Checkpoint | None) -> Config:
    """Replace a registered name to start from by its checkpoint; a run that has started keeps the one it started from.

    The name may stand for another checkpoint, or for none, when the run is resumed from `latest`.
    """
    url = ""
    if latest is not None and is_registered_name(config.run.init_from):
        url = latest.facts.config.get("run.init_from", "")
    url = url or resolve_model(config.run.init_from, config.tracking.uri)
    return replace(config, run=replace(config.run, init_from=url))


def _warn_of_unreachable(config: Config) -> None:
    """Say when the worker that records the run may be on another machine than the record."""
    import ray

    uri = config.tracking.uri
    is_local = uri.startswith(("sqlite:", "file:")) or urlsplit(uri).hostname in ("localhost", "127.0.0.1", "::1")
    machines = {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    if is_local and len(machines) > 1:
        print(
            f"warning: --tracking.uri {uri} is reached from one machine only, and the worker that records the run may "
            f"be on any of {len(machines)}: give an address that all of them reach",
            file=sys.stderr,
        )


@contextlib.contextmanager
def _stopping_on_sigterm(config: Config) -> Iterator[None]:
    """Turn a request to end the driver into a checkpoint: the workers are notified, and the driver waits for them.

    Without workers, while they wait for room after a node was lost, the driver ends at once. Only a program's main
    thread can; a run that was started from another thread ends with its program.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    ends_at_once = False

    def ask(number: int, frame: object) -> None:
        nonlocal ends_at_once
        if not has_workers():
            ends_at_once = True
            raise KeyboardInterrupt  # in ray.get, any other exception of a signal's handler is lost
        print(f"run {config.run_name!r} was asked to end: writing a checkpoint", flush=True)
        open_storage(config.run_url, retry_seconds=10).write(STOP, b"")

    before = signal.signal(signal.SIGTERM, ask)
    try:
        yield
    except KeyboardInterrupt:
        if not ends_at_once:
            raise
        raise UserError(
            f"run {config.run_name!r} was asked to end while its workers waited for room: submit it again to go on "
            "from its last checkpoint"
        ) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _run_result(config: Config, step: int, best: dict[str, float], run_id: str) -> dict[str, Any]:
    return {"step": step, "best": best, "url": config.run_url, "mlflow_run_id": run_id}
