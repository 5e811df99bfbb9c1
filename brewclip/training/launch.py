"""The driver's part of a training run: find mistakes early, start the workers, say how it ended."""

import contextlib
import json
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from brewclip.config import Config, UserError, flatten
from brewclip.data.manifest import open_manifest
from brewclip.data.order import SampleOrder
from brewclip.data.storage import check_reachable, open_storage
from brewclip.tracking import supersede
from brewclip.training.checkpoint import check_same_run, load_checkpoint, remove_checkpoints
from brewclip.training.loop import STOP_REQUESTED
from brewclip.training.worker import OUTCOME, STOP, train_worker


def run_training(config: Config) -> dict[str, Any]:
    """Train on the cluster that Ray is joined to; goes on where an earlier run of the same name stopped.

    Call `prepare` first, which needs no cluster.

    Returns:
        step, best (metric and step), url of the run, mlflow_run_id.

    Raises:
        UserError: for data, weights or checkpoints that do not fit, or if the run was asked to stop.
    """
    latest = load_checkpoint(open_storage(config.run_url))
    if latest is not None and latest.facts.step >= config.optim.total_steps:
        print(
            f"run {config.run_name!r} is finished at step {latest.facts.step}: nothing to do (--run.fresh starts over)"
        )
        return _outcome(config, latest.facts.step, latest.facts.best, latest.facts.mlflow_run_id)

    import ray.train
    from ray.train.torch import TorchTrainer

    cluster = config.cluster
    elastic = 0 < cluster.min_workers < cluster.num_workers
    num_workers: Any = (cluster.min_workers, cluster.num_workers) if elastic else cluster.num_workers
    resources = {"CPU": cluster.cpus_per_worker} | ({"GPU": 1} if cluster.use_gpu else {})
    with tempfile.TemporaryDirectory(prefix="brewclip-train-") as folder:
        trainer = TorchTrainer(
            train_worker,
            # Starting over is done once; a restarted worker goes on.
            train_loop_config=flatten(replace(config, run=replace(config.run, fresh=False))),
            scaling_config=ray.train.ScalingConfig(
                num_workers=num_workers,
                use_gpu=cluster.use_gpu,
                resources_per_worker=resources,
            ),
            run_config=ray.train.RunConfig(  # type: ignore[call-arg]  # seen by mypy as the old one of ray.air
                name=config.run_name,
                storage_path=folder,
                logging_config=ray.train.LoggingConfig(log_level="WARNING"),
                failure_config=ray.train.FailureConfig(max_failures=cluster.max_failures),
            ),
        )
        with _stopping_on_sigterm(config):
            trainer.fit()
    outcome = json.loads(open_storage(config.run_url).read(OUTCOME))
    if outcome["problem"] == STOP_REQUESTED:
        raise UserError(
            f"run {config.run_name!r} was asked to stop at step {outcome['step']}; submit it again to go on"
        )
    if outcome["is_bug"]:
        raise RuntimeError(f"training failed, its traceback stands above: {outcome['problem']}")
    if outcome["problem"]:
        raise UserError(outcome["problem"])
    return _outcome(config, outcome["step"], outcome["best"], outcome["mlflow_run_id"])


def prepare(config: Config) -> None:
    """Find what cannot work before a worker starts: storage, splits, counts, an earlier run of other settings.

    Raises:
        UserError: one line with the remedy.
    """
    check_reachable(config.storage)
    if config.model.variant == "zero_shot":
        raise UserError("--model.variant zero_shot has nothing to train: evaluate it with jobs/evaluate.py")
    manifest = open_manifest(f"{config.features_url}/{config.data.train_split}", retry_seconds=10)
    open_manifest(f"{config.features_url}/{config.data.dev_split}", retry_seconds=10)
    order = SampleOrder(manifest, config.run.seed, config.run.global_batch_size)
    try:
        order.check(config.cluster.num_workers)
    except ValueError as error:
        raise UserError(str(error)) from None
    storage = open_storage(config.run_url)
    storage.delete(OUTCOME)
    storage.delete(STOP)
    if config.run.fresh:
        remove_checkpoints(storage)
        supersede(config.tracking.uri, config.tracking.experiment, config.run_url)
    latest = load_checkpoint(storage)
    if latest is not None:
        check_same_run(config, latest.facts)


@contextlib.contextmanager
def _stopping_on_sigterm(config: Config) -> Iterator[None]:
    """Turn a request to end the driver into a checkpoint: the workers are told, and the driver waits for them."""

    def ask(number: int, frame: object) -> None:
        print(f"run {config.run_name!r} was asked to end: writing a checkpoint", flush=True)
        open_storage(config.run_url, retry_seconds=10).write(STOP, b"")

    before = signal.signal(signal.SIGTERM, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _outcome(config: Config, step: int, best: dict[str, float], run_id: str) -> dict[str, Any]:
    return {"step": step, "best": best, "url": config.run_url, "mlflow_run_id": run_id}
