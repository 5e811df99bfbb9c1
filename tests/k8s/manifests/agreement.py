"""What manifests must agree with: jobs and their flags, presets, the version of Ray, the size of the cluster."""

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
    """Yield one line for each thing that a manifest says and the rest of the project does not know."""
    for document in documents:
        cluster = ray_cluster_of(document)
        lines = list(cluster_mistakes(cluster)) if cluster else []
        lines += job_mistakes(document["spec"]) if document["kind"] == "RayJob" else []
        yield from (f"{name_of(document)}: {line}" for line in lines)


def cluster_mistakes(cluster: Document) -> Iterator[str]:
    """Yield what a Ray cluster lacks: the version that is installed, the token, groups that can grow."""
    (version,) = re.findall(r"^ray==(\S+)$", (CHECKOUT / "constraints.txt").read_text(), re.MULTILINE)
    if cluster.get("rayVersion") != version:
        yield f"rayVersion {cluster.get('rayVersion')} is not the {version} of constraints.txt"
    if cluster.get("authOptions", {}).get("mode") != "token":
        yield "authOptions.mode must be token: whoever reaches the dashboard could run code"
    autoscaling = cluster.get("enableInTreeAutoscaling", False)
    if autoscaling and not cluster["headGroupSpec"]["template"]["spec"].get("automountServiceAccountToken"):
        yield "the autoscaler needs automountServiceAccountToken: true at the head"
    for group in cluster.get("workerGroupSpecs", []):
        smallest, now, largest = (group.get(f"{key}eplicas", 0) for key in ("minR", "r", "maxR"))
        if not smallest <= now <= largest:
            yield f"group {group['groupName']}: {smallest} <= {now} <= {largest} workers does not hold"
        if smallest < largest and now < largest and not autoscaling:
            yield f"group {group['groupName']} stays at {now} workers without enableInTreeAutoscaling"


def job_mistakes(spec: Document) -> Iterator[str]:
    """Yield what is wrong with a RayJob: its command, its retries, its end, and whether it fits on its cluster."""
    if not spec.get("backoffLimit"):
        yield "backoffLimit is missing: a lost head would end the run"
    if not spec.get("shutdownAfterJobFinishes") or not spec.get("ttlSecondsAfterFinished"):
        yield "shutdownAfterJobFinishes and ttlSecondsAfterFinished must be set: the cluster would cost on"
    try:
        config = parse_entrypoint(spec.get("entrypoint", ""))
    except UserError as error:
        yield f"entrypoint {spec.get('entrypoint')!r}: {error}"
        return
    if config is not None:
        yield from size_mistakes(config, spec["rayClusterSpec"]["workerGroupSpecs"][0])
        if "jobs/train.py" in spec["entrypoint"] and not config.run.name:
            yield "entrypoint names no --run.name: it is what a retry goes on with"


def size_mistakes(config: Config, group: Document) -> Iterator[str]:
    """Yield where a job asks for more than its cluster may become."""
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
        UserError: for a file that is missing, and for what the job's own command line refuses.
    """
    program, script, *words = [*shlex.split(entrypoint), "", ""][: max(2, len(shlex.split(entrypoint)))]
    if program != "python" or not (CHECKOUT / script).is_file() or not script.endswith(".py"):
        raise UserError(f"{script!r} is no script of this project: `python jobs/NAME.py ...`")
    module = _load(CHECKOUT / script)
    if hasattr(module, "split_words"):  # jobs/sweep.py: the space comes before the preset
        space, words = module.split_words(words)
        module.load_space(space)
    forms = [one for one in vars(module).values() if dataclasses.is_dataclass(one) and isinstance(one, type)]
    if script.startswith("datasets/"):
        own = [form for form in forms if form.__module__ == module.__name__ and form.__name__.endswith("Options")]
        parse_options(module.__doc__, own[0], words)
        return None
    configs = [form for form in forms if issubclass(form, Config) and form is not Config]
    return parse_command_line(module.__doc__, configs[0] if configs else Config, words)


def _load(path: Path) -> ModuleType:
    """Import a script under a name of its own; jobs import nothing heavy before they have read their flags."""
    name = f"script_{path.stem}"
    if name in sys.modules:
        return sys.modules[name]
    spec: Any = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
