"""Where a run starts: at its newest whole checkpoint, from the weights of another run, or at step 0."""

import torch.distributed as dist

from brewclip.checkpoints.checkpoint import load_checkpoint, open_checkpoint
from brewclip.checkpoints.compatibility import check_initial, check_same_run
from brewclip.checkpoints.facts import Checkpoint
from brewclip.checkpoints.folder import step_name
from brewclip.config import Config
from brewclip.data.storage import Storage
from brewclip.distributed import world_rank
from brewclip.errors import CheckpointError
from brewclip.factory import restore_model
from brewclip.training.optimizer import load_optimizer_state
from brewclip.training.parts import Parts
from brewclip.training.state import TrainState


def resume(config: Config, storage: Storage, parts: Parts) -> TrainState:
    """Restore model and optimiser from the newest whole checkpoint of the run; all workers call it together.

    Without one, the model takes the weights of `--run.init-from`, if that is given.

    Returns:
        Where the run stands.

    Raises:
        CheckpointError: if the checkpoint is of other settings or another frozen CLIP, or the workers disagree.
    """
    checkpoint = _agreed_checkpoint(storage)
    if checkpoint is None:
        if config.run.init_from:
            initial = open_checkpoint(config.run.init_from)
            check_initial(config, config.run.init_from, initial)
            restore_model(parts.model, initial, parts.clip_identity, parts.speech_encoder)
        return TrainState()
    facts = checkpoint.facts
    check_same_run(config, facts)
    restore_model(parts.model, checkpoint, parts.clip_identity, parts.speech_encoder)
    load_optimizer_state(parts.optimizer, list(parts.model.trained_parameters()), checkpoint.optimizer)
    return TrainState(facts.step, dict(facts.best), dict(facts.metrics))


def _agreed_checkpoint(storage: Storage) -> Checkpoint | None:
    """Return the newest whole checkpoint as rank 0 sees it, None if there is none.

    Raises:
        CheckpointError: on every rank if rank 0 finds none whole, or on one that does not see what rank 0 sees.
    """
    checkpoint, problem, rank = None, None, world_rank()
    if rank == 0:
        try:
            checkpoint = load_checkpoint(storage)
        except Exception as error:  # the others wait for the broadcast
            problem = error
    shared = [step_name(checkpoint.facts.step) if checkpoint is not None else "", str(problem or "")]
    if dist.is_initialized():
        dist.broadcast_object_list(shared, src=0)
    if problem is not None:
        raise problem
    name, text = shared
    if text:
        raise CheckpointError(text)
    if rank != 0 and name:
        checkpoint = load_checkpoint(storage, name)
        if checkpoint is None:
            raise CheckpointError(f"rank {rank} does not find checkpoint {name} of {storage.url}")
    return checkpoint
