"""Damaged and foreign checkpoints, generated from seeds: one line, or exactly what the files hold.

Of those with right hashes somebody meant harm or used another program; the others were damaged on their way.
"""

import json
import math
import random
import tracemalloc

import numpy as np
import pytest
import torch
from safetensors.numpy import save as save_arrays
from safetensors.torch import load, save

from brewclip.checkpoints.checkpoint import open_checkpoint, save_checkpoint
from brewclip.checkpoints.facts import FACTS, MODEL, OPTIMIZER, Checkpoint, CheckpointFacts, sha256_of
from brewclip.config import Config, ModelConfig, flatten
from brewclip.data.storage import open_storage
from brewclip.errors import UserError

pytestmark = pytest.mark.slow

FILES = (MODEL, OPTIMIZER, FACTS)
STEP = 8
SHAPES = {
    "logit_scale": (),
    "prompts.text": (2, 8),
    "acoustic.input.weight": (8, 6),
    "acoustic.layers.0.linear1.weight": (12, 8),
    "acoustic.layers.1.linear1.weight": (12, 8),
}
SETTINGS = flatten(Config(model=ModelConfig(prompt_length=2, num_layers=2, num_heads=2, ff_dim=12)))


def whole(step=STEP):
    model = {name: torch.full(shape, float(step)) for name, shape in SHAPES.items()}
    optimizer = {f"{name}|{moment}": value for name, value in model.items() for moment in ("exp_avg", "exp_avg_sq")}
    optimizer = {name: value.clone() for name, value in optimizer.items()}
    optimizer |= {f"{name}|step": torch.tensor(float(step)) for name in model}
    facts = CheckpointFacts(
        step=step, config=SETTINGS, frozen_sha256={"clip": "abc"}, audio_dim=6, metrics={"dev/R1": 0.5},
        best={"dev/R1": 0.5, "step": step}, frozen_settings={"clip": {"activation": "GELU"}},
    )  # fmt: skip
    return Checkpoint(facts, model, optimizer)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The three files of two checkpoints of one run, of steps 4 and 8."""
    storage = open_storage((tmp_path_factory.mktemp("whole") / "run").as_uri())
    for step in (4, STEP):
        save_checkpoint(storage, whole(step), best=True, keep=2)
    return {step: {f: storage.read(f"checkpoints/step-{step:08d}/{f}") for f in FILES} for step in (4, STEP)}


@pytest.fixture
def attempt(tmp_path):
    """Open three files as a checkpoint: return the complaint, or "" if what was loaded is exactly what they hold."""
    storage = open_storage((tmp_path / "run").as_uri())
    folder = tmp_path / "run" / "checkpoints" / "step-00000008"
    folder.mkdir(parents=True)
    (folder.parent / "best").write_text(folder.name)

    def attempt(contents):
        for file, data in contents.items():
            (folder / file).write_bytes(data)
        try:
            loaded = open_checkpoint(storage.url)
        except UserError as error:
            assert "\n" not in str(error)
            assert len(str(error)) < 1500
            return str(error)
        for file, tensors in ((MODEL, loaded.model), (OPTIMIZER, loaded.optimizer)):
            expected = load(contents[file])
            assert tensors.keys() == expected.keys()
            assert all(tensors[name].numpy().tobytes() == expected[name].numpy().tobytes() for name in expected)
        stored = json.loads(contents[FACTS])
        held = {name: value for name, value in vars(loaded.facts).items() if name in stored}
        stored.pop("sha256", None)
        assert json.dumps(held, sort_keys=True) == json.dumps(stored, sort_keys=True)
        return ""

    return attempt


def sealed(contents, **changes):
    """Return the files with facts that fit their hashes, as another program may write them."""
    facts = json.loads(contents[FACTS]) | changes
    facts.pop("sha256", None)
    facts["files"] = {file: sha256_of(contents[file]) for file in (MODEL, OPTIMIZER)}
    return contents | {FACTS: json.dumps(facts).encode()}


def test_whole_ones_load_with_and_without_a_hash_of_their_facts(files, attempt):
    """Checkpoints before 2026-11-26 have none."""
    assert attempt(files[STEP]) == ""
    assert attempt(sealed(files[STEP])) == ""


@pytest.mark.parametrize("file", FILES)
def test_truncations_and_bit_flips_are_refused(files, attempt, file):
    """500 cases a file: of these files nothing may change."""
    draw, data = random.Random(f"damage {file}"), files[STEP][file]
    for number in range(500):
        damaged = bytearray(data)
        if number % 2:
            damaged = damaged[: draw.randrange(len(data))]
        else:
            damaged[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        complaint = attempt(files[STEP] | {file: bytes(damaged)})
        assert complaint or json.loads(damaged) == json.loads(data), f"case {number}"


@pytest.mark.parametrize("file", [MODEL, OPTIMIZER])
def test_damaged_tensors_with_right_hashes(files, attempt, file):
    """400 cases a file: a line, or what the file holds, which for a flip in the numbers is another number."""
    draw, data = random.Random(f"sealed {file}"), files[STEP][file]
    end = 8 + int.from_bytes(data[:8], "little")
    for number in range(400):
        damaged = bytearray(data)
        for _ in range(draw.choice((1, 1, 4, 16))):
            damaged[draw.randrange(end if number % 4 else len(data))] = draw.randrange(256)
        attempt(sealed(files[STEP] | {file: bytes(damaged[: draw.choice((len(data), draw.randrange(len(data))))])}))


def test_swapped_files(files, attempt):
    """Every mixture of two checkpoints of a run but the whole one, in the folder of step 8."""
    for number in range(7):
        mixed = {file: files[STEP if number >> bit & 1 else 4][file] for bit, file in enumerate(FILES)}
        assert attempt(mixed), number
    for one, other in ((MODEL, OPTIMIZER), (OPTIMIZER, MODEL), (MODEL, FACTS), (FACTS, MODEL)):
        assert attempt(files[STEP] | {one: files[STEP][other]})
    assert attempt(sealed(files[STEP] | {OPTIMIZER: files[STEP][MODEL]}))
    assert attempt(sealed(files[STEP] | {MODEL: files[STEP][OPTIMIZER]}))


@pytest.mark.parametrize("dtype", ["float64", "float16", "int8", "int32", "int64", "uint8", "bool"])
@pytest.mark.parametrize("file", [MODEL, OPTIMIZER])
def test_other_types_are_refused(files, attempt, file, dtype):
    arrays = {name: tensor.numpy().astype(dtype) for name, tensor in load(files[STEP][file]).items()}
    assert "F32" in attempt(sealed(files[STEP] | {file: save_arrays(arrays)}))


@pytest.mark.parametrize("file", [MODEL, OPTIMIZER])
def test_foreign_tensors(files, attempt, file):
    """200 cases a file: tensors gone, added, renamed, of another shape. None has the shapes that the settings name."""
    draw = random.Random(f"foreign {file}")
    for _ in range(200):
        tensors = load(files[STEP][file])
        name = draw.choice([one for one in sorted(tensors) if file == OPTIMIZER or "layers.1" not in one])
        kind = draw.randrange(3)
        tensor = tensors.pop(name)
        if kind == 1:
            tensors[f"{name}x"] = tensor
        elif kind == 2:
            tensors[name] = torch.zeros([draw.randrange(40, 50) for _ in range(draw.randrange(1, 4))])
        complaint = attempt(sealed(files[STEP] | {file: save(tensors)}))
        assert complaint or file == MODEL


HEADERS = [
    b"", b"{", b"[]", b"null", b"1", b'"x"', b"\xff\xfe", b"[" * 10_000, b'{"a":' * 10_000,
    b'{"w":null}', b'{"w":[]}',
    *(
        json.dumps({"w": {"dtype": dtype, "shape": shape, "data_offsets": span}}).encode()
        for dtype in ("F32", "F64", None, 3)
        for shape in ([1], [10**12], [-1], [2**40, 2**40], [0, 10**30], [1.5], "1", None, [True], [1] * 100)
        for span in ([0, 4], [4, 0], [0, 10**18], [-4, 0], [0], None, "0", [0, 2**70])
    ),
]  # fmt: skip


@pytest.mark.parametrize("file", [MODEL, OPTIMIZER])
def test_headers_that_lie(files, attempt, file):
    for header in HEADERS:
        for length in (len(header), 0, 2**31, 2**63 - 1, 2**64 - 1):
            assert attempt(sealed(files[STEP] | {file: length.to_bytes(8, "little") + header + bytes(4)}))
    for size in range(9):
        assert attempt(sealed(files[STEP] | {file: bytes(size)}))


VALUES = [
    None, True, False, 0, -1, 1, 10**6, 10**12, 10**30, -(10**400), 0.5, -0.5, math.nan, math.inf, -math.inf, 1e308, "",
    "x", "8", "../../x", "\x00", [], [1], [[]], {}, {"a": 1}, {"a": {"b": []}}, {"step": math.nan}, {"../../x": "0"},
]  # fmt: skip


def test_edited_facts(files, attempt):
    """Every field with every value, and without the field; with right hashes of the files."""
    fields = [name for name in json.loads(files[STEP][FACTS]) if name != "sha256"]
    for name in fields:
        facts = json.loads(sealed(files[STEP])[FACTS])
        for value in VALUES:
            attempt(files[STEP] | {FACTS: json.dumps(facts | {name: value}).encode()})
            edited = json.loads(files[STEP][FACTS]) | {name: value}  # with the hash of what stood there before
            is_same = json.dumps(edited, sort_keys=True) == json.dumps(json.loads(files[STEP][FACTS]), sort_keys=True)
            assert bool(attempt(files[STEP] | {FACTS: json.dumps(edited).encode()})) != is_same
        del facts[name]
        complaint = attempt(files[STEP] | {FACTS: json.dumps(facts).encode()})
        assert bool(complaint) == (name in ("step", "config", "frozen_sha256", "audio_dim", "files"))
    assert "unexpected" in attempt(sealed(files[STEP], invented=1))


def test_edited_settings(files, attempt):
    """Every setting with every value; what is not a finite value of its type is refused."""
    for name, before in SETTINGS.items():
        for value in VALUES:
            complaint = attempt(sealed(files[STEP], config=SETTINGS | {name: value}))
            assert complaint or (type(value), type(before)) in {
                *((type(before), type(before)), (int, float), (str, bool), (list, tuple)),
            }, (name, value)
            assert complaint or not isinstance(value, float) or math.isfinite(value)
    assert "not a setting" in attempt(sealed(files[STEP], config=SETTINGS | {"model.invented": 1}))


@pytest.mark.parametrize(
    "data",
    [b"", b"null", b"[]", b"3", b'"x"', b"NaN", b"{", b"{}", b"\xff\xfe\x00", b"[" * 10**6, b'{"a":' * 10**5,
     b"[" * 900 + b"]" * 900, b'{"step": ' + b"9" * 5000 + b"}", b" " * 5 * 10**6],
)  # fmt: skip
def test_json_that_is_no_checkpoint(files, attempt, data):
    assert attempt(files[STEP] | {FACTS: data})


@pytest.mark.parametrize(
    "changes",
    [{"model.num_layers": 64, "model.ff_dim": 2**16}, {"model.num_layers": 10**6}, {"model.ff_dim": 10**9},
     {"model.prompt_length": 10**9}, {"model.num_heads": 0},
     {"model.num_heads": 3}, {"model.variant": "pipeline"}, {"model.variant": "zero_shot"}],
)  # fmt: skip
def test_settings_of_another_model_are_refused_before_it_takes_memory(files, attempt, changes):
    tracemalloc.start()
    try:
        assert attempt(sealed(files[STEP], config=SETTINGS | changes))
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    finally:
        tracemalloc.stop()
    empty = {MODEL: save({}), OPTIMIZER: save({})}
    if any(isinstance(value, int) and value >= 2**16 for value in changes.values()):
        message = "holds no tensors" if len(changes) == 2 else "must be "
        assert message in attempt(sealed(files[STEP] | empty, config=SETTINGS | changes))


def test_a_large_header_is_read_whole(tmp_path):
    """Thousands of tensors have a header longer than the first piece that is read."""
    storage = open_storage(tmp_path.as_uri())
    many = {f"{'long name ' * 5}{number}": torch.tensor([float(number)]) for number in range(2000)}
    plain = flatten(Config(model=ModelConfig(variant="pipeline", prompt_length=0)))
    facts = CheckpointFacts(step=STEP, config=plain, frozen_sha256={}, audio_dim=6)
    save_checkpoint(storage, Checkpoint(facts, many, {}), best=True, keep=1)
    loaded = open_checkpoint(storage.url).model
    assert np.array_equal([loaded[name].item() for name in many], range(2000))
