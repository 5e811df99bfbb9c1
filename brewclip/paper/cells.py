"""One cell of a table: a system trained from one seed, measured on one split; what is done is kept and found again.

A cell trains by the run name that jobs/train.py would give it, so a run that is there already is gone on with, or is
finished. The ranks of every query are kept below STORAGE/experiments/cells and belong to one checkpoint, one split and
one gallery: if any of them changes, the cell is measured again.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from brewclip.checkpoints.checkpoint import load_checkpoint
from brewclip.checkpoints.compatibility import check_same_run
from brewclip.checkpoints.locate import ZERO_SHOT
from brewclip.cluster import connect
from brewclip.config import Config, Transcript, Variant, for_variant
from brewclip.data.manifest import open_manifest
from brewclip.data.storage import open_storage
from brewclip.errors import ObjectMissing
from brewclip.evaluation.folders import file_name
from brewclip.evaluation.ranks import Ranking
from brewclip.evaluation.run import record_metrics
from brewclip.evaluation.systems import System, describe_system, evaluate_system


@dataclass(frozen=True)
class Cell:
    """A system and what it is measured on.

    Attributes:
        train: settings of its training; of `zero_shot`, those of the test.
        test: settings of the corpus that it is measured on.
        split: that is measured.
        reads: text that the pipeline reads in the test.
    """

    train: Config
    test: Config
    split: str
    reads: Transcript = "asr"

    @property
    def name(self) -> str:
        """Name of what is kept."""
        system = ZERO_SHOT if self.train.model.variant == ZERO_SHOT else self.train.run_name
        return file_name(f"{system}--{self.test.data.corpus}-{self.split}-{self.reads}")


def plan_cells(
    train: Config,
    test: Config,
    variant: Variant,
    train_transcript: Transcript,
    reads: Transcript,
    seeds: Sequence[int],
    split: str,
) -> list[Cell]:
    """Return a cell for each seed; one for all of them where nothing is trained.

    Args:
        train: settings of the corpus that is trained on.
        test: settings of the corpus that is measured.
        variant: of the model.
        train_transcript: text that the pipeline reads in training.
        reads: text that it reads in the test.
        seeds: of the runs.
        split: that is measured.
    """
    train = replace(train, data=replace(train.data, transcript=train_transcript))
    own_seeds = seeds[:1] if variant == ZERO_SHOT else seeds
    return [Cell(for_variant(train, variant, seed), test, split, reads) for seed in own_seeds]


def run_cell(cell: Cell) -> Ranking:
    """Return what became of every query of a cell; trains and measures what is not done yet.

    Raises:
        UserError: if data, settings and earlier runs do not fit together.
    """
    train_cell(cell)
    system = describe_cell(cell)
    kept = load_cached(cell)
    if kept is not None and kept.facts.get("identity") == _identity(cell, system):
        print(f"cell {cell.name}: kept", flush=True)
        return kept
    connect()
    result = evaluate_system(system, cell.split)
    record_metrics(result, cell.split)
    ranking = result.ranking
    ranking.facts["identity"] = _identity(cell, system)
    _storage(cell).write(_object(cell), ranking.to_bytes())
    print(f"cell {cell.name}: measured on {len(ranking.keys)} recordings", flush=True)
    return ranking


def train_cell(cell: Cell) -> None:
    """Train the run of a cell, or go on with it, unless it is finished.

    Raises:
        UserError: if there is a run of that name with other settings.
    """
    config = cell.train
    if config.model.variant == ZERO_SHOT:
        return
    latest = load_checkpoint(open_storage(config.run_url))
    if latest is not None and latest.facts.step >= config.optim.total_steps:
        check_same_run(config, latest.facts)
        return
    from brewclip.training.launch import claim_run, run_training

    print(f"cell {cell.name}: training {config.run_name}", flush=True)
    with claim_run(config) as fence:
        connect()
        run_training(config, fence)


def describe_cell(cell: Cell) -> System:
    """Return the system of a cell, with the settings of its test."""
    name = ZERO_SHOT if cell.train.model.variant == ZERO_SHOT else cell.train.run_url
    return describe_system(cell.test, f"{name}@{cell.reads}")


def load_cached(cell: Cell) -> Ranking | None:
    """Return what is kept of a cell, whatever it was measured with; None if nothing is. Nothing is run."""
    try:
        return Ranking.from_bytes(_storage(cell).read(_object(cell)))
    except ObjectMissing:
        return None


def _identity(cell: Cell, system: System) -> dict[str, Any]:
    """Return what the ranks of a cell depend on."""
    data, model = system.config.data, system.config.model
    return {
        "weights_sha256": system.weights_sha256,
        "step": system.step,
        "split_sha256": open_manifest(f"{system.config.features_url}/{cell.split}").sha256,
        "reads": cell.reads,
        "clip": model.clip,
        "max_audio_frames": data.max_audio_frames,
        "long_text": data.long_text,
        "image_transform": data.image_transform,
    }


def _storage(cell: Cell) -> Any:
    return open_storage(f"{cell.test.storage.rstrip('/')}/experiments/cells")


def _object(cell: Cell) -> str:
    return f"{cell.name}.npz"
