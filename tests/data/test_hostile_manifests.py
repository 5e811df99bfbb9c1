"""Any bytes as manifest.json, shards.parquet or index.bin: `open_manifest` and `verify` read them or give one line."""

import hashlib
import io
import json
import random
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from brewclip.data.manifest import INDEX, INDEX_ENTRY, MANIFEST, SHARDS, open_manifest
from brewclip.data.schema import Sample, array_to_npy
from brewclip.data.shards import finish_split, shard_name, write_shard
from brewclip.data.storage import open_storage
from brewclip.data.verify import verify_split
from brewclip.errors import ManifestError

SIZES = (3, 4)
NUM_RANDOM = 150

pytestmark = pytest.mark.timeout(120)


def write_features(folder: Path, width_of=lambda number: 4, metadata=lambda number: {}) -> None:
    """Write a split of features without images, of two shards."""
    storage, records, first = open_storage(folder.as_uri()), [], 0
    for number, count in enumerate(SIZES):
        samples = []
        for item in range(first, first + count):
            facts = {"image_id": f"p{item}", "caption_id": f"p{item}-0", "split": "train", "duration_seconds": 0.2}
            features = array_to_npy(np.ones((3, width_of(item)), np.float16))
            samples.append(Sample(f"p{item}-0", facts | metadata(item), features=features))
        records.append(write_shard(storage, shard_name("train", 0, number), 0, iter(samples)))
        first += count
    finish_split(storage, records, corpus="test", split="train", kind="features", num_images=first)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    write_features(folder)
    return folder


@pytest.fixture
def split(folder):
    """The split of this file; what a test writes into its three files is undone."""
    whole = {name: (folder / name).read_bytes() for name in (MANIFEST, SHARDS, INDEX)}
    yield folder
    for name, data in whole.items():
        (folder / name).write_bytes(data)


def answer(folder: Path) -> str:
    """Return the lines of `verify`, after asserting that they are lines and that `open_manifest` agrees."""
    try:
        open_manifest(folder.as_uri())
        opened = True
    except ManifestError as error:
        opened = False
        assert "\n" not in str(error) and len(str(error)) < 600
    problems = verify_split(folder.as_uri())
    for problem in problems:
        assert len(problem.splitlines()) == 1 and len(problem) < 3000, problem[:600]
    assert opened or len(problems) == 1
    return "whole" if not problems else "opened" if opened else "refused"


# ------------------------------------------------------------------ manifest.json

WORDS = (
    None,
    True,
    -1,
    0,
    1.5,
    2**62,
    10**30,
    float("nan"),
    float("inf"),
    "7",
    "",
    [],
    {},
    [[1]],
    {"a": 1},
    "x" * 5000,
)


def manifests(whole: bytes) -> dict[str, bytes]:
    """Return name -> bytes of hostile manifests."""
    fields = json.loads(whole)
    found = {
        **{f"cut at {size}": whole[:size] for size in (0, 1, 20, len(whole) // 2, len(whole) - 1)},
        **{f"json of {word!r:.20}": json.dumps(word).encode() for word in WORDS},
        "no json": b"<html>\n<body>404</body>",
        "no text": b"\xff\xfe\x00" * 100,
        "zeros": bytes(4096),
        "100,000 lists": b"[" * 100_000,
        "100,000 objects": b'{"a":' * 100_000,
        "a number of 10,000 digits": whole.replace(b'"num_samples": 7', b'"num_samples": ' + b"7" * 10_000),
        "deep details": json.dumps(fields | {"details": json.loads("[" * 500 + "]" * 500)}).encode(),
        "deep object of details": whole.replace(b'"details": {}', b'"details": ' + b'{"a":' * 900 + b"1" + b"}" * 900),
        "a field more": json.dumps(fields | {"more": 1}).encode(),
        "an image side that is none": json.dumps(fields | {"details": {"image_side_pixels": "large"}}).encode(),
        "17 MB": json.dumps(fields | {"corpus": "x" * 17_000_000}).encode(),
    }
    for name in fields:
        found[f"without {name}"] = json.dumps({key: value for key, value in fields.items() if key != name}).encode()
        found |= {f"{name} {word!r:.20}": json.dumps(fields | {name: word}).encode() for word in WORDS}
    return found


def test_any_manifest_gives_one_line(split):
    answers = Counter()
    for name, data in manifests((split / MANIFEST).read_bytes()).items():
        (split / MANIFEST).write_bytes(data)
        got = answer(split)
        harmless = name.startswith(("corpus ", "split ", "num_images ", "details ", "without details"))
        assert got == "refused" or harmless, (name, got)
        answers[got] += 1
    assert answers["refused"] > 150 and sum(answers.values()) > 200


# ------------------------------------------------------------------ shards.parquet


def put(folder: Path, table: pa.Table | bytes, **changes) -> None:
    """Write a table of shards, with a manifest that names it."""
    buffer = io.BytesIO()
    if not isinstance(table, bytes):
        pq.write_table(table, buffer)
    data = table if isinstance(table, bytes) else buffer.getvalue()
    (folder / SHARDS).write_bytes(data)
    fields = json.loads((folder / MANIFEST).read_text()) | {"shards_sha256": hashlib.sha256(data).hexdigest()}
    (folder / MANIFEST).write_text(json.dumps(fields | changes))


def with_column(table: pa.Table, name: str, values, kind=None) -> pa.Table:
    column = pa.array(values, kind)
    there = table.schema.get_field_index(name)
    return table.append_column(name, column) if there < 0 else table.set_column(there, name, column)


def tables(table: pa.Table) -> dict[str, tuple]:
    """Return name -> (table or bytes, changed fields of the manifest)."""
    found: dict[str, tuple] = {"empty": (b"", {}), "no parquet": (b"PAR1" + bytes(200) + b"PAR1", {})}
    for name in table.column_names:
        found[f"without {name}"] = table.drop_columns([name]), {}
        found[f"{name} twice"] = table.append_column(name, table.column(name)), {}
        found[f"nulls in {name}"] = (
            with_column(table, name, [None, table.column(name)[1].as_py()], table[name].type),
            {},
        )
        for kind, values in {
            "float": [1.5, float("nan")],
            "list": [[1], [2]],
            "bytes": [b"a", b"\xff"],
            "bool": [True, False],
            "struct": [{"a": 1}] * 2,
            "text": ["a\nb", ""],
            "negative": [-1, -(2**62)],
            "huge": [2**62, 2**62],
            "nothing": [None, None],
        }.items():
            found[f"{name} of {kind}"] = with_column(table, name, values), {}
    for rows in (0, 1, 10**9):
        found[f"{rows} shards stated"] = table, {"num_shards": rows}
    found["no row"] = table.slice(0, 0), {"num_shards": 0, "num_samples": 0, "num_rounds": 0, "size_bytes": 0}
    many = pa.table({name: pa.array([table[name][0].as_py()] * 10**6, table[name].type) for name in table.column_names})
    found["a million equal rows"] = many, {"num_shards": 10**6, "num_samples": 3 * 10**6}
    one_name = table.column("name")[0].as_py()
    found["a name twice"] = with_column(table, "name", [one_name, one_name]), {}
    found["a hash that leads elsewhere"] = with_column(table, "sha256", ["../" * 20 + "etc0", "0" * 64]), {}
    found["urls alone"] = with_column(table, "url", ["", ""]), {}
    for url in ("http://[", "s3://", "file:///a\nb", "file://host/a", "x" * 9000, "file:///dev/null/a", "../a\0b"):
        adopted = with_column(with_column(table, "url", ["", url]), "members_crc32", [0, 0], pa.uint32())
        found[f"url {url!r:.20}"] = adopted, {}
    return found


def test_any_table_of_shards_gives_one_line(split):
    table, answers = pq.read_table(split / SHARDS), Counter()
    manifest = (split / MANIFEST).read_bytes()
    for name, (content, changes) in tables(table).items():
        (split / MANIFEST).write_bytes(manifest)
        put(split, content, **changes)
        got = answer(split)
        # a name or crc of another shard, and a URL, are found when the shard is read
        found_later = name.startswith(("url ", "name of text", "round of"))
        assert got == "refused" or (found_later and got == "opened"), (name, got)
        answers[got] += 1
    assert sum(answers.values()) > 75


def test_a_table_with_bytes_changed_at_random_gives_one_line(split):
    rng, whole = random.Random(0), (split / SHARDS).read_bytes()
    answers = Counter()
    for _ in range(NUM_RANDOM):
        data = bytearray(whole)
        for _ in range(rng.choice([1, 2, 10])):
            data[rng.randrange(len(data))] = rng.randrange(256)
        put(split, bytes(data[: rng.choice([len(data), len(data), rng.randrange(len(data))])]))
        answers[answer(split)] += 1
    assert answers["refused"] > NUM_RANDOM // 3


# ------------------------------------------------------------------ index.bin


def put_index(folder: Path, data: bytes) -> None:
    """Write an index, with checksums that agree with it."""
    (folder / INDEX).write_bytes(data)
    ends = np.cumsum(SIZES) * INDEX_ENTRY.itemsize
    checksums = [
        zlib.crc32(data[end - size * INDEX_ENTRY.itemsize : end]) for size, end in zip(SIZES, ends, strict=True)
    ]
    table = with_column(pq.read_table(folder / SHARDS), "index_crc32", checksums, pa.uint32())
    put(folder, table, index_sha256=hashlib.sha256(data).hexdigest())


def test_any_index_gives_one_line_a_shard(split):
    whole = np.frombuffer((split / INDEX).read_bytes(), INDEX_ENTRY)
    ends = whole["end"].copy()
    changed = {
        "decrease": ends[::-1],
        "all alike": np.full_like(ends, 2048),
        "zero": np.zeros_like(ends),
        "beyond the shard": ends + np.uint64(10**6),
        "beyond 2^63": ends + np.uint64(2**63),
        "overlap": np.where(np.arange(len(ends)) == 1, ends[0] - np.uint64(512), ends),
    }
    cases = {"empty": b"", "cut": whole.tobytes()[:-5], "one": whole.tobytes()[:12], "text": b"no index" * 20}
    for name, values in changed.items():
        entries = whole.copy()
        entries["end"] = values
        cases[name] = entries.tobytes()
    rng = random.Random(1)
    cases |= {f"random {number}": rng.randbytes(rng.choice([84, 84, 12, 300])) for number in range(30)}
    for name, data in cases.items():
        put_index(split, data)
        assert answer(split) == "opened", name
        assert any(word in " ".join(verify_split(split.as_uri())) for word in ("index", "bytes of sample")), name
    put_index(split, whole.tobytes())
    assert answer(split) == "whole"


# ------------------------------------------------------------------ samples that agree with their checksums


def test_verify_names_features_of_another_width(tmp_path):
    write_features(tmp_path, width_of=lambda number: {2: 6, 5: 1}.get(number, 4))
    problems = verify_split(tmp_path.as_uri())
    assert len(problems) == 2
    assert "000001.tar: sample 2: features: 'p5-0': float16 (3, 1), not float16 (frames, dim)" in problems[0]
    assert "000000.tar: sample 2: features: a width of 6, those of this split have 4" in problems[1]
