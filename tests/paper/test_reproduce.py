"""A table by its command, on a tiny corpus: cached cells are reused, the others are trained and evaluated."""

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from brewclip.checkpoints.checkpoint import save_checkpoint
from brewclip.checkpoints.facts import Checkpoint, CheckpointFacts
from brewclip.config import Config, flatten, for_variant, preset
from brewclip.data.storage import open_storage
from brewclip.errors import UserError
from brewclip.factory import build_model, load_own_speech_encoder
from brewclip.models.clip import PromptedCLIP
from brewclip.paper.cells import plan_cells, train_cell
from brewclip.paper.emotion import reproduce_emotion
from brewclip.paper.reproduce import reproduce_table
from brewclip.paper.retrieval_tables import TABLES, ZERO, plan_grid, trained_on
from brewclip.pretrained.clip_identity import weights_sha256
from brewclip.pretrained.load import load_clip
from tests.studies.clips import write_clips
from tests.training.features import AUDIO_DIM, write_features
from tests.training.recordings import save_tiny_whisper, write_recordings

CHECKOUT = Path(__file__).parents[2]
COMMAND = "python jobs/reproduce.py table1 scenes"
TABLE3 = "python jobs/reproduce.py table3 scenes"


def load_job() -> ModuleType:
    """Load jobs/reproduce.py, which is in a folder of scripts."""
    spec = importlib.util.spec_from_file_location("reproduce_job", CHECKOUT / "jobs" / "reproduce.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["reproduce_job"] = module
    spec.loader.exec_module(module)
    return module


def tiny(storage: str) -> Config:
    """Settings of a miniature; its Whisper for the baseline lies next to the data, if it is needed."""
    base = preset("scenes")
    return replace(
        base,
        storage=storage,
        model=replace(base.model, ff_dim=32, speech_encoder=f"whisper-{storage.removeprefix('file://')}/tiny.pt"),
        optim=replace(base.optim, total_steps=2, warmup_steps=1),
        run=replace(base.run, global_batch_size=8),
        cluster=replace(base.cluster, num_workers=1),
    )


def save_finished(config: Config, step: int = 2) -> None:
    """Write a finished run without training it."""
    clip = load_clip("scenes")
    speech = load_own_speech_encoder(config)
    model = build_model(config, PromptedCLIP(clip.model), AUDIO_DIM, speech)
    state = {name: tensor.contiguous() for name, tensor in model.trained_state().items()}
    sha256 = {"scenes": weights_sha256(clip.model)} | ({speech.name: speech.sha256} if speech else {})
    audio_dim = speech.model.width if speech else AUDIO_DIM
    facts = CheckpointFacts(step=step, config=flatten(config), frozen_sha256=sha256, audio_dim=audio_dim)
    save_checkpoint(open_storage(config.run_url), Checkpoint(facts, state, {}), best=True, keep=1)


def test_runs_have_the_names_that_jobs_train_gives_them():
    config = tiny("file:///nowhere")
    rows = plan_grid("table2", {"scenes": config}, [0, 1], "test")["scenes"]
    names = [[cell.train.run_name for cell in cells] for cells in rows.values()]
    assert names == [
        ["scenes-brewclip-0", "scenes-brewclip-1"],
        ["scenes-acoustic-0", "scenes-acoustic-1"],
        ["scenes-pipeline-0", "scenes-pipeline-1"],
        ["scenes-pipeline-ground_truth-0", "scenes-pipeline-ground_truth-1"],
        ["scenes-pipeline-0", "scenes-pipeline-1"],
    ]
    trained, fed = list(rows.values())[3][0], list(rows.values())[4][0]
    assert (trained.train.data.transcript, trained.test_transcript) == ("ground_truth", "ground_truth")
    assert (fed.train.data.transcript, fed.test_transcript) == ("asr", "ground_truth")
    assert trained.name == "scenes-pipeline-ground_truth-0--scenes-test-ground_truth"


def test_the_acoustic_channel_of_the_scenes_world_takes_larger_steps():
    config = tiny("file:///nowhere")
    (cell,) = plan_cells(config, config, "acoustic", "asr", "asr", [3], "test")
    assert (cell.train.optim.peak_lr, cell.train.optim.total_steps, cell.train.run.seed) == (1e-3, 2, 3)
    by_hand = replace(config, optim=replace(config.optim, peak_lr=5e-4))
    assert for_variant(by_hand, "acoustic", 0).optim.peak_lr == 5e-4
    assert for_variant(preset("flickr8k"), "acoustic", 0).optim.peak_lr == 1e-4


def test_beyond_the_paper_has_one_run_for_both_channels_and_their_fusion():
    rows = plan_grid("beyond", {"scenes_noisy": preset("scenes_noisy")}, [0, 1], "test")["scenes_noisy"]
    beyond = [f"scenes_noisy-brewclip-adapter-confidence-asr_greedy-{seed}" for seed in (0, 1)]
    assert {title: [cell.train.run_name for cell in cells] for title, cells in rows.items()} == {
        "zero-shot pipeline, rejected transcripts left empty": ["scenes_noisy-zero_shot-0"],
        "zero-shot pipeline": ["scenes_noisy-zero_shot-asr_greedy-0"],
        "BrewCLIP": [f"scenes_noisy-brewclip-asr_greedy-{seed}" for seed in (0, 1)],
        "BrewCLIP by confidence": beyond,
        "its text alone": beyond,
        "its acoustic channel alone": beyond,
        "BrewCLIP by a gate, trained jointly": [one.replace("confidence", "gate") for one in beyond],
    }
    names = [cells[0].name for cells in rows.values()]
    assert len(set(names)) == len(names), "each has its own cached ranks"
    trained = rows["its text alone"][0].train
    assert (trained.model.adaptation, trained.run.selection_metric) == ("adapter", "dev/mean_recall")


def test_table5_trains_on_every_corpus_once():
    configs = {name: preset(name) for name in ("flickr8k", "spoken_coco", "localized_narratives")}
    grid = plan_grid("table5", configs, [0], "test")
    cells = [cell for rows in grid.values() for many in rows.values() for cell in many]
    assert len(cells) == 12 and len({cell.name for cell in cells}) == 12
    assert len({cell.train.run_name for cell in cells if cell.train.model.variant == "brewclip"}) == 3
    (cell,) = grid["flickr8k"][trained_on("localized_narratives")]
    assert (cell.train.data.corpus, cell.test.data.corpus) == ("localized_narratives", "flickr8k")
    zero_shot = plan_grid("table4", configs, [0, 1, 2], "test")["flickr8k"][ZERO.title]
    assert len(zero_shot) == 1, "nothing is trained, so seeds are all the same"


def test_cached_results_can_be_shown_before_there_are_any(tmp_path):
    text = reproduce_table(
        "table1", {"scenes": tiny(tmp_path.as_uri())}, [0], "test", COMMAND, only_cached=True
    ).markdown()
    assert text.count("| - | - | - | - | - | - |") == 4 and "not run" in text


def test_mistakes_are_reported_before_anything_runs(tmp_path):
    config = tiny(tmp_path.as_uri())
    with pytest.raises(UserError, match="no whole split at"):
        reproduce_table("table1", {"scenes": config}, [0], "test", COMMAND)
    with pytest.raises(UserError, match="corpus 'own' is not one of the tables"):
        reproduce_table("table1", {"own": config}, [0], "test", COMMAND)


@pytest.fixture(scope="module")
def storage(tmp_path_factory) -> str:
    """A tiny corpus with two finished runs of the three that table1 needs."""
    folder = tmp_path_factory.mktemp("reproduce")
    config = tiny(folder.as_uri())
    save_tiny_whisper(folder)
    for split, images in (("train", 8), ("dev", 4), ("test", 6)):
        write_features(config.features_url, split, images)
        write_recordings(config.corpus_url, split, images)
    save_finished(for_variant(config, "brewclip", 0))
    save_finished(for_variant(config, "speechclip", 0))
    return config.storage


@pytest.mark.services
def test_cells_are_run_once(storage, ray_head, capsys):
    config, cache = tiny(storage), open_storage(f"{storage}/experiments/cells")
    text = reproduce_table("table1", {"scenes": config}, [0], "test", COMMAND).markdown()
    said = capsys.readouterr().out
    assert "training scenes-pipeline-0" in said and "training scenes-brewclip-0" not in said
    assert said.count(": measured on 12 recordings") == len(cache.list_names()) == 4
    assert "| SpeechCLIP-P over Whisper's layers |" in text and "| scenes | BrewCLIP |" in text
    assert text.count("\n| ") >= 3 and "| not run |" not in text

    def again() -> str:
        assert reproduce_table("table1", {"scenes": config}, [0], "test", COMMAND).markdown() == text
        return capsys.readouterr().out

    assert again().count(": cached") == 4
    name = "scenes-pipeline-0--scenes-test-asr"
    cache.delete(f"{name}.cached")
    said = again()
    assert f"cell {name}: measured" in said and said.count(": cached") == 3 and "training scenes" not in said
    save_finished(for_variant(config, "brewclip", 0), step=3)
    reproduce_table("table1", {"scenes": config}, [0], "test", COMMAND)
    said = capsys.readouterr().out
    assert "cell scenes-brewclip-0--scenes-test-asr: measured" in said, "another checkpoint is measured again"
    results = json.loads(open_storage(f"{storage}/experiments/table1").read("results.json"))
    assert {cell["row"] for cell in results["cells"]} == {row.title for row in TABLES["table1"].rows}
    assert 0 <= results["cells"][0]["metrics"]["speech_to_image/R10"] <= 100
    assert {claim["verdict"].partition(":")[0] for claim in results["claims"]} <= {"holds", "fails", "not tested"}


def test_a_run_of_other_settings_is_not_reused_for_a_cell(tmp_path):
    config = tiny(tmp_path.as_uri())
    for split in ("train", "dev", "test"):
        write_features(config.features_url, split, 4)
    other = replace(config, optim=replace(config.optim, weight_decay=0.5))
    save_finished(for_variant(other, "pipeline", 0))
    (cell,) = plan_cells(config, config, "pipeline", "asr", "asr", [0], "test")
    with pytest.raises(UserError, match=r"'scenes-pipeline-0' was started with --optim.weight-decay 0.5"):
        train_cell(cell)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tabel2", "scenes"], "no table 'tabel2': did you mean table2?"),
        ([], "no table ''"),
        (["table2"], "table2 of which corpora?"),
        (["table2", "scenes", "scene"], "unknown preset 'scene': did you mean 'scenes'"),
        (["table2", "flickr8k", "flickr8k_release"], "second preset of the corpus flickr8k"),
        (["table2", "scenes", "--model.variant", "pipeline"], "--model.variant pipeline is not for a table"),
        (["table1", "scenes_speechclip"], "scenes_speechclip is the preset of one row: name scenes"),
        (["table2", "scenes", "--seeds", "1", "1"], "--seeds 1 1: give one or more, each once"),
        (["table2", "scenes", "--optim.peek-lr", "1"], "did you mean --optim.peak-lr"),
    ],
)
def test_mistakes_on_the_command_line(words, message):
    with pytest.raises(UserError) as caught:
        load_job().parse(words)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.slow
def test_the_command_line_shows_cached_results(tmp_path):
    page = tmp_path / "RESULTS.md"
    words = ["table2", "scenes", "scenes_noisy", "--seeds", "0", "1", "--storage", tmp_path.as_uri(), "--only-cached"]
    command = [sys.executable, "jobs/reproduce.py", *words, "--markdown", str(page)]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    text = page.read_text()
    assert "\npython jobs/reproduce.py table2 scenes scenes_noisy --seeds 0 1\n" in text, (
        "without the settings of one machine"
    )
    assert "### scenes_noisy" in text and "not run" in text


@pytest.mark.slow
def test_emotion_is_probed_once(tmp_path, capsys):
    config = tiny(tmp_path.as_uri())
    for variant in ("brewclip", "pipeline"):
        save_finished(for_variant(config, variant, 0))
    own = replace(config, data=replace(config.data, corpus="scenes_emotion"))
    write_clips(own.features_url, "train", ["ann", "bob", "cid"], repetitions=2)
    write_clips(own.features_url, "test", ["dee", "eve"], repetitions=2)
    text = reproduce_emotion({"scenes": config}, "scenes_emotion", [0], TABLE3).markdown()
    first = capsys.readouterr().out
    assert "emotion scenes-brewclip-0-acoustic-probe: " in first and "| not run |" not in text
    row = next(line for line in text.splitlines() if line.startswith("| prompted pipeline | linear probe"))
    assert "| 50.0 [" in row and "| 50.0 | 33 |" in row, "the sentence says nothing of the emotion"
    again = reproduce_emotion({"scenes": config}, "scenes_emotion", [0], TABLE3).markdown()
    assert again == text and "-probe: " not in capsys.readouterr().out
