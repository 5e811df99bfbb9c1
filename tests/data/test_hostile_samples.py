"""Samples from strangers: any bytes give a sample, or a `BadSample` with its cause, quickly and in little memory."""

import io
import random
import tarfile
import time
import tracemalloc

import numpy as np
import pytest

from brewclip.data.batches import PairDecoder
from brewclip.data.schema import BadSample, array_to_npy, npy_to_array, pack_sample, unpack_sample
from brewclip.data.tars import DamagedTar, TarBytes, iter_tar
from tests.data.test_batches import sample

NUM_DAMAGED = 600
GOOD = np.arange(40, dtype=np.float16).reshape(5, 8)


def peak_bytes(function, *args) -> int:
    tracemalloc.start()
    try:
        function(*args)
    except (BadSample, DamagedTar):
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak


# ------------------------------------------------------------------ features


def npy(
    shape: object, descr: object = "<f2", fortran: object = False, body: bytes = bytes(80), version: int = 1
) -> bytes:
    """Return an .npy file whose header says what it likes."""
    header = f"{{'descr': {descr!r}, 'fortran_order': {fortran!r}, 'shape': {shape!r}, }}\n".encode()
    size = len(header).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + size + header + body


def saved(save, *arrays) -> bytes:
    buffer = io.BytesIO()
    save(buffer, *arrays)
    return buffer.getvalue()


LIES = {
    "more than there is": (npy((500, 8)), "8000 bytes of numbers, there are 80"),
    "less than there is": (npy((4, 8)), "64 bytes of numbers, there are 80"),
    "2^60 numbers": (npy((2**30, 2**30)), "there are 80"),
    "2^200 numbers": (npy((2**100, 2**100)), "not of numbers"),
    "no number, but as wide as the sea": (npy((0, 2**62), body=b""), "not of numbers"),
    "negative": (npy((-1, 8)), "not of numbers"),
    "negative twice": (npy((-5, -8)), "not of numbers"),
    "many dimensions": (npy((1,) * 20), "not of numbers"),
    "fraction": (npy((2.5, 8)), "header cannot be read"),
    "truth": (npy((True, 40)), "not of numbers"),
    "no shape": (npy(None), "header cannot be read"),
    "objects": (npy((5, 8), "|O"), "not of numbers"),
    "text": (npy((5, 8), "<U4", body=bytes(640)), "not of numbers"),
    "times": (npy((5, 2), "<M8[s]"), "not of numbers"),
    "complex": (npy((5, 2), "<c8"), "not of numbers"),
    "nothing at all": (npy((5, 8), "|V0", body=b""), "not of numbers"),
    "structure": (npy((5, 4), [("a", "<f2"), ("b", "<f2")]), "not of numbers"),
    "type that is none": (npy((5, 8), "nonsense"), "header cannot be read"),
    "code": (npy("__import__('os')"), "header cannot be read"),
    "deep": (b"\x93NUMPY\x01\x00" + (9000).to_bytes(2, "little") + b"(" * 9000, "header cannot be read"),
    "header of 64 kB": (npy((5, 8), fortran="x" * 60_000), "header cannot be read"),
    "header cut": (array_to_npy(GOOD)[:40], "header cannot be read"),
    "cut within its beginning": (b"\x93NUMPY\x01\x00", "header cannot be read"),
    "version 2": (npy((5, 8), version=2), "version 02.00"),
    "version 3": (npy((10**12, 8), version=3), "version 03.00"),
    "npz": (saved(np.savez, GOOD), "an .npz or other zip archive"),
    "pickle": (b"\x80\x04N.", "no .npy file"),
    "nothing": (b"", "no .npy file"),
    "float32": (array_to_npy(GOOD.astype(np.float32)), "float32 "),
    "big endian": (array_to_npy(GOOD.astype(">f2")), ">f2 "),
    "one dimension": (array_to_npy(GOOD[0]), "float16 (8,)"),
    "three dimensions": (array_to_npy(GOOD[None]), "float16 (1, 5, 8)"),
    "a width of one": (array_to_npy(GOOD[:, :1]), "float16 (5, 1)"),
    "no width": (array_to_npy(GOOD[:, :0]), "float16 (5, 0)"),
    "another width": (array_to_npy(GOOD[:, :6]), "a width of 6, those of this split have 8"),
    "not finite": (array_to_npy(np.full((5, 8), np.inf, np.float16)), "not finite"),
}


def decoder(audio_dim: int = 8) -> PairDecoder:
    import torch

    tokens = torch.zeros(1, 4, dtype=torch.int64)
    return PairDecoder(lambda texts: tokens, 16, "asr", 100, audio_dim=audio_dim)


@pytest.mark.parametrize("name", LIES)
def test_forged_features_are_bad_samples_with_the_cause(name):
    data, message = LIES[name]
    with pytest.raises(BadSample) as caught:
        decoder()(sample(features=data))
    assert caught.value.cause == "features" and message in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    assert peak_bytes(decoder(), sample(features=data)) < 4 * 2**20


def test_order_and_views_of_honest_features_are_read():
    for array in (GOOD, np.asfortranarray(GOOD), GOOD[:0]):
        for data in (array_to_npy(array), memoryview(array_to_npy(array))):
            np.testing.assert_array_equal(npy_to_array(data), array)
    assert decoder(audio_dim=0)(sample(features=array_to_npy(GOOD[:, :6]))).audio.shape == (5, 6)


# ------------------------------------------------------------------ the tar and the json of a sample


def member(name: str, body: bytes, kind: bytes = tarfile.REGTYPE) -> bytes:
    header = tarfile.TarInfo(name)
    header.size, header.type = len(body), kind
    return header.tobuf(tarfile.USTAR_FORMAT) + body + bytes(-len(body) % 512)


def json_of(size: int = 0, depth: int = 0, extra: bytes = b"") -> bytes:
    nested = b'"n": ' + b'{"a": [' * depth + b"]}" * depth + b", " if depth else b""
    text = b'"text": "' + b"x" * size + b'", '
    required = b'"image_id": "a", "caption_id": "a-0", "split": "train", "duration_seconds": 1.0'
    return b"{" + nested + text + extra + required + b"}"


RECORD = b"9 a=bcde\n"
SAMPLES = {
    "a million pax records": (member("x", RECORD * 460_000, b"x") + member("a.json", json_of()), "tar"),
    "pax headers one after another": (member("x", RECORD, b"x") * 3000 + member("a.json", json_of()), "tar"),
    "a length of 5000 digits": (member("x", b"9" * 5000 + b" a=b\n", b"x") + member("a.json", json_of()), "tar"),
    "a length of nothing": (member("x", b"1 path=b.json\n", b"x") + member("a.json", json_of()), "tar"),
    "a header alone": (member("x", RECORD, b"x"), "tar"),
    "a path of no text": (member("x", b"13 path=\xff\xfe\xfd\n", b"x") + member("a.json", json_of()), "tar"),
    "2 MB of json": (member("a.json", json_of(size=2_000_000)), "json"),
    "900 levels of json": (member("a.json", json_of(depth=450)), "json"),
    "100,000 levels of json": (member("a.json", json_of(depth=50_000)), "json"),
    "json of no text": (member("a.json", b'{"a": "\xff"}'), "json"),
    "a list for json": (member("a.json", b"[1]"), "json"),
    "null for json": (member("a.json", b"null"), "json"),
    "numbers for names": (member("a.json", json_of().replace(b'"a"', b"7")), "json"),
    "an empty object": (member("a.json", b"{}"), "json"),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_samples_made_to_cost_are_bad_samples_with_the_cause(name):
    data, cause = SAMPLES[name]
    start = time.process_time()
    with pytest.raises(BadSample) as caught:
        unpack_sample(data)
    assert caught.value.cause == cause and "\n" not in str(caught.value)
    assert time.process_time() - start < 2
    assert peak_bytes(unpack_sample, data) < 16 * 2**20 + 4 * len(data)


def test_long_names_and_deep_metadata_within_the_limits_are_read():
    key = "k" * 300
    records = b"%d path=%s.json\n"
    body = records % (len(records % (300, key.encode())), key.encode())
    read = unpack_sample(member("x", body, b"x") + member("short.json", json_of(size=500, depth=60)))
    assert read.key == key and read.members()["json"]


def test_bytes_changed_at_random_give_a_sample_or_a_bad_sample():
    rng, whole = random.Random(0), pack_sample(sample())
    decode, kept = decoder(), 0
    for _ in range(NUM_DAMAGED):
        data = bytearray(whole)
        for _ in range(rng.choice([1, 3, 20])):
            data[rng.randrange(len(data))] = rng.randrange(256)
        cut = rng.choice([len(data), rng.randrange(len(data))])
        try:
            decode(unpack_sample(bytes(data[:cut])))
            kept += 1
        except BadSample as error:
            assert error.cause in ("tar", "json", "features", "image", "text")
    assert 0 < kept < NUM_DAMAGED


@pytest.mark.parametrize("records", [b"5 a=\n", RECORD], ids=["smallest", "small"])
def test_a_tar_s_extended_header_of_many_records_takes_no_time(records):
    body = records * (2**20 // len(records))
    start = time.process_time()
    found = list(iter_tar(TarBytes(iter([member("x", body, b"x") + member("a.wav", b"1")])), lambda name, size: True))
    assert [one.name for one in found] == ["a.wav"]
    assert time.process_time() - start < 5
