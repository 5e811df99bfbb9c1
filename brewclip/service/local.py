"""The service on a Ray of its own on this machine, until it is interrupted."""

import logging
import os
import re
import shutil
import signal
import tempfile
from pathlib import Path

from brewclip.errors import UserError
from brewclip.local import RayHead
from brewclip.service.settings import TOKEN_VARIABLE, ServiceSettings, announce

_OWN_MISTAKE = re.compile(r"(?:UserError|CheckpointError): (.+)")


def serve_on_ray(settings: ServiceSettings, token: str) -> None:
    """Start Ray, deploy the service, and wait for an interrupt; then let running requests end, and stop Ray.

    Args:
        settings: of the service.
        token: that requests must bring; empty if none is needed. Replicas get it by their environment.

    Raises:
        UserError: if the service cannot be started.
    """
    _check_names(settings)
    logs = Path(tempfile.mkdtemp(prefix="brewclip-serve-"))
    environment = {"RAY_worker_niceness": "0"}  # people wait for these workers; Ray's own value is 15
    head = RayHead(logs, environment=environment | ({TOKEN_VARIABLE: token} if token else {}))
    print("starting Ray", flush=True)
    try:
        with head:
            os.environ.update(head.environment())
            _run(settings, head.address)
    finally:
        shutil.rmtree(logs, ignore_errors=True)


def _check_names(settings: ServiceSettings) -> None:
    """Find a missing index or checkpoint before Ray starts."""
    from brewclip.checkpoints.locate import ZERO_SHOT
    from brewclip.serving.index.place import open_index
    from brewclip.serving.loading import checkpoint_url

    name = settings.checkpoint or open_index(settings.index).checkpoint
    if name != ZERO_SHOT:
        checkpoint_url(name)


def _run(settings: ServiceSettings, address: str) -> None:
    import ray
    from ray import serve

    from brewclip.service.deployments import APPLICATION, LOGGING, build_application, http_options

    ending = signal.getsignal(signal.SIGTERM)
    ray.init(address=address, logging_level=logging.WARNING)
    signal.signal(signal.SIGTERM, ending)  # Ray has put its own in place
    try:
        serve.start("HeadOnly", http_options(settings), logging_config=LOGGING)
        print("loading the models", flush=True)
        try:
            serve.run(build_application(settings), name=APPLICATION, route_prefix="/")
        except RuntimeError as error:
            raise UserError(_cause(error)) from error
        announce(settings)
        try:
            signal.pause()
        except KeyboardInterrupt:
            print("stopping", flush=True)
    finally:
        serve.shutdown()
        ray.shutdown()


def _cause(error: RuntimeError) -> str:
    """Return the mistake that a replica's constructor reported, or else all that is known."""
    found = _OWN_MISTAKE.findall(str(error))
    return str(found[-1]) if found else f"the service did not start: {str(error)[-2000:]}"
