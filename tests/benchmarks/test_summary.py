"""Figures and their table: what is reached, what is missed, what failed, and where the table goes."""

import json
import sys
from pathlib import Path

import pytest

from brewclip.benchmarks import all as everything
from brewclip.benchmarks.measure import Comparison, Limit
from brewclip.benchmarks.memory import watch
from brewclip.benchmarks.summary import put_between_markers, render
from brewclip.errors import UserError

RECORD = {
    "benchmark": "recall",
    "date": "2026-01-02",
    "machine": "A processor, 2 cores, load 0.3, Python 3.11.7",
    "comparisons": [
        Comparison("fast", (30.0, 20.0, 40.0), (2.0, 2.0, 2.0), "x/s", 10.0).record(),
        Comparison("slow", (1.0,), (2.0,), "x/s", 0.9).record(),
        Comparison("slower", (1.0,), (2.0,), "x/s").record(),
    ],
    "limits": [Limit("memory", (5.0,), "GB", 4.0).record(), Limit("seconds", (1.0, 3.0, 2.0), "s", 2.5).record()],
}


def test_the_table_says_what_was_reached_and_what_was_not() -> None:
    lines = render([RECORD], ["stream"]).splitlines()
    assert lines[0] == "Measured 2026-01-02 on A processor, 2 cores, Python 3.11.7."
    command = "`python jobs/benchmark.py recall` |"
    assert lines[4:] == [
        f"| fast | 30 x/s | 2 | 15.00 (10.00 to 20.00) | >= 10 | reached | {command}",
        f"| slow | 1 x/s | 2 | 0.50 (0.50 to 0.50) | >= 0.9 | MISSED | {command}",
        f"| slower | 1 x/s | 2 | 0.50 (0.50 to 0.50) |  |  | {command}",
        f"| memory | 5 GB | | | <= 4 | MISSED | {command}",
        f"| seconds | 2 s | | | <= 2.5 | reached | {command}",
        "| stream | failed | | | | FAILED | `python jobs/benchmark.py stream` |",
    ]


def test_the_table_takes_the_place_between_markers(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text("before\n<!-- benchmarks -->\nold\n<!-- /benchmarks -->\nafter\n")
    assert put_between_markers(page, "new\n")
    assert page.read_text() == "before\n<!-- benchmarks -->\nnew\n<!-- /benchmarks -->\nafter\n"
    page.write_text("no place")
    assert not put_between_markers(page, "new\n") and page.read_text() == "no place"


def place_benchmark(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a script take the place of jobs/benchmark.py; it finds `RECORD` as `record`."""
    fake = folder / "jobs" / "benchmark.py"
    fake.parent.mkdir()
    fake.write_text(f"import json, sys\nrecord = {json.dumps(RECORD)}\n{script}\n")
    monkeypatch.setattr(everything, "_CHECKOUT", folder)


def test_all_runs_those_named_and_keeps_the_figures_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recall.json").write_text(json.dumps(RECORD))
    script = (
        "record |= {'benchmark': sys.argv[1], 'date': '2026-01-05'}\n"
        "sys.exit(3) if sys.argv[1] == 'train' else open(sys.argv[3], 'w').write(json.dumps(record))"
    )
    place_benchmark(tmp_path, script, monkeypatch)
    table = tmp_path / "benchmarks.md"
    everything.run(everything.Options(only=("loss",), folder=tmp_path, table=table))
    text = table.read_text()
    assert text.startswith("# Benchmarks\n\nMeasured 2026-01-02 to 2026-01-05 on A processor")
    assert text.count("benchmark.py loss`") == text.count("benchmark.py recall`") == 5
    with pytest.raises(UserError, match="no figures of train"):
        everything.run(everything.Options(only=("train",), folder=tmp_path, table=table))
    assert "FAILED" in table.read_text()
    with pytest.raises(UserError, match=r"--only has \['spead'\]"):
        everything.run(everything.Options(only=("spead",)))


def test_extraction_is_measured_on_real_speech_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = (
        "record |= {'benchmark': 'extract', 'options': {'split': ''.join(sys.argv[5:])}}\n"
        "open(sys.argv[3], 'w').write(json.dumps(record))"
    )
    place_benchmark(tmp_path, script, monkeypatch)
    table = tmp_path / "benchmarks.md"
    options = everything.Options(only=("extract",), folder=tmp_path, table=table, speech_split="file:///speech/train")
    everything.run(options)
    text = table.read_text()
    assert text.count("benchmark.py extract`") == text.count("benchmark.py extract --split URL`") == 5
    everything.run(everything.Options(only=("extract",), folder=tmp_path, table=table))
    assert table.read_text() == text, "the figures of real speech are kept"


def test_a_watched_process_shows_its_peak_its_end_and_its_failure() -> None:
    small, large = watch("pass"), watch("x = bytearray(200_000_000); import time; time.sleep(0.5)")
    assert large.finished and large.rss_bytes > small.rss_bytes + 150e6
    endless = watch("import time; time.sleep(60)", max_seconds=0.3)
    assert not endless.finished and endless.seconds < 30
    with pytest.raises(RuntimeError, match="nothing here"):
        watch(f"import sys; assert sys.executable == {sys.executable!r}; raise ValueError('nothing here')")
