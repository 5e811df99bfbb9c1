"""Validation of settings: ranges, combinations that cannot work, and settings without effect in a combination."""

from brewclip.config.addresses import tracking_problem
from brewclip.config.flat import flatten
from brewclip.config.names import FOLDER, is_test
from brewclip.config.ranges import check_ranges, show
from brewclip.config.settings import ONLY_OF_SPEECHCLIP, Config, LossConfig, ModelConfig, RunConfig
from brewclip.config.whisper_names import language_problem, task_problem


def check(config: Config) -> None:
    """Check single settings and their combinations before anything is started.

    Raises:
        ValueError: for the first invalid one; one line with the setting, its value, what is allowed and what to do.
    """
    check_ranges(config)
    for wrong, message in (*_rules(config), *_name_rules(config)):
        if wrong:
            raise ValueError(message)


def _rules(config: Config) -> list[tuple[bool, str]]:
    data, optim, run, cluster = config.data, config.optim, config.run, config.cluster
    batch = run.global_batch_size
    return [
        (
            is_test(data.dev_split) or is_test(run.selection_metric),
            f"the best checkpoint is never chosen on test (--data.dev-split {data.dev_split!r}, "
            f"--run.selection-metric {run.selection_metric!r}): choose on dev, evaluate test once at the end",
        ),
        (
            not run.selection_metric.startswith("dev/"),
            f"--run.selection-metric {show(run.selection_metric)} must be a metric of dev, such as "
            f"{RunConfig().selection_metric}",
        ),
        (
            is_test(data.train_split),
            f"--data.train-split {data.train_split!r}: test is never trained on, it is evaluated once at the end",
        ),
        (
            data.train_split.casefold() == data.dev_split.casefold(),
            f"--data.train-split and --data.dev-split are both {data.dev_split!r}: choose on other data",
        ),
        (
            cluster.num_workers > batch,
            f"--cluster.num-workers {cluster.num_workers} must be 1..{batch}, the global batch size",
        ),
        (
            cluster.min_workers > cluster.num_workers,
            f"--cluster.min-workers {cluster.min_workers} must be 0..{cluster.num_workers}, the number of workers",
        ),
        (
            config.model.variant == "speechclip"
            and (config.model.adaptation, config.model.fusion) != ("prompts", "sum"),
            f"--model.variant speechclip has one channel and plain CLIP: it takes neither --model.adaptation "
            f"{config.model.adaptation} nor --model.fusion {config.model.fusion}, leave out both",
        ),
        (
            data.cache_layers and not data.cache_directory,
            "--data.cache-layers stores layers in a folder of this machine: give one with --data.cache-directory",
        ),
        (
            optim.warmup_steps > optim.total_steps,
            f"--optim.warmup-steps {optim.warmup_steps} must be 0..{optim.total_steps}, the total steps",
        ),
        (
            run.compile and data.long_text == "chunks",
            "--run.compile cannot be used with --data.long-text chunks, whose number differs from batch to batch: give "
            "--data.long-text truncate",
        ),
        (
            optim.final_lr > optim.peak_lr,
            f"--optim.final-lr {optim.final_lr} must be 0..{optim.peak_lr}, the peak",
        ),
    ]


def _name_rules(config: Config) -> list[tuple[bool, str]]:
    """Refuse names that storage, MLflow, Whisper or open_clip would misread or do not know."""
    model, tracking = config.model, config.tracking
    found = {
        "--run.name": (config.run_name, FOLDER.problem(config.run_name)),
        "--model.language": (model.language, language_problem(model.language, model.whisper)),
        "--model.task": (model.task, task_problem(model.task, model.whisper)),
        "--model.clip": (model.clip, _clip_problem(model.clip)),
        "--tracking.uri": (tracking.uri, tracking_problem(tracking.uri)),
        "--tracking.experiment": (tracking.experiment, "" if tracking.experiment.strip() else "must not be empty"),
    }
    is_url = config.storage.startswith(("s3://", "file:///")) and config.storage.partition("://")[2].strip("/") != ""
    found["--storage"] = (config.storage, "" if is_url else "must start with s3:// or file:///, and name a place")
    return [(bool(problem), f"{flag} {show(value)} {problem}") for flag, (value, problem) in found.items()]


def _clip_problem(name: str) -> str:
    """Return what is wrong with the form of a CLIP's name; which ones there are, open_clip knows."""
    architecture, _, tag = name.partition("/")
    allowed = "must be ARCHITECTURE/TAG of open_clip, ARCHITECTURE/FILE of weights, or scenes"
    return "" if name == "scenes" or (architecture and tag) else allowed


def ignored_settings(config: Config) -> list[str]:
    """Return a line for each changed setting that has no effect in this combination."""
    model, variant, lines = config.model, config.model.variant, []
    if variant in ("acoustic", "pipeline", "speechclip") and config.loss.alpha not in (0, LossConfig().alpha):
        lines.append(f"--loss.alpha {config.loss.alpha} has no effect: variant {variant} has one channel")
    if not model.reads_text and config.data.transcript != "asr":
        lines.append(f"--data.transcript has no effect: variant {variant} reads no text")
    if not model.reads_text and config.data.long_text != "truncate":
        lines.append(f"--data.long-text has no effect: variant {variant} reads no text")
    if model.adaptation == "adapter" or variant == "speechclip":
        if model.prompt_length != ModelConfig().prompt_length:
            what = "--model.adaptation adapter" if model.adaptation == "adapter" else f"variant {variant}"
            lines.append(f"--model.prompt-length has no effect: {what} takes no prompts")
    elif model.prompt_length == 0 and config.optim.prompt_lr_scale != 1:
        lines.append("--optim.prompt-lr-scale has no effect: --model.prompt-length is 0")
    if model.adaptation == "adapter" and config.run.compile:
        lines.append("--run.compile has no effect: --model.adaptation adapter computes no tower")
    if variant == "speechclip" and config.run.compile:
        lines.append("--run.compile has no effect: variant speechclip is not compiled")
    if model.recompute and not config.num_prompts:
        lines.append("--model.recompute has no effect: without prompts nothing flows back through the towers")
    if model.trains_channels_apart and config.loss.alpha != LossConfig().alpha:
        lines.append(f"--loss.alpha has no effect: --model.fusion {model.fusion} trains each channel alone")
    if model.fusion == "gate" and variant != "brewclip":
        lines.append(f"--model.fusion gate has no effect: variant {variant} has one channel")
    if variant != "speechclip":
        lines += _settings_of_speechclip(config)
    return lines


def _settings_of_speechclip(config: Config) -> list[str]:
    """Return a line for each changed setting that only variant speechclip uses."""
    given, usual = flatten(config), flatten(Config())
    why = f"variant {config.model.variant} reads what was extracted"
    return [
        f"--{name.replace('_', '-')} has no effect: {why}" for name in ONLY_OF_SPEECHCLIP if given[name] != usual[name]
    ]
