"""A sweep from settings to results: trials over the whole cluster, resumed where it was interrupted.

Below STORAGE/sweeps/NAME: sweep.json, space and settings; trials.jsonl, the record from which it is resumed;
trials.json, trials.csv, trials.md and the figures, once it is over. The trials are runs, STORAGE/runs/NAME-TRIAL.
"""

import contextlib
import json
import logging
import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from brewclip.checkpoints.compatibility import check_same_run
from brewclip.checkpoints.facts import CheckpointFacts
from brewclip.cluster import check_resources, demand_of, uses_gpu
from brewclip.config import flatten
from brewclip.config.masking import without_secrets
from brewclip.data.storage import Storage, exists, open_storage
from brewclip.errors import UserError
from brewclip.tracking.tracker import describe_environment, supersede
from brewclip.training.launch import prepare
from brewclip.training.lease import FOLDER as LEASES
from brewclip.training.lease import Fence, holding_lease
from tune.ledger import Ledger, TrialRecord
from tune.options import SweepConfig, check_options, shared_settings
from tune.records import SweepRecord, register_best, sweep_url
from tune.results import TrialRow, best_trial, table_files, text_table
from tune.spaces import Space
from tune.state import FileMirror, read_json
from tune.trial import is_trial_of

_MEMORY_OF_TRIAL_BYTES = 600 * 2**20
_REMOVAL = "removal"  # there while an earlier sweep of the name is being removed


@contextlib.contextmanager
def claim_sweep(config: SweepConfig, space: Space) -> Iterator[Fence]:
    """Check options, storage and data, and hold the sweep's lease, so that no other program runs it; needs no cluster.

    With `--run.fresh`, the earlier sweep of the name and its trials are removed.

    Raises:
        UserError: if something is wrong, another program runs the sweep, or an earlier one of the name has other
            settings; one line with the remedy.
    """
    check_options(config)
    # Without a checkpoint of that name, this checks storage, splits and counts.
    prepare(replace(shared_settings(config), run=replace(config.run, fresh=False)))
    storage = open_storage(sweep_url(config))
    with holding_lease(storage, config.run_name) as fence:
        if config.run.fresh or exists(storage, _REMOVAL):
            _start_over(config, storage)
        _check_same_sweep(config, space, storage)
        yield fence


def _check_same_sweep(config: SweepConfig, space: Space, storage: Storage) -> None:
    """Record space and settings of a new sweep; compare them with those of an earlier one of the name."""
    settings = {"space": space, "config": flatten(replace(config, run=replace(config.run, fresh=False)))}
    settings = json.loads(without_secrets(json.dumps(settings)))
    before = read_json(storage, "sweep.json")
    if before is None:
        storage.write("sweep.json", json.dumps(settings, indent=1).encode())
        return
    if storage.list_names("state/"):
        raise UserError(
            f"sweep {config.run_name!r} was started by an earlier version, whose state is pickled and is not read: "
            "choose another --run.name, or start over with --run.fresh"
        )
    if before["space"] != settings["space"]:
        raise UserError(
            f"sweep {config.run_name!r} was started with another space: choose another --run.name, or start over "
            "with --run.fresh"
        )
    check_same_run(config, CheckpointFacts(step=0, config=before["config"], frozen_sha256={}, audio_dim=0))


def run_sweep(config: SweepConfig, space: Space, fence: Fence, command: str) -> list[TrialRow]:
    """Run all trials on the connected Ray cluster, and record the results.

    Args:
        config: of the sweep.
        space: the search space.
        fence: of the lease that `claim_sweep` holds.
        command: that repeats the sweep.

    Returns:
        The trials, in the order of their creation. All of them may have failed.
    """
    cluster = config.cluster
    check_resources(demand_of("a trial", cluster, cluster.min_workers or cluster.num_workers))
    record = SweepRecord(config, space, command)
    storage = open_storage(sweep_url(config))
    with tempfile.TemporaryDirectory(prefix="brewclip-sweep-") as folder:
        ledger = Ledger(Path(folder))
        mirror = FileMirror(storage, ledger.path, check=lambda: fence.check(storage))
        mirror.fetch()
        mirror.start()
        try:
            rows = _run_trials(config, space, record.run_id, ledger, Path(folder))
        except BaseException:
            record.abandon()
            raise
        finally:
            mirror.close()
    fence.check(storage)
    files = _result_files(config, space, rows)
    for name, data in files.items():
        storage.write(name, data)
    record.finish(rows, files)
    name = register_best(config, rows)
    print(f"\n{text_table(rows, config.run.selection_metric)}\n\ntable and figures: {storage.url}", flush=True)
    if name:
        print(f"best: {best_trial(rows).name}, registered as {name}", flush=True)  # type: ignore[union-attr]
    return rows


def _run_trials(config: SweepConfig, space: Space, parent: str, ledger: Ledger, folder: Path) -> list[TrialRow]:
    """Run the remaining trials with Tune, and return all trials, including those of earlier submissions.

    Args:
        config: of the sweep.
        space: the search space.
        parent: the sweep's run in MLflow.
        ledger: record of the trials.
        folder: for Tune's files, which nothing is read from.
    """
    # Read when Tune is imported: its loggers would write a second record of everything.
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # with it, an interrupted sweep would look like a finished one
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # its boxed tables do not fit our output lines
    logging.getLogger("ray.tune.analysis").setLevel(logging.ERROR)  # it warns about the loggers' missing files
    from ray import tune

    from tune.schedulers import build_scheduler
    from tune.search import build_search, limit
    from tune.watch import TrialWatch

    before = ledger.resume(space)
    if before:
        print(f"sweep {config.run_name}: resumed, trials that have reported: {_reported(before)}", flush=True)
    search = build_search(config, space, before)
    if search.num_left:
        tuner = tune.Tuner(
            _trainable(config, parent),
            tune_config=tune.TuneConfig(
                num_samples=search.num_left,
                scheduler=build_scheduler(config, before),
                search_alg=limit(search, count_places(config)),
            ),
            run_config=tune.RunConfig(
                storage_path=str(folder),
                verbose=0,
                callbacks=[TrialWatch(config, parent, ledger)],
                failure_config=tune.FailureConfig(max_failures=0),
            ),
        )
        tuner.fit()
    return [record.row(config.run_name, trial) for trial, record in ledger.read().items()]


def _reported(trials: dict[str, TrialRecord]) -> int:
    return sum(bool(record.curve) for record in trials.values())


def _trainable(config: SweepConfig, parent: str) -> Any:
    """Return the trial function bound to the shared settings, as a small actor that reserves no CPU."""
    import sys

    from ray import cloudpickle, tune

    from tune.trial import run_trial

    cloudpickle.register_pickle_by_value(sys.modules["tune.trial"])
    cluster = replace(config.cluster, max_failures=config.sweep.max_failures)
    shared = replace(shared_settings(config), cluster=cluster, tracking=replace(config.tracking, parent_run=parent))
    bound = tune.with_parameters(
        run_trial, sweep=config.run_name, shared=flatten(shared), environment=describe_environment()
    )
    return tune.with_resources(bound, {"CPU": 0, "memory": _MEMORY_OF_TRIAL_BYTES})


def count_places(config: SweepConfig) -> int:
    """Return how many trials fit in parallel on the free resources of the cluster, at least one."""
    import ray

    cluster, free = config.cluster, ray.available_resources()
    places = int(free.get("CPU", 0) // (cluster.num_workers * cluster.cpus_per_worker))
    if uses_gpu(cluster):
        places = min(places, int(free.get("GPU", 0) // cluster.num_workers))
    if places < 1:
        print(f"sweep {config.run_name}: no trial has room now, they wait until the cluster has", flush=True)
    places = max(1, places)
    return min(places, config.sweep.max_concurrent) if config.sweep.max_concurrent else places


def _result_files(config: SweepConfig, space: Space, rows: list[TrialRow]) -> dict[str, bytes]:
    from tune.figures import draw_figures

    metric = config.run.selection_metric
    tables = {name: text.encode() for name, text in table_files(rows, metric).items()}
    return tables | draw_figures(rows, space, metric)


def _start_over(config: SweepConfig, storage: Storage) -> None:
    """Remove the sweep and the runs of its trials, and supersede their MLflow runs; safe to interrupt at any point."""
    if config.run.fresh:
        storage.write(_REMOVAL, b"")
    else:
        print(f"sweep {config.run_name!r}: starting over was interrupted and is finished now", flush=True)
    runs = open_storage(f"{config.storage.rstrip('/')}/runs")
    # Other runs may share the prefix.
    names = [name for name in runs.list_names(f"{config.run_name}-") if is_trial_of(config.run_name, name)]
    for run in sorted({name.split("/")[0] for name in names}):
        supersede(config.tracking.uri, config.tracking.experiment, f"{runs.url}/{run}")
    supersede(config.tracking.uri, config.tracking.experiment, storage.url)
    for name in names:
        runs.delete(name)
    for name in storage.list_names():
        if name != _REMOVAL and not name.startswith(f"{LEASES}/"):
            storage.delete(name)
    storage.delete(_REMOVAL)
