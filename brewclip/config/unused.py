"""Warnings for flags that a job accepts with all others and does not use.

Each job passes what it ignores to `parse_command_line`: `optim.` is a section, `model.dropout` one setting.
"""

from collections.abc import Sequence

_EXTRACTION = (
    *("extraction.splits", "extraction.batch_size", "extraction.image_side_pixels"),
    *("extraction.keep_original_images", "extraction.overwrite", "extraction.precision", "extraction.retries"),
)
_MODEL_OF_CHECKPOINTS = (
    *("model.variant", "model.language", "model.task", "model.prompt_length", "model.num_layers", "model.num_heads"),
    *("model.ff_dim", "model.dropout", "model.cls_std", "model.fusion", "model.recompute", "model.speech_encoder"),
)
_RUN = (
    *("run.name", "run.fresh", "run.init_from", "run.seed", "run.global_batch_size", "run.selection_metric"),
    *("run.compile",),
    *("run.log_every_steps", "run.eval_every_steps", "run.checkpoint_every_steps", "run.keep_checkpoints"),
)
_WORKERS = (*("cluster.num_workers", "cluster.min_workers", "cluster.resize_every_seconds", "cluster.max_failures"),)
_STREAM = ("data.memory_bytes", "data.retry_seconds", "data.crop_samples")
_CACHE = ("data.cache_directory", "data.cache_layers")

IGNORED_BY_TRAINING = (*_EXTRACTION, "model.language")
IGNORED_BY_SWEEPS = (*IGNORED_BY_TRAINING, "cluster.max_failures")  # --sweep.max-failures is for trials
# Systems bring the settings of their checkpoints; zero_shot needs --model.clip and --run.precision alone.
IGNORED_BY_STUDIES = (
    *("optim.", "loss.", "data.train_split", "data.dev_split", "tracking.parent_run", "cluster.cpus_per_worker"),
    *(*_MODEL_OF_CHECKPOINTS, *_RUN, *_WORKERS, *_STREAM, *_CACHE, *_EXTRACTION),
)
IGNORED_BY_EVALUATION = (*(one for one in IGNORED_BY_STUDIES if one not in _CACHE), "data.num_threads")
IGNORED_BY_EMOTION = (
    *(one for one in IGNORED_BY_STUDIES if one not in ("data.train_split", "cluster.cpus_per_worker", *_WORKERS)),
    *("cluster.", "data.transcript"),
)
IGNORED_BY_EXTRACTION = (
    *("optim.", "loss.", "run.", "tracking.parent_run"),
    *(one for one in _MODEL_OF_CHECKPOINTS if one not in ("model.language", "model.task")),
    *("data.train_split", "data.dev_split", "data.max_audio_frames"),
    *("data.num_threads", "data.max_bad_fraction", *_STREAM, *_CACHE, *_WORKERS),
)


def unused_flags(words: Sequence[str], ignored: Sequence[str]) -> list[str]:
    """Return a line for each flag of a command line that has no effect.

    Args:
        words: of the command line.
        ignored: dotted settings; one that ends in a dot stands for all settings of its section.
    """
    flags = [word.partition("=")[0] for word in words if word.startswith("--")]
    names = {flag: flag.removeprefix("--").replace("-", "_") for flag in flags}
    return [
        f"{flag} has no effect in this job"
        for flag, name in names.items()
        if any(name.startswith(one) if one.endswith(".") else name == one for one in ignored)
    ]
