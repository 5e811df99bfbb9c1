"""The benchmark of `--help` sees what a script loads, and one that does not answer."""

from pathlib import Path

import pytest

from brewclip.benchmarks import startup
from brewclip.benchmarks.startup import Options, run, time_help
from brewclip.errors import UserError


def test_what_a_script_loads_is_seen(tmp_path: Path) -> None:
    script = tmp_path / "job.py"
    script.write_text("import sys, json\nassert sys.argv[1:] == ['--help']\nraise SystemExit(0)\n")
    seconds, loaded = time_help(script)
    assert seconds > 0 and loaded == []
    (tmp_path / "mlflow.py").write_text("")
    script.write_text("import mlflow\n")
    assert time_help(script)[1] == ["mlflow"]


def test_the_help_of_a_recipe_that_reads_shards_needs_no_torch() -> None:
    assert time_help(Path(__file__).parents[2] / "datasets" / "shards.py")[1] == []


def test_a_failing_script_is_reported(tmp_path: Path) -> None:
    script = tmp_path / "job.py"
    script.write_text("this is no Python")
    with pytest.raises(UserError, match=r"job.py --help failed: SyntaxError"):
        time_help(script)


@pytest.mark.slow
def test_figures_of_a_short_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup, "_CHECKOUT", tmp_path)
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "one.py").write_text("print('help')")
    figures = run(Options(num_runs=1))
    assert figures["loaded"] == {"jobs/one.py": []} and figures["import_torch_seconds"] > 0
    assert figures["limits"][0]["most"] == 1 and figures["scripts"][0]["value"] > 0
    with pytest.raises(UserError, match="have no script to start"):
        run(Options(folders=("nowhere",)))
