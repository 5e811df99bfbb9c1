"""Settings of the service: what it serves, where it listens, its sizes and its limits."""

import dataclasses
import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from brewclip.config.ranges import COUNT, Range, check_ranges
from brewclip.config.settings import Precision
from brewclip.errors import UserError

TOKEN_VARIABLE = "BREWCLIP_SERVICE_TOKEN"  # an environment is private to its user, a command line is not
_SHORTEST_TOKEN = 16


@dataclass(frozen=True)
class EmbedderSettings:
    """Replicas that hold Whisper, CLIP and the index."""

    min_replicas: Annotated[int, Range(1, 1000)] = 1
    """Least replicas; as many from the start."""
    max_replicas: Annotated[int, Range(1, 1000)] = 1
    """Most replicas; above the least, Ray Serve scales by the number of requests per replica."""
    cpus_per_replica: Annotated[float, Range(0.01, 1024)] = 1.0
    """CPUs of a replica; torch takes as many threads, at least one."""
    gpus_per_replica: Annotated[float, Range(0, 64)] = 0.0
    """GPUs of a replica; a fraction shares one."""
    batch_size: Annotated[int, Range(1, 1024)] = 16
    """Most queries that go through Whisper and CLIP together."""
    max_queued: Annotated[int, Range(1, 100_000)] = 64
    """Queries that may wait for a replica; more are refused with 429."""
    shutdown_seconds: Annotated[float, Range(0, 3600)] = 60.0
    """How long a replica that is replaced may finish its queries."""


@dataclass(frozen=True)
class LimitSettings:
    """What a request may ask for."""

    body_megabytes: Annotated[float, Range(0.001, 1000)] = 25.0
    """Largest body."""
    speech_seconds: Annotated[float, Range(0.1, 600)] = 60.0
    """Longest recording."""
    text_characters: Annotated[int, Range(1, 100_000)] = 1000
    """Longest text."""
    top: Annotated[int, Range(1, 10_000)] = 100
    """Most results of one request."""
    offset: Annotated[int, Range(0, 10**6)] = 10_000
    """Furthest place to which results can be paged."""
    in_flight: Annotated[int, Range(1, 100_000)] = 128
    """Searches that one ingress works on or lets wait; more are refused with 429. Each holds its body in memory."""
    upload_seconds: Annotated[float, Range(0.01, 3600)] = 30.0
    """How long a body may take to arrive."""
    request_seconds: Annotated[float, Range(0.01, 3600)] = 60.0
    """How long a search may take."""


@dataclass(frozen=True)
class ServiceSettings:
    """Settings of `brewclip serve` and of the service on a cluster."""

    index: str
    """Folder or s3:// prefix of the index."""
    checkpoint: str = ""
    """New location of the checkpoint that built the index; empty uses the recorded one, others are refused."""
    device: str = ""
    """Device of the models, such as cuda; empty uses a GPU if there is one."""
    precision: Precision = "auto"
    """Precision of Whisper's encoder; `auto` is bfloat16 on a GPU and on processors that multiply it (AMX or
    AVX-512 BF16), else float32."""
    task: Literal["", "transcribe", "translate"] = ""
    """What Whisper writes: the words, or their translation to English; empty is the checkpoint's own."""
    language: str | None = None
    """Language that is spoken, a code such as de; '' detects it; by default the checkpoint's own, and detected for
    a translation."""
    threshold: float | None = None
    """Best score below which nothing is close to what was said or written; by default the one that
    95 % of the recordings of dev reached with their own image; -1 says so of nothing."""
    host: str = "127.0.0.1"
    """Address to listen on; any other than loopback needs a token."""
    port: Annotated[int, Range(0, 65_535, note="0 takes a free one")] = 8000
    """Port to listen on."""
    token_file: str = ""
    """File with the token that requests must bring; by default that of BREWCLIP_SERVICE_TOKEN."""
    examples: str = ""
    """Folder of recordings that the page offers to click on; NAME.txt beside one has its title."""
    log_queries: bool = False
    """Write transcripts and texts of queries into the access log."""
    ingress_replicas: Annotated[int, COUNT] = 1
    """Replicas that read, check and decode requests."""
    embedder: EmbedderSettings = EmbedderSettings()
    limits: LimitSettings = LimitSettings()

    @property
    def max_body_bytes(self) -> int:
        """Largest body in bytes."""
        return int(self.limits.body_megabytes * 10**6)


def announce(settings: ServiceSettings) -> None:
    """Print where the service answers."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    print(f"serving at http://{host}:{settings.port}/ (Ctrl-C stops it)", flush=True)


def is_loopback(host: str) -> bool:
    """Return whether an address can be reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_token(settings: ServiceSettings) -> str:
    """Return the token that requests must bring, from the file or the environment; empty if there is none.

    Raises:
        UserError: if the file cannot be read, the token is short, or there is none for an address that others reach.
    """
    token, source = os.environ.get(TOKEN_VARIABLE, ""), TOKEN_VARIABLE
    if settings.token_file:
        source = f"--token-file {settings.token_file}"
        try:
            token = Path(settings.token_file).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{source} cannot be read: {error}") from None
    if (token or settings.token_file) and (len(token) < _SHORTEST_TOKEN or not token.isascii() or " " in token):
        raise UserError(f"the token of {source} must be {_SHORTEST_TOKEN} ASCII letters or more, without spaces")
    if not token and not is_loopback(settings.host):
        raise UserError(
            f"--host {settings.host} can be reached by others: set {TOKEN_VARIABLE} or --token-file, or listen on "
            "127.0.0.1"
        )
    return token


def check_settings(settings: ServiceSettings) -> None:
    """Check the settings' ranges and combinations.

    Raises:
        UserError: for the first invalid one.
    """
    check_ranges(settings)
    sizes = settings.embedder
    if sizes.max_replicas < sizes.min_replicas:
        raise UserError(
            f"--embedder.max-replicas {sizes.max_replicas} must be {sizes.min_replicas} or more, the least replicas"
        )
    if settings.limits.in_flight < sizes.batch_size:
        raise UserError(
            f"--limits.in-flight {settings.limits.in_flight} must be {sizes.batch_size} or more, or no batch fills"
        )


def settings_from(values: Mapping[str, Any]) -> ServiceSettings:
    """Return the settings of a nested mapping, as a Serve config has them under `args`.

    Raises:
        UserError: if a name is unknown or a value is not allowed.
    """
    settings: ServiceSettings = _filled(ServiceSettings, values, "")
    check_settings(settings)
    return settings


def _filled(form: Any, values: Mapping[str, Any], prefix: str) -> Any:
    known = {item.name: item for item in dataclasses.fields(form)}
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise UserError(f"{prefix}{unknown[0]} is no setting of the service: there are {', '.join(known)}")
    parts = {"embedder": EmbedderSettings, "limits": LimitSettings}
    filled = {}
    for name, value in values.items():
        is_part = not prefix and name in parts
        if is_part and not isinstance(value, Mapping):
            raise UserError(f"{name} is {value!r}; it must hold settings")
        filled[name] = _filled(parts[name], value, f"{name}.") if is_part else value
    if form is ServiceSettings and "index" not in values:
        raise UserError("index is missing: name the folder or s3:// prefix of an index")
    return form(**filled)
