"""Connection to a Ray cluster, existing or started locally on loopback, and checks of its free resources."""

import atexit
import contextlib
import json
import logging
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brewclip.config import ClusterConfig
from brewclip.errors import UserError

# Ray 2.60 prints this as an error at each start of training: its own watcher for preempted nodes could not be
# restarted if its arguments were lost. It does not affect a run. Only this line is hidden from drivers' output; it
# remains in Ray's log files.
_WATCHER_LINE = (
    r"Actor with class name: 'PreemptionWatcher' and ID: '\w+' has constructor arguments in the object store and "
    r"max_restarts > 0"
)
_AUTOSCALER_SECONDS = 10.0  # a monitor reports every 5 s, from shortly after the head has started
_WAIT_LINE_SECONDS = 30.0


def connect() -> None:
    """Connect to the cluster of RAY_ADDRESS, or start a head on this machine that ends with the program.

    Call it before anything imports Ray, which reads its settings once.
    """
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "1.0")
    skipped = os.environ.get("RAY_DEDUP_LOGS_SKIP_REGEX", "")
    if _WATCHER_LINE not in skipped:
        os.environ["RAY_DEDUP_LOGS_SKIP_REGEX"] = f"{skipped}|{_WATCHER_LINE}" if skipped else _WATCHER_LINE
    if not os.environ.get("RAY_ADDRESS"):
        from brewclip.local import RayHead

        head = RayHead(Path(tempfile.mkdtemp(prefix="brewclip-ray-logs-")))
        atexit.register(_end_head, head)
        head.start()
        os.environ.update(head.environment())
    import ray

    if not ray.is_initialized():
        ray.init(log_to_driver=True, logging_level=logging.WARNING)


def _end_head(head: Any) -> None:
    """Stop the head of a program; keep its logs, and print their folder, only after an error with a traceback."""
    head.stop()
    if getattr(sys, "last_value", None) is not None:  # Python stores the exception that ended a program there
        print(f"Ray's logs are in {head.log_directory}", file=sys.stderr, flush=True)
    else:
        shutil.rmtree(head.log_directory, ignore_errors=True)


def available(resource: str) -> int:
    """Return how many of a resource (`CPU`, `GPU`) the cluster has, rounded down."""
    import ray

    return int(ray.cluster_resources().get(resource, 0))


def uses_gpu(cluster: ClusterConfig) -> bool:
    """Return whether each worker takes a GPU; `auto` means whether the connected cluster has one now."""
    return available("GPU") > 0 if cluster.use_gpu == "auto" else cluster.use_gpu


@dataclass(frozen=True)
class Demand:
    """A number of equal resource bundles that are needed at the same time.

    Attributes:
        what: purpose, for messages, such as `training`.
        count: number of bundles.
        cpus: CPUs per bundle.
        gpus: GPUs per bundle.
        flags: what the flags that set them begin with.
    """

    what: str
    count: int
    cpus: float
    gpus: int = 0
    flags: str = "--cluster."

    def __str__(self) -> str:
        gpus = f" and {_number(self.gpus, 'GPU')}" if self.gpus else ""
        return f"{self.what} asks for {_number(self.count, 'worker')} of {_number(self.cpus, 'CPU')}{gpus}"

    def room_on(self, nodes: Iterable[dict[str, float]]) -> int:
        """Return how many bundles fit on nodes, each given by its resources."""
        return sum(
            int(min([node.get(name, 0) // most for name, most in self.bundle().items() if most], default=self.count))
            for node in nodes
        )

    def bundle(self) -> dict[str, float]:
        """Return the resources of one bundle in Ray's terms."""
        return {"CPU": self.cpus} | ({"GPU": float(self.gpus)} if self.gpus else {})


def demand_of(what: str, cluster: ClusterConfig, count: int, flags: str = "--cluster.") -> Demand:
    """Return the demand of `count` workers under the cluster settings."""
    return Demand(what, count, cluster.cpus_per_worker, 1 if uses_gpu(cluster) else 0, flags)


def check_resources(demand: Demand) -> None:
    """Wait until the connected cluster has free resources; refuse a demand that it can never meet.

    While others use the resources, or an autoscaler may add them, a line is printed now and then. The demand is pending
    in Ray meanwhile, so that an autoscaler sees it. A GPU must be one that torch can use.

    Raises:
        UserError: with the demand, the resources and the flags to set; if torch finds no CUDA where Ray grants a GPU;
            or if the program is asked to end meanwhile.
    """
    import ray
    from ray.util import placement_group, remove_placement_group

    _refuse_impossible(demand)
    group = placement_group([demand.bundle()] * demand.count)
    started = said = time.monotonic()
    try:
        with _ending_on_sigterm(demand):
            while not group.wait(1.0):  # short, so that signals are handled at once
                now = time.monotonic()
                if now - said > (_WAIT_LINE_SECONDS if said > started else 5):
                    _refuse_impossible(demand)  # a node may have been lost
                    said, free = now, _describe([ray.available_resources()])
                    print(f"waiting {now - started:.0f} s: {demand}, {free} free", flush=True)
    finally:
        remove_placement_group(group)
    if demand.gpus:
        from brewclip.cuda import check_cuda

        check_cuda(demand.what)


def has_workers() -> bool:
    """Return whether a placement group of this program has its resources, so that workers may run in it.

    Ray Train reserves one for each attempt; until there is room, for ever if need be, no worker runs.
    """
    import ray
    from ray.util import placement_group_table

    own = ray.get_runtime_context().get_job_id()  # an id of a placement group ends in that of its job
    groups = placement_group_table().values()
    return any(one["state"] == "CREATED" and one["placement_group_id"].endswith(own) for one in groups)


@contextlib.contextmanager
def _ending_on_sigterm(demand: Demand) -> Iterator[None]:
    """Turn SIGTERM into a one-line error; Ray's own handler prints a stack, and its exit sometimes aborted."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: object) -> None:
        raise UserError(f"asked to end while {demand.what} waited for room: nothing was started")

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _refuse_impossible(demand: Demand) -> None:
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if demand.room_on(nodes) >= demand.count or _may_grow():
        return
    raise UserError(
        f"{demand}; the cluster has {_describe(nodes)} and no autoscaler to bring more: set {_remedy(demand, nodes)}"
    )


def _remedy(demand: Demand, nodes: list[dict[str, float]]) -> str:
    """Return flags with which the demand would fit, or another remedy."""
    flags, cpus, gpus = [], demand.cpus, demand.gpus
    if gpus and not any(node.get("GPU", 0) >= gpus for node in nodes):
        flags, gpus = [f"{demand.flags}use-gpu False (slow with a large CLIP)"], 0
    most = max((int(node.get("CPU", 0)) for node in nodes if node.get("GPU", 0) >= gpus), default=0)
    if most < 1:
        return "more machines to work: none has a CPU for it"
    if cpus > most:
        cpus = most
        flags.append(f"{demand.flags}cpus-per-worker {most}")
    room = Demand(demand.what, demand.count, cpus, gpus).room_on(nodes)
    if room < demand.count:
        flags.append(f"{demand.flags}num-workers {room}")
    return " and ".join(flags)


def _describe(nodes: list[dict[str, float]]) -> str:
    cpus, gpus = (sum(node.get(name, 0) for node in nodes) for name in ("CPU", "GPU"))
    where = f" on {len(nodes)} nodes" if len(nodes) > 1 else ""
    return f"{_number(cpus, 'CPU')} and {_number(gpus, 'GPU')}{where}"


def _number(count: float, noun: str) -> str:
    return f"{count:g} {noun}{'' if count == 1 else 's'}"


def _may_grow() -> bool:
    """Return whether an autoscaler may add nodes; True unless Ray's monitor reports manually started nodes only."""
    deadline = time.monotonic() + _AUTOSCALER_SECONDS
    while (types := _node_types()) is None:
        if time.monotonic() > deadline:
            return True  # no monitor: KubeRay's autoscaler replaces it, and may start late
        time.sleep(0.5)
    # A monitor without a configuration reports each node as its own type, named after the node's id.
    return not all(re.fullmatch(r"node_[0-9a-f]{40,}", name) for name in types)


def _node_types() -> list[str] | None:
    """Return the autoscaler's node types of the running nodes, None before it has reported any."""
    import ray
    from ray.autoscaler.v2.sdk import get_cluster_status
    from ray.autoscaler.v2.utils import is_autoscaler_v2
    from ray.experimental.internal_kv import _internal_kv_get

    if is_autoscaler_v2(fetch_from_server=True):
        status = get_cluster_status(ray.get_runtime_context().gcs_address)
        return [node.ray_node_type_name for node in status.active_nodes + status.idle_nodes] or None
    text = _internal_kv_get("__autoscaling_status")
    report = json.loads(text).get("autoscaler_report") if text else None
    return list(report["active_nodes"]) + list(report["idle_nodes"] or {}) or None if report else None
