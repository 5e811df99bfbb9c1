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

import brewclip.corpora.recipe
from brewclip.corpora.recipe import check_options, run_recipe, write_corpus
from brewclip.corpora.rounds import safe_id
from brewclip.corpora.shard_tasks import automatic_samples_per_shard, divide_into_shards, write_task
from brewclip.data.manifest import open_manifest
from brewclip.data.verify import verify_split
from brewclip.errors import UserError
from tests.datasets.miniatures import image, load_recipe, sound, write_file

table = load_recipe("table")


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def run_tasks(recipe, tasks, advance):
        recipe = pickle.loads(pickle.dumps(recipe))  # as it arrives at a worker
        for task in reversed(tasks):  # shards finish in any order
            yield task, *write_task(recipe, task)

    monkeypatch.setattr(brewclip.corpora.recipe, "connect", lambda: None)
    monkeypatch.setattr(brewclip.corpora.recipe, "run_tasks", run_tasks)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Ten images with two captions each; the recording of the last one is damaged."""
    rows = [["image", "audio", "split"]]
    for number in range(10):
        write_file(tmp_path / f"{number}.jpg", image(shade=number))
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


def test_two_runs_write_the_same_bytes(source: Path) -> None:
    write(options(source, "one/x"))
    write(options(source, "two/x"))
    assert bytes_below(source / "one") == bytes_below(source / "two")
    before = bytes_below(source / "one")
    assert write(options(source, "one/x"))["train"]["state"] == "already there"
    assert bytes_below(source / "one") == before


def test_an_interrupted_recipe_resumes(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(options(source, "whole/x"))
    real, made = table.FileCorpus.make_sample, []

    def counted(corpus, item):
        made.append(item.key)
        if len(made) == 16:
            raise KeyboardInterrupt
        return real(corpus, item)

    monkeypatch.setattr(table.FileCorpus, "make_sample", counted)
    monkeypatch.setattr(brewclip.corpora.recipe, "_check_space", lambda *_: None)
    with pytest.raises(KeyboardInterrupt):
        write(options(source, "part/x"))
    assert not (source / "part/x/train/manifest.json").exists()
    made[:] = [""] * 16
    write(options(source, "part/x"))
    assert len(made) - 16 == 3 + 4  # the interrupted shard, and the other split
    assert bytes_below(source / "part") == bytes_below(source / "whole")


def test_shards_of_other_flags_are_not_mixed_in(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(brewclip.corpora.recipe, "finish_split", lambda *_, **__: 1 / 0)
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


def test_limit_takes_the_same_images_in_every_round(source: Path) -> None:
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
    monkeypatch.setattr(
        brewclip.corpora.recipe.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6, 1000)
    )
    with pytest.raises(UserError, match=r"needs about .* GB more, 1e-06 GB are free there: make room"):
        write(options(source))
    assert bytes_below(source / "out") == {}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"split": ("dev",)}, "--split 'dev': out has the splits train, test"),
        ({"samples_per_shard": -1}, r"--samples-per-shard -1 must be 0\.\.1000000 \(0 is as many as fit"),
        ({"limit": -1}, "--limit -1 must be"),
        ({"max_rejected_fraction": 1.5}, r"--max-rejected-fraction 1.5 must be 0\.\.1"),
        ({"dev_fraction": 0.9, "test_fraction": 0.1}, "must be below 1 together"),
    ],
)
def test_impossible_flags_give_one_line(source: Path, flags: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        write(options(source, **flags))


def test_a_path_as_destination_is_answered_with_its_url(source: Path) -> None:
    flags = table.TableOptions(source=str(source / "t.csv"), dest="/tmp/mine")
    with pytest.raises(UserError, match=r"--dest /tmp/mine must be .*, e\.g\. file:///tmp/mine"):
        write_corpus(table.read_corpus(flags), flags)


def test_an_unwritable_destination_gives_one_line(source: Path) -> None:
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


def test_a_pickled_recipe_omits_its_list(source: Path) -> None:
    corpus = table.read_corpus(options(source))
    assert len(pickle.dumps(corpus)) < 1000


def test_ids_are_safe_keys_that_stay_different() -> None:
    assert safe_id("1000268201_693b08cb0e") == "1000268201_693b08cb0e"
    assert safe_id("K\u00e4tzchen") == safe_id("Ka\u0308tzchen") == "K\u00e4tzchen"
    ids = [safe_id(name) for name in ("a/b.jpg", "a_b.jpg", "a/b.png", "_a", "...", "x" * 300, "\u732b/\u72ac.jpg", "")]
    assert len(set(ids)) == len(ids)
    assert all(not set(name) & set("./\\ ") and not name.startswith("_") and len(name) < 130 for name in ids)


def test_options_that_reduce_nothing_are_refused(source: Path) -> None:
    with pytest.raises(
        UserError, match=r"--image-side-pixels 0 must be 16\.\.8192 \(--keep-original-images reduces nothing\)"
    ):
        check_options(options(source, image_side_pixels=0))


@pytest.mark.parametrize(
    ("num_samples", "per_shard"),
    [(1, 16), (240, 16), (1024, 16), (3000, 47), (30_000, 469), (64_000, 1000), (617_222, 1000)],
)
def test_shards_follow_the_corpus(num_samples: int, per_shard: int) -> None:
    assert automatic_samples_per_shard(num_samples) == per_shard


def test_automatic_shards_of_a_round_have_one_size_and_set_ones_the_set_size() -> None:
    def sizes(rounds: list[int], per_shard: int) -> list[tuple[int, int]]:
        tasks = divide_into_shards("file:///x", "train", [list(range(count)) for count in rounds], per_shard, {})
        return [(task.round, len(task.items)) for task in tasks]

    assert sizes([40, 17, 3], 0) == [(0, 14), (0, 14), (0, 12), (1, 9), (1, 8), (2, 3)]
    assert sizes([40, 3], 30) == [(0, 30), (0, 10), (1, 3)]
    assert len(sizes([12_000] * 5, 0)) == 65  # 938 samples each


def same_image(source: Path, one: int, other: int) -> None:
    (source / f"{one}.jpg").write_bytes((source / f"{other}.jpg").read_bytes())


def different_images(source: Path) -> None:
    for number in range(10):
        write_file(source / f"{number}.jpg", image(400, 400, shade=25 * number))


def test_an_image_with_two_names_is_listed(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    different_images(source)
    same_image(source, 1, 0)
    summary = write(options(source))
    assert (summary["train"]["images_of_several_names"], summary["test"]["images_of_several_names"]) == (1, 0)
    assert "out/train: 1 images have several names, e.g. 0-" in capsys.readouterr().out
    (row,) = map(json.loads, (source / "out/train/identical_images.jsonl").read_text().splitlines())
    assert row == {"image_ids": sorted([safe_id("0.jpg"), safe_id("1.jpg")])}
    assert verify_split((source / "out/train").as_uri()) == []


def test_an_image_in_two_splits_under_two_names_is_refused(
    source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    different_images(source)
    same_image(source, 8, 0)
    message = r"one image has the same bytes in two splits, e.g. '0-\w+' in train and '8-\w+' in test: give both"
    with pytest.raises(UserError, match=message):
        write(options(source))
    assert not (source / "out/test/manifest.json").exists()
    with pytest.raises(UserError, match=message):
        write(options(source, split=("test",)))  # train was written by another command
    summary = write(options(source, "warned", identical_images="warn"))
    assert summary["test"]["images_of_other_splits"] == 1
    assert "warning: one image has the same bytes in two splits, e.g. '0-" in capsys.readouterr().out
    words = ["table.py", "--source", f"{source}/t.csv", "--dest", (source / "cli").as_uri(), "--dry-run"]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit, match="2"):
        run_recipe(table.__doc__, table.TableOptions, table.read_corpus)
    assert "in two splits, e.g. '0.jpg' in train and '8.jpg' in test: give both" in capsys.readouterr().err


def test_two_images_with_one_name_are_refused(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = table.FileCorpus.make_sample

    def another_image_in_round_1(corpus, item):
        sample = real(corpus, item)
        return sample._replace(image=image(shade=7)) if item.key.endswith("-1") else sample

    monkeypatch.setattr(table.FileCorpus, "make_sample", another_image_in_round_1)
    with pytest.raises(UserError, match="out/train has two different images of the name '"):
        write(options(source))


def test_a_dry_run_ends_as_the_real_run_would(
    source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    different_images(source)
    (source / "3.jpg").unlink()
    words = ["table.py", "--source", f"{source}/t.csv", "--dest", (source / "cli").as_uri()]
    line = "error: 2 of 16 samples of cli/train are rejected (2 missing_image), more than --max-rejected-fraction 0.05"
    for flags in (["--dry-run"], []):
        monkeypatch.setattr("sys.argv", words + flags)
        with pytest.raises(SystemExit, match="2"):
            run_recipe(table.__doc__, table.TableOptions, table.read_corpus)
        out, err = capsys.readouterr()
        assert err.startswith(line)
        assert ("dry run, rejected: 2 missing_image" in out) == bool(flags)
    assert not (source / "cli").exists()
    monkeypatch.setattr("sys.argv", [*words, "--dry-run", "--max-rejected-fraction", "0.2"])
    run_recipe(table.__doc__, table.TableOptions, table.read_corpus)


def test_rejections_keep_names_unchanged(tmp_path: Path) -> None:
    write_file(tmp_path / "M\u00e4dchen.jpg", image())
    write_file(tmp_path / "a.wav", sound())
    listed = ["M\u00e4dchen.jpg,a.wav,train", "M\u00e4dchen.jpg,gr\u00fc\u00dfe.wav,train"]
    write_file(tmp_path / "t.csv", "\n".join(["image,audio,split", *listed]))
    write(options(tmp_path))
    assert '"file": "gr\u00fc\u00dfe.wav"' in (tmp_path / "out/train/rejected.jsonl").read_text(encoding="utf-8")
