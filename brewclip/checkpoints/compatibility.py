"""Whether a checkpoint belongs to the run, the model and the frozen CLIP at hand."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from brewclip.checkpoints.facts import Checkpoint, CheckpointFacts
from brewclip.config import Config, flatten
from brewclip.config.settings import ONLY_OF_SPEECHCLIP
from brewclip.errors import CheckpointError

if TYPE_CHECKING:  # it loads open_clip, which reading a checkpoint does not need
    from brewclip.pretrained.clip_identity import ClipIdentity

# Settings that may differ when a run or a sweep goes on: they change neither data nor arithmetic.
_FREE_SETTINGS = (
    *("storage", "cluster.", "tracking.", "extraction.", "run.name", "run.fresh", "run.log_every_steps"),
    *("run.eval_every_steps", "run.checkpoint_every_steps", "run.keep_checkpoints", "data.memory_bytes"),
    *("data.num_threads", "data.cache_directory", "data.retry_seconds", "data.max_bad_fraction", "model.recompute"),
    *("sweep.num_trials", "sweep.max_concurrent", "sweep.max_failures", "sweep.register_as"),
)
_NOT_OF_THE_SHAPE = ("model.dropout", "model.language", "model.task", "model.cls_std", "model.recompute")


def check_frozen(checkpoint: Checkpoint, clip: "ClipIdentity", others: Mapping[str, str] | None = None) -> None:
    """Compare the frozen parts at hand with those that a checkpoint was trained on: weights, and how CLIP is used.

    Args:
        checkpoint: of a run.
        clip: at hand.
        others: hash of every other frozen part at hand by its name: the speech encoder's.

    Raises:
        CheckpointError: if they differ.
    """
    at_hand = {clip.name: clip.weights_sha256, **(others or {})}
    for name, sha256 in checkpoint.facts.frozen_sha256.items():
        if at_hand.get(name) != sha256:
            here = at_hand[name][:12] if name in at_hand else " and ".join(at_hand)
            raise CheckpointError(
                f"the checkpoint was trained on {name} with sha256 {sha256[:12]}, here it is {here}: "
                "use the same frozen weights"
            )
    recorded = checkpoint.facts.frozen_settings.get(clip.name)
    trained = clip.unrecorded if recorded is None else recorded
    for setting, here in clip.settings.items():
        if trained.get(setting, here) != here:
            remedy = "use the version of open_clip_torch that it was trained with, or train again (--run.fresh)"
            if recorded is None:
                remedy = f"an earlier version of brewclip built {clip.name} wrongly; train again (--run.fresh)"
            raise CheckpointError(
                f"the checkpoint was trained on {clip.name} with {setting} {trained[setting]}, here it is {here}: "
                f"{remedy}"
            )


def check_same_run(config: Config, facts: CheckpointFacts) -> None:
    """Refuse to resume a run under other settings; a setting that did not exist yet had its default.

    Raises:
        CheckpointError: naming the first setting that changed what the run is.
    """
    now = flatten(config)
    free = _FREE_SETTINGS if config.model.variant == "speechclip" else (*_FREE_SETTINGS, *ONLY_OF_SPEECHCLIP)
    for name, before in (flatten(Config()) | facts.config).items():
        if name.startswith(free) or name not in now or now[name] == before:
            continue
        flag = f"--{name.replace('_', '-')}"
        raise CheckpointError(
            f"run {config.run_name!r} was started with {flag} {before}, now it is {now[name]}: choose another "
            f"--run.name, or start over with --run.fresh"
        )


def check_initial(config: Config, url: str, initial: Checkpoint) -> None:
    """Refuse to start from the weights of a checkpoint whose model is another one.

    Raises:
        CheckpointError: naming the first setting of the model that differs.
    """
    now = flatten(config)
    for name, before in initial.facts.config.items():
        if name.startswith("model.") and name not in _NOT_OF_THE_SHAPE and now.get(name, before) != before:
            flag = f"--{name.replace('_', '-')}"
            raise CheckpointError(
                f"--run.init-from {url} is a model with {flag} {before}, here it is {now[name]}: give {flag} {before}"
            )
