"""Settings, presets and the command line: values, error messages, warnings, and renamed settings."""

import dataclasses
import subprocess
import sys

import pytest

from brewclip.config import (
    PRESETS,
    Config,
    check,
    flatten,
    for_variant,
    parse_command_line,
    preset,
    renamed,
    unflatten,
)
from brewclip.errors import UserError


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_valid_and_survives_flattening(name):
    config = preset(name)
    check(config)
    assert unflatten(flatten(config)) == config


def test_the_paper_is_the_default():
    """Appendix A: batch 32, 100k steps, warm-up 5k to 1e-4, decay to 1e-8, alpha 0.1, four prompts."""
    leaves = flatten(Config())
    expected = {
        "run.global_batch_size": 32,
        "optim.total_steps": 100_000,
        "optim.warmup_steps": 5_000,
        "optim.peak_lr": 1e-4,
        "optim.final_lr": 1e-8,
        "optim.weight_decay": 1e-6,
        "loss.alpha": 0.1,
        "model.prompt_length": 4,
        "model.clip": "ViT-L-14/openai",
        "model.whisper": "base",
    }
    assert {name: leaves[name] for name in expected} == expected


def test_the_release_differs_where_its_code_does():
    paper, release = (flatten(preset(name)) for name in ("flickr8k", "flickr8k_release"))
    assert {name for name in paper if paper[name] != release[name]} == {
        "model.whisper",
        "model.cls_std",
        "loss.alpha",
        "loss.learn_temperature",
        "loss.reduction",
        "extraction.frames",
    }


def test_speechclip_differs_from_the_paper_where_its_authors_settings_do():
    """SpeechCLIP's large parallel models on Flickr8k and COCO; all else, such as 102,400 samples, is a default."""
    paper, speechclip = (flatten(preset(name)) for name in ("flickr8k", "speechclip_flickr8k"))
    assert {name: speechclip[name] for name in paper if paper[name] != speechclip[name]} == {
        "model.variant": "speechclip",
        "model.cls_std": 1.0,
        "loss.reduction": "mean",
        "optim.total_steps": 50_000,
        "run.global_batch_size": 256,
    }
    expected = {"model.speech_encoder": "hubert_large_ll60k", "data.crop_samples": 102_400, "model.ff_dim": 4096}
    assert {name: speechclip[name] for name in expected} == expected
    scenes = preset("scenes_speechclip")
    assert (scenes.model.speech_encoder, scenes.optim.peak_lr, scenes.run_name) == (
        "whisper-base", 1e-3, "scenes-speechclip-0"
    )  # fmt: skip


def test_what_a_user_sets_is_kept_by_the_row_of_speechclip():
    words = ["flickr8k", "--optim.total-steps", "9", "--optim.warmup-steps", "2", "--run.global-batch-size", "8"]
    config = for_variant(parse_command_line(None, Config, words), "speechclip", 3)
    assert (config.optim.total_steps, config.run.global_batch_size, config.run.seed) == (9, 8, 3)
    assert (config.splits_url, config.num_prompts) == (config.corpus_url, 0)
    assert for_variant(config, "acoustic", 0).splits_url == config.features_url


def test_flags_change_fields():
    config = parse_command_line(None, Config, ["flickr8k", "--optim.peak-lr", "3e-4", "--model.variant", "pipeline"])
    assert (config.optim.peak_lr, config.model.variant, config.data.corpus) == (3e-4, "pipeline", "flickr8k")


def test_a_job_may_add_flags():
    @dataclasses.dataclass(frozen=True)
    class Form(Config):
        split: str = "test"
        """Which."""

    assert parse_command_line(None, Form, ["scenes", "--split", "dev"]).split == "dev"


@pytest.mark.parametrize(
    ("words", "use_gpu"),
    [
        ([], "auto"),
        (["--cluster.use-gpu", "False"], False),
        (["--cluster.use-gpu", "True"], True),
        (["--cluster.use-gpu", "--run.seed", "1"], True),  # as commands were recorded before `auto`
        (["--cluster.no-use-gpu"], False),
    ],
)
def test_a_gpu_is_asked_for_in_three_ways(words, use_gpu):
    config = parse_command_line(None, Config, ["own", *words])
    assert config.cluster.use_gpu == use_gpu
    assert unflatten(flatten(config)) == config


SUBMITTED = {"RAY_JOB_CONFIG_JSON_ENV_VAR": '{"metadata": {"job_submission_id": "raysubmit_1"}}'}


def submit(monkeypatch, *words, **variables):
    """Parse a command line as the command of a submitted job, with these variables at the node."""
    for name in ("BREWCLIP_STORAGE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (SUBMITTED | variables).items():
        monkeypatch.setenv(name, value)
    return parse_command_line(None, Config, ["scenes", *words])


def test_a_submitted_job_without_a_storage_is_refused(monkeypatch):
    with pytest.raises(UserError, match=r"this submitted job has no storage.*set BREWCLIP_STORAGE.*--storage s3://"):
        submit(monkeypatch)
    assert submit(monkeypatch, BREWCLIP_STORAGE="s3://bucket").storage == "s3://bucket"
    assert submit(monkeypatch, "--storage", "file:///data").storage == "file:///data"


def test_a_submitted_job_that_records_nothing_says_so(monkeypatch, capsys):
    submit(monkeypatch, "--storage", "s3://bucket")
    assert "warning: nothing is recorded in MLflow" in capsys.readouterr().err
    submit(monkeypatch, "--storage", "s3://bucket", MLFLOW_TRACKING_URI="http://mlflow:5000")
    submit(monkeypatch, "--storage", "s3://bucket", "--tracking.uri", "http://mlflow:5000")
    assert capsys.readouterr().err == ""


def test_a_job_that_was_not_submitted_stores_in_the_current_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("BREWCLIP_STORAGE", raising=False)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    monkeypatch.chdir(tmp_path)
    assert parse_command_line(None, Config, ["scenes"]).storage == (tmp_path / "storage").as_uri()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["scene"], "unknown preset 'scene': did you mean 'scenes'"),
        ([], "no preset given"),
        (["scenes", "--optim.peek-lr", "1"], "unknown argument '--optim.peek-lr': did you mean --optim.peak-lr"),
        (["scenes", "--optim.peak-lr", "much"], "--optim.peak-lr"),
        (["scenes", "--model.variant", "both"], "'both'"),
        (["scenes", "--loss.alpha", "2"], "--loss.alpha 2.0 must be 0..1"),
        (["scenes", "--data.dev-split", "test"], "never chosen on test"),
        (["scenes", "--run.selection-metric", "test/speech_to_image/R1"], "never chosen on test"),
        (["scenes", "--storage", "gs://bucket"], "must start with s3:// or file:///"),
        (["scenes", "--cluster.num-workers", "65"], "must be 1..64, the global batch size"),
        (["scenes", "--optim.warmup-steps", "9999"], "--optim.warmup-steps 9999 must be 0..300"),
        (["scenes_speechclip", "--model.fusion", "confidence"], "speechclip has one channel and plain CLIP"),
        (["scenes_speechclip", "--model.adaptation", "adapter"], "neither --model.adaptation adapter nor"),
        (["scenes", "--model.speech-encoder", "hubert_large"], "did you mean hubert_large_ll60k?"),
        (["scenes", "--model.speech-encoder", "whisper-bas"], "'whisper-bas' is no Whisper model: did you mean base"),
        (["scenes", "--data.crop-samples", "-1"], "--data.crop-samples -1 must be 0..100000000"),
        (["scenes_speechclip", "--data.cache-layers"], "give one with --data.cache-directory"),
        (["scenes", "--run.compile", "--data.long-text", "chunks"], "--run.compile cannot be used with --data.long-t"),
    ],
)
def test_mistakes_are_one_line(words, message):
    with pytest.raises(UserError) as caught:
        parse_command_line(None, Config, words)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


UNSAFE_NAMES = [
    *("..", "../up", "a/../b", "/absolute", "a//b", "a/", ".hidden", "./a", "a\\b", "a\0b", "a\nb", "a\x7fb"),
    *("a#1", "a?b", "%2e%2e", "%2e%2e%2fup", "a:b", "a'b", 'a"b', "a*", " a", "a ", "x" * 201, "\u00e4" * 101),
]


@pytest.mark.parametrize("name", UNSAFE_NAMES)
def test_names_that_are_no_single_folder_are_refused(name):
    for flag in ("--run.name", "--data.train-split", "--data.dev-split", "--extraction.splits"):
        with pytest.raises(UserError) as caught:
            parse_command_line(None, Config, ["scenes", flag, name])
        message = str(caught.value)
        assert message.startswith(f"{flag} ") and "names a folder" in message
        assert message.isprintable() and len(message) < 400, "one line, whatever the name"
    with pytest.raises(UserError, match=r"--data\.corpus"):
        parse_command_line(None, Config, ["scenes", "--data.corpus", name])


@pytest.mark.parametrize("name", ["a", "scenes-brewclip-0", "Versuch_2.1+x@asr", "two words", "\u00fcbung", "x" * 200])
def test_names_of_one_folder_are_taken(name):
    config = parse_command_line(None, Config, ["scenes", "--run.name", name, "--data.corpus", f"group/{name}"])
    assert config.run_url.endswith(f"/runs/{name}")


@pytest.mark.parametrize("split", ["test", "Test", "TEST", "test_unseen", "tEsT-2", "./test", "test/", "te/../test"])
def test_test_is_neither_trained_nor_selected_on(split):
    for flag in ("--data.train-split", "--data.dev-split"):
        with pytest.raises(UserError, match=r"test is never trained on|never chosen on test|names a folder"):
            parse_command_line(None, Config, ["scenes", flag, split])
    with pytest.raises(UserError, match=r"never chosen on test|must be a metric of dev"):
        parse_command_line(None, Config, ["scenes", "--run.selection-metric", f"{split}/speech_to_image/R1"])


def test_dev_in_other_letters_is_no_other_data():
    with pytest.raises(UserError, match="choose on other data"):
        parse_command_line(None, Config, ["scenes", "--data.train-split", "Dev"])


def test_settings_without_effect_are_named(capsys):
    parse_command_line(None, Config, ["scenes", "--model.variant", "acoustic", "--data.transcript", "ground_truth"])
    assert "warning: --data.transcript has no effect" in capsys.readouterr().err
    parse_command_line(None, Config, ["scenes_adapter", "--model.recompute", "--run.compile"])
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[2].split(" has")[0] for line in lines] == [" --run.compile", " --model.recompute"]


def test_settings_of_one_variant_are_named_where_they_have_no_effect(capsys):
    parse_command_line(None, Config, ["scenes", "--data.crop-samples", "100", "--model.speech-encoder", "whisper-tiny"])
    err = capsys.readouterr().err
    assert "--model.speech-encoder has no effect: variant brewclip reads what was extracted" in err
    assert "--data.crop-samples has no effect" in err
    parse_command_line(None, Config, ["scenes", "--data.cache-layers", "--data.cache-directory", "/tmp/layers"])
    assert "--data.cache-layers has no effect" in capsys.readouterr().err
    parse_command_line(None, Config, ["scenes", "--model.variant", "pipeline", "--model.fusion", "gate"])
    assert "--model.fusion gate has no effect: variant pipeline has one channel" in capsys.readouterr().err
    words = ["--data.transcript", "ground_truth", "--model.prompt-length", "2", "--loss.alpha", "0.5"]
    parse_command_line(None, Config, ["scenes_speechclip", *words, "--data.crop-samples", "100"])
    err = capsys.readouterr().err
    assert all(f"{flag} " in err for flag in words[::2]) and err.count("has no effect") == 3


@pytest.fixture
def notes(monkeypatch, capsys):
    """Return a function that yields the notes printed since the last call, as in a new process."""
    monkeypatch.setattr(renamed, "_noted", set())
    return lambda: capsys.readouterr().err.splitlines()


def test_a_renamed_flag_sets_the_current_setting_with_one_note(notes):
    for words in (["--extraction.window", "first_30_seconds"], ["--extraction.window=first_30_seconds"]):
        config = parse_command_line(None, Config, ["scenes", *words])
        assert config.extraction.frames == "first_30_seconds"
    assert notes() == ["note: setting extraction.window is called extraction.frames now"], "once per process"


@pytest.mark.parametrize(("old", "current"), [("windows", "chunks"), ("cut", "truncate")])
@pytest.mark.parametrize("flag", ["--data.long-text", "--data.long_text"])
def test_a_renamed_value_becomes_the_current_one(old, current, flag, notes):
    for words in ([flag, old], [f"{flag}={old}"]):
        assert parse_command_line(None, Config, ["scenes", *words]).data.long_text == current
    assert notes() == [f"note: data.long_text {old} is called {current} now"]


def test_current_flags_and_other_settings_of_the_same_value_are_not_changed(notes):
    words = ["--extraction.frames", "speech", "--data.long-text", "chunks", "--run.name", "windows"]
    config = parse_command_line(None, Config, ["scenes", *words])
    assert (config.extraction.frames, config.data.long_text, config.run.name) == ("speech", "chunks", "windows")
    assert notes() == []


def test_settings_of_an_old_checkpoint_are_read(notes):
    leaves = flatten(preset("flickr8k_release"))
    old = leaves | {"data.long_text": "windows", "extraction.window": leaves["extraction.frames"]}
    del old["extraction.frames"]
    config = unflatten(old)
    assert (config.extraction.frames, config.data.long_text) == ("first_30_seconds", "chunks")
    assert flatten(config) == leaves | {"data.long_text": "chunks"}
    assert notes() == [
        "note: data.long_text windows is called chunks now",
        "note: setting extraction.window is called extraction.frames now",
    ]
    with pytest.raises(ValueError, match="'sound' is not a setting of this version"):
        unflatten({"extraction.sound": "all"})


@pytest.mark.parametrize("job", ["train", "extract", "evaluate", "reproduce"])
def test_help_needs_no_torch(job):
    code = (
        f"import sys, runpy; sys.argv = ['{job}.py', '--help']\n"
        f"try: runpy.run_path('jobs/{job}.py', run_name='__main__')\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "assert not {'torch', 'ray', 'mlflow'} & set(sys.modules), 'heavy imports'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "--optim.peak-lr" in done.stdout
