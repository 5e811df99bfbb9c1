"""Actors of long frozen work, Whisper's and CLIP's: how many fit, their start, and the results of their calls."""

from typing import Any

from brewclip.config import Config
from brewclip.errors import UserError

CONTROL = "control"  # concurrency group of calls while an actor works


def num_places(config: Config) -> int:
    """Return how many workers the cluster has room for."""
    from brewclip.cluster import available, uses_gpu

    if uses_gpu(config.cluster):
        return max(1, available("GPU"))
    return max(1, int(available("CPU") / config.cluster.cpus_per_worker))


def start_actor(kind: type, config: Config, *arguments: Any) -> Any:
    """Start an actor with the CPUs and the GPU of a worker; its first argument is the number of its threads."""
    import ray

    from brewclip.cluster import uses_gpu

    options: dict[str, Any] = {
        "max_restarts": -1,
        "max_task_retries": 3,
        "num_cpus": config.cluster.cpus_per_worker,
        "concurrency_groups": {CONTROL: 1},
    }
    if uses_gpu(config.cluster):
        options["num_gpus"] = 1
    return ray.remote(**options)(kind).remote(max(1, int(config.cluster.cpus_per_worker)), *arguments)


def result_of(reference: Any) -> Any:
    """Return the result of a call; a user's mistake on the actor is raised as it is."""
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise
