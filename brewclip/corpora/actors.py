"""Ray actors that run frozen Whisper or CLIP: how many fit, starting them, collecting their results."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from brewclip.config import Config
from brewclip.errors import UserError

CONTROL = "control"  # concurrency group of calls while an actor works
_POLL_SECONDS = 2.0
Item = TypeVar("Item")


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


def run_on_actors(
    actors: list[Any], items: Iterable[Item], call: Callable[[Any, Item], Any]
) -> Iterator[tuple[list[tuple[Item, Any]], list[Any]]]:
    """Give items to free actors one by one.

    Args:
        actors: at least one, if there are items.
        items: what is done.
        call: starts the work on an item on an actor; returns the reference to its result.

    Yields:
        Every two seconds at least: the items that were finished since, with their results, and the busy actors.
    """
    import ray

    pending, idle = iter(items), list(actors)
    running: dict[Any, tuple[Any, Item]] = {}
    while True:
        for actor, item in zip(idle.copy(), pending, strict=False):
            running[call(actor, item)] = actor, item
            idle.remove(actor)
        if not running:
            return
        ready, _ = ray.wait(list(running), num_returns=1, timeout=_POLL_SECONDS)
        finished = []
        for reference in ready:
            actor, item = running.pop(reference)
            finished.append((item, result_of(reference)))
            idle.append(actor)
        yield finished, [actor for actor, _ in running.values()]
