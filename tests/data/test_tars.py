"""Tars of somebody else: the members that `tarfile` finds, where they are, and damage within bounded memory."""

import bz2
import gzip
import io
import lzma
import random
import tarfile
import tracemalloc
import zlib

import pytest

from brewclip.data.tars import DamagedTar, TarBytes, is_compressed, iter_decompressed, iter_tar

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def make_tar(members: list[tuple[str, bytes]], form: int = tarfile.GNU_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, data in members:
            header = tarfile.TarInfo(name.rstrip("/"))
            header.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    return buffer.getvalue()


def pieces_of(data: bytes, size: int = 1000):
    return (data[start : start + size] for start in range(0, len(data), size))


def read(data: bytes, wanted=lambda name, size: True):
    return list(iter_tar(TarBytes(pieces_of(data)), wanted))


@pytest.mark.parametrize("form", FORMATS)
def test_it_finds_what_tarfile_finds(form):
    rng = random.Random(0)
    members = [(f"folder/{n:03d}.bin", rng.randbytes(rng.choice([0, 1, 511, 512, 513, 3000]))) for n in range(30)]
    members[3:3] = [("folder/", b"")]
    if form != "ustar":
        members += [("long/" + "x" * 180 + "/a.wav", b"long"), ("\u00e9\u4e2d.txt", b"names")]
    data = make_tar(members, FORMATS[form])
    found = read(data)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        expected = [(m.name, m.offset_data, tar.extractfile(m).read()) for m in tar if m.isreg()]
    assert [(m.name, m.start, m.data) for m in found] == expected


def test_links_have_no_bytes_and_unwanted_members_are_not_held():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        link = tarfile.TarInfo("link.wav")
        link.type, link.linkname = tarfile.SYMTYPE, "a.wav"
        tar.addfile(link)
        for name in ("a.wav", "b.npy"):
            header = tarfile.TarInfo(name)
            header.size = 700
            tar.addfile(header, io.BytesIO(b"1" * 700))
    found = read(buffer.getvalue(), lambda name, size: name.endswith("wav"))
    assert [(member.name, member.data is None) for member in found] == [("a.wav", False), ("b.npy", True)]


def test_checksums_cover_ranges_that_follow_one_another():
    data = make_tar([("a.x", b"1" * 600), ("skipped", b"2" * 600), ("b.x", b"3" * 600)])
    tar, ranges = TarBytes(pieces_of(data, 70)), []
    for member in iter_tar(tar, lambda name, size: False):
        if member.name.endswith(".x"):
            tar.mark()
            ranges.append(None)
        else:
            ranges[-1] = tar.end_range()
    ranges[-1] = tar.end_range()
    start = 0
    for end, checksum in ranges:
        assert zlib.crc32(data[start:end]) == checksum
        start = end
    assert [end for end, _ in ranges] == [512 + 1024, 3 * (512 + 1024)]
    assert tar.position == len(data)


def lying(size_field: bytes, kind: bytes = tarfile.REGTYPE) -> bytes:
    """Return a tar with a good member, and a header that claims a size."""
    header = bytearray(tarfile.TarInfo("b.wav").tobuf(tarfile.GNU_FORMAT))
    header[124:136], header[156:157], header[148:156] = size_field, kind, b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return make_tar([("a.wav", b"1" * 600)])[:1536] + bytes(header) + b"2" * 4096


DAMAGES = {
    "body cut": (lambda data: data[: 1536 + 512 + 300], "ends within 'b.wav'"),
    "header cut": (lambda data: data[: 1536 + 100], "no tar header"),
    "header overwritten": (lambda data: data[:1536] + b"\xff" * 512 + data[2048:], "no tar header"),
    "a size of a terabyte": (lambda data: lying(b"77777777777\0"), "ends within 'b.wav'"),
    "a size below zero": (lambda data: lying(b"\xff" * 12), "claims -1 bytes"),
    "a size of 2^80": (lambda data: lying(b"\x80" + b"\x01" + bytes(10)), "ends within 'b.wav'"),
    "an extended header of 8 GB": (lambda data: lying(b"77777777777\0", b"x"), "an extended header of"),
    "a long name of 8 GB": (lambda data: lying(b"77777777777\0", b"L"), "an extended header of"),
    "pax records without end": (lambda data: lying(b"00000001000\0", b"x"), "extended header that cannot be read"),
    "a sparse file": (lambda data: lying(b"00000000010\0", b"S"), "sparse file"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_what_stands_before_the_damage_is_found(name):
    damage, message = DAMAGES[name]
    data = damage(make_tar([("a.wav", b"1" * 600), ("b.wav", b"2" * 600)]))
    found = []
    tracemalloc.start()
    with pytest.raises(DamagedTar, match=message) as caught:
        for member in iter_tar(TarBytes(pieces_of(data)), lambda name, size: size < 2**20):
            found.append(member.name)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == ["a.wav"]
    assert caught.value.position >= 1536
    assert peak < 3 * 2**20


@pytest.mark.parametrize("data", [b"", b"<html>" * 200, b"\0" * 100], ids=["empty", "html", "short"])
def test_what_is_no_tar_says_so_at_its_first_byte(data):
    with pytest.raises(DamagedTar) as caught:
        read(data)
    assert caught.value.position == 0


def test_a_tar_of_no_members_is_one():
    assert read(make_tar([])) == []


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_compressed_tars(compress):
    data = make_tar([("a.wav", random.Random(0).randbytes(100_000))])
    packed = compress(data)
    assert is_compressed(packed[:8])
    assert not is_compressed(data[:8])
    assert b"".join(iter_decompressed(pieces_of(packed), packed[:8])) == data
    with pytest.raises(DamagedTar, match="cannot be decompressed"):
        list(iter_decompressed(pieces_of(packed[: len(packed) // 2]), packed[:8]))


def test_a_decompression_bomb_comes_in_small_pieces():
    packed = gzip.compress(bytes(200 * 2**20), 9)
    tracemalloc.start()
    assert max(len(piece) for piece in iter_decompressed(pieces_of(packed), packed[:8])) <= 8 * 2**20
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 * 2**20
