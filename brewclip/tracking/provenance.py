"""Provenance of a run: code, settings, data, packages, machine, and the command that repeats it.

Every job records it in the same places of its MLflow run: tags `brewclip.*`, artifacts `origin/*`, metrics `system/*`.
"""

import contextlib
import json
import shlex
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from importlib.metadata import distributions

from brewclip.config import PRESETS, Config, flatten, preset
from brewclip.tracking.sources import source_sha256
from brewclip.tracking.tracker import Tracker, describe_environment

# Settings of the place, not of the run: `repeat_command` leaves them to whoever repeats it.
_SITE_SETTINGS = ("storage", "tracking.", "run.name", "run.fresh")


def record_origin(
    tracker: Tracker,
    config: Config,
    kind: str,
    *,
    repeat: str = "",
    environment: Mapping[str, str] | None = None,
    sha256: Mapping[str, str] | None = None,
) -> None:
    """Record the provenance of a run: tags to find it by, and settings and packages as artifacts.

    Args:
        tracker: the run.
        config: its settings.
        kind: `train`, `extract`, `evaluation`, `sweep`.
        repeat: the command that repeats the run, see `repeat_command`.
        environment: of the program that the user started, `describe_environment()` there; by default of this one.
        sha256: hashes of manifests and frozen weights by name.
    """
    if not tracker.uri:  # nothing is recorded, and describing the packages takes a second of a core
        return
    tags = dict(environment or describe_environment())
    tags |= {
        "brewclip.kind": kind,
        "brewclip.corpus": config.data.corpus,
        "brewclip.variant": config.model.variant,
        "brewclip.source_sha256": source_sha256(),
    }
    tags |= {f"brewclip.sha256.{name}": value for name, value in (sha256 or {}).items()}
    tracker.set_tags(tags | ({"brewclip.repeat": repeat} if repeat else {}))
    tracker.log_text(json.dumps(flatten(config), indent=1), "origin/config.json")
    tracker.log_text(installed_packages(), "origin/packages.txt")
    if repeat:
        tracker.log_text(f"{repeat}\n", "origin/repeat.sh")


@contextlib.contextmanager
def recorded(tracker: Tracker, config: Config, kind: str) -> Iterator[None]:
    """Track a job that has no other run: its provenance, system metrics, and final status."""
    record_origin(tracker, config, kind)
    system_metrics = SystemMetrics(tracker)
    status = "FAILED"
    try:
        yield
        status = "FINISHED"
    finally:
        system_metrics.stop()
        tracker.finish(status)


def repeat_command(config: Config, job: str = "train") -> str:
    """Return the command that repeats a run under a new name, from the nearest preset.

    Storage and tracking are left out, so it contains no secrets.
    """
    base = Config(**{item.name: getattr(config, item.name) for item in fields(Config)})
    wanted = flatten(base)
    presets = {name: flatten(preset(name)) for name in PRESETS}
    changes = {
        name: {key: value for key, value in wanted.items() if settings[key] != value}
        for name, settings in presets.items()
    }
    nearest = min(changes, key=lambda name: len(changes[name]))
    words = ["python", f"jobs/{job}.py", nearest, "--run.name", f"{config.run_name}-again"]
    for key, value in changes[nearest].items():
        if not key.startswith(_SITE_SETTINGS):
            words += _flag(key, value)
    return shlex.join(words)


def _flag(key: str, value: object) -> list[str]:
    flag = key.replace("_", "-")
    if isinstance(value, bool):
        section, _, name = flag.rpartition(".")
        return [f"--{flag}" if value else f"--{section}.no-{name}"]
    if isinstance(value, list):
        return [f"--{flag}", *map(str, value)]
    return [f"--{flag}", str(value)]


def installed_packages() -> str:
    """Return the installed packages, one `name==version` per line, as for `pip install -r`."""
    read = (one.metadata for one in distributions())  # once each: they are parsed whenever they are asked for
    found = {f"{one['Name']}=={one['Version']}" for one in read if one["Name"]}
    return "\n".join(sorted(found, key=str.lower)) + "\n"


class SystemMetrics:
    """Utilization of CPU, memory and GPUs of this machine, recorded under MLflow's names until `stop`.

    MLflow's own sampler bypasses the `Tracker` and loses what it measures while the server is unavailable.
    """

    def __init__(self, tracker: Tracker, every_seconds: float = 10.0) -> None:
        self._done = threading.Event()
        self._thread = threading.Thread(
            target=self._watch, args=(tracker, every_seconds), name="system-metrics", daemon=True
        )
        if tracker.uri:
            self._thread.start()

    def stop(self) -> None:
        """Stop measuring."""
        self._done.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self, tracker: Tracker, every_seconds: float) -> None:
        import psutil

        psutil.cpu_percent()  # the first call starts the interval that the second one measures
        sample = 0
        while not self._done.wait(min(1.0, every_seconds) if sample == 0 else every_seconds):
            tracker.log_metrics(measure_system(), sample)
            sample += 1


def measure_system(run: Callable[..., subprocess.CompletedProcess[str]] = subprocess.run) -> dict[str, float]:
    """Return the utilization of CPUs, memory and, if `nvidia-smi` is found, GPUs since the last call.

    Args:
        run: starts a program, as `subprocess.run`.
    """
    import psutil

    memory, own = psutil.virtual_memory(), psutil.Process()
    metrics = {
        "system/cpu_utilization_percentage": psutil.cpu_percent(),
        "system/system_memory_usage_percentage": memory.percent,
        "system/system_memory_usage_megabytes": memory.used / 1e6,
        "system/process_memory_usage_megabytes": own.memory_info().rss / 1e6,
    }
    program = shutil.which("nvidia-smi")
    if program is None:
        return metrics
    query = "--query-gpu=index,utilization.gpu,memory.used"
    try:
        done = run([program, query, "--format=csv,noheader,nounits"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return metrics
    for line in done.stdout.splitlines():
        index, busy, used = (word.strip() for word in line.split(","))
        for name, value in (("utilization_percentage", busy), ("memory_usage_megabytes", used)):
            if value.replace(".", "", 1).isdigit():  # some drivers report [N/A]
                metrics[f"system/gpu_{index}_{name}"] = float(value)
    return metrics
