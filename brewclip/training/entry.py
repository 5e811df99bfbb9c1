"""Entry point of a worker: the group builds its parts together, trains, and writes the run's result."""

import contextlib
import functools
import json
import traceback
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from brewclip.config import Config, unflatten
from brewclip.data.storage import exists, open_storage
from brewclip.distributed import agree_on_problem, world_rank, world_size
from brewclip.errors import UserError
from brewclip.training.assignment import RESULT, Assignment
from brewclip.training.lease import Fence
from brewclip.training.parts import build_parts
from brewclip.training.state import TrainState
from brewclip.training.worker import Worker, worker_device

Built = TypeVar("Built")
# Ray starts a group again when a worker dies or raises; these would be raised again.
_NOT_WORTH_A_RETRY = (
    TypeError, ValueError, LookupError, AttributeError, AssertionError, ImportError, NotImplementedError,
)  # fmt: skip
# Settings, data, weights or checkpoint do not fit together: the group agrees on it, and ends without a retry.
_UNFIT = (UserError, ValueError, FileNotFoundError)


def run_worker(settings: dict[str, Any]) -> None:
    """Build one worker's parts, train, and write the result to the run.

    What one rank alone raises would leave the others waiting for it. It writes the result and raises, so that Ray ends
    the group; the workers of the next attempt find the result and return at once.

    Args:
        settings: an `Assignment` as a dictionary.
    """
    fence = Fence(**settings["fence"]) if settings.get("fence") else None
    assignment = Assignment(**(settings | {"fence": fence}))
    config, state, run_id, is_bug = unflatten(assignment.config), TrainState(), "", False
    storage = open_storage(config.run_url)
    if exists(storage, RESULT):
        return
    raised: Exception | None = None
    try:
        with _built_worker(config, assignment) as (worker, problem):
            state = TrainState(problem=problem) if worker is None else worker.run()
            run_id = worker.record.tracker.run_id if worker is not None else ""
    except UserError as error:
        state.problem, raised = str(error), error
    except _NOT_WORTH_A_RETRY as error:
        traceback.print_exc()
        state.problem, is_bug, raised = f"{type(error).__name__}: {error}", True, error
    alone = raised is not None and world_size() > 1
    if (world_rank() == 0 or alone) and (fence is None or fence.is_held(storage)):
        result = {
            "step": state.step,
            "best": state.best,
            "problem": f"worker {world_rank()}: {state.problem}" if alone else state.problem,
            "is_bug": is_bug,
            "mlflow_run_id": run_id,
        }
        storage.write(RESULT, json.dumps(result).encode())
    if alone and raised is not None:
        raised.add_note(f"raised by worker {world_rank()}")
        raise raised


@contextlib.contextmanager
def _built_worker(config: Config, assignment: Assignment) -> Iterator[tuple[Worker | None, str]]:
    """Build a worker; if any of the group cannot be built, all give up with the same problem.

    The group agrees before `Worker` too, whose resuming is collective: a rank without parts would never join it.
    """
    worker = None
    parts, problem = _built_by_all(lambda: build_parts(config, worker_device(config)))
    if parts is not None and not problem:
        worker, problem = _built_by_all(functools.partial(Worker, config, parts, assignment))
    try:
        yield (None if problem else worker), problem
    finally:
        if worker is not None:
            worker.close()


def _built_by_all(build: Callable[[], Built]) -> tuple[Built | None, str]:
    """Build something on every worker; return it, and the problem of the group, empty if all could."""
    built, problem = None, ""
    try:
        built = build()
    except _UNFIT as error:
        problem = str(error)
    return built, agree_on_problem(problem)
