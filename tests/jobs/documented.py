"""The commands that README, docs/cluster.md, the pages of the corpora and the docstrings of the scripts show."""

import ast
import re
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
_COMMAND = re.compile(r"^ *((?:\. \S+ && )?(?:ray job submit|python (?:jobs|datasets)/)[^\n]*)$", re.MULTILINE)


def shown_in(text: str) -> list[str]:
    """Return the commands of a text, each a line of its own, without the comment behind it; no synopses."""
    joined = re.sub(r" *\\\n *", " ", text)  # a line that ends in a backslash goes on in the next
    lines = (re.sub(r" +# .*$", "", line) for line in _COMMAND.findall(joined))
    return [line.strip() for line in lines if "[" not in line and "NAME" not in line]


def readme_commands() -> list[str]:
    """Return the commands of the code blocks of README and of docs/cluster.md."""
    pages = (CHECKOUT / "README.md", CHECKOUT / "docs" / "cluster.md")
    return shown_in("\n".join(block for page in pages for block in _blocks(page)))


def page_commands() -> list[str]:
    """Return the commands of the pages of the corpora."""
    pages = sorted((CHECKOUT / "docs" / "corpora").glob("*.md"))
    return shown_in("\n".join(block for page in pages for block in _blocks(page)))


def docstring_commands() -> list[str]:
    """Return the commands that jobs and recipes open with."""
    scripts = sorted([*(CHECKOUT / "jobs").glob("*.py"), *(CHECKOUT / "datasets").glob("*.py")])
    return [line for path in scripts for line in shown_in(ast.get_docstring(ast.parse(path.read_text())) or "")]


def _blocks(page: Path) -> list[str]:
    return re.findall(r"^```\w*\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
