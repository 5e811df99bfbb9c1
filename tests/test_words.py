"""Words that must not come back in identifiers and file names: each has a term of the field in its place."""

import io
import re
import tokenize
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]
TREES = ("brewclip", "jobs", "datasets", "tune", "k8s", "tests")
# Word -> what is said instead. As whole parts of a name: `picture_places`, `NUM_PICTURES`, `CachedPictures`.
INSTEAD = {
    "picture": "image, figure",
    "pictures": "images, figures",
    "told": "given, or the name of what it is",
    "tells": "reports",
    "cuts": "truncation",
    "assembly": "factory",
    "embedded": "local (services)",
    "outcomes": "rankings, results",
}


def parts(name: str) -> set[str]:
    """Return the words of a name in snake or camel case, in lower case."""
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)}


def defined_names(path: Path) -> set[str]:
    """Return the identifiers of a file, without its strings and comments."""
    tokens = tokenize.generate_tokens(io.StringIO(path.read_text()).readline)
    return {token.string for token in tokens if token.type == tokenize.NAME}


def files() -> list[Path]:
    return [path for tree in TREES for path in sorted((CHECKOUT / tree).rglob("*.py"))]


@pytest.mark.parametrize("word", INSTEAD)
def test_a_word_does_not_come_back(word: str, names: dict[Path, set[str]]) -> None:
    found = [
        f"{path.relative_to(CHECKOUT)}: {name}: {INSTEAD[word]}"
        for path, found_names in names.items()
        for name in sorted(found_names)
        if word in parts(name)
    ]
    assert found == []


@pytest.fixture(scope="module")
def names() -> dict[Path, set[str]]:
    return {path: defined_names(path) | {path.stem} for path in files()}


def test_the_parts_of_a_name() -> None:
    assert parts("CachedPictures") == {"cached", "pictures"}
    assert parts("_NUM_PICTURES") == {"num", "pictures"}
    assert parts("test_it_is_told") == {"test", "it", "is", "told"}
