"""The manifests as tests want them: a copy of k8s/ whose placeholders a user has filled in, and KubeRay's CRDs."""

import shutil
from pathlib import Path

from tests.k8s.manifests.schemas import Document, load_crds

CHECKOUT = Path(__file__).parents[2]
NAMES = ("gcs-ft", "gpu", "kind", "kueue")
CRDS = CHECKOUT.parent / "shared" / "kuberay-crds"


def filled_in(folder: Path) -> Path:
    """Copy k8s/ to `folder`, fill in what docs/kubernetes.md tells to, and return the folder of the overlays."""
    shutil.copytree(CHECKOUT / "k8s", folder / "k8s", ignore=shutil.ignore_patterns("__pycache__"))
    settings = folder / "k8s" / "base" / "settings.env"
    text = settings.read_text().replace("image=CHANGE-ME/", "image=registry.example.com/")
    settings.write_text(text.replace("storage=s3://CHANGE-ME", "storage=s3://our-bucket"))
    return folder / "k8s" / "overlays"


def kuberay_crds() -> dict[str, Document] | None:
    """Return KubeRay's schemas, None where the folder `shared/kuberay-crds` is missing."""
    return load_crds(CRDS) if CRDS.is_dir() else None
