"""What README and docs name exists: files, links, settings. And README stays short."""

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]
PAGES = [
    *(CHECKOUT / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted(page for page in (CHECKOUT / "docs").rglob("*.md") if page.name != "LOG.md"),  # which is of its day
]
# Flags of other programs, by the pages' own words.
FOREIGN_FLAGS = {"--runtime-env", "--runtime-env-json", "--working-dir", "--crds", "--build-arg"}
# Written by jobs or by recipes, not part of the checkout.
WRITTEN = {"members/", "tars/"}
TREES = ("brewclip", "jobs", "datasets", "tune", "tests", "k8s", "docs")


def test_readme_is_short() -> None:
    assert len((CHECKOUT / "README.md").read_text().splitlines()) <= 120


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(CHECKOUT)))
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(CHECKOUT)))
def test_files_that_are_named_exist(page: Path) -> None:
    assert [name for name in named_files(page.read_text()) if not is_there(name)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(CHECKOUT)))
def test_flags_that_are_named_exist(page: Path) -> None:
    known = fields()
    flags = set(re.findall(r"`(--[a-z][\w.-]*)", page.read_text())) - FOREIGN_FLAGS
    plain = {flag: flag[2:].removeprefix("no-").replace("-", "_") for flag in flags}
    unknown = [flag for flag, name in plain.items() if not set(name.split(".")) <= known]
    assert unknown == []


def named_files(text: str) -> Iterator[str]:
    """Yield the paths in backticks: with a suffix of ours, or of a folder that ends in a slash."""
    for span in re.findall(r"`([^`\s]+)`", text):
        if re.fullmatch(r"[\w./-]+\.(py|md|html|env|yaml|toml)|(?:[\w.-]+/)+", span) and "NAME" not in span:
            yield span


def is_there(name: str) -> bool:
    """Return whether a file is there: from the checkout, from the package, or anywhere by the end of its path."""
    if name in WRITTEN or name.startswith(("RUN/", "STORAGE/", "CORPUS/", "URL/")) or (CHECKOUT / name).exists():
        return True
    tail = name.strip("/")
    return any(path.endswith(f"/{tail}") for path in paths())


@functools.cache
def paths() -> list[str]:
    """Return all files and folders of the checkout's trees, each as /PATH."""
    return [f"/{path.relative_to(CHECKOUT)}" for tree in TREES for path in (CHECKOUT / tree).rglob("*")]


@functools.cache
def fields() -> set[str]:
    """Return the names of the annotated fields of all classes: settings and options are dataclasses."""
    found = {"help", "version"}
    for tree in ("brewclip", "jobs", "datasets", "tune"):
        for path in (CHECKOUT / tree).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                    found.add(node.target.id)
    text = (CHECKOUT / "brewclip" / "__main__.py").read_text()
    return found | {flag.replace("-", "_") for flag in re.findall(r'"--([a-z-]+)"', text)}


def test_a_file_and_a_flag_that_are_not_there_are_found() -> None:
    assert list(named_files("see `brewclip/nothing.py`, `docs/`, `x = 1`")) == ["brewclip/nothing.py", "docs/"]
    assert not is_there("brewclip/nothing.py")
    assert is_there("loop.py")
    assert "long_text" in fields()
    assert "long_texts" not in fields()
