"""Settings renamed since earlier versions: their old names are read from checkpoints, sweeps and command lines."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

# Old name of a setting -> current name.
NAMES = {"extraction.window": "extraction.frames"}
# Setting -> old value -> current value.
VALUES: dict[str, dict[Any, Any]] = {"data.long_text": {"cut": "truncate", "windows": "chunks"}}

_noted: set[str] = set()


def with_current_names(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Return flattened settings under their current names; print one note per old name on stderr."""
    current = {}
    for name, value in leaves.items():
        new_name = NAMES.get(name, name)
        new_value = VALUES.get(new_name, {}).get(value, value) if isinstance(value, str) else value
        if new_name != name:
            _note(f"setting {name} is called {new_name} now")
        if new_value != value:
            _note(f"{new_name} {value} is called {new_value} now")
        current[new_name] = new_value
    return current


def with_current_flags(words: Sequence[str]) -> list[str]:
    """Return a command line with old flags and values replaced, as `--flag value` or `--flag=value`."""
    current: list[str] = []
    for word in words:
        flag, equals, value = word.partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        before = current[-1].removeprefix("--").replace("-", "_") if current else ""
        if flag.startswith("--") and (name in NAMES or (equals and name in VALUES)):
            ((name, value),) = with_current_names({name: value}).items()
            current.append(f"--{name.replace('_', '-')}{equals}{value}")
        elif not flag.startswith("--") and before in VALUES and word in VALUES[before]:
            current.append(with_current_names({before: word})[before])
        else:
            current.append(word)
    return current


def _note(line: str) -> None:
    if line not in _noted:
        _noted.add(line)
        print(f"note: {line}", file=sys.stderr, flush=True)
