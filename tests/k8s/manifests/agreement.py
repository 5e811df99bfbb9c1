"""Consistency of manifests with the project: jobs and flags, presets, Ray's version, the size of the cluster."""

import dataclasses
import importlib.util
import math
import re
import shlex
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from brewclip.config import Config, parse_command_line, parse_options
from brewclip.errors import UserError
from tests.k8s.manifests.pods import GPU, quantity, ray_cluster_of
from tests.k8s.manifests.schemas import Document, name_of

CHECKOUT = Path(__file__).resolve().parents[3]


def agreement_mistakes(documents: Iterable[Document]) -> Iterator[str]:
    """Yield one line for each inconsistency between a manifest and the rest of the project."""
    documents = list(documents)
    for document in documents:
        cluster = ray_cluster_of(document)
        lines = list(cluster_mistakes(cluster)) if cluster else []
        lines += job_mistakes(document["spec"]) if document["kind"] == "RayJob" else []
        lines += job_mistakes(document["spec"]["jobTemplate"]) if document["kind"] == "RayCronJob" else []
        lines += settings_mistakes(document["data"]) if name_of(document) == "ConfigMap/settings" else []
        yield from (f"{name_of(document)}: {line}" for line in lines)


def settings_mistakes(settings: dict[str, str]) -> Iterator[str]:
    """Yield numbers of processes that are not one for each GPU of the pods."""
    gpus = max(1, int(settings["gpus-per-worker-pod"]))
    for end in ("min", "max"):
        pods, processes = int(settings[f"{end}-worker-pods"]), int(settings[f"{end}-processes"])
        if processes != pods * gpus:
            yield f"{end}-processes={processes} must be {pods * gpus}: {pods} pods of {gpus} processes"


def cluster_mistakes(cluster: Document) -> Iterator[str]:
    """Yield mistakes of a Ray cluster: version, token authentication, groups that cannot scale."""
    (version,) = re.findall(r"^ray==(\S+)$", (CHECKOUT / "constraints.txt").read_text(), re.MULTILINE)
    if cluster.get("rayVersion") != version:
        yield f"rayVersion {cluster.get('rayVersion')} is not the {version} of constraints.txt"
    if cluster.get("authOptions", {}).get("mode") != "token":
        yield "authOptions.mode must be token: whoever reaches the dashboard could run code"
    autoscaling = cluster.get("enableInTreeAutoscaling", False)
    for group in cluster.get("workerGroupSpecs", []):
        smallest, now, largest = (group.get(f"{key}eplicas", 0) for key in ("minR", "r", "maxR"))
        if not smallest <= now <= largest:
            yield f"group {group['groupName']}: {smallest} <= {now} <= {largest} workers does not hold"
        if smallest < largest and now < largest and not autoscaling:
            yield f"group {group['groupName']} stays at {now} workers without enableInTreeAutoscaling"


def job_mistakes(spec: Document) -> Iterator[str]:
    """Yield mistakes of a RayJob: command, retries, bounds of time, the end and the size of its cluster."""
    if not 1 <= spec.get("backoffLimit", 0) <= 5:
        yield f"backoffLimit {spec.get('backoffLimit')} must be 1..5: a lost head would end the run, a mistake cost on"
    for key in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
        if key not in spec:
            yield f"{key} is missing: a job that hangs would hold its machines for ever"
    ended_by_rules = "DeleteCluster" in str(spec.get("deletionStrategy", ""))
    if not ended_by_rules and not (spec.get("shutdownAfterJobFinishes") and spec.get("ttlSecondsAfterFinished")):
        yield "shutdownAfterJobFinishes and ttlSecondsAfterFinished must be set: the cluster would cost on"
    try:
        config = parse_entrypoint(spec.get("entrypoint", ""))
    except UserError as error:
        yield f"entrypoint {spec.get('entrypoint')!r}: {error}"
        return
    if config is not None:
        yield from size_mistakes(config, spec["rayClusterSpec"]["workerGroupSpecs"][0])
        if "jobs/train.py" in spec["entrypoint"] and not config.run.name:
            yield "entrypoint names no --run.name, which a retry resumes by"


def size_mistakes(config: Config, group: Document) -> Iterator[str]:
    """Yield demands of a job that exceed the maximum size of its cluster."""
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    cluster, places = config.cluster, math.inf
    if cluster.use_gpu is True:
        places = quantity(limits.get(GPU, 0))
        if not places:
            yield f"preset of corpus {config.data.corpus} trains on GPUs, the workers have none"
            return
    places = min(places, quantity(limits.get("cpu", 0)) // cluster.cpus_per_worker) * group["maxReplicas"]
    if cluster.num_workers > places:
        yield f"--cluster.num-workers {cluster.num_workers} is more than the {places:.0f} that the cluster has room for"


def parse_entrypoint(entrypoint: str) -> Config | None:
    """Read `python jobs/NAME.py ...` as the job itself would; None for a script without a preset.

    Raises:
        UserError: if the file is missing or the job refuses its command line.
    """
    program, script, *words = [*shlex.split(entrypoint), "", ""][: max(2, len(shlex.split(entrypoint)))]
    if program != "python" or not (CHECKOUT / script).is_file() or not script.endswith(".py"):
        raise UserError(f"{script!r} is no script of this project: `python jobs/NAME.py ...`")
    module = _load(CHECKOUT / script)
    if hasattr(module, "split_words"):  # jobs/sweep.py: the space comes before the preset
        space, words = module.split_words(words)
        module.load_space(space)
    forms = [one for one in vars(module).values() if dataclasses.is_dataclass(one) and isinstance(one, type)]
    own = [form for form in forms if form.__module__ == module.__name__ and form.__name__.endswith("Options")]
    if own:  # a recipe, or a job without a preset
        parse_options(module.__doc__, own[0], words)
        return None
    configs = [form for form in forms if issubclass(form, Config) and form is not Config]
    return parse_command_line(module.__doc__, configs[0] if configs else Config, words)


def _load(path: Path) -> ModuleType:
    """Import a script under a unique name; jobs import nothing heavy before they parse their flags."""
    name = f"script_{path.stem}"
    if name in sys.modules:
        return sys.modules[name]
    spec: Any = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
