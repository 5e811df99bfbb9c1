"""Checks of names that become folders (runs, corpora, splits): a name that could leave its folder is refused."""

_LONGEST_BYTES = 200  # of a name: files and S3 keys allow 255 and 1,024 with what is put before and after it
_UNSAFE = frozenset("/\\#?%*:|<>\"'`")


def is_safe_name(name: str) -> bool:
    """Return whether a name is one part of a path everywhere: on disk, in a URL, on S3, in MLflow's filters."""
    return (
        bool(name)
        and name == name.strip()
        and not name.startswith(".")
        and name.isprintable()
        and not _UNSAFE & set(name)
        and len(name.encode()) <= _LONGEST_BYTES
    )


def is_safe_path(path: str) -> bool:
    """Return whether every part of a relative path is a safe name."""
    return all(map(is_safe_name, path.split("/")))


def is_test(split: str) -> bool:
    """Return whether a split, or the split of a metric, is the test split; case is ignored."""
    return split.casefold().startswith("test")


def describe_name(flag: str, name: str) -> str:
    """Return the error line for an invalid name; a long one is shortened."""
    shown = repr(name) if len(name) <= 80 else f"{name[:80]!r}... ({len(name)} characters)"
    return (
        f"{flag} {shown} names a folder: at most {_LONGEST_BYTES} bytes of letters, digits, '-', '_', '.', no leading "
        "dot, no slash, quote or control character, none of # ? % * : | < >"
    )
