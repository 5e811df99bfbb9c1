"""The index on disk: what is read again, what a failure leaves, what is refused, and that search is exact."""

import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from brewclip.errors import UserError
from brewclip.serving.index import ImageIndex
from brewclip.serving.index import exact as exact_search
from brewclip.serving.index.exact import nearest_rows
from brewclip.serving.index.nearby import build_nearby, nearest_nearby, read_nearby
from brewclip.serving.index.sources import list_images
from tests.serving.indexes import ColourEncoder, build, write_images


@pytest.fixture
def images(tmp_path) -> Path:
    write_images(tmp_path / "images", 0, 1, 2)
    write_images(tmp_path / "images" / "more #1", 3, 4)
    (tmp_path / "images" / "broken.jpg").write_bytes(b"no image")
    return tmp_path / "images"


def ids(index: ImageIndex) -> dict[str, str]:
    return {Path(entry.name).name: entry.image_id for entry in map(index.entry, range(len(index)))}


def test_every_image_is_found_with_its_thumbnail_and_its_original(images, tmp_path):
    index, report = build(images, tmp_path / "index")
    assert (len(index), report.num_added, [Path(name).name for name, _ in report.unusable]) == (5, 5, ["broken.jpg"])
    index = ImageIndex.open(tmp_path / "index")
    found = index.nearest(np.stack([index.vector(row) for row in range(5)]), top=9)
    assert [matches[0].row for matches in found] == [0, 1, 2, 3, 4]
    assert all([match.rank for match in matches] == [1, 2, 3, 4, 5] for matches in found)
    assert index.nearest(index.vector(0)[None], top=2, offset=1)[0] == found[0][1:3]
    for row in range(5):
        entry = index.entry(row)
        assert (entry.width, entry.height) == (40, 30)
        assert index.row_of(entry.image_id) == row and entry.image_id not in entry.name
        assert index.thumbnail(row).startswith(b"\xff\xd8\xff")
        assert index.read_image(row) == Path(entry.name).read_bytes()
    Path(index.entry(0).name).write_bytes(b"another")
    Path(index.entry(1).name).unlink()
    for row in (0, 1):
        with pytest.raises(LookupError, match=r"image \w+ (has changed|cannot be read)"):
            index.read_image(row)
    for unknown in ("0" * 16, "", "../etc/passwd", "g" * 16, "-" + "0" * 15):
        with pytest.raises(LookupError, match="no image"):
            index.row_of(unknown)


def test_an_update_reads_only_what_changed(images, tmp_path):
    encoder = ColourEncoder()
    first, _ = build(images, tmp_path / "index", encoder)
    assert build(images, tmp_path / "index", encoder)[1].num_read == 0
    (images / "0.png").rename(images / "renamed.png")
    (images / "1.png").touch()
    (images / "2.png").unlink()
    shutil.copy(images / "more #1" / "3.png", images / "copy.png")
    write_images(images, 5)
    index, report = build(images, tmp_path / "index", encoder)
    assert (report.num_added, report.num_renamed, report.num_removed, report.num_read) == (2, 1, 1, 4)
    assert encoder.num_encoded == 6, "each content is encoded once"
    before, after = ids(first), ids(index)
    assert after["renamed.png"] == before["0.png"] and after["1.png"] == before["1.png"]
    assert after["copy.png"] != after["3.png"] and "2.png" not in after
    fresh, _ = build(images, tmp_path / "other")
    assert {entry.name for entry in map(index.entry, range(len(index)))} == {
        entry.name for entry in map(fresh.entry, range(len(fresh)))
    }
    for row in range(len(fresh)):
        (match,) = index.nearest(fresh.vector(row)[None], 1)[0]
        assert match.score == pytest.approx(1, abs=1e-3)
        assert index.thumbnail(index.row_of(match.image_id)) == fresh.thumbnail(row)
    assert first.thumbnail(2) and first.nearest(first.vector(2)[None], 1), "an open index goes on as it was"
    assert index.version != first.version


def test_an_interrupted_build_goes_on_where_it_stopped(images, tmp_path, monkeypatch):
    monkeypatch.setattr("brewclip.serving.index.embedding._BATCH", 2)
    monkeypatch.setattr("brewclip.serving.index.build._PART_IMAGES", 2)

    def stop_after(total):
        done = []

        def advance(count):
            done.append(count)
            if sum(done) == 4:
                raise KeyboardInterrupt

        return advance

    encoder = ColourEncoder()
    with pytest.raises(KeyboardInterrupt):
        build(images, tmp_path / "index", encoder, start_progress=stop_after)
    with pytest.raises(UserError, match=r"index .* does not exist: make it with brewclip index"):
        ImageIndex.open(tmp_path / "index")
    index, report = build(images, tmp_path / "index", encoder)
    assert (len(index), report.num_read, encoder.num_encoded, len(report.unusable)) == (5, 2, 5, 1)
    assert not (tmp_path / "index" / "parts").exists()


def test_a_full_disk_leaves_the_old_index(images, tmp_path, monkeypatch):
    build(images, tmp_path / "index")
    write_images(images, 7)

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot be written: .*No space left on device"):
        build(images, tmp_path / "index")
    monkeypatch.undo()
    assert len(ImageIndex.open(tmp_path / "index")) == 5
    build(images, tmp_path / "index")
    files = {path.name for path in (tmp_path / "index").iterdir()}
    assert files == {".lock", "index.json", *ImageIndex.open(tmp_path / "index").facts.files()}


def test_thumbnails_of_removed_images_do_not_stay_for_ever(images, tmp_path):
    before, _ = build(images, tmp_path / "index")
    shutil.rmtree(images / "more #1")
    (images / "0.png").unlink()
    index, _ = build(images, tmp_path / "index")
    assert sum((tmp_path / "index" / name).stat().st_size for name in index.facts.thumbnails) == sum(
        len(index.thumbnail(row)) for row in range(2)
    )
    assert index.thumbnail(0) == before.thumbnail(1)


def test_an_index_of_another_system_or_format_is_refused(images, tmp_path):
    build(images, tmp_path / "index")
    other = ColourEncoder({"frozen_sha256": {"colours": "1" * 64}, "step": 2})
    with pytest.raises(UserError, match=r"was made by colours \(step 1.*this is colours \(step 2.*give another --out"):
        build(images, tmp_path / "index", other)
    with pytest.raises(UserError, match=r"the index was made by colours \(step 1.*this is x \(step 2.*rebuild it"):
        ImageIndex.open(tmp_path / "index").check_made_by(other.identity, "x")
    (tmp_path / "old.npz").write_bytes(b"PK\x03\x04")
    for use in (ImageIndex.open, lambda path: build(images, path)):
        with pytest.raises(UserError, match=r"old.npz is a file, an index is a folder since .*: rebuild it"):
            use(tmp_path / "old.npz")
    facts = tmp_path / "index" / "index.json"
    facts.write_text(json.dumps(json.loads(facts.read_text()) | {"format": 99}))
    with pytest.raises(UserError, match="has format 99, this version reads 2"):
        ImageIndex.open(tmp_path / "index")


@pytest.mark.parametrize("kind", ["index.json", "vectors", "images", "thumbnails", "outside", "gone"])
def test_a_damaged_index_is_one_line(kind, images, tmp_path):
    index, _ = build(images, tmp_path / "index")
    facts = tmp_path / "index" / "index.json"
    name = {"vectors": index.facts.vectors, "images": index.facts.images, "thumbnails": index.facts.thumbnails[0]}
    if kind == "index.json":
        facts.write_bytes(b"{")
    elif kind == "outside":
        facts.write_text(facts.read_text().replace(index.facts.images, "../../etc/passwd"))
    elif kind == "gone":
        (tmp_path / "index" / index.facts.vectors).unlink()
    else:
        path = tmp_path / "index" / name[kind]
        path.write_bytes(bytes(path.stat().st_size - (kind == "thumbnails")))
    with pytest.raises(UserError, match=r"(is damaged|is not an index|lacks its file).*rebuild it") as caught:
        ImageIndex.open(tmp_path / "index")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, 3.0])
def test_a_vector_that_is_not_of_unit_length_is_not_a_match(value, images, tmp_path):
    index, _ = build(images, tmp_path / "index")
    index.vectors[2] = value
    with pytest.raises(UserError, match="not of unit length"):
        index.nearest(index.vector(0)[None], 1)


def vectors_of(num_images: int, embed_dim: int = 48) -> np.ndarray:
    vectors = np.random.default_rng(0).normal(size=(num_images, embed_dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


@pytest.mark.parametrize("num_queries", [1, 2, 5])
def test_search_is_exact_in_blocks_and_with_ties_in_order(num_queries, monkeypatch):
    monkeypatch.setattr(exact_search, "_BLOCK_ROWS", 700)
    vectors = vectors_of(5000)
    vectors[4000:4010] = vectors[:10]  # ties
    queries = np.concatenate([vectors[:1], vectors_of(4)[1:] * -1, vectors[9:10]]).astype(np.float32)[:num_queries]
    scores = queries @ vectors.astype(np.float32).T
    for (rows, values), expected in zip(nearest_rows(vectors, queries, 20), scores, strict=True):
        order = np.argsort(-expected, kind="stable")[:20]
        assert np.allclose(values, expected[order], atol=1e-6)
        assert rows[0] == order[0] and set(rows[:18]) == set(order[:18])
    assert len(nearest_rows(vectors, queries, 9999)[0][0]) == 5000


def test_search_falls_back_where_float16_products_are_too_rough(monkeypatch):
    """As on a processor that adds up in float16."""
    vectors, query = vectors_of(2000), vectors_of(1).astype(np.float32)
    expected = nearest_rows(vectors, query, 5)[0][0]
    real = exact_search.torch.mv
    monkeypatch.setattr(exact_search.torch, "mv", lambda table, query: -real(table, query))
    assert list(nearest_rows(vectors, query, 5)[0][0]) == list(expected)


def test_the_approximate_index_has_the_recall_that_it_reports(tmp_path):
    vectors, queries = vectors_of(4000), vectors_of(60).astype(np.float32) * -1
    made = build_nearby(vectors, queries, tmp_path / "nearby.faiss")
    assert made.recall >= 0.95
    found = nearest_nearby(read_nearby(tmp_path / "nearby.faiss"), vectors, queries, 10)
    expected = nearest_rows(vectors, queries, 10)
    shared = [len(set(one) & set(other)) / 10 for (one, _), (other, _) in zip(found, expected, strict=True)]
    assert np.mean(shared) == pytest.approx(made.recall)


def test_an_index_with_an_approximate_one_says_its_recall(images, tmp_path):
    (images / "broken.jpg").unlink()
    index, report = build(images, tmp_path / "index", approximate="always")
    assert "recall@10 against exact search 1.000, over 5 images" in report.notes[0]
    query = index.vector(3)[None]
    assert index.nearest(query, 2) == index.nearest(query, 2, exact=True)
    write_images(images, 9)
    index, _ = build(images, tmp_path / "index")
    assert index.facts.nearby == "", "one of other vectors does not stay"


def test_sources_are_folders_files_and_globs(images, tmp_path, monkeypatch):
    def names(*sources):
        return [Path(file.name).name for file in list_images(sources)]

    monkeypatch.chdir(tmp_path)
    (images / ".hidden.png").write_bytes(b"")
    os.mkfifo(images / "pipe.png")
    assert names("images") == ["0.png", "1.png", "2.png", "broken.jpg", "3.png", "4.png"]
    assert names("images/*.jpg", str(images / "**" / "3.*"), "images/0.png", "images/0.png") == [
        *("0.png", "broken.jpg", "3.png"),
    ]
    for wrong, message in (
        ("nowhere", "neither a folder nor a file"),
        ("images/*.gif", "holds no image"),
        ("s3://", "names no bucket"),
    ):
        with pytest.raises(UserError, match=message):
            names(wrong)
