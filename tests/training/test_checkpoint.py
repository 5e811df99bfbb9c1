"""Checkpoints: whole or not there, checked on load, no pickle, and the best one kept."""

import json
from dataclasses import replace

import pytest
import torch

from brewclip.checkpoints.checkpoint import load_checkpoint, open_checkpoint, save_checkpoint
from brewclip.checkpoints.compatibility import check_frozen, check_same_run
from brewclip.checkpoints.facts import Checkpoint, CheckpointFacts
from brewclip.checkpoints.removal import remove_checkpoints
from brewclip.config import Config, LossConfig, ModelConfig, flatten
from brewclip.data.storage import open_storage
from brewclip.errors import CheckpointError
from brewclip.pretrained.clip_identity import ClipIdentity
from brewclip.training.optimizer import load_optimizer_state, optimizer_state
from brewclip.training.upload import CheckpointSaver, PendingCheckpoint

# Nothing of it has a shape that its settings name.
SETTINGS = flatten(Config(model=ModelConfig(variant="pipeline", prompt_length=0)))


def checkpoint_at(step: int) -> Checkpoint:
    facts = CheckpointFacts(step=step, config=SETTINGS, frozen_sha256={"clip": "abc"}, audio_dim=8)
    return Checkpoint(
        facts,
        {"w": torch.full((2, 3), float(step))},
        {"w|exp_avg": torch.ones(2, 3)} | {"w|exp_avg_sq": torch.ones(2, 3), "w|step": torch.tensor(float(step))},
    )


@pytest.fixture
def storage(tmp_path):
    return open_storage((tmp_path / "run").as_uri())


def test_what_is_saved_is_loaded(storage):
    save_checkpoint(storage, checkpoint_at(7), best=False, keep=2)
    loaded = load_checkpoint(storage)
    assert loaded.facts.step == 7
    assert loaded.facts.config == SETTINGS
    assert torch.equal(loaded.model["w"], torch.full((2, 3), 7.0))
    assert torch.equal(loaded.optimizer["w|exp_avg"], torch.ones(2, 3))


def test_old_ones_go_the_newest_and_the_best_stay(storage):
    for step in (1, 2, 3, 4):
        save_checkpoint(storage, checkpoint_at(step), best=step == 1, keep=2)
    assert {load_checkpoint(storage, name).facts.step for name in ("latest", "best")} == {4, 1}
    assert load_checkpoint(storage, "step-00000003") is not None
    assert load_checkpoint(storage, "step-00000002") is None


def test_one_cut_while_uploading_is_never_loaded(storage):
    """Files without checkpoint.json, which is written last: the run goes on from the one before."""
    save_checkpoint(storage, checkpoint_at(1), best=False, keep=2)
    storage.write("checkpoints/step-00000002/model.safetensors", b"half of")
    assert load_checkpoint(storage).facts.step == 1
    assert load_checkpoint(storage, "step-00000002") is None


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_damage_is_named(storage, damage):
    save_checkpoint(storage, checkpoint_at(1), best=True, keep=2)
    name = "checkpoints/step-00000001/model.safetensors"
    storage.write(name, b"other") if damage == "changed" else storage.delete(name)
    with pytest.raises(CheckpointError, match="step-00000001"):
        load_checkpoint(storage)


def test_a_run_without_checkpoints(storage):
    assert load_checkpoint(storage) is None
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*give the URL of a run"):
        open_checkpoint(storage.url)


def test_urls_of_runs_and_of_single_checkpoints_open(storage):
    for step in (1, 2):
        save_checkpoint(storage, checkpoint_at(step), best=step == 1, keep=2)
    assert open_checkpoint(storage.url).facts.step == 1
    assert open_checkpoint(f"{storage.url}/checkpoints/step-00000002").facts.step == 2


def test_starting_over_removes_everything(storage):
    save_checkpoint(storage, checkpoint_at(1), best=True, keep=2)
    remove_checkpoints(storage)
    assert storage.list_names() == []


def test_other_frozen_weights_are_refused():
    with pytest.raises(CheckpointError, match="trained on clip with sha256 abc, here it is def"):
        check_frozen(checkpoint_at(1), ClipIdentity("clip", "def", {}, {}))
    with pytest.raises(CheckpointError, match="trained on clip with sha256 abc, here it is other"):
        check_frozen(checkpoint_at(1), ClipIdentity("other", "abc", {}, {}))


def test_the_same_weights_used_in_another_way_are_refused(storage):
    settings = {"activation": "GELU", "image_mean": [0.5, 0.5, 0.5]}
    checkpoint = checkpoint_at(1)
    recorded = replace(checkpoint, facts=replace(checkpoint.facts, frozen_settings={"clip": settings}))
    save_checkpoint(storage, recorded, best=False, keep=1)
    loaded = load_checkpoint(storage)
    check_frozen(loaded, ClipIdentity("clip", "abc", settings, {}))
    for change, message in (
        ({"activation": "QuickGELU"}, "trained on clip with activation GELU, here it is QuickGELU: .*open_clip_torch"),
        ({"image_mean": [0.4, 0.5, 0.5]}, r"image_mean \[0.5, 0.5, 0.5\], here it is \[0.4"),
    ):
        with pytest.raises(CheckpointError, match=message):
            check_frozen(loaded, ClipIdentity("clip", "abc", settings | change, settings | change))


def test_a_checkpoint_without_a_record_is_of_the_clip_that_was_built_then():
    """Of OpenAI's weights that was one with GELU; the scenes CLIP is what it was."""
    quick, gelu = {"activation": "QuickGELU"}, {"activation": "GELU"}
    check_frozen(checkpoint_at(1), ClipIdentity("clip", "abc", quick, quick))
    with pytest.raises(CheckpointError, match=r"activation GELU, here it is QuickGELU: .*train again") as caught:
        check_frozen(checkpoint_at(1), ClipIdentity("clip", "abc", quick, gelu))
    assert "\n" not in str(caught.value)


def test_other_settings_are_refused_and_harmless_ones_are_not():
    now = flatten(Config())
    facts = checkpoint_at(1).facts
    check_same_run(Config(), CheckpointFacts(**{**vars(facts), "config": now | {"cluster.num_workers": 7}}))
    with pytest.raises(CheckpointError, match=r"was started with --optim\.peak-lr 1, now it is 0\.0001"):
        check_same_run(Config(), CheckpointFacts(**{**vars(facts), "config": now | {"optim.peak_lr": 1}}))


def test_settings_of_speechclip_matter_to_it_alone():
    facts = checkpoint_at(1).facts
    for variant, matters in (("brewclip", False), ("speechclip", True)):
        config = Config(model=ModelConfig(variant=variant))
        before = CheckpointFacts(**{**vars(facts), "config": flatten(config) | {"data.cache_layers": True}})
        if matters:
            with pytest.raises(CheckpointError, match=r"was started with --data\.cache-layers True, now it is False"):
                check_same_run(config, before)
        else:
            check_same_run(config, before)


def test_a_setting_that_a_checkpoint_does_not_know_had_its_default():
    before = {name: value for name, value in flatten(Config()).items() if name != "loss.reduction"}
    facts = CheckpointFacts(**{**vars(checkpoint_at(1).facts), "config": before})
    check_same_run(Config(), facts)
    with pytest.raises(CheckpointError, match=r"was started with --loss\.reduction sum, now it is mean"):
        check_same_run(Config(loss=LossConfig(reduction="mean")), facts)


def test_adam_goes_on_as_if_it_had_not_stopped(storage):
    def run(optimizer, parameter, steps):
        for number in steps:
            parameter.grad = torch.arange(6.0).view(2, 3) + number
            optimizer.step()

    straight = torch.nn.Parameter(torch.ones(2, 3))
    adam = torch.optim.Adam([straight], lr=0.1)
    run(adam, straight, range(3))
    state = optimizer_state(adam, ["w"])
    facts = checkpoint_at(3).facts
    save_checkpoint(storage, Checkpoint(facts, {"w": straight.detach().clone()}, state), best=False, keep=1)
    run(adam, straight, range(3, 6))

    loaded = load_checkpoint(storage)
    resumed = torch.nn.Parameter(loaded.model["w"])
    other = torch.optim.Adam([resumed], lr=0.1)
    load_optimizer_state(other, ["w"], loaded.optimizer)
    run(other, resumed, range(3, 6))
    assert torch.equal(straight, resumed)


def test_uploads_happen_in_order_and_failures_surface(storage, tmp_path):
    saver = CheckpointSaver(storage, keep=5)
    for step in (1, 2, 3):
        saver.put(PendingCheckpoint(checkpoint_at(step), best=False))
    saver.close()
    assert load_checkpoint(storage).facts.step == 3
    (tmp_path / "file").write_text("in the way")
    blocked = CheckpointSaver(open_storage((tmp_path / "file" / "run").as_uri()), keep=1)
    blocked.put(PendingCheckpoint(checkpoint_at(1), best=False))
    with pytest.raises(ValueError, match="cannot be written"):
        blocked.close()


@pytest.mark.parametrize("kind", [KeyError, OSError, MemoryError, SystemExit])
def test_any_exception_of_an_upload_reaches_the_loop(storage, monkeypatch, kind):
    """The third put would wait for ever for a thread that is gone."""

    def fail(name, data):
        raise kind("storage is broken")

    monkeypatch.setattr(storage, "write", fail)
    saver = CheckpointSaver(storage, keep=1)
    with pytest.raises(kind, match="storage is broken"):
        for step in range(1, 9):
            saver.put(PendingCheckpoint(checkpoint_at(step), best=False))
            saver.wait()
    with pytest.raises(kind, match="storage is broken"):
        saver.close()


def test_a_lost_checkpoint_is_reported_at_the_end(storage, monkeypatch):
    monkeypatch.setattr(storage, "write", lambda name, data: {}[name])
    saver = CheckpointSaver(storage, keep=1)
    saver.put(PendingCheckpoint(checkpoint_at(1), best=False))
    with pytest.raises(KeyError):
        saver.close()


def test_nothing_is_pickled(storage):
    save_checkpoint(storage, checkpoint_at(1), best=True, keep=2)
    for name in storage.list_names("checkpoints/step-"):
        data = storage.read(name)
        if name.endswith(".json"):
            json.loads(data)
        elif name.endswith(".md"):
            assert data.decode().startswith("# ")
        else:
            assert data[8:9] == b"{", "safetensors begin with a length and a json header"
