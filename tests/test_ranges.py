"""Every setting of every job and recipe meets values that it cannot have: one line, or the value is allowed.

The command lines are parsed in this process; a few are typed in a new one, for exit code, output and time.
"""

import dataclasses
import fcntl
import importlib
import importlib.util
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import pytest

from brewclip.config import Config, check, parse_command_line, parse_options, preset
from brewclip.config.addresses import check_endpoint, tracking_problem
from brewclip.config.ranges import Range, check_ranges, is_number, problem_of, range_of, settings_of
from brewclip.config.unused import unused_flags
from brewclip.config.whisper_names import LANGUAGES, MODELS, WHISPER, language_problem
from brewclip.errors import UserError

CHECKOUT = Path(__file__).parents[1]
SCRIPTS = sorted([*CHECKOUT.glob("jobs/*.py"), *CHECKOUT.glob("datasets/*.py"), CHECKOUT / "k8s/fetch_weights.py"])
PACKAGES = ("brewclip.__main__", "brewclip.scenes_clip.options", "tune.options")
VALUES = ("nan", "inf", "-1", "0", str(10**12), "", "much")


def forms() -> dict[str, type]:
    """Return every dataclass of settings that a command line fills, by script and name."""
    found: dict[str, type] = {"Config": Config}
    modules = [load(path) for path in SCRIPTS]
    benchmarks = sorted(CHECKOUT.glob("brewclip/benchmarks/*.py"))
    names = [*PACKAGES, *(f"brewclip.benchmarks.{path.stem}" for path in benchmarks if path.stem != "__init__")]
    for module in [*modules, *map(importlib.import_module, names)]:
        for name, form in vars(module).items():
            own = isinstance(form, type) and form.__module__ == module.__name__ and dataclasses.is_dataclass(form)
            if own and (name.endswith(("Options", "Config")) or name == "TrainScenesClip"):
                found[f"{module.__name__.removeprefix('brewclip.')}:{name}"] = form
    return found


def load(path: Path) -> Any:
    """Import a script under a name of its own."""
    spec = importlib.util.spec_from_file_location(f"{path.parent.name}_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


FORMS = forms()
INHERITED = {name for name, _, _ in settings_of(Config)}
SETTINGS = [
    (place, name, kind)
    for place, form in FORMS.items()
    for name, _, kind in settings_of(form)
    # What jobs inherit from Config is the same setting, see below.
    if not (issubclass(form, Config) and form is not Config and name in INHERITED)
]


def parse(form: type, words: list[str]) -> Any:
    """Read a command line as the job does, with what else it needs."""
    if issubclass(form, Config):
        return parse_command_line(None, form, ["scenes", *words])
    needed = [item for item in dataclasses.fields(form) if item.default is item.default_factory is dataclasses.MISSING]
    given = {word for word in words if word.startswith("--")}
    flags = [f"--{item.name.replace('_', '-')}" for item in needed]
    return parse_options(
        None, form, [word for flag in flags if flag not in given for word in (flag, "file:///x")] + words
    )


def is_whole(kind: Any) -> bool:
    """Return whether a setting takes integers."""
    bare = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    return is_whole(get_args(bare)[0]) if get_origin(bare) is tuple else bare is int


def test_all_jobs_and_recipes_are_here():
    classes = {place.rpartition(":")[2] for place in FORMS}
    expected = "Config EvaluateConfig EmotionConfig SweepConfig ReproduceConfig VerifyOptions DemoOptions TableOptions"
    assert set(expected.split()) <= classes
    benchmarks = {place.split(":")[0].removeprefix("benchmarks.") for place in FORMS if place.endswith(":Options")}
    assert benchmarks == set(load(CHECKOUT / "jobs" / "benchmark.py").BENCHMARKS)


def test_settings_that_jobs_inherit_are_those_of_config():
    plain = {name: kind for name, _, kind in settings_of(Config)}
    for form in FORMS.values():
        if issubclass(form, Config):
            assert plain.items() <= {name: kind for name, _, kind in settings_of(form)}.items()


def test_every_number_states_its_range():
    assert [(place, name) for place, name, kind in SETTINGS if is_number(kind) and range_of(kind) is None] == []


def test_every_default_is_in_its_range():
    for place, form in FORMS.items():
        if not issubclass(form, Config) and all(map(has_default, dataclasses.fields(form))):
            check_ranges(form())
        elif issubclass(form, Config):
            check_ranges(form()), place


def has_default(item: dataclasses.Field) -> bool:
    return not (item.default is item.default_factory is dataclasses.MISSING)


def marked(place: str) -> list[pytest.MarkDecorator]:
    """Leave the settings that all jobs share among the fast tests."""
    return [] if place == "Config" else [pytest.mark.slow]


@pytest.mark.parametrize(
    ("place", "name", "kind"),
    [pytest.param(*setting, marks=marked(setting[0]), id=f"{setting[0]}-{setting[1]}") for setting in SETTINGS],
)
def test_impossible_values_are_refused_in_one_line(place, name, kind):
    flag, allowed = f"--{name.replace('_', '-')}", range_of(kind)
    for text in VALUES:
        try:
            parse(FORMS[place], [flag, text])
        except UserError as error:
            message = str(error)
            assert message.isprintable() and 0 < len(message) < 700, f"{flag} {text!r}: {message}"
            if is_number(kind):
                assert message.startswith(flag), message
                assert text in message and (text in ("nan", "inf", "", "much") or "must be " in message), message
            continue
        if is_number(kind):
            assert text not in ("nan", "inf", "", "much"), f"{flag} {text!r} is accepted"
            number = int(text) if is_whole(kind) else float(text)
            assert not allowed.problem(number), f"{flag} {text!r} is accepted"


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        (Annotated[int, Range(1, 64)], 64, ""),
        (Annotated[int, Range(1, 64)], 65, "must be 1..64"),
        (Annotated[int, Range(1, 64)], True, "must be a whole number"),
        (Annotated[int, Range(1, 64)], 2.0, "must be a whole number"),
        (Annotated[int, Range(0, 9, note="0 takes all")], -1, "must be 0..9 (0 takes all)"),
        (Annotated[float, Range(0, 10, above=True)], 0.0, "must be 0..10, above 0"),
        (Annotated[float, Range(0, 1, below=True)], 1.0, "must be 0..1, below 1"),
        (Annotated[float, Range(0, 1)], 1, ""),
        (Annotated[float, Range(0, 1)], float("nan"), "must be a finite number"),
        (Annotated[float, Range(0, 1)], float("-inf"), "must be a finite number"),
        (Annotated[float, Range(0, 1)], "much", "must be a finite number"),
        (tuple[Annotated[int, Range(1, 24)], ...], (1, 25), "must be 1..24"),
        (tuple[str, ...], "abc", "must be a list"),
        (bool, 1, "must be True or False"),
    ],
)
def test_what_a_value_must_be(kind, value, message):
    assert problem_of(value, kind) == message


def test_settings_that_come_from_no_command_line_are_checked():
    config = preset("scenes")
    for changes in ({"cpus_per_worker": -1.0}, {"max_failures": -7}, {"num_workers": "2"}, {"use_gpu": "yes"}):
        with pytest.raises(UserError, match=f"--cluster.{next(iter(changes)).replace('_', '-')} "):
            check(dataclasses.replace(config, cluster=dataclasses.replace(config.cluster, **changes)))


def test_the_names_are_those_of_whisper():
    import whisper
    from whisper.tokenizer import LANGUAGES as OF_WHISPER

    assert set(MODELS) == set(whisper.available_models())
    assert set(OF_WHISPER) == LANGUAGES


@pytest.mark.parametrize(
    ("name", "language", "message"),
    [
        ("bass", "en", "is no Whisper model: did you mean base?"),
        ("", "en", "is no Whisper model"),
        ("base", "english", "is no language of Whisper: give a code such as en"),
        ("base.en", "de", "does not fit --model.whisper base.en, which knows English only: choose base"),
        ("base", "yue", "is known to large-v3"),
        *[(name, language, "") for name in ("base.en", "turbo", "/mine/whisper.pt") for language in ("", "en")],
    ],
)
def test_whisper_and_its_languages(name, language, message):
    problem = WHISPER.problem(name) or language_problem(language, name)
    assert problem.startswith(message) and bool(problem) == bool(message)


@pytest.mark.parametrize(
    ("uri", "fits"),
    [
        *[(uri, True) for uri in ("", "http://host:5000", "https://host/mlflow", "sqlite:///a.db", "file:///mlruns")],
        *[(uri, True) for uri in ("mlruns", "/data/mlruns", "databricks", "mysql+pymysql://user@host/db")],
        *[(uri, False) for uri in ("gopher://host", "htp://host:5000", "http:/host", "http://", "http://h:port")],
        *[(uri, False) for uri in ("localhost:5000", "sqlite:", "file://", "s3://bucket")],
    ],
)
def test_addresses_of_mlflow(uri, fits):
    assert (tracking_problem(uri) == "") == fits


def test_an_endpoint_that_is_no_url():
    for value in ("localhost:9000", "host", "http://", "http://h:x", "ftp://host"):
        with pytest.raises(ValueError, match="AWS_ENDPOINT_URL '"):
            check_endpoint(["file:///a", "s3://bucket"], {"AWS_ENDPOINT_URL": value})
        check_endpoint(["file:///a"], {"AWS_ENDPOINT_URL": value})
    check_endpoint(["s3://bucket"], {"AWS_ENDPOINT_URL": "http://127.0.0.1:9000", "AWS_ENDPOINT_URL_S3": ""})


def test_flags_that_a_job_ignores_are_named(capsys):
    words = ["--optim.peak-lr", "1e-3", "--model.prompt_length=8", "--data.corpus", "mine", "--optim.peak-lr", "1e-4"]
    lines = ["--optim.peak-lr has no effect in this job", "--model.prompt_length has no effect in this job"]
    assert unused_flags(words, ["optim.", "model.prompt_length"]) == lines
    parse_command_line(None, Config, ["scenes", *words], ignored=["optim.", "model.prompt_length"])
    assert capsys.readouterr().err.splitlines() == [f"warning: {line}" for line in lines]


def test_what_jobs_ignore_are_settings():
    module = importlib.import_module("brewclip.config.unused")
    for constant, names in vars(module).items():
        if constant.startswith("IGNORED_BY_"):
            for name in names:
                assert name in INHERITED or any(one.startswith(name) for one in INHERITED if name.endswith(".")), name


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("jobs/train.py", ("scenes", "--data.num-threads", "0")),
        ("jobs/train.py", ("scenes", "--model.ff-dim", "-1")),
        ("jobs/train.py", ("scenes", "--cluster.cpus-per-worker", "-1")),
        ("jobs/train.py", ("scenes", "--optim.weight-decay", "nan")),
        ("jobs/extract.py", ("scenes", "--model.whisper", "bass")),
        ("jobs/extract.py", ("scenes", "--extraction.batch-size", "0")),
        ("jobs/evaluate.py", ("scenes", "--tracking.uri", "gopher://host")),
        ("jobs/sweep.py", ("quick", "scenes", "--sweep.max-failures", "-7")),
        ("jobs/demo.py", ("--num-train", "-5")),
        ("datasets/scenes.py", ("--image-side-pixels", "-5")),
        ("datasets/table.py", ("--source", "a.csv", "--dest", "file:///x", "--seed", "-1")),
        ("jobs/benchmark.py", ("startup", "--num-runs", "-1")),
    ],
)
def test_a_new_process_ends_with_one_line_in_seconds(script, words):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, script, *words],
        cwd=CHECKOUT,
        env={name: value for name, value in os.environ.items() if not name.startswith(("BREWCLIP", "RAY_"))},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("error: "), done.stderr
    assert words[-2] in done.stderr and (
        "must be" in done.stderr or " is no " in done.stderr or "MLflow" in done.stderr
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime - before.ru_utime < 5, "seconds of a core: other work on the machine does not count"


@pytest.mark.parametrize("script", ["services", "demo", "demo_sweep"])
def test_a_state_directory_that_cannot_be_used_gets_one_line(script, tmp_path):
    (tmp_path / "file").write_text("")
    with open(tmp_path / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for state, message in ((tmp_path, "is in use by another run"), (tmp_path / "file", "cannot be written: File")):
            done = subprocess.run(
                [sys.executable, f"jobs/{script}.py", "--state", str(state)],
                cwd=CHECKOUT, capture_output=True, text=True, timeout=60, check=False,
            )  # fmt: skip
            assert (done.returncode, done.stdout) == (2, ""), done.stderr
            assert done.stderr.startswith(f"error: --state {state} {message}") and done.stderr.count("\n") == 1
