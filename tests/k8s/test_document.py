"""Every command of the pages on Kubernetes is held against the manifests, the Dockerfile and the jobs."""

import json
import re
import shlex
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

from brewclip.errors import UserError
from tests.k8s.manifests.agreement import parse_entrypoint
from tests.k8s.manifests.check import render, stages_of
from tests.k8s.manifests.exposure import variables_of
from tests.k8s.manifests.pods import pods_of, quantity
from tests.k8s.overlays import CHECKOUT, NAMES, filled_in, kuberay_crds

PAGES = (CHECKOUT / "docs" / "kubernetes.md", CHECKOUT / "docs" / "kubernetes-operations.md")
TEXT = "\n".join(page.read_text() for page in PAGES)
KUBERAY = "1.7.0"  # of the CRDs and of tests/k8s/manifests/kuberay.py
# Programs of the user's machine, of whose words nothing is ours.
FOREIGN = {"git", "kind", "openssl", "tr", "base64", "cat", "aws s3", "docker --config", "docker push"}
PULLING = "kubernetes.io/dockerconfigjson"
VERBS = {
    "apply",
    "create",
    "delete",
    "get",
    "patch",
    "logs",
    "port-forward",
    "scale",
    "exec",
    "drain",
    "describe",
    "taint",
}
# KubeRay's own kinds beside those of the manifests, and what is asked for as a whole
CRDS = {"rayclusters.ray.io", "rayjobs.ray.io", "rayservices.ray.io", "raycronjobs.ray.io"}
WHOLE = {"rayjobs,rayclusters,pods", "rayjobs,rayclusters", "workloads", "events", "pods", "pvc"}


def shell_lines(text: str) -> list[str]:
    """Return the commands of all shell blocks, continued lines joined."""
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    return [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def commands(line: str) -> list[list[str]]:
    """Return the words of each command of a line: of a pipe, and of $(...) within it."""
    inner = re.findall(r"\$\(([^()]*)\)", line)
    outer = re.sub(r"\$\([^()]*\)", "SUBSTITUTED", line)
    parts = [part for text in [outer, *inner] for part in re.split(r"\s\|\s", text)]
    return [words for part in parts if (words := shlex.split(part, comments=True))]


@cache
def manifests() -> dict[str, list[dict]]:
    """Return the manifests of all overlays, filled in."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        overlays = filled_in(Path(folder))
        return {name: render(overlays / name) for name in NAMES}


def names_of(kind: str) -> set[str]:
    """Return the names of a kind in any overlay."""
    found = {
        one["metadata"]["name"]
        for documents in manifests().values()
        for one in documents
        if one["kind"].lower() == kind
    }
    if kind == "service":  # KubeRay's own
        found |= {f"{name}-head-svc" for name in [*names_of("raycluster"), "$CLUSTER"]}
    if kind == "job":  # the submitters
        found |= names_of("rayjob")
    if kind == "secret":
        found |= set(secrets_wanted()) | names_of("raycluster") | {"$CLUSTER"}
    return found


@cache
def secrets_wanted() -> dict[str, set[str]]:
    """Return the keys of each Secret that the manifests refer to; empty where all of its keys are taken."""
    wanted: dict[str, set[str]] = {}
    for name in re.findall(r'"secretRef": {"name": "([\w-]+)"', json.dumps(manifests())):
        wanted.setdefault(name, set())
    for documents in manifests().values():
        for document in documents:
            keys = [one.get("valueFrom", {}).get("secretKeyRef") for one in variables_of(document)]
            keys += [
                source["valueFrom"]["secretKeyRef"]
                for spec in (document.get("spec", {}), document.get("spec", {}).get("rayClusterSpec") or {})
                if (source := spec.get("gcsFaultToleranceOptions", {}).get("redisPassword"))
            ]
            for key in filter(None, keys):
                wanted.setdefault(key["name"], set()).add(key["key"])
    return wanted | {"registry": {".dockerconfigjson"}}  # of the component pull-secret, in no overlay


def flag(words: list[str], name: str) -> str | None:
    """Return the value of `-x VALUE`, or of `--name VALUE` or `--name=VALUE`."""
    for index, word in enumerate(words):
        if word == name:
            return words[index + 1]
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
    return None


def mistake_of(words: list[str]) -> str:
    """Return what is wrong with a command, empty if nothing is."""
    while words and (words[0] == "export" or re.fullmatch(r"[A-Z_]+=.*", words[0])):
        words = words[1:]
    if not words or words[0] in FOREIGN or " ".join(words[:2]) in FOREIGN:
        return ""
    if words[0] == "kubectl":
        return kubectl_mistake(words[1:])
    if words[0] == "helm":
        return helm_mistake(words[1:])
    if words[0] == "k8s/wait_for_job.sh":
        right = words[1] in names_of("rayjob") and words[2].isdigit() and (CHECKOUT / words[0]).is_file()
        return "" if right else f"no job {words[1]}"
    if words[:2] == ["docker", "build"]:
        file = flag(words, "-f") or ""
        if not (CHECKOUT / file).is_file():
            return f"no file {file}"
        given = {word.partition("=")[0] for before, word in pairwise(words) if before == "--build-arg"}
        unknown = given - set(re.findall(r"^ARG (\w+)", (CHECKOUT / file).read_text(), re.MULTILINE))
        return f"no build argument {unknown}" if unknown else ""
    if words[:3] == ["ray", "job", "submit"]:
        words = words[words.index("--") + 1 :]
    if words[:2] == ["python", "-m"]:
        return "" if (CHECKOUT / f"{words[2].replace('.', '/')}.py").is_file() else f"no module {words[2]}"
    try:
        parse_entrypoint(shlex.join(words))
    except UserError as error:
        return str(error)
    return ""


def helm_mistake(words: list[str]) -> str:
    """Return what is wrong with a helm command: another KubeRay than that of the check, or other values."""
    if words[0] not in ("repo", "install", "upgrade", "uninstall"):
        return f"verb {words[0]!r} is unknown"
    if words[0] in ("install", "upgrade"):
        version, values = flag(words, "--version"), flag(words, "--values")
        if version != KUBERAY or not values or not (CHECKOUT / values).is_file():
            return f"version {version}, wanted {KUBERAY}; values {values}"
    return ""


def kubectl_mistake(words: list[str]) -> str:
    """Return what is wrong with a kubectl command."""
    namespace = flag(words, "-n")
    if namespace is not None:
        words = words[2:] if words[0] == "-n" else words
    verb = words[0]
    if namespace == "kuberay-system" and words[:2] == ["logs", "deployment/kuberay-operator"]:
        return ""
    if verb not in VERBS or namespace not in (None, "brewclip"):
        return f"verb {verb!r} or namespace {namespace!r} is unknown"
    stage = flag(words, "-k")
    if stage is not None:
        return _stage_mistake(stage)
    if words[1:2] == ["crd"]:
        return "" if {word for word in words[2:] if word.endswith(".ray.io")} <= CRDS else f"no CRD among {words[2:]}"
    if verb in ("drain", "taint"):
        return ""
    if words[:2] == ["create", "namespace"]:
        return "" if words[2] in names_of("namespace") else f"no namespace {words[2]}"
    if namespace is None:
        return "names no namespace"
    if words[:4] == ["create", "secret", "generic", "registry"] and flag(words, "--type") != PULLING:
        return f"secret registry: the component pull-secret takes the type {PULLING}"
    if words[:2] == ["create", "job"]:
        name = (flag(words, "--from") or "").removeprefix("cronjob/")
        return "" if name in names_of("cronjob") else f"no cronjob {name}"
    if words[:2] == ["create", "secret"]:
        given = {word.split("=")[1] for word in words if word.startswith(("--from-literal=", "--from-file="))}
        wanted = secrets_wanted().get(words[3])
        return "" if wanted is not None and wanted <= given else f"secret {words[3]}: {given}, wanted {wanted}"
    if verb == "patch":
        patch = json.loads(flag(words, "-p") or "{}")
        if set(patch["spec"]) != {"suspend"}:
            return f"patch {patch}"
    return _target_mistake(words[1:])


def _stage_mistake(stage: str) -> str:
    if stage == f"github.com/ray-project/kuberay/ray-operator/config/crd?ref=v{KUBERAY}":
        return ""
    *_, overlay, name = ["", *stage.split("/")]
    if stage != f"k8s/overlays/{overlay}/{name}" or overlay not in NAMES:
        return f"no overlay {stage}"
    return "" if name in stages_of(CHECKOUT / "k8s" / "overlays" / overlay) else f"{overlay} has no stage {name}"


def _target_mistake(words: list[str]) -> str:
    words = [word for word in words if word not in ("-i", "--all") and not word.startswith("--sort-by")]
    if words[0].endswith("-0") and words[0].removesuffix("-0") in names_of("statefulset"):
        return ""
    if words[0] in WHOLE:
        return ""
    kind, _, name = words[0].partition("/")
    name = name or words[1]
    return "" if name in names_of(kind) else f"no {kind} {name}"


LINES = shell_lines(TEXT)


@pytest.mark.slow
@pytest.mark.parametrize("line", LINES)
def test_a_command_is_right(line):
    for words in commands(line):
        words = [word for word in words if not word.startswith("SUBSTITUTED")]
        assert mistake_of(words) == ""


@pytest.mark.slow
def test_every_secret_is_made_on_the_page():
    made = {words[words.index("generic") + 1] for line in LINES for words in commands(line) if "generic" in words}
    assert made == set(secrets_wanted())
    # A secret must not stand on a command line, where every process of the machine can read it.
    assert not re.search(r"--from-literal=\S*(?:password|SECRET)", TEXT)


def test_every_overlay_stage_and_component_occurs_on_the_page():
    rows = dict(re.findall(r"^\| `([\w-]+)` \| ([\w, ]+) \|", TEXT, re.MULTILINE))
    for name in NAMES:
        stages = stages_of(CHECKOUT / "k8s" / "overlays" / name)
        assert sorted(rows[name].split(", ")) == stages, name
        for stage in set(stages) - {"nightly"}:
            assert f"k8s/overlays/{name}/{stage}" in TEXT or f"/{stage}" in TEXT, stage
    for path in (CHECKOUT / "k8s" / "components").iterdir():
        if path.name not in ("gpu", "autoscaler-network"):  # parts of overlays
            assert f"`{path.name}`" in TEXT or f"{path.name}/" in TEXT, path.name


def test_no_block_stays_in_its_first_command():
    for block in re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL):
        lines = shell_lines(f"```sh\n{block}```")
        stay = [number for number, line in enumerate(lines) if "port-forward" in line or "--follow" in line]
        assert all(number == len(lines) - 1 for number in stay), block


def test_one_kuberay():
    """The guide, the operator's values and the CRDs that manifests are held against name the same version."""
    assert set(re.findall(r"--version (\S+)", TEXT)) == {KUBERAY}
    assert f"kuberay-operator {KUBERAY}" in (CHECKOUT / "k8s" / "operator" / "values.yaml").read_text()


def test_files_that_the_page_names_exist():
    for path in re.findall(r"`(k8s/[\w./-]+)`", TEXT):
        assert (CHECKOUT / path).exists(), path


def test_what_the_page_says_that_it_takes():
    def taken(overlay: str, *parts: str) -> str:
        documents = [one for one in manifests()[overlay] if one["metadata"]["labels"]["part"] in parts]
        requests = [
            container["resources"]["requests"]
            for one in documents
            if one["kind"] != "CronJob"
            for pod in pods_of([one])
            for container in pod.spec["containers"]
        ]
        cpus, memory = (sum(quantity(one[key]) for one in requests) for key in ("cpu", "memory"))
        return f"{memory / 2**30:g} GiB, {cpus:g} CPUs"

    assert taken("kind", "platform", "train") == "11 GiB, 4.25 CPUs"
    assert "11 GiB of memory and 4.25 CPUs" in TEXT
    assert taken("gpu", "platform") == "2.5 GiB, 0.75 CPUs"
    assert "0.75 CPUs and 2.5 GiB" in TEXT


@pytest.mark.slow
def test_fields_that_the_page_reads_exist():
    crds = kuberay_crds()
    if crds is None:
        pytest.skip("shared/kuberay-crds is missing: the fields of a RayJob's status are not checked")
    for field in re.findall(r"jsonpath='{\.status\.(\w+)}'", TEXT):
        assert field in crds["RayJob"]["properties"]["status"]["properties"], field


@pytest.mark.parametrize(
    "line",
    [
        "kubectl apply -k k8s/overlays/gpus/train",
        "kubectl apply -k k8s/overlays/gpu/data",
        "kubectl apply -k k8s/overlays/gpu",
        "kubectl -n brewclip create job backup-now --from=cronjob/backups",
        "kubectl delete crd rayjob.ray.io",
        "helm install kuberay-operator kuberay/kuberay-operator --version 1.6.0 --values k8s/operator/values.yaml",
        "k8s/wait_for_job.sh trian 60",
        "kubectl -n brewclp get rayjobs,rayclusters,pods",
        "kubectl -n brewclip get rayjob trian",
        "kubectl -n brewclip port-forward service/mlfow 5000:5000",
        "kubectl -n brewclip create secret generic redis --from-file=pasword=/dev/stdin",
        "kubectl -n brewclip create secret generic registry --from-file=.dockerconfigjson=config.json",
        'kubectl -n brewclip patch rayjob train --type merge -p \'{"spec":{"suspended":true}}\'',
        "kubectl -n brewclip scale deployment mlflow2 --replicas=0",
        "kubectl describ pods",
        "docker build -f Dockerfile -t a .",
        "docker build -f k8s/Dockerfile --build-arg CLIPS=a .",
        "ray job submit --working-dir . -- python jobs/trian.py flickr8k",
        "python jobs/train.py flickr9k",
        "python -m k8s.chek gpu",
        "make demo | pipe",
    ],
)
def test_a_wrong_command_is_found(line):
    assert any(mistake_of(words) for words in commands(line))
