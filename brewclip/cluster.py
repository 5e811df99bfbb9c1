"""Joining a Ray cluster: the one that a job was submitted to, or a head of its own on loopback."""

import atexit
import logging
import os
import tempfile
from pathlib import Path


def connect() -> None:
    """Join the cluster of RAY_ADDRESS, or start a head on this machine that ends with the program.

    Must be called before anything imports Ray, which reads its settings once.
    """
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "1.0")
    if not os.environ.get("RAY_ADDRESS"):
        from brewclip.embedded import RayHead

        head = RayHead(Path(tempfile.mkdtemp(prefix="brewclip-ray-logs-")))
        atexit.register(head.stop)
        head.start()
        os.environ.update(head.environment())
    import ray

    if not ray.is_initialized():
        ray.init(log_to_driver=True, logging_level=logging.WARNING)


def available(resource: str) -> int:
    """Return how many of a resource (`CPU`, `GPU`) the cluster has, whole ones."""
    import ray

    return int(ray.cluster_resources().get(resource, 0))
