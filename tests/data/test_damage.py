"""Damage to a stored split: `verify` names it, and the training stream stops with its name or counts the sample.

The table at the end of the first part says, for each kind, what both do. A stream that goes on must have yielded
every sample of the split once per epoch, but for the ones that it counted; a timeout makes a hang a failure.
"""

import io
import itertools
import json
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from brewclip.audio import UndecodableAudio, decode_audio, encode_flac
from brewclip.data.images import open_image
from brewclip.data.manifest import open_manifest
from brewclip.data.order import SampleOrder
from brewclip.data.reader import Rejections, SplitReader
from brewclip.data.schema import BadSample, Sample
from brewclip.data.shards import finish_split, shard_name, write_shard
from brewclip.data.storage import open_storage
from brewclip.data.stream import Stream
from brewclip.data.verify import verify_split
from brewclip.errors import ManifestError

SHARD_SIZES = (5, 7, 7)  # the last two are alike, and can be swapped
NUM_SAMPLES = sum(SHARD_SIZES)
NUM_EPOCHS = 3
BATCH_SIZE = 3  # three epochs are a whole number of batches
SHARD = "train-00-000001.tar"  # the one that is damaged
OTHER_SHARD = "train-00-000002.tar"
VICTIM = "p7-0"  # the third sample of SHARD
WHOLE = "every sample"

pytestmark = pytest.mark.timeout(60)


# ------------------------------------------------------------------ a split of real images and recordings


def make_sample(number: int, seed: int = 0) -> Sample:
    """Return a sample of noise; all are of the same size, so that size does not betray one in another's place."""
    rng = np.random.default_rng((seed, number))
    image = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (24, 24, 3), dtype=np.uint8)).save(image, "JPEG")
    metadata = {"image_id": f"p{number}", "caption_id": f"p{number}-0", "split": "train", "duration_seconds": 0.2}
    flac = encode_flac(rng.uniform(-1, 1, 3200))
    return Sample(f"p{number}-0", metadata, image=image.getvalue().ljust(2048, b"\0"), audio=flac)


def write_split(folder: Path, change: Callable[[Sample], Sample] = lambda sample: sample, seed: int = 0) -> None:
    """Write the split of this file; `change` may spoil samples before the writer hashes them."""
    storage, records, first = open_storage(folder.as_uri()), [], 0
    for number, count in enumerate(SHARD_SIZES):
        samples = (change(make_sample(first + i, seed)) for i in range(count))
        records.append(write_shard(storage, shard_name("train", 0, number), 0, samples))
        first += count
    finish_split(storage, records, corpus="test", split="train", kind="recordings", num_images=NUM_SAMPLES)


def spoil(**parts: object) -> Callable[[Path], None]:
    """Return what writes the split with other parts in the victim, so that manifest and checksums agree with them."""

    def write(folder: Path) -> None:
        shutil.rmtree(folder)
        write_split(folder, lambda sample: sample._replace(**parts) if sample.key == VICTIM else sample)

    return write


# ------------------------------------------------------------------ what can happen to its bytes


def cut(where: Callable[[list[tarfile.TarInfo], int], int]) -> Callable[[Path], None]:
    """Return what cuts the shard at a byte, found by its members and its size."""

    def damage(folder: Path) -> None:
        data = (folder / SHARD).read_bytes()
        (folder / SHARD).write_bytes(data[: where(members_of(data), len(data))])

    return damage


def flip(extension: str, offset: int = 40, *, header: bool = False) -> Callable[[Path], None]:
    """Return what changes a byte of the victim's member of that kind."""

    def damage(folder: Path) -> None:
        data = bytearray((folder / SHARD).read_bytes())
        member = next(m for m in members_of(bytes(data)) if m.name == f"{VICTIM}.{extension}")
        data[(member.offset if header else member.offset_data) + offset] ^= 0xFF
        (folder / SHARD).write_bytes(data)

    return damage


def members_of(data: bytes) -> list[tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return tar.getmembers()


def rewrite(change: Callable[[dict[str, bytes]], dict[str, bytes]]) -> Callable[[Path], None]:
    """Return what unpacks the shard and packs it again with other members, as other tools would."""

    def damage(folder: Path) -> None:
        with tarfile.open(folder / SHARD) as tar:
            members = {m.name: tar.extractfile(m).read() for m in tar.getmembers()}
        with tarfile.open(folder / SHARD, "w", format=tarfile.USTAR_FORMAT) as tar:
            for name, data in change(members).items():
                header = tarfile.TarInfo(name)
                header.size = len(data)
                tar.addfile(header, io.BytesIO(data))

    return damage


def without_recording(members: dict[str, bytes]) -> dict[str, bytes]:
    return {name: data for name, data in members.items() if name != f"{VICTIM}.flac"}


def with_a_sample_more(members: dict[str, bytes]) -> dict[str, bytes]:
    return members | {f"new.{kind}": data for kind, data in make_sample(99).members().items()}


def on_files(change: Callable[[Path], object]) -> Callable[[Path], None]:
    """Return a damage whose function returns something."""
    return lambda folder: change(folder) and None


def swap_shards(folder: Path) -> None:
    one, two = (folder / SHARD).read_bytes(), (folder / OTHER_SHARD).read_bytes()
    (folder / SHARD).write_bytes(two)
    (folder / OTHER_SHARD).write_bytes(one)


def take_from_another_split(*names: str) -> Callable[[Path], None]:
    """Return what puts files of another split of the same shape in the place of this one's."""

    def damage(folder: Path) -> None:
        other = folder.with_name("other")
        write_split(other, seed=1)
        for name in names:
            shutil.copyfile(other / name, folder / name)

    return damage


def drop_an_index_entry(folder: Path) -> None:
    data = (folder / "index.bin").read_bytes()
    (folder / "index.bin").write_bytes(data[:-12])


def note_fewer_samples(folder: Path) -> None:
    fields = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(fields | {"num_samples": NUM_SAMPLES - 3}))


def repeat_a_key(folder: Path) -> None:
    shutil.rmtree(folder)
    write_split(folder, lambda sample: sample._replace(key=VICTIM) if sample.key == "p18-0" else sample)


# ------------------------------------------------------------------ the table


@dataclass(frozen=True)
class Damage:
    """A kind of damage.

    Attributes:
        act: does it to the folder of the split.
        verify: part of a line of `verify`; the line names the shard or file, too.
        stops: part of the message with which the stream stops, and which names shard (or file) and manifest; or
        counts: the causes by which it counts the samples that it replaced, once per epoch; or
        neither: nothing that training reads is damaged, so every sample comes.
        file: what the lines must name.
    """

    act: Callable[[Path], object]
    verify: str
    stops: str = ""
    counts: tuple[str, ...] = ()
    file: str = SHARD


SIZE = {"verify": "bytes, its manifest says", "stops": "bytes instead of"}
SHA = "another sha256"
ONE_CHECKSUM = {"verify": "checksum: bytes of sample 2 were changed", "counts": ("checksum",)}
FLAC = make_sample(7).audio
LONG_FLAC = encode_flac(np.random.default_rng(0).uniform(-1, 1, 64_000))
JPG = make_sample(7).image

DAMAGES: dict[str, Damage] = {
    # the tar cut
    "cut in a header": Damage(cut(lambda members, size: members[4].offset + 100), **SIZE),
    "cut in a body": Damage(cut(lambda members, size: members[4].offset_data + 100), **SIZE),
    "cut between members": Damage(cut(lambda members, size: members[4].offset), **SIZE),
    "cut between samples": Damage(cut(lambda members, size: members[6].offset), **SIZE),
    "cut in the padding at the end": Damage(cut(lambda members, size: size - 512), **SIZE),
    "cut to nothing": Damage(cut(lambda members, size: 0), **SIZE),
    # bytes flipped
    "byte of a header flipped": Damage(flip("flac", 125, header=True), **ONE_CHECKSUM),
    "byte of a name flipped": Damage(flip("jpg", 0, header=True), **ONE_CHECKSUM),
    "byte of a jpg flipped": Damage(flip("jpg"), **ONE_CHECKSUM),
    "byte of a flac flipped": Damage(flip("flac", 2000), **ONE_CHECKSUM),
    "byte of a json flipped": Damage(flip("json"), **ONE_CHECKSUM),
    "byte of the end flipped": Damage(
        on_files(lambda folder: (folder / SHARD).write_bytes((folder / SHARD).read_bytes()[:-1] + b"x")), SHA
    ),
    # members and samples
    "member missing": Damage(rewrite(without_recording), **SIZE),
    "member added": Damage(rewrite(lambda members: members | {"p5-0.txt": b"a note"}), **SIZE),
    "member added to the end without the end moving": Damage(
        rewrite(lambda members: {"notes.txt": b"", **members}), **SIZE
    ),
    "sample added": Damage(rewrite(with_a_sample_more), **SIZE),
    "sample written twice": Damage(
        on_files(lambda folder: (folder / SHARD).write_bytes((folder / SHARD).read_bytes() * 2)), **SIZE
    ),
    # written so: manifest and checksums agree
    "image missing": Damage(spoil(image=None), "image: 'p7-0': there is none", counts=("image",)),
    "recording missing": Damage(spoil(audio=None), "audio: 'p7-0': there is no recording", counts=("audio",)),
    "jpg broken": Damage(spoil(image=b"\xff\xd8 no image"), "image: 'p7-0'", counts=("image",)),
    "jpg cut": Damage(spoil(image=JPG[:400]), "image: 'p7-0'", counts=("image",)),
    "jpg empty": Damage(spoil(image=b""), "image: 'p7-0'", counts=("image",)),
    "flac broken": Damage(spoil(audio=b"fLaC no sound"), "audio: 'p7-0'", counts=("not_audio",)),
    "flac cut": Damage(spoil(audio=FLAC[: len(FLAC) // 2]), "audio: 'p7-0'", counts=("corrupt",)),
    # what decodes of a recording is used, as far as it goes
    "long flac cut near its end": Damage(spoil(audio=LONG_FLAC[: len(LONG_FLAC) * 3 // 4]), "breaks off"),
    "flac empty": Damage(spoil(audio=b""), "audio: 'p7-0'", counts=("empty",)),
    "key of another sample": Damage(repeat_a_key, "has the key of", file=OTHER_SHARD),
    # files
    "shard missing": Damage(on_files(lambda folder: (folder / SHARD).unlink()), "is missing", "is missing"),
    "foreign file": Damage(
        on_files(lambda folder: (folder / "notes.txt").write_text("x")), "does not belong", file="notes.txt"
    ),
    "foreign shard": Damage(
        on_files(lambda folder: shutil.copyfile(folder / SHARD, folder / "train-00-000009.tar")),
        "does not belong",
        file="train-00-000009.tar",
    ),
    "shard of another split": Damage(take_from_another_split(SHARD), SHA, "no sample that can be used"),
    "two shards swapped": Damage(swap_shards, SHA, "no sample that can be used"),
    # the manifest
    "stale manifest.json": Damage(
        take_from_another_split("manifest.json"), "is not the one", "is not the one", file="shards.parquet"
    ),
    "stale shards.parquet": Damage(
        take_from_another_split("shards.parquet"), "is not the one", "is not the one", file="shards.parquet"
    ),
    "stale index.bin": Damage(
        take_from_another_split("index.bin"), "is not the one", "does not hold the index", file="index.bin"
    ),
    "stale manifest, table and index": Damage(
        take_from_another_split("manifest.json", "shards.parquet", "index.bin"), SHA, "no sample that can be used"
    ),
    "index cut": Damage(drop_an_index_entry, "does not hold the index", "does not hold the index", file=OTHER_SHARD),
    "index missing": Damage(
        on_files(lambda folder: (folder / "index.bin").unlink()), "does not exist", "does not exist", file="index.bin"
    ),
    "counts changed": Damage(note_fewer_samples, "says num_samples", "says num_samples", file="manifest.json"),
    "manifest.json cut": Damage(
        on_files(lambda folder: (folder / "manifest.json").write_text('{"corpus"')),
        "cannot be read",
        "cannot be read",
        file="manifest.json",
    ),
    "manifest.json missing": Damage(
        on_files(lambda folder: (folder / "manifest.json").unlink()),
        "no whole split",
        "no whole split",
        file="manifest.json",
    ),
}


# ------------------------------------------------------------------ what is asserted


def decode(sample: Sample) -> str:
    """Decode a recording as extraction does, and its image."""
    open_image(sample.image)
    if sample.audio is None:
        raise BadSample("audio", "there is no recording")
    try:
        decode_audio(sample.audio)
    except UndecodableAudio as error:
        raise BadSample(error.cause, str(error)) from error
    return sample.key


def read_epochs(url: str, *, whole_split_in_memory: bool) -> tuple[list[str], Rejections]:
    """Return the keys that the stream yields in some epochs, and what it rejected."""
    manifest = open_manifest(url)
    order = SampleOrder(manifest, seed=2, global_batch_size=BATCH_SIZE)
    rejections = Rejections(url)
    size = manifest.summary.size_bytes
    memory_bytes = size if whole_split_in_memory else size - 1
    stream = Stream(SplitReader(manifest), order, decode, rejections, memory_bytes=memory_bytes, num_threads=2)
    batches = itertools.islice(stream.iter_from(0), NUM_EPOCHS * NUM_SAMPLES // BATCH_SIZE)
    return [key for _, batch in batches for key in batch], rejections


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("original") / "split"
    write_split(folder)
    return folder


@pytest.fixture
def folder(original, tmp_path) -> Path:
    return shutil.copytree(original, tmp_path / "split")


def test_a_whole_split_has_no_problem(folder):
    assert verify_split(folder.as_uri()) == []


@pytest.mark.parametrize("name", DAMAGES)
def test_verify_names_the_damage(folder, name):
    damage = DAMAGES[name]
    damage.act(folder)
    problems = verify_split(folder.as_uri())
    assert any(damage.file in line and damage.verify in line for line in problems), problems


@pytest.mark.slow
@pytest.mark.parametrize("whole_split_in_memory", [True, False], ids=["whole split", "shuffle windows"])
@pytest.mark.parametrize("name", DAMAGES)
def test_the_stream_stops_or_counts_and_never_loses_a_sample(folder, name, whole_split_in_memory):
    damage = DAMAGES[name]
    damage.act(folder)
    if damage.stops:
        with pytest.raises(ManifestError, match=damage.stops) as caught:
            read_epochs(folder.as_uri(), whole_split_in_memory=whole_split_in_memory)
        assert any(file in str(caught.value) for file in (damage.file, SHARD, OTHER_SHARD))
        assert "manifest.json" in str(caught.value) or "index.bin" in str(caught.value)
        return
    keys, rejections = read_epochs(folder.as_uri(), whole_split_in_memory=whole_split_in_memory)
    expected = Counter({f"p{number}-0": NUM_EPOCHS for number in range(NUM_SAMPLES)})
    if damage.counts:  # the next sample of the shard stands in for the victim
        del expected[VICTIM]
        expected["p8-0"] += NUM_EPOCHS
        assert {row["shard"] for row in rejections.listed} == {SHARD}
        assert {row["index"] for row in rejections.listed} == {2}
    elif name == "key of another sample":
        del expected["p18-0"]
        expected[VICTIM] += NUM_EPOCHS
    assert Counter(keys) == expected
    assert set(rejections.counts) == set(damage.counts)
    # a step that is decoded ahead may meet the victim of the next epoch
    assert rejections.total in ((NUM_EPOCHS, NUM_EPOCHS + 1) if damage.counts else (0,))
