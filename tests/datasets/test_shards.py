"""Existing WebDataset shards as a corpus, adopted in place or rewritten; with real recordings and the real library."""

import bz2
import gzip
import io
import itertools
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from brewclip.containers import scan
from brewclip.containers.digest import Digest
from brewclip.containers.plan import SplitDraw, make_plan
from brewclip.containers.rewrite import tar_corpus
from brewclip.containers.sources import find_tars
from brewclip.data import as_webdataset
from brewclip.data.manifest import open_manifest
from brewclip.data.order import Extent, SampleOrder
from brewclip.data.reader import Rejections, SplitReader
from brewclip.data.schema import Sample
from brewclip.data.storage import open_storage
from brewclip.data.stream import Stream
from brewclip.data.verify import verify_split
from brewclip.errors import UserError
from tests.datasets.miniatures import image as plain_image
from tests.datasets.miniatures import load_recipe, make_all, sound

Members = list[tuple[str, bytes]]


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the recipe scan tars here, one after the other, instead of over Ray."""

    def scan_tars(label: str, tasks: list[scan.ScanTask]) -> list[Digest]:
        return [scan.scan_tar(task, lambda count: None) for task in tasks]

    monkeypatch.setattr(load_recipe("shards"), "scan_tars", scan_tars)


def write_tar(path: Path, members: Members, form: int = tarfile.GNU_FORMAT) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, data in members:
            header = tarfile.TarInfo(name.rstrip("/"))
            header.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))


def image(number: int, form: str = "PNG") -> bytes:
    """Return a distinct image per number."""
    noise = np.random.default_rng(number).integers(0, 255, (12, 16, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, form)
    return buffer.getvalue()


def one(key: str, number: int, **more: bytes) -> Members:
    """Return the members of a sample."""
    parts = {"wav": sound(hz=200 + 10 * number), "png": image(number)} | more
    return [(f"{key}.{extension}", data) for extension, data in parts.items()]


def write_three(folder: Path, count: int = 4) -> None:
    """Write a tar for each split."""
    for place, split in enumerate(("train", "dev", "test")):
        numbers = range(place * count, (place + 1) * count)
        write_tar(folder / f"{split}.tar", [m for n in numbers for m in one(f"{n:04d}", n, txt=b"word %d" % n)])


def make(folder: Path, *flags: str, source: tuple[str, ...] = ()) -> Path:
    """Run the recipe; by default over a tar for each split."""
    module, dest = load_recipe("shards"), folder / "corpus"
    source = source or tuple(f"{split}={folder}/{split}.tar" for split in ("train", "dev", "test"))
    options = module.parse_options(None, module.ShardsOptions, ["--source", *source, "--dest", dest.as_uri(), *flags])
    draw = SplitDraw(options.dev_fraction, options.test_fraction, options.seed)
    module.make_corpus(find_tars(options.source), options, draw)
    return dest


def samples_of(url: str) -> list[Sample]:
    manifest, found = open_manifest(url), []
    for shard, count in enumerate(manifest.num_samples):
        found += [sample for _, sample in SplitReader(manifest).load(Extent(shard, 0, int(count)))]
    return found


def rewritten(folder: Path, *words: str, **rules: object):
    """Return obstacle and corpus of tars that must be rewritten."""
    tars = find_tars(words)
    tasks = [scan.ScanTask(tar, (folder / "corpus").as_uri(), scan.Rules(**rules)) for tar in tars]
    digests = [scan.scan_tar(task, lambda count: None) for task in tasks]
    draw = SplitDraw(0.1, 0.1, 0)
    plan = make_plan(tars, digests, draw, by_field=bool(rules.get("split_field")))
    return plan.obstacle, tar_corpus("corpus", tasks[0].dest, tasks, digests, plan, draw, 336)


# ------------------------------------------------------------------ adopted


def test_real_shards_are_adopted_and_hold_what_webdataset_reads(tmp_path: Path, shared_directory: Path) -> None:
    from sklearn.datasets import load_digits

    digits, clips = load_digits().images, sorted((shared_directory / "speech/digits").glob("*.wav"))[:24]
    clips += sorted((shared_directory / "speech/ravdess/Actor_01").glob("*.flac"))[:3]
    for number, split in enumerate(("train", "dev", "test")):
        with webdataset.ShardWriter(f"{tmp_path}/{split}-%02d.tar", maxcount=5, verbose=0) as writer:
            for row in range(number, len(clips), 3):
                buffer = io.BytesIO()
                form = ("PNG", "WEBP", "JPEG")[row // 3 % 3]
                Image.fromarray((255 - 15 * digits[row]).astype("uint8")).resize((64, 64)).save(buffer, form)
                parts = {
                    form.lower(): buffer.getvalue(),
                    clips[row].suffix[1:]: clips[row].read_bytes(),
                    "json": {"caption": clips[row].stem},
                }
                writer.write({"__key__": f"speech/{row:03d}"} | parts)
    dest = make(tmp_path, source=tuple(f"{split}={tmp_path}/{split}-*.tar" for split in ("train", "dev", "test")))
    assert not list(dest.rglob("*.tar")), "nothing is copied"
    for split in ("train", "dev", "test"):
        url = f"{dest.as_uri()}/{split}"
        assert verify_split(url) == []
        tars = sorted(str(path) for path in tmp_path.glob(f"{split}-*.tar"))
        theirs = {row["__key__"]: row for row in webdataset.WebDataset(tars, shardshuffle=False)}
        ours = {sample.metadata["caption_id"]: sample for sample in samples_of(url)}
        assert ours.keys() == theirs.keys()
        for key, sample in ours.items():
            row = theirs[key]
            assert sample.image == next(row[name] for name in ("png", "webp", "jpeg") if name in row)
            assert sample.audio == row.get("wav", row.get("flac"))
            assert sample.metadata["text"] == json.loads(row["json"])["caption"]
            assert sample.metadata["split"] == split
        assert [row["wav"] for row in as_webdataset(url) if "wav" in row] == [
            row["wav"] for row in theirs.values() if "wav" in row
        ]


ODD: dict[str, tuple[Members, int]] = {
    "folders": ([*one("a/b/000", 0), *one("a/b/001", 1), *one("a/c/000", 2)], tarfile.GNU_FORMAT),
    "dotted keys": ([*one("000.x", 0), *one("001.x", 1)], tarfile.GNU_FORMAT),
    "upper case": ([("000.PNG", image(0)), ("000.Wav", sound()), *one("001", 1)], tarfile.GNU_FORMAT),
    "any order": ([("000.txt", b"w"), ("000.wav", sound()), ("000.png", image(0)), *one("001", 1)[::-1]], 0),
    "other members": (
        [("__index__", b"{}"), ("d/", b""), *one("000", 0, npy=b"x" * 700), ("notes.md", b"x"), *one("001", 1)],
        tarfile.USTAR_FORMAT,
    ),
    "pax names": ([*one("\u00e9" * 80, 0), *one("y" * 200, 1)], tarfile.PAX_FORMAT),
    "long GNU names": ([*one("x" * 200, 0), *one("y" * 200, 1)], tarfile.GNU_FORMAT),
    "dot slash": ([("./", b""), *one("./000", 0), *one("./001", 1)], tarfile.GNU_FORMAT),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_tars_are_adopted_and_hold_what_webdataset_reads(tmp_path: Path, name: str) -> None:
    members, form = ODD[name]
    write_tar(tmp_path / "a.tar", members, form)
    dest = make(tmp_path, source=(f"train={tmp_path}/a.tar",))
    theirs = list(webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False))
    theirs = [row for row in theirs if any(extension.endswith("wav") for extension in row)]
    ours = samples_of(f"{dest.as_uri()}/train")
    assert [sample.metadata["caption_id"] for sample in ours] == [row["__key__"].removeprefix("./") for row in theirs]
    for sample, row in zip(ours, theirs, strict=True):
        assert sample.audio == next(data for extension, data in row.items() if extension.endswith("wav"))
        assert sample.image == next(data for extension, data in row.items() if extension.endswith("png"))
    assert verify_split(f"{dest.as_uri()}/train") == []


def test_the_training_stream_reads_adopted_shards(tmp_path: Path) -> None:
    write_three(tmp_path, 32)
    manifest = open_manifest(f"{make(tmp_path).as_uri()}/train")
    for memory_bytes in (2**30, manifest.summary.size_bytes - 1):
        order = SampleOrder(manifest, 0, 2)
        reader, rejections = SplitReader(manifest), Rejections(manifest.url)
        stream = Stream(reader, order, lambda s: (s.key, bytes(s.audio)), rejections, memory_bytes=memory_bytes)
        seen = [pair for _, batch in itertools.islice(stream.iter_from(0), 16) for pair in batch]
        assert sorted(seen) == sorted((sample.key, sample.audio) for sample in samples_of(manifest.url))
    cached = SplitReader(manifest, str(tmp_path / "cache"))
    assert [sample for _, sample in cached.load(Extent(0, 1, 2))] == samples_of(manifest.url)[1:3]


def test_without_splits_whole_tars_are_drawn(tmp_path: Path) -> None:
    for number in range(5):
        write_tar(tmp_path / f"raw/{number}.tar", one("000", number))  # every tar has the same keys
    dest = make(tmp_path, source=(f"{tmp_path}/raw",))
    found = {path.parent.name: samples_of(path.parent.as_uri()) for path in dest.glob("*/manifest.json")}
    assert {split: len(samples) for split, samples in found.items()} == {"train": 3, "dev": 1, "test": 1}
    ids = {sample.metadata["image_id"] for samples in found.values() for sample in samples}
    assert len(ids) == 5, "the tar's name tells samples of one key apart"


def test_compressed_tars_are_stored_without_compression_and_adopted(tmp_path: Path) -> None:
    write_three(tmp_path)
    plain = (tmp_path / "train.tar").read_bytes()
    (tmp_path / "train.tar").write_bytes(gzip.compress(plain))
    (tmp_path / "dev.tar").write_bytes(bz2.compress((tmp_path / "dev.tar").read_bytes()))
    dest = make(tmp_path)
    assert plain in [path.read_bytes() for path in (dest / "tars").iterdir()]
    moved = dest.rename(tmp_path / "moved")  # files within the corpus are referenced by relative URLs
    assert verify_split((moved / "train").as_uri()) == []
    assert len(samples_of((moved / "train").as_uri())) == 4


def test_a_truncated_compressed_tar_is_read_up_to_the_damage(tmp_path: Path, capsys) -> None:
    write_three(tmp_path, 8)
    packed = gzip.compress((tmp_path / "train.tar").read_bytes())
    (tmp_path / "train.tar").write_bytes(packed[: len(packed) // 2])
    dest = make(tmp_path, "--max-rejected-fraction", "0.2")
    assert "cannot be decompressed" in capsys.readouterr().out
    assert 2 <= len(samples_of(f"{dest.as_uri()}/train")) <= 5
    assert verify_split(f"{dest.as_uri()}/train") == []


def test_a_split_of_another_corpus_is_not_reused(tmp_path: Path) -> None:
    write_three(tmp_path)
    dest = make(tmp_path)
    (dest / "shards.json").unlink()
    write_tar(tmp_path / "train.tar", one("0000", 99))
    with pytest.raises(UserError, match=r"corpus/train was written from other files: remove it, or name another"):
        make(tmp_path)


def test_an_interrupted_run_resumes_with_the_same_result(tmp_path: Path, monkeypatch, capsys) -> None:
    write_three(tmp_path)
    read: list[str] = []
    find_samples = scan.find_samples

    def counting(url: str, *rest):
        if len(read) == 2:
            raise KeyboardInterrupt
        read.append(url)
        return find_samples(url, *rest)

    monkeypatch.setattr(scan, "find_samples", counting)
    module = load_recipe("shards")
    words = [f"{split}={tmp_path}/{split}.tar" for split in ("train", "dev", "test")]
    monkeypatch.setattr("sys.argv", ["shards.py", "--dest", (tmp_path / "corpus").as_uri(), "--source", *words])
    with pytest.raises(SystemExit) as caught:
        module.main()
    assert caught.value.code == 130
    assert capsys.readouterr().err.count("\n") == 1
    monkeypatch.setattr(scan, "find_samples", lambda url, *rest: read.append(url) or find_samples(url, *rest))
    module.main()
    assert [url.rpartition("/")[2] for url in read] == ["train.tar", "dev.tar", "test.tar"], "each is read once"
    (tmp_path / "corpus").rename(tmp_path / "interrupted")
    module.main()
    files = sorted(path.relative_to(tmp_path / "corpus") for path in (tmp_path / "corpus").rglob("*.*"))
    assert [str(file) for file in files if "parts" in file.parts] == []
    for file in files:
        assert (tmp_path / "corpus" / file).read_bytes() == (tmp_path / "interrupted" / file).read_bytes()
    read.clear()
    module.main()
    assert not read, "a corpus that is whole is not read again"
    assert "already there" in capsys.readouterr().out
    (tmp_path / "test.tar").write_bytes((tmp_path / "test.tar").read_bytes() + bytes(512))
    with pytest.raises(SystemExit):
        module.main()
    assert "was made from other tars or with other flags" in capsys.readouterr().err


def exchange(folder: Path) -> None:
    (folder / "train.tar").write_bytes((folder / "dev.tar").read_bytes())


DAMAGES = {
    "cut": (lambda folder: (folder / "train.tar").write_bytes((folder / "train.tar").read_bytes()[:9000]), "bytes"),
    "removed": (lambda folder: (folder / "train.tar").unlink(), "is missing"),
    "exchanged": (exchange, "another sha256"),
    "flipped": (
        lambda folder: (folder / "train.tar").write_bytes(
            (folder / "train.tar").read_bytes().replace(b"word", b"sord")
        ),
        "another sha256",
    ),
    "members": (
        lambda folder: (folder / "corpus/train/members/train-00-000000.jsonl").write_text("{}\n"),
        "does not hold the members",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_verify_names_the_tar_that_was_damaged_after_its_adoption(tmp_path: Path, name: str) -> None:
    write_three(tmp_path)
    dest = make(tmp_path)
    damage, message = DAMAGES[name]
    damage(tmp_path)
    problems = verify_split(f"{dest.as_uri()}/train")
    assert any(message in line and f"{(tmp_path / 'train.tar').as_uri()}" in line for line in problems), problems
    assert verify_split(f"{dest.as_uri()}/dev") == []


# ------------------------------------------------------------------ damaged samples and tars


def test_unusable_samples_are_listed_and_excluded(tmp_path: Path, capsys) -> None:
    write_three(tmp_path, 8)
    bad = {
        "no_audio": [("a.png", image(50))],
        "no_image": [("b.wav", sound())],
        "image": one("c", 51, png=b"\x89PNG no image"),
        "not_audio": one("d", 52, wav=b"RIFF no sound"),
        "too_short": one("e", 53, wav=sound(0.01)),
        "json": one("f", 54, json=b"{"),
        "text": one("g", 55, txt=b"\xff\xfe\xfd"),
        "duplicate_member": [*one("h", 56), ("h.wav", sound())],
    }
    good = one("0000", 0) + one("0001", 1)
    write_tar(tmp_path / "train.tar", good[:2] + [member for members in bad.values() for member in members] + good[2:])
    with pytest.raises(
        UserError, match=r"8 of 26 samples cannot be used .*1 duplicate_member, 1 image, 1 json.*allows; "
    ):
        make(tmp_path)
    dest = make(tmp_path, "--max-rejected-fraction", "0.5")
    rows = [json.loads(line) for line in (dest / "train/rejected.jsonl").read_text().splitlines()]
    assert {row["cause"] for row in rows} == set(bad)
    assert {row["file"] for row in rows} == {(tmp_path / "train.tar").as_uri()}
    assert [sample.metadata["caption_id"] for sample in samples_of(f"{dest.as_uri()}/train")] == ["0000", "0001"]
    assert verify_split(f"{dest.as_uri()}/train") == []


def test_samples_before_damage_are_adopted_and_the_rest_counted(tmp_path: Path, capsys) -> None:
    write_three(tmp_path, 8)
    data = (tmp_path / "train.tar").read_bytes()
    header = len(data) // 2 // 512 * 512
    while data[header + 257 : header + 262] != b"ustar":
        header += 512
    (tmp_path / "train.tar").write_bytes(data[:header] + b"\xff" * 512 + data[header + 512 :])
    with pytest.raises(UserError, match=r"[3-5] of 2\d samples cannot be used .*1 damaged_tar, about [2-4] lost"):
        make(tmp_path)
    dest = make(tmp_path, "--max-rejected-fraction", "0.5")
    assert f"{(tmp_path / 'train.tar').as_uri()} is damaged (byte {header}: no tar header" in capsys.readouterr().out
    assert 3 <= len(samples_of(f"{dest.as_uri()}/train")) <= 5
    assert verify_split(f"{dest.as_uri()}/train") == []


def test_the_sample_truncated_at_the_end_of_a_tar_is_counted(tmp_path: Path) -> None:
    write_three(tmp_path, 30)
    data = (tmp_path / "train.tar").read_bytes()
    (tmp_path / "train.tar").write_bytes(data[: len(data) - 20_000])
    (row,) = (make(tmp_path) / "train/rejected.jsonl").read_text().splitlines()
    assert json.loads(row)["cause"] == "damaged_tar"
    assert "the tar ends within" in row


def test_a_damaged_recording_is_kept_up_to_the_damage(tmp_path: Path) -> None:
    write_three(tmp_path)
    whole = sound(2.0)
    write_tar(tmp_path / "train.tar", one("000", 0, wav=whole[: len(whole) * 3 // 4]))
    dest = make(tmp_path)
    (sample,) = samples_of(f"{dest.as_uri()}/train")
    assert sample.metadata["missing_seconds"] == pytest.approx(0.5, abs=0.02)
    assert verify_split(f"{dest.as_uri()}/train") == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"raw/a.tar is no tar \(byte 0: no tar header"),
        (b"<html>not found</html>" * 100, "is no tar"),
    ],
)
def test_a_file_that_is_no_tar_gives_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/a.tar").write_bytes(content)
    with pytest.raises(UserError, match=message):
        make(tmp_path, source=(f"train={tmp_path}/raw/a.tar",))


def test_tars_without_samples_give_one_line(tmp_path: Path) -> None:
    write_tar(tmp_path / "empty.tar", [])
    with pytest.raises(UserError, match="--source has no sample: 0 members"):
        make(tmp_path, source=(f"train={tmp_path}/empty.tar",))
    write_tar(tmp_path / "other.tar", [("a.mp4", b"x"), ("a.vtt", b"x")])
    with pytest.raises(UserError, match=r"2 members are neither images, recordings nor texts: name their extensions"):
        make(tmp_path, source=(f"train={tmp_path}/other.tar",))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{a,b.tar"], "cannot be expanded"),
        (["x/*.tar"], "names no tar"),
        (["train.tar", "train.tar"], "twice"),
        (["train=train.tar", "dev.tar"], "gives some tars to a split and others to none"),
        (["https://host/a.tar"], "must be s3://bucket"),
        (["gone.tar"], "does not exist"),
        ([], "names no tar"),
    ],
)
def test_invalid_sources_give_one_line(tmp_path: Path, monkeypatch, words: list[str], message: str) -> None:
    monkeypatch.chdir(tmp_path)
    write_three(tmp_path, 1)
    with pytest.raises(UserError, match=message):
        find_tars(words)


# ------------------------------------------------------------------ rewritten


def test_captions_of_one_sample_are_written_in_rounds(tmp_path: Path) -> None:
    members = []
    for number in range(3):
        words = json.dumps({"text": [f"first {number}", f"second {number}"]}).encode()
        clips = [(f"{number:03d}.{k}.wav", sound(hz=300 + 100 * k + number)) for k in range(2)]
        members += [(f"{number:03d}.jpg", plain_image(shade=10 * number)), *clips, (f"{number:03d}.json", words)]
    write_tar(tmp_path / "a.tar", members)
    obstacle, corpus = rewritten(tmp_path, f"train={tmp_path}/a.tar")
    assert obstacle == f"{(tmp_path / 'a.tar').as_uri()}: '000' holds 2 recordings"
    assert [len(items) for items in corpus.rounds("train")] == [3, 3]
    samples, causes = make_all(corpus, "train")
    assert not causes
    assert {key: sample.metadata["text"] for key, sample in samples.items()} == {
        f"{number:03d}-{k}": f"{word} {number}" for number in range(3) for k, word in enumerate(("first", "second"))
    }
    assert samples["001-0"].image == samples["001-1"].image == plain_image(shade=10)
    assert samples["001-1"].metadata["caption_id"] == "001.1"


def test_an_unusable_caption_does_not_remove_the_image_of_others(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("k.png", image(0)), ("k.0.wav", b"no sound"), ("k.1.wav", sound())])
    _, corpus = rewritten(tmp_path, f"train={tmp_path}/a.tar")
    samples, causes = make_all(corpus, "train")
    assert (list(causes.values()), list(samples)) == (["not_audio"], ["k-1"])
    assert samples["k-1"].image is not None


def test_distant_samples_are_not_read_as_one_range(tmp_path: Path, monkeypatch) -> None:
    from brewclip.containers import samples

    monkeypatch.setattr(samples, "_MOST_RANGE_BYTES", 60_000)
    write_tar(tmp_path / "a.tar", [*one("000", 0), ("000.mp4", bytes(50_000)), *one("001", 1)])
    obstacle, corpus = rewritten(tmp_path, f"train={tmp_path}/a.tar")
    assert "bytes are between '001' and the sample before it" in obstacle
    assert sorted(make_all(corpus, "train")[0]) == ["000-0", "001-0"]


def test_samples_in_no_split_are_listed(tmp_path: Path) -> None:
    of = {"a": b'{"part": "train"}', "b": b'{"part": "val"}', "c": b"{}"}
    for number, (name, text) in enumerate(of.items()):
        write_tar(tmp_path / f"{name}.tar", one("000", number, json=text))
    flags = ("--split-field", "part", "--max-rejected-fraction", "0.5")
    dest = make(tmp_path, *flags, source=(f"{tmp_path}/{{a,b,c}}.tar",))
    (row,) = (dest / "rejected.jsonl").read_text().splitlines()
    assert json.loads(row) | {"detail": ""} == {
        "key": "000",
        "file": (tmp_path / "c.tar").as_uri(),
        "cause": "no_split",
        "detail": "",
    }
    assert sorted(path.parent.name for path in dest.glob("*/manifest.json")) == ["dev", "train"]


def test_pairs_of_one_key_are_matched_by_the_part_after_the_dot(tmp_path: Path) -> None:
    members = [*one("key.v1", 1), *one("key.v2", 2), ("key.v2.txt", b"the second")]
    write_tar(tmp_path / "a.tar", members)
    _, corpus = rewritten(tmp_path, f"train={tmp_path}/a.tar")
    samples, _ = make_all(corpus, "train")
    assert sorted((sample.metadata["caption_id"], sample.metadata.get("text")) for sample in samples.values()) == [
        ("key.v1", None),
        ("key.v2", "the second"),
    ]
    assert len({sample.metadata["image_id"] for sample in samples.values()}) == 2


def test_identical_images_of_several_samples_are_one_image(tmp_path: Path) -> None:
    same = image(7)
    write_tar(tmp_path / "a.tar", [*one("000", 0, png=same), *one("001", 1)])
    write_tar(tmp_path / "b.tar", [*one("002", 2, png=same), *one("003", 3)])
    obstacle, corpus = rewritten(tmp_path, f"train={tmp_path}/{{a,b}}.tar")
    assert obstacle == "1 samples share an image with another sample, by its bytes"
    assert [len(items) for items in corpus.rounds("train")] == [3, 1]
    samples, _ = make_all(corpus, "train")
    assert {"000-0", "000-1", "001-0", "003-0"} == set(samples)


def test_an_id_field_in_the_json_names_the_image(tmp_path: Path) -> None:
    members = [m for n in range(4) for m in one(f"{n:03d}", n, json=json.dumps({"coco": n // 2}).encode())]
    write_tar(tmp_path / "a.tar", members)
    obstacle, corpus = rewritten(tmp_path, f"train={tmp_path}/a.tar", id_field="coco")
    assert "by its name" in obstacle
    assert sorted(make_all(corpus, "train")[0]) == ["0-0", "0-1", "1-0", "1-1"]


def test_non_contiguous_members_are_grouped(tmp_path: Path) -> None:
    first, second = one("000", 0), one("001", 1)
    write_tar(tmp_path / "a.tar", [first[0], second[0], first[1], second[1]])
    obstacle, corpus = rewritten(tmp_path, f"train={tmp_path}/a.tar")
    assert "the members of '000' are not contiguous" in obstacle
    samples, causes = make_all(corpus, "train")
    assert sorted(samples) == ["000-0", "001-0"]
    assert not causes


def test_a_split_field_within_a_tar_is_used(tmp_path: Path) -> None:
    splits = ["train", "val", "test", ""]
    members = [m for n, of in enumerate(splits) for m in one(f"{n:03d}", n, json=json.dumps({"part": of}).encode())]
    write_tar(tmp_path / "a.tar", members)
    obstacle, corpus = rewritten(tmp_path, f"{tmp_path}/a.tar", split_field="part")
    assert "its samples are in dev, test, train" in obstacle
    assert corpus.splits() == ["train", "dev", "test"]
    assert [item.problem for item in corpus.left_out] == ["no_split"]


def test_recordings_without_images(tmp_path: Path) -> None:
    write_tar(tmp_path / "train.tar", [("000.mp3", sound(form="MP3")), ("001.ogg", sound(form="OGG"))])
    dest = make(tmp_path, "--without-images", source=(f"train={tmp_path}/train.tar",))
    assert [sample.image for sample in samples_of(f"{dest.as_uri()}/train")] == [None, None]
    assert verify_split(f"{dest.as_uri()}/train") == []


@pytest.mark.services
def test_sources_on_object_storage(bucket: str, tmp_path: Path) -> None:
    write_three(tmp_path)
    storage = open_storage(f"{bucket}/raw")
    for split in ("train", "dev", "test"):
        storage.upload(tmp_path / f"{split}.tar", f"{split}/0.tar")
    assert [tar.url for tar in find_tars([f"{bucket}/raw/*/?.tar"])] == [
        f"{bucket}/raw/{split}/0.tar" for split in ("dev", "test", "train")
    ]
    words = tuple(f"{split}={bucket}/raw/{split}/" for split in ("train", "dev", "test"))
    dest = make(tmp_path, source=words)
    manifest = open_manifest(f"{dest.as_uri()}/train")
    assert manifest.url_of(0) == f"{bucket}/raw/train/0.tar"
    assert verify_split(manifest.url) == []
    assert len(list(as_webdataset(manifest.url))) == 4
