"""The model card that is stored with each best checkpoint."""

from brewclip.checkpoints.checkpoint import read_files, save_checkpoint
from brewclip.data.storage import open_storage
from tests.training.test_checkpoint import checkpoint_at


def test_the_best_checkpoint_has_a_card_with_settings_metrics_and_licences(tmp_path):
    from dataclasses import replace

    storage = open_storage(tmp_path.as_uri())
    checkpoint = checkpoint_at(100)
    metrics = {f"dev/speech_to_image/R10{end}": value for end, value in (("", 81.25), ("_low", 70.0), ("_high", 90.5))}
    checkpoint = replace(checkpoint, facts=replace(checkpoint.facts, metrics=metrics))
    name = save_checkpoint(storage, checkpoint, best=True, keep=2)
    card = storage.read(f"checkpoints/{name}/README.md").decode()
    assert "| speech -> image R@10 | 81.2 [70.0, 90.5] |" in card
    assert "Trained on `scenes/train`" in card
    assert "CLIP `" in card
    assert "Whisper `base`: MIT" in card
    assert read_files(storage, name)["README.md"].decode() == card


def test_a_card_goes_with_its_checkpoint(tmp_path):
    storage = open_storage(tmp_path.as_uri())
    save_checkpoint(storage, checkpoint_at(100), best=True, keep=1)
    save_checkpoint(storage, checkpoint_at(200), best=True, keep=1)
    cards = [name for name in storage.list_names("checkpoints/") if name.endswith("README.md")]
    assert cards == ["checkpoints/step-00000200/README.md"]
