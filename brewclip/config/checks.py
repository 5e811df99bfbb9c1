"""Validation of settings: values and combinations that cannot work, and settings without effect."""

from brewclip.config.names import describe_name, is_safe_name, is_safe_path, is_test
from brewclip.config.settings import Config, LossConfig


def check(config: Config) -> None:
    """Check single settings and their combinations before anything is started.

    Raises:
        ValueError: for the first invalid one; one line with the setting, its value, what is allowed and what to do.
    """
    for wrong, message in _rules(config):
        if wrong:
            raise ValueError(message)


def _rules(config: Config) -> list[tuple[bool, str]]:
    data, model, loss, optim, run, cluster = (
        config.data,
        config.model,
        config.loss,
        config.optim,
        config.run,
        config.cluster,
    )
    batch = run.global_batch_size
    return [
        (
            not config.storage.startswith(("s3://", "file:///")),
            f"--storage {config.storage!r} must start with s3:// or file:///",
        ),
        *_name_rules(config),
        (
            is_test(data.dev_split) or is_test(run.selection_metric),
            f"the best checkpoint is never chosen on test (--data.dev-split {data.dev_split!r}, "
            f"--run.selection-metric {run.selection_metric!r}): choose on dev, evaluate test once at the end",
        ),
        (
            not run.selection_metric.startswith("dev/"),
            f"--run.selection-metric {run.selection_metric!r} must be a metric of dev, e.g. dev/speech_to_image/R10",
        ),
        (
            is_test(data.train_split),
            f"--data.train-split {data.train_split!r}: test is never trained on, it is evaluated once at the end",
        ),
        (
            data.train_split.casefold() == data.dev_split.casefold(),
            f"--data.train-split and --data.dev-split are both {data.dev_split!r}: choose on other data",
        ),
        (batch < 2, f"--run.global-batch-size {batch} leaves no negatives: at least 2"),
        (
            cluster.num_workers < 1 or cluster.num_workers > batch,
            f"--cluster.num-workers {cluster.num_workers} must be 1..{batch}, the global batch size",
        ),
        (
            not 0 <= cluster.min_workers <= cluster.num_workers,
            f"--cluster.min-workers {cluster.min_workers} must be 0..{cluster.num_workers}, the number of workers",
        ),
        (data.max_audio_frames < 0, f"--data.max-audio-frames {data.max_audio_frames} must be 0 (all) or more"),
        (model.prompt_length < 0, f"--model.prompt-length {model.prompt_length} must be 0 or more"),
        (model.num_layers < 1, f"--model.num-layers {model.num_layers} must be 1 or more"),
        (not 0 <= model.dropout < 1, f"--model.dropout {model.dropout} must be in 0..1, below 1"),
        (model.cls_std < 0, f"--model.cls-std {model.cls_std} must be 0 or more"),
        (not 0 <= loss.alpha <= 1, f"--loss.alpha {loss.alpha} must be in 0..1"),
        (
            not 0.01 <= loss.temperature <= 1,
            f"--loss.temperature {loss.temperature} must be in 0.01..1: the logit scale is clamped at 100",
        ),
        (
            optim.total_steps < 1 or not 0 <= optim.warmup_steps <= optim.total_steps,
            f"--optim.warmup-steps {optim.warmup_steps} must be 0..{optim.total_steps}, the total steps",
        ),
        (
            not 0 <= optim.final_lr <= optim.peak_lr,
            f"--optim.final-lr {optim.final_lr} must be 0..{optim.peak_lr}, the peak",
        ),
        (
            min(run.log_every_steps, run.eval_every_steps, run.checkpoint_every_steps, run.keep_checkpoints) < 1,
            "--run.log-every-steps, eval-every-steps, checkpoint-every-steps and keep-checkpoints must be 1 or more",
        ),
        (
            not 0 <= data.max_bad_fraction <= 1,
            f"--data.max-bad-fraction {data.max_bad_fraction} must be in 0..1",
        ),
    ]


def _name_rules(config: Config) -> list[tuple[bool, str]]:
    """Refuse names that would leave their folder, or that storage and MLflow would misread."""
    data = config.data
    splits = [("--data.train-split", data.train_split), ("--data.dev-split", data.dev_split)]
    splits += [("--extraction.splits", split) for split in config.extraction.splits]
    return [
        (not is_safe_path(data.corpus), describe_name("--data.corpus", data.corpus)),
        *[(not is_safe_name(split), describe_name(flag, split)) for flag, split in splits],
        (not is_safe_name(config.run_name), describe_name("--run.name", config.run_name)),
    ]


def ignored_settings(config: Config) -> list[str]:
    """Return a line for each changed setting that has no effect in this combination."""
    lines = []
    if config.model.variant in ("acoustic", "pipeline") and config.loss.alpha not in (0, LossConfig().alpha):
        lines.append(f"--loss.alpha {config.loss.alpha} has no effect: variant {config.model.variant} has one channel")
    if config.model.variant == "acoustic" and config.data.transcript != "asr":
        lines.append("--data.transcript has no effect: variant acoustic reads no text")
    if config.model.variant == "acoustic" and config.data.long_text != "truncate":
        lines.append("--data.long-text has no effect: variant acoustic reads no text")
    if config.model.prompt_length == 0 and config.optim.prompt_lr_scale != 1:
        lines.append("--optim.prompt-lr-scale has no effect: --model.prompt-length is 0")
    return lines
