"""What `ray job submit --working-dir .` uploads, by Ray's own packing."""

import subprocess
import zipfile
from pathlib import Path

import pytest
from ray._private.runtime_env.packaging import _zip_files

CHECKOUT = Path(__file__).parents[2]
# What a user may have lying in the checkout: corpora, results, environments, keys.
LYING_ABOUT = (
    *("storage/runs/x/model.bin", "flickr8k/Images/1.jpg", "datasets/flickr8k/wavs/1.wav", "datasets/all.tar"),
    *("jobs/results.json", "tune/state/trial.json", "mine/table.csv", "corpus.tar", ".state/s3/bucket/1.tar", ".env"),
    *("venv/lib/torch.so", "aws-keys.json", "wandb/run.log"),
)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """The names in the package of a checkout with such things, and its size in bytes."""
    folder = tmp_path_factory.mktemp("checkout")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=CHECKOUT, capture_output=True, text=True, check=False,
    ).stdout.splitlines()  # fmt: skip
    if not listed:
        pytest.skip("the checkout has no git: which files are its own is not known")
    for name in listed:
        if (CHECKOUT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).symlink_to(CHECKOUT / name)
    for name in LYING_ABOUT:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"large")
    (folder / "my_space.py").write_text("SPACE = {}")
    package = tmp_path_factory.mktemp("package") / "package.zip"
    _zip_files(str(folder), [], str(package), include_gitignore=True)
    with zipfile.ZipFile(package) as archive:
        return set(listed), set(archive.namelist()), package.stat().st_size


def test_all_that_the_jobs_run_is_uploaded(packed):
    listed, names, _ = packed
    rooms = ("brewclip/", "jobs/", "tune/", "datasets/")
    assert {name for name in listed if name.startswith(rooms)} <= names
    assert {"pyproject.toml", "my_space.py", "brewclip/scenes/clip.safetensors"} <= names


def test_nothing_else_is_uploaded(packed):
    listed, names, size = packed
    assert not names & set(LYING_ABOUT)
    assert {name.split("/")[0] for name in names} == {
        *("brewclip", "jobs", "tune", "datasets", "pyproject.toml", "my_space.py")
    }
    assert names - {"my_space.py"} <= listed
    assert size < 30 * 2**20, "Ray refuses 100 MiB, and each node unpacks it"
