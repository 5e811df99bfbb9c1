"""The house's rules of who may import what, held over every file by reading its syntax tree.

The tables come first: change them on purpose, with a word on why. The functions that hold them take the
tree's root, so that the tests at the end can plant each kind of violation in a small tree and see it found.
"""

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]

# Bottom floor first. A room may import from its own floor and from those below it, never from above.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors", "version"),
    (
        "audio",
        "cluster",
        "config",
        "cuda",
        "distributed",
        "intervals",
        "local",
        "metrics",
        "progress",
        "scenes",
        "tracking",
    ),
    ("data", "losses", "models", "pretrained", "scenes_clip"),
    ("checkpoints", "corpora", "factory"),
    ("containers", "serving"),
    ("evaluation", "service"),
    ("training", "commands"),
    ("benchmarks", "studies"),
    ("paper",),
    ("__main__", "brewclip", "tune"),  # "brewclip" alone is brewclip/__init__.py
    ("datasets", "jobs"),
)
# Run from the checkout. An __init__.py would make them packages: `datasets` would hide Hugging Face's.
FOLDERS_OF_SCRIPTS = ("datasets", "jobs", "tune")
FLOOR_OF = {
    room if room in ("brewclip", *FOLDERS_OF_SCRIPTS) else f"brewclip.{room}": floor
    for floor, rooms in enumerate(FLOORS)
    for room in rooms
}

PURE_MODULES = {"torch", "numpy", "whisper", "open_clip"}
FILES_AND_PROCESSES = {"os", "pathlib", "io", "glob", "shutil", "tempfile", "subprocess", "socket", "urllib"}


@dataclass(frozen=True)
class Rule:
    """What the files of a room may import, in addition to the floors. None: anything."""

    ours: frozenset[str] | None = None
    third_party: frozenset[str] | None = None
    never: frozenset[str] = frozenset()
    no_files_or_devices: bool = False  # neither open() nor a device named in the code


def pure(*ours: str) -> Rule:
    """A room that runs on a bare machine with torch, whisper and open_clip alone."""
    return Rule(frozenset(ours), frozenset(PURE_MODULES), frozenset(FILES_AND_PROCESSES), True)


def without(*modules: str) -> Rule:
    """A room that must not need these modules."""
    return Rule(never=frozenset(modules))


RULES: dict[str, Rule] = {
    "brewclip.models": pure("brewclip.losses", "brewclip.metrics"),
    "brewclip.losses": pure("brewclip.models", "brewclip.metrics", "brewclip.distributed"),
    "brewclip.metrics": pure("brewclip.models", "brewclip.losses", "brewclip.intervals"),
    "brewclip.intervals": pure(),
    "brewclip.errors": Rule(ours=frozenset(), third_party=frozenset()),
    "brewclip.config": Rule(ours=frozenset({"brewclip.errors"}), never=frozenset({"torch", "ray", "mlflow", "numpy"})),
    "brewclip.audio": Rule(ours=frozenset(), never=frozenset({"torch", "ray", "mlflow"})),
    "brewclip.distributed": Rule(ours=frozenset(), third_party=frozenset({"torch", "numpy"})),
    "brewclip.tracking": without("torch", "ray"),
    "brewclip.scenes": without("torch", "ray", "mlflow"),
    "brewclip.local": Rule(ours=frozenset(), never=frozenset({"torch", "ray", "mlflow"})),
    "brewclip.data": without("ray", "mlflow", "whisper", "open_clip"),
    "brewclip.pretrained": without("ray", "mlflow"),
    "brewclip.checkpoints": without("ray", "mlflow"),
    "brewclip.corpora": without("mlflow"),
    "brewclip.serving": without("ray", "mlflow", "boto3"),
    # Ray, where a cluster builds an index, is loaded by its file when it is called.
    "brewclip.commands": without("mlflow", "boto3"),
    "brewclip.service": without("mlflow", "boto3"),
    "brewclip.evaluation": without("mlflow"),
    "brewclip.training": without("mlflow"),
    # A recipe knows its corpus's format; config is for its users' mistakes, recipe for what all of them share.
    "datasets": Rule(
        ours=frozenset(
            f"brewclip.{room}" for room in ("audio", "config", "containers", "corpora", "data", "errors", "scenes")
        )
    ),
}
# What must import in a moment: the command line's mistakes are reported before torch is loaded.
LIGHT_MODULES = ("brewclip", "brewclip.config", "brewclip.local")


@dataclass(frozen=True)
class Import:
    """One import statement: the module that holds it, where, and the module it names."""

    importer: str
    place: str
    imported: str


@functools.cache
def source_files(root: Path) -> dict[str, Path]:
    """Returns the file of every module of ours, by dotted name."""
    files = {}
    for folder in ("brewclip", *FOLDERS_OF_SCRIPTS):
        for path in sorted((root / folder).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


def room_of(module: str) -> str:
    """Returns the room of a module of ours: jobs, datasets, tune, or the second level in brewclip."""
    parts = module.split(".")
    return ".".join(parts[: 2 if parts[0] == "brewclip" else 1])


@functools.cache
def imports_of(root: Path) -> list[Import]:
    """Returns every import of every file, those inside functions too."""
    return list(_iter_imports(root))


def _iter_imports(root: Path) -> Iterator[Import]:
    files = source_files(root)
    for module, path in files.items():
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        for node in ast.walk(ast.parse(path.read_text(), str(path))):
            place = f"{path.relative_to(root)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Import):
                yield from (Import(module, place, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
                source = ".".join([*above, *filter(None, [node.module])])
                for alias in node.names:  # `from brewclip import audio` names a module, too
                    whole = f"{source}.{alias.name}"
                    yield Import(module, place, whole if whole in files else source)


def is_ours(module: str, root: Path) -> bool:
    """True for modules of this tree; `datasets` counts only when it is our folder's file that is named."""
    return module.split(".")[0] == "brewclip" or module in source_files(root)


def floor_violations(root: Path) -> list[str]:
    """Finds imports that look up, and rooms that have no floor."""
    found = []
    for room in sorted({room_of(module) for module in source_files(root)} - set(FLOOR_OF)):
        found.append(f"{room} is on no floor: give it one in FLOORS")
    for line in imports_of(root):
        here, there = room_of(line.importer), room_of(line.imported)
        known = is_ours(line.imported, root) and here in FLOOR_OF and there in FLOOR_OF
        known = known and line.imported != "brewclip"  # the package itself: its version
        if known and FLOOR_OF[there] > FLOOR_OF[here]:
            found.append(f"{line.place}: {line.importer} looks up to {line.imported}")
    return found


def rule_violations(root: Path) -> list[str]:
    """Finds imports that the room's rule does not allow."""
    found = []
    for line in imports_of(root):
        room, top = room_of(line.importer), line.imported.split(".")[0]
        rule = RULES.get(room, Rule())
        if is_ours(line.imported, root):
            allowed = rule.ours is None or room_of(line.imported) in {room, *rule.ours}
        else:
            known = top in sys.stdlib_module_names or rule.third_party is None or top in rule.third_party
            allowed = known and top not in rule.never
        if not allowed:
            found.append(f"{line.place}: {room} must not import {line.imported}")
    return found


def file_and_device_violations(root: Path) -> list[str]:
    """Finds open() and device names in the rooms that must know neither."""
    found = []
    for module, path in source_files(root).items():
        if not RULES.get(room_of(module), Rule()).no_files_or_devices:
            continue
        for node in ast.walk(ast.parse(path.read_text(), str(path))):
            named = None
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "open":
                named = "open()"
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                named = repr(node.value) if node.value.split(":")[0] in {"cuda", "cpu", "mps"} else None
            elif isinstance(node, ast.Attribute) and node.attr == "cuda":
                named = ".cuda"
            if named:
                found.append(f"{path.relative_to(root)}:{node.lineno}: {named} in {room_of(module)}")
    return found


def circles(root: Path) -> list[str]:
    """Finds modules that import each other in a circle, within functions or not."""
    files = source_files(root)
    below: dict[str, set[str]] = {module: set() for module in files}
    for line in imports_of(root):
        if line.imported in files and line.imported != line.importer:
            below[line.importer].add(line.imported)
    found: list[str] = []
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        if module in path:
            found.append(" -> ".join([*path[path.index(module) :], module]))
        elif module not in done:
            for next_module in sorted(below[module]):
                visit(next_module, (*path, module))
            done.add(module)

    for module in files:
        visit(module, ())
    return found


def script_violations(root: Path) -> list[str]:
    """Finds __init__.py in the folders of scripts, and scripts that hide a module imported somewhere."""
    found = [f"{f}/__init__.py must not exist" for f in FOLDERS_OF_SCRIPTS if (root / f / "__init__.py").exists()]
    imported = {line.imported.split(".")[0] for line in imports_of(root)} | set(sys.stdlib_module_names)
    for folder in FOLDERS_OF_SCRIPTS:  # a script's own folder comes first on sys.path
        for path in sorted((root / folder).glob("*.py")):
            if path.stem in imported:
                found.append(f"{folder}/{path.name} hides the module {path.stem} from scripts of its folder")
    return found


CHECKS = (floor_violations, rule_violations, file_and_device_violations, circles, script_violations)


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_house_keeps_its_rules(check) -> None:
    assert check(CHECKOUT) == []


def test_every_rule_is_about_a_room_that_has_a_floor() -> None:
    assert set(RULES) <= set(FLOOR_OF)
    assert {room for rule in RULES.values() for room in rule.ours or ()} <= set(FLOOR_OF)


@pytest.mark.parametrize("module", LIGHT_MODULES)
def test_importing_it_does_not_load_torch_or_ray(module: str) -> None:
    code = f"import sys, {module}; print(*{{'torch', 'ray', 'mlflow', 'numpy'}} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True)
    assert (result.returncode, result.stdout.strip()) == (0, ""), result.stderr


@pytest.mark.parametrize(
    "module",
    [
        "brewclip.training.launch",  # driver and Ray's controller start one after the other
        "brewclip.corpora.extraction",
        "brewclip.corpora.recipe",
        "brewclip.service.deployments, brewclip.serving.index.place",  # an ingress of the service
    ],
)
def test_drivers_and_web_processes_load_no_model(module: str) -> None:
    """CLIP, Whisper and torch would cost each of them seconds and half a gigabyte."""
    code = f"import sys, {module}; print(*{{'torch', 'open_clip', 'whisper', 'mlflow'}} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True)
    assert (result.returncode, result.stdout.strip()) == (0, ""), result.stderr


@pytest.mark.slow
def test_the_worker_of_an_extraction_loads_no_clip() -> None:
    code = "import sys, brewclip.corpora.extraction_worker, brewclip.models.whisper, brewclip.pretrained.whisper; "
    code += "print(*{'open_clip', 'torchvision', 'mlflow'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True)
    assert (result.returncode, result.stdout.strip()) == (0, ""), result.stderr


@pytest.mark.slow
def test_a_worker_of_a_training_loads_neither_whisper_nor_mlflow() -> None:
    """Features are stored; Whisper's package alone takes a second of a core, in each worker of each attempt."""
    code = "import sys, brewclip.training.worker; print(*{'whisper', 'numba', 'mlflow'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True)
    assert (result.returncode, result.stdout.strip()) == (0, ""), result.stderr


PLANTED = [
    (floor_violations, "brewclip/models/clip.py", "def f():\n    import brewclip.training.loop", "looks up"),
    (floor_violations, "brewclip/audio.py", "from .data import storage", "brewclip.audio looks up"),
    (floor_violations, "brewclip/audio.py", "from brewclip import training", "looks up to brewclip.training"),
    (floor_violations, "brewclip/training/worker.py", "from jobs import train", "looks up to jobs.train"),
    (floor_violations, "brewclip/toolbox.py", "", "brewclip.toolbox is on no floor"),
    (rule_violations, "brewclip/models/clip.py", "import ray", "must not import ray"),
    (rule_violations, "brewclip/models/clip.py", "from pathlib import Path", "must not import pathlib"),
    (rule_violations, "brewclip/models/clip.py", "import brewclip.config", "must not import brewclip.config"),
    (rule_violations, "brewclip/losses.py", "import torchvision.ops", "must not import torchvision.ops"),
    (rule_violations, "brewclip/config/presets.py", "import torch", "must not import torch"),
    (rule_violations, "datasets/table.py", "from brewclip.models import clip", "datasets must not import"),
    (rule_violations, "brewclip/training/worker.py", "import mlflow.pytorch", "must not import mlflow"),
    (file_and_device_violations, "brewclip/models/clip.py", "x = open('a')", "open() in brewclip.models"),
    (file_and_device_violations, "brewclip/losses.py", "d = 'cuda:0'", "losses.py:1: 'cuda:0'"),
    (file_and_device_violations, "brewclip/models/clip.py", "f = t.cuda.is_available", ".cuda in"),
    (circles, "brewclip/data/storage.py", "from . import shards", "shards -> brewclip.data.storage -> "),
    (script_violations, "datasets/__init__.py", "", "datasets/__init__.py must not exist"),
    (script_violations, "jobs/queue.py", "", "jobs/queue.py hides the module queue"),
    (script_violations, "jobs/ray.py", "import ray", "jobs/ray.py hides the module ray"),
]


@pytest.fixture
def small_house(tmp_path: Path) -> Path:
    """A tree that keeps all rules."""
    files = {
        "brewclip/__init__.py": "",
        "brewclip/audio.py": "import soundfile",
        "brewclip/losses.py": "import math\nimport torch\nfrom brewclip.models.clip import x",
        "brewclip/config/__init__.py": "from brewclip.config.presets import x",
        "brewclip/config/presets.py": "import tyro",
        "brewclip/models/__init__.py": "",
        "brewclip/models/clip.py": '"""Runs on cpu and cuda."""\nimport torch.nn\nimport open_clip\nx = 1',
        "brewclip/data/__init__.py": "",
        "brewclip/data/storage.py": "import boto3",
        "brewclip/data/shards.py": "from brewclip.data import storage",
        "brewclip/training/__init__.py": "",
        "brewclip/training/worker.py": "import ray.train\nfrom .. import losses\nfrom ..data.shards import y",
        "datasets/table.py": "from brewclip.data import shards\nimport ray",
        "jobs/train.py": "import ray\nfrom tune import spaces\nfrom brewclip.training import worker",
        "tune/spaces.py": "import brewclip.config",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_a_small_house_that_keeps_the_rules_passes(small_house: Path) -> None:
    assert [violation for check in CHECKS for violation in check(small_house)] == []


@pytest.mark.parametrize(("check", "file", "text", "message"), PLANTED)
def test_a_planted_violation_is_found(check, file: str, text: str, message: str, small_house: Path) -> None:
    (small_house / file).write_text(text)
    found = check(small_house)
    assert len(found) == 1, found
    assert message in found[0]


LONGEST_FILE_LINES, LONGEST_CONSTRUCTOR_LINES = 320, 25


def test_files_and_constructors_stay_short() -> None:
    """A constructor counts without its signature, which takes one line for each argument."""
    found = []
    for path in sorted((CHECKOUT / "brewclip").rglob("*.py")):
        text = path.read_text()
        if text.count("\n") > LONGEST_FILE_LINES:
            found.append(f"{path.relative_to(CHECKOUT)}: {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and node.name == "__init__":
                length = (node.end_lineno or 0) - node.body[0].lineno + 1
                if length > LONGEST_CONSTRUCTOR_LINES:
                    found.append(f"{path.relative_to(CHECKOUT)}:{node.lineno}: a constructor of {length} lines")
    assert found == []
