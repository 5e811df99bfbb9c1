"""What every recipe does: resume, write the same bytes again, count rejections, refuse what cannot work.

Shards are written within this process; `test_chain.py` does it over Ray.
"""

import csv
import json
import pickle
import shutil
import tarfile
from pathlib import Path

import pytest

import brewclip.recipe
from brewclip.config import UserError
from brewclip.corpora import safe_id
from brewclip.data.manifest import open_manifest
from brewclip.recipe import check_options, run_recipe, write_corpus
from tests.datasets.miniatures import load_recipe, picture, sound, write_file

table = load_recipe("table")


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def run_tasks(recipe, tasks):
        recipe = pickle.loads(pickle.dumps(recipe))  # as it arrives at a worker
        for task in reversed(tasks):  # shards finish in any order
            yield task, *brewclip.recipe._write_task(recipe, task)

    monkeypatch.setattr(brewclip.recipe, "connect", lambda: None)
    monkeypatch.setattr(brewclip.recipe, "_run_tasks", run_tasks)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Ten pictures with two captions each; the recording of the last one is damaged."""
    rows = [["image", "audio", "split"]]
    for number in range(10):
        write_file(tmp_path / f"{number}.jpg", picture(shade=number))
        for caption in range(2):
            write_file(tmp_path / f"{number}-{caption}.wav", sound(0.2 + number / 100, hz=200 + 50 * number))
            rows.append([f"{number}.jpg", f"{number}-{caption}.wav", "train" if number < 8 else "test"])
    write_file(tmp_path / "9-1.wav", b"nothing")
    with open(tmp_path / "t.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return tmp_path


def options(source: Path, dest: str = "out", **flags):
    flags = {"samples_per_shard": 3, "max_rejected_fraction": 0.5} | flags
    return table.TableOptions(source=str(source / "t.csv"), dest=(source / dest).as_uri(), **flags)


def write(flags) -> dict:
    return write_corpus(table.read_corpus(flags), flags, flags.split)


def bytes_below(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_shards_manifest_and_rejections_agree(source: Path) -> None:
    summary = write(options(source))
    assert (summary["train"]["samples"], summary["train"]["rejected"]) == (16, {})
    assert (summary["test"]["samples"], summary["test"]["rejected"]) == (3, {"not_audio": 1})
    manifest = open_manifest((source / "out/train").as_uri())
    assert manifest.num_samples.tolist() == [3, 3, 2, 3, 3, 2]
    assert manifest.rounds.tolist() == [0, 0, 0, 1, 1, 1]
    assert (manifest.summary.num_images, manifest.summary.corpus) == (8, "out")
    (row,) = map(json.loads, (source / "out/test/rejected.jsonl").read_text().splitlines())
    assert (row["key"], row["file"], row["cause"]) == (f"{safe_id('9.jpg')}-1", "9-1.wav", "not_audio")
    with tarfile.open(source / "out/train/train-00-000000.tar") as tar:
        names = tar.getnames()
    assert [name.rpartition(".")[2] for name in names] == ["jpg", "flac", "json"] * 3


def test_run_twice_it_writes_the_same_bytes(source: Path) -> None:
    write(options(source, "one/x"))
    write(options(source, "two/x"))
    assert bytes_below(source / "one") == bytes_below(source / "two")
    before = bytes_below(source / "one")
    assert write(options(source, "one/x"))["train"]["state"] == "already there"
    assert bytes_below(source / "one") == before


def test_interrupted_it_continues_with_what_is_missing(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(options(source, "whole/x"))
    real, made = table.FileCorpus.make_sample, []

    def counted(corpus, item):
        made.append(item.key)
        if len(made) == 16:
            raise KeyboardInterrupt
        return real(corpus, item)

    monkeypatch.setattr(table.FileCorpus, "make_sample", counted)
    monkeypatch.setattr(brewclip.recipe, "_check_space", lambda *_: None)
    with pytest.raises(KeyboardInterrupt):
        write(options(source, "part/x"))
    assert not (source / "part/x/train/manifest.json").exists()
    made[:] = [""] * 16
    write(options(source, "part/x"))
    assert len(made) - 16 == 3 + 4  # the shard that was cut off, and the other split
    assert bytes_below(source / "part") == bytes_below(source / "whole")


def test_shards_of_other_flags_are_not_mixed_in(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(brewclip.recipe, "finish_split", lambda *_, **__: 1 / 0)
        write(options(source, "out", samples_per_shard=1))
    write(options(source, "out"))
    write(options(source, "fresh/out"))
    assert bytes_below(source / "out") == bytes_below(source / "fresh/out")
    with pytest.raises(UserError, match=r"out/train was written from other files or with other flags"):
        write(options(source, "out", limit=2))


def test_dry_run_counts_and_writes_nothing(source: Path) -> None:
    summary = write(options(source, dry_run=True, limit=5))
    assert {split: counts["samples"] for split, counts in summary.items()} == {"train": 10, "test": 4}
    assert not (source / "out").exists()


def test_limit_takes_the_same_pictures_in_every_round(source: Path) -> None:
    write(options(source, limit=2, split=("train",)))
    assert not (source / "out/test").exists()
    assert open_manifest((source / "out/train").as_uri()).summary.num_images == 2


def test_too_many_rejections_stop_the_recipe(source: Path) -> None:
    with pytest.raises(
        UserError, match=r"1 of 4 samples of out/test are rejected \(1 not_audio\), more than --max-rej"
    ):
        write(options(source, max_rejected_fraction=0.2))
    assert not (source / "out/test/manifest.json").exists()


def test_a_full_disk_is_found_before_anything_is_written(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(brewclip.recipe.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6, 1000))
    with pytest.raises(UserError, match=r"needs about .* GB more, 1e-06 GB are free there: make room"):
        write(options(source))
    assert bytes_below(source / "out") == {}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"split": ("dev",)}, "--split 'dev': out has the splits train, test"),
        ({"samples_per_shard": 0}, "--samples-per-shard 0 must be 1 or more"),
        ({"limit": -1}, "--limit -1 must be"),
        ({"max_rejected_fraction": 1.5}, r"--max-rejected-fraction 1.5 must be in 0..1"),
        ({"dev_fraction": 0.9, "test_fraction": 0.1}, "below 1 together"),
    ],
)
def test_impossible_flags_get_one_line(source: Path, flags: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        write(options(source, **flags))


def test_a_destination_that_cannot_be_written_gets_one_line(source: Path) -> None:
    write_file(source / "file", b"")
    with pytest.raises(UserError, match=r"file/below/\.writable cannot be written: Not a directory"):
        write(options(source, "file/below"))


def test_the_command_line_ends_with_a_table_or_one_line(
    source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with open(source / "t.csv", "a") as file:
        file.write("0.jpg,0-2.wav,\n")
    words = ["table.py", "--source", f"{source}/t.csv", "--dest", (source / "cli").as_uri()]
    monkeypatch.setattr("sys.argv", [*words, "--max-rejected-fraction", "1"])
    run_recipe(table.__doc__, table.TableOptions, table.read_corpus)
    *_, train, test, nowhere = capsys.readouterr().out.splitlines()
    table_rows = [train.split(), test.split()]
    assert nowhere == "in no split: 1 no_split"
    (row,) = map(json.loads, (source / "cli/rejected.jsonl").read_text().splitlines())
    assert (row["file"], row["cause"]) == ("0-2.wav", "no_split")
    assert table_rows[0][:3] == ["train", "16", "8"]
    assert table_rows[1][:3] + table_rows[1][-3:] == ["test", "3", "2", "rejected:", "1", "not_audio"]
    monkeypatch.setattr("sys.argv", [*words, "--split", "val"])
    with pytest.raises(SystemExit, match="2"):
        run_recipe(table.__doc__, table.TableOptions, table.read_corpus)
    assert capsys.readouterr().err == "error: --split 'val': cli has the splits train, test\n"


def test_a_recipe_travels_to_workers_without_its_list(source: Path) -> None:
    corpus = table.read_corpus(options(source))
    assert len(pickle.dumps(corpus)) < 1000


def test_ids_are_safe_keys_that_stay_different() -> None:
    assert safe_id("1000268201_693b08cb0e") == "1000268201_693b08cb0e"
    assert safe_id("K\u00e4tzchen") == safe_id("Ka\u0308tzchen") == "K\u00e4tzchen"
    ids = [safe_id(name) for name in ("a/b.jpg", "a_b.jpg", "a/b.png", "_a", "...", "x" * 300, "\u732b/\u72ac.jpg", "")]
    assert len(set(ids)) == len(ids)
    assert all(not set(name) & set("./\\ ") and not name.startswith("_") and len(name) < 130 for name in ids)


def test_options_that_reduce_nothing_are_refused(source: Path) -> None:
    with pytest.raises(UserError, match="--image-side-pixels must be 1 or more"):
        check_options(options(source, image_side_pixels=0))
