"""Cells of a table: a system trained with one seed and evaluated on one split, with cached ranks.

A cell trains under the run name that jobs/train.py would use, so an existing run is resumed, or reused if finished.
Ranks per query are cached below STORAGE/experiments/cells with their identity: if anything that they depend on changes,
the cell is evaluated again.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from brewclip.checkpoints.checkpoint import load_checkpoint
from brewclip.checkpoints.compatibility import check_same_run
from brewclip.checkpoints.locate import ZERO_SHOT
from brewclip.cluster import connect
from brewclip.config import Config, Transcript, Variant, for_variant
from brewclip.data.storage import open_storage
from brewclip.evaluation.folders import file_name
from brewclip.evaluation.identity import ResultCache, identify
from brewclip.evaluation.ranks import Ranking
from brewclip.evaluation.run import record_metrics
from brewclip.evaluation.shares import evaluate_system
from brewclip.evaluation.systems import System, describe_system


@dataclass(frozen=True)
class Cell:
    """A system and the data to evaluate it on.

    Attributes:
        train: settings of its training; for `zero_shot`, those of the test.
        test: settings of the test corpus.
        split: split to evaluate on.
        test_transcript: transcript that the pipeline reads in the test.
        channel: `acoustic` or `text` for that channel of the system alone, or empty.
    """

    train: Config
    test: Config
    split: str
    test_transcript: Transcript = "asr"
    channel: str = ""

    @property
    def name(self) -> str:
        """Name of the cached ranks."""
        system = ZERO_SHOT if self.train.model.variant == ZERO_SHOT else self.train.run_name
        system += f"@{self.channel}" if self.channel else ""
        return file_name(f"{system}--{self.test.data.corpus}-{self.split}-{self.test_transcript}")


def plan_cells(
    train: Config,
    test: Config,
    variant: Variant,
    train_transcript: Transcript,
    test_transcript: Transcript,
    seeds: Sequence[int],
    split: str,
    channel: str = "",
) -> list[Cell]:
    """Return one cell per seed; a single one for `zero_shot`, which is not trained.

    Args:
        train: settings of the training corpus.
        test: settings of the test corpus.
        variant: variant of the model.
        train_transcript: transcript that the pipeline reads in training.
        test_transcript: transcript that it reads in the test.
        seeds: seeds of the runs.
        split: split to evaluate on.
        channel: of the system, see `Cell`.
    """
    train = replace(train, data=replace(train.data, transcript=train_transcript))
    own_seeds = seeds[:1] if variant == ZERO_SHOT else seeds
    return [Cell(for_variant(train, variant, seed), test, split, test_transcript, channel) for seed in own_seeds]


def run_cell(cell: Cell) -> Ranking:
    """Return the ranks of a cell; train and evaluate it unless that is cached.

    Raises:
        UserError: if data, settings and existing runs do not match.
    """
    train_cell(cell)
    system = describe_cell(cell)
    identity = identify(system.config, [system], [cell.split])
    cached = _cache(cell).load(cell.name, identity)
    if cached is not None:
        print(f"cell {cell.name}: cached", flush=True)
        return Ranking.from_bytes(cached)
    connect()
    result = evaluate_system(system, cell.split)
    record_metrics(result, cell.split)
    ranking = result.ranking
    ranking.facts["identity"] = identity
    _cache(cell).save(cell.name, identity, ranking.to_bytes())
    print(f"cell {cell.name}: measured on {len(ranking.keys)} recordings", flush=True)
    return ranking


def train_cell(cell: Cell) -> None:
    """Train the run of a cell, or resume it, unless it is finished.

    Raises:
        UserError: if a run of that name has other settings.
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
    name += f"@{cell.channel}" if cell.channel else ""
    return describe_system(cell.test, f"{name}@{cell.test_transcript}")


def load_cached(cell: Cell) -> Ranking | None:
    """Return the cached ranks of a cell without checking their identity; None if there are none."""
    cached = _cache(cell).load(cell.name, identity=None)
    return None if cached is None else Ranking.from_bytes(cached)


def _cache(cell: Cell) -> ResultCache:
    return ResultCache(cell.test, "cells")
