"""Serve an index on this machine: page and API, until Ctrl-C.

brewclip serve --index INDEX
brewclip serve --index INDEX --port 8080 --embedder.batch-size 8
brewclip serve --index INDEX --print-config > serve.yaml     # for `serve deploy` on a Ray cluster
BREWCLIP_SERVICE_TOKEN=... brewclip serve --index INDEX --host 0.0.0.0
"""

import contextlib
import dataclasses
import signal
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from brewclip.config import parse_options
from brewclip.config.extras import check_installed
from brewclip.errors import UserError
from brewclip.service.settings import ServiceSettings, announce, check_settings, read_token

_BACKLOG = 2048
_DRAIN_SECONDS = 10


@dataclass(frozen=True)
class ServeOptions(ServiceSettings):
    """What is served, and how on this machine."""

    ray: bool = True
    """Run on a Ray of its own, with replicas that are replaced when they fail; without it one process does all."""
    print_config: bool = False
    """Print the configuration for `serve deploy` instead, and end."""

    def settings(self) -> ServiceSettings:
        """Return the settings of the service alone, with absolute paths, as replicas run in another folder."""
        names = [item.name for item in dataclasses.fields(ServiceSettings)]
        given = ServiceSettings(**{name: getattr(self, name) for name in names})
        return dataclasses.replace(given, index=_absolute(self.index), examples=_absolute(self.examples))


def _absolute(place: str) -> str:
    return place if not place or "://" in place else str(Path(place).expanduser().absolute())


def serve(words: Sequence[str] | None = None) -> int:
    """Run the service until Ctrl-C or SIGTERM.

    Args:
        words: of the command line, behind `serve`; `sys.argv` by default.

    Returns:
        The exit code.

    Raises:
        UserError: if an option, the index, the checkpoint or the address cannot be used.
    """
    for module in ("ray", "fastapi", "uvicorn", "prometheus_client"):
        check_installed(module, "brewclip serve", extra="serve")
    options = parse_options(__doc__, ServeOptions, words)
    settings = options.settings()
    check_settings(settings)
    if options.print_config:
        from brewclip.service.deployments import serve_config

        print(serve_config(settings), end="")
        return 0
    token = read_token(settings)
    settings = dataclasses.replace(settings, port=_usable_port(settings.host, settings.port))
    with _ending_on_sigterm():
        if options.ray:
            from brewclip.service.local import serve_on_ray

            serve_on_ray(settings, token)
        else:
            _serve_in_process(settings, token)
    return 0


def _serve_in_process(settings: ServiceSettings, token: str) -> None:
    """Serve without Ray: one process, one thread for the models."""
    import uvicorn

    from brewclip.service.app import build_app
    from brewclip.service.gate import log_to_stderr
    from brewclip.service.local_engine import LocalEngine, load_searcher

    searcher = load_searcher(settings)
    print(f"loading Whisper for {len(searcher.index.get()):,} images", flush=True)
    searcher.warm_up()
    sizes = settings.embedder
    app = build_app(LocalEngine(searcher, sizes.batch_size, sizes.max_queued), settings, token=token)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,  # it would have the queries of shared addresses
        timeout_graceful_shutdown=_DRAIN_SECONDS,
    )
    log_to_stderr()
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.create_server((settings.host, settings.port), family=family, backlog=_BACKLOG) as listener:
        announce(settings)  # from here on, requests wait for an answer and are not refused
        with contextlib.suppress(KeyboardInterrupt):  # uvicorn has ended by then
            uvicorn.Server(config).run(sockets=[listener])


def _usable_port(host: str, port: int) -> int:
    """Return the port, or a free one for 0.

    Raises:
        UserError: if it cannot be listened on.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            return int(probe.getsockname()[1])
    except OSError as error:
        raise UserError(f"cannot listen on --host {host} --port {port}: {error.strerror or error}") from None


@contextlib.contextmanager
def _ending_on_sigterm() -> Iterator[None]:
    """Let SIGTERM end the service as Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
