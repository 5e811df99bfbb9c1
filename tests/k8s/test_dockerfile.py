"""The Dockerfile, read; test_image builds a cut of it."""

import fnmatch
import re

import pytest

from tests.k8s.overlays import CHECKOUT


@pytest.fixture(scope="module")
def instructions():
    """(word, rest) of every instruction; continued lines joined, comments left out."""
    text = re.sub(r"^\s*#.*\n", "", (CHECKOUT / "k8s" / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [tuple(line.split(None, 1)) for line in lines if line.strip()]


def stages(instructions) -> dict[str, list[tuple[str, str]]]:
    """Return the instructions of each stage by its name."""
    found: dict[str, list[tuple[str, str]]] = {}
    name = ""
    for word, rest in instructions:
        if word == "FROM":
            name = rest.partition(" AS ")[2]
        found.setdefault(name, []).append((word, rest))
    return found


def test_every_stage_stands_on_one_fixed_python(instructions):
    found = stages(instructions)
    assert list(found) == ["", "packages", "weights", "run"]
    (base,) = (rest for word, rest in found[""] if word == "ARG")
    name, _, image = base.partition("=")
    assert re.fullmatch(r"python:3\.(11|12|13)\.\d+-slim-\w+@sha256:[0-9a-f]{64}", image), image
    bases = [rest.partition(" AS ")[0] for word, rest in instructions if word == "FROM"]
    assert bases == [f"${{{name}}}", "packages", f"${{{name}}}"]


def test_packages_are_pinned_and_come_before_the_sources(instructions):
    packages = stages(instructions)["packages"]
    installs = [rest for word, rest in packages if word == "RUN" and "pip install" in rest]
    assert installs
    assert all("pip install -c constraints.txt" in rest for rest in installs)
    assert not any(word in ("COPY", "ADD") and rest.startswith((". ", "brewclip")) for word, rest in packages)
    (chosen,) = (rest for word, rest in packages if word == "ARG" and rest.startswith("PACKAGES="))
    extras = set(re.search(r"\.\[(.*?)\]", chosen)[1].split(","))
    assert not any("README.md" in rest for word, rest in packages if word == "COPY"), "a word of it installs nothing"
    defined = re.findall(r"^(\w+) = \[$", (CHECKOUT / "pyproject.toml").read_text(), re.MULTILINE)
    assert extras <= set(defined)
    assert "psycopg2-binary==" in (CHECKOUT / "constraints.txt").read_text(), "MLflow's driver for PostgreSQL"


def test_the_image_runs_as_the_user_of_the_manifests(instructions):
    run = stages(instructions)["run"]
    assert run[-1] == ("USER", "1000:1000")
    assert any(word == "RUN" and "useradd --uid 1000 --user-group --create-home" in rest for word, rest in run)
    assert ("WORKDIR", "/app") in run, "Ray starts a job's command here"
    environment = " ".join(rest for word, rest in run if word == "ENV")
    assert "PYTHONPATH=/app" in environment
    assert "XDG_CACHE_HOME=/opt/weights" in environment
    assert "BREWCLIP_GIT_FOLDER=/app" in environment, "by which submitted code is told from the image's"
    assert not any("pip install" in rest or "apt-get" in rest for word, rest in run)
    assert not re.search(r"password|secret|token|access_key", str(instructions), re.IGNORECASE)


def test_what_is_copied_exists_and_is_let_through(instructions):
    rules = (CHECKOUT / ".dockerignore").read_text().split("\n")
    rules = [rule for rule in rules if rule and not rule.startswith("#")]
    assert rules[0] == "*", "nothing goes in that is not named"

    def goes_in(path: str) -> bool:
        verdict = True
        for rule in rules:
            pattern = rule.removeprefix("!").removeprefix("**/")
            parts = path.split("/")
            prefixes = ["/".join(parts[: n + 1]) for n in range(len(parts))]
            hit = any(fnmatch.fnmatch(prefix, pattern) for prefix in prefixes) or (
                rule.startswith("**/") and pattern in parts
            )
            verdict = rule.startswith("!") if hit else verdict
        return verdict

    copied = [rest.split() for word, rest in instructions if word == "COPY" and not rest.startswith("--from")]
    for *sources, _ in copied:
        for source in sources:
            assert (CHECKOUT / source).exists(), source
            assert source == "." or goes_in(source), source
    for path in ("jobs/train.py", "brewclip/scenes/clip.safetensors", "datasets/scenes.py", "tune/spaces.py"):
        assert (CHECKOUT / path).is_file()
        assert goes_in(path), path
    for path in (
        ".git/config",
        ".env",
        ".state/s3-key.json",
        "jobs/__pycache__/a.pyc",
        "tests/conftest.py",
        "crds.yaml",
    ):
        assert not goes_in(path), path
