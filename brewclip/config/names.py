"""Checks of names that become folders (runs, corpora, splits): a name that could leave its folder is refused."""

from dataclasses import dataclass

_LONGEST_BYTES = 200  # of a name: files and S3 keys allow 255 and 1,024 with what is put before and after it
_UNSAFE = frozenset("/\\#?%*:|<>\"'`")
_RULE = (
    f"names a folder: at most {_LONGEST_BYTES} bytes of letters, digits, '-', '_', '.', no leading "
    "dot, no slash, quote or control character, none of # ? % * : | < >"
)


@dataclass(frozen=True)
class FolderName:
    """Mark of a setting that names a folder, in `Annotated` behind its type.

    Attributes:
        is_path: True if the name may have several parts, GROUP/NAME.
    """

    is_path: bool = False

    def problem(self, value: str) -> str:
        """Return what the name must be, or an empty string if it is safe."""
        return "" if (is_safe_path if self.is_path else is_safe_name)(value) else _RULE


FOLDER = FolderName()
FOLDERS = FolderName(is_path=True)


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
