"""The MLflow record of a training run: settings and origin, metrics, unusable samples, the best checkpoint."""

import json
from collections import Counter

from brewclip.checkpoints.checkpoint import checkpoint_name, read_files
from brewclip.config import Config, flatten
from brewclip.data.reader import Rejections
from brewclip.data.storage import Storage
from brewclip.data.truncation import TruncationCounts
from brewclip.distributed import gather_to_first
from brewclip.errors import CheckpointError, StorageError
from brewclip.tracking.provenance import SystemMetrics, record_origin, repeat_command
from brewclip.tracking.registry import ARTIFACT
from brewclip.tracking.tracker import PARENT_TAG, Tracker
from brewclip.training.parts import Parts


class RunRecord:
    """The record of a run on rank 0; on other ranks nothing is recorded.

    Args:
        config: of the run.
        rank: of this worker.

    Attributes:
        tracker: delivers to MLflow in the background.
    """

    def __init__(self, config: Config, rank: int) -> None:
        parent = {PARENT_TAG: config.tracking.parent_run} if config.tracking.parent_run else {}
        uri = config.tracking.uri if rank == 0 else ""
        self.config, self.is_first = config, rank == 0
        self.tracker = Tracker(uri, config.tracking.experiment, config.run_name, config.run_url, tags=parent)
        self._system_metrics = SystemMetrics(self.tracker)
        self._bad_samples: list[dict[str, str | int]] = []

    def start(self, parts: Parts, environment: dict[str, str], world_size: int) -> None:
        """Record settings, data, frozen weights and the driver's environment."""
        if not self.is_first:
            return
        details = {f"data.{name}": value for name, value in parts.manifest.summary.details.items()}
        details |= {f"clip.{name}": value for name, value in parts.clip_identity.settings.items()}
        self.tracker.log_params(flatten(self.config) | details)
        record_origin(
            self.tracker,
            self.config,
            "train",
            repeat=repeat_command(self.config),
            environment=environment | {"brewclip.world_size": str(world_size)},
            sha256=parts.frozen_sha256 | {"manifest": parts.manifest.sha256, "dev": parts.dev.manifest.sha256},
        )

    def count_bad(self, rejections: Rejections, truncation: TruncationCounts, first_step: int) -> dict[str, float]:
        """Sum unusable and truncated samples over all workers, and list the unusable ones; collective.

        Returns:
            `data/bad/CAUSE` (counts) and `data/truncated/UNIT` (shares) on rank 0.
        """
        reports = gather_to_first((dict(rejections.counts), list(rejections.listed), truncation))
        counts = sum((Counter(report[0]) for report in reports), Counter())
        rows = [row for report in reports for row in report[1]]
        if rows != self._bad_samples:
            self._bad_samples = rows
            text = "\n".join(json.dumps(row, sort_keys=True) for row in rows)
            self.tracker.log_text(text, f"bad_samples/from_step_{first_step}.jsonl")
        everything = sum((report[2] for report in reports), TruncationCounts())
        bad = {f"data/bad/{cause}": float(count) for cause, count in counts.items()}
        return bad | {f"data/truncated/{name}": share for name, share in everything.shares().items()}

    def finish(self, storage: Storage, *, done: bool) -> None:
        """Deliver what is queued; a finished run gets its best checkpoint as an artifact."""
        self._system_metrics.stop()
        if self.is_first:
            if done:
                self._record_checkpoint(storage)
            self.tracker.finish("FINISHED" if done else "KILLED")

    def _record_checkpoint(self, storage: Storage) -> None:
        try:
            name = checkpoint_name(storage, "best") if self.tracker.uri else ""
            files = read_files(storage, name) if name else {}
        except (StorageError, CheckpointError) as error:  # the run is finished without it
            print(f"train {self.config.run_name}: its checkpoint is not recorded in MLflow: {error}", flush=True)
            return
        for file, data in files.items():
            self.tracker.log_bytes(data, f"{ARTIFACT}/{file}")
