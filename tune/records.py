"""A sweep in MLflow: one parent run with its trials as children, table, figures, and the registered best model.

Runs are identified by their URL in storage, so a resumed sweep continues the same MLflow runs.
"""

from brewclip.checkpoints.checkpoint import checkpoint_name, read_files
from brewclip.config import flatten
from brewclip.data.storage import open_storage
from brewclip.errors import CheckpointError, StorageError, UserError
from brewclip.tracking.provenance import SystemMetrics, record_origin
from brewclip.tracking.registry import ARTIFACT, register_checkpoint
from brewclip.tracking.tracker import PARENT_TAG, Tracker, find_runs
from tune.options import SweepConfig
from tune.results import Outcome, TrialRow, best_trial
from tune.spaces import Space

_STATUS: dict[Outcome, str] = {"finished": "FINISHED", "stopped_early": "KILLED", "failed": "FAILED"}


class SweepRecord:
    """The parent run of a sweep in MLflow; without a tracking URI nothing is recorded.

    Args:
        config: of the sweep.
        space: the search space.
        command: that repeats the sweep.

    Raises:
        UserError: if MLflow does not answer: trials are recorded as children of this run, so it must exist first.
    """

    def __init__(self, config: SweepConfig, space: Space, command: str) -> None:
        self.config, uri = config, config.tracking.uri
        self.url = sweep_url(config)
        self.tracker = Tracker(uri, config.tracking.experiment, config.run_name, self.url)
        record_origin(self.tracker, config, "sweep", repeat=command)
        self.tracker.log_params({f"space.{name}": values for name, values in space.items()} | flatten(config))
        if not self.tracker.flush(60.0):
            raise UserError(f"MLflow at {uri} records nothing: start it, or sweep without: --tracking.uri ''")
        self.system_metrics = SystemMetrics(self.tracker)

    @property
    def run_id(self) -> str:
        """Id of the parent run in MLflow, or empty."""
        return self.tracker.run_id

    def finish(self, rows: list[TrialRow], files: dict[str, bytes]) -> None:
        """Record the results: the state of every trial, the best settings, tables and figures.

        Args:
            rows: the trials.
            files: contents by name, stored as artifacts of the parent.
        """
        self.system_metrics.stop()
        for row in rows:
            settle_trial(self.config, self.run_id, row)
        best, metric = best_trial(rows), self.config.run.selection_metric
        counts = {f"sweep/{outcome}": float(sum(row.outcome == outcome for row in rows)) for outcome in _STATUS}
        if best is not None and best.best is not None:
            self.tracker.log_params({f"best.{name}": value for name, value in best.params.items()})
            self.tracker.set_tags({"brewclip.best_trial": best.name})
            counts[metric] = best.best
        self.tracker.log_metrics(counts, 0)
        for name, data in files.items():
            self.tracker.log_bytes(data, name)
        self.tracker.finish("FAILED" if best is None else "FINISHED")

    def abandon(self) -> None:
        """Close the record of an interrupted sweep; it is resumed with the sweep."""
        self.system_metrics.stop()
        self.tracker.finish("KILLED", wait_seconds=10.0)


def sweep_url(config: SweepConfig) -> str:
    """Return the URL of a sweep's state and results."""
    return f"{config.storage.rstrip('/')}/sweeps/{config.run_name}"


def settle_trial(config: SweepConfig, parent: str, row: TrialRow, *, wait_seconds: float = 60.0) -> None:
    """Finalize a trial's run in MLflow: status, outcome, cause, and the checkpoint if it was stopped early.

    If the trial's workers never started, its run is created here.
    """
    if not config.tracking.uri:
        return
    url = f"{config.storage.rstrip('/')}/runs/{row.name}"
    tracker = Tracker(config.tracking.uri, config.tracking.experiment, row.name, url, tags={PARENT_TAG: parent})
    tags = {"brewclip.outcome": row.outcome, "brewclip.sweep": config.run_name, "brewclip.kind": "train"}
    if row.outcome == "failed":
        tags["brewclip.problem"] = row.problem
    if row.outcome == "stopped_early":
        tags["brewclip.stopped_early"] = f"at step {row.step} of {config.optim.total_steps}"
        try:
            storage = open_storage(url)
            name = checkpoint_name(storage, "best")
            for file, data in read_files(storage, name).items() if name else ():
                tracker.log_bytes(data, f"{ARTIFACT}/{file}")
        except (CheckpointError, StorageError) as error:  # the trial may still be writing
            print(f"sweep {config.run_name}: MLflow has no checkpoint of {row.name}: {error}", flush=True)
    tracker.log_params(row.params)
    if row.best is not None:  # MLflow's own pages show the last value of a curve
        tracker.log_metrics({f"best/{config.run.selection_metric}": row.best}, row.step)
    tracker.set_tags(tags)
    tracker.finish(_STATUS[row.outcome], wait_seconds=wait_seconds)


def register_best(config: SweepConfig, rows: list[TrialRow]) -> str:
    """Register the best checkpoint of all trials in MLflow.

    Returns:
        The name, `models:/NAME@best`; empty if there is no checkpoint, name or tracking URI.
    """
    best, name, uri = best_trial(rows), config.sweep.register_as, config.tracking.uri
    if best is None or not name or not uri:
        return ""
    run_url = f"{config.storage.rstrip('/')}/runs/{best.name}"
    folder = checkpoint_name(open_storage(run_url), "best")
    run = find_runs(uri, config.tracking.experiment, run_url)[0]
    register_checkpoint(uri, name, "best", run.info.run_id, f"{run_url}/checkpoints/{folder}", ARTIFACT)
    return f"models:/{name}@best"
