"""Speech encoders by name: a HuBERT's folder, a Whisper's file, and one line for what is neither."""

import pytest
import torch

from brewclip.errors import UserError
from brewclip.models.speech_encoders import HubertEncoder
from brewclip.pretrained.clip_identity import weights_sha256
from brewclip.pretrained.speech_encoders import load_speech_encoder
from tests.models.tiny_encoders import FORMS, make_waveforms, tiny_hubert, tiny_whisper
from tests.training.recordings import save_tiny_whisper


@pytest.mark.parametrize("form", FORMS)
def test_a_hubert_comes_from_its_folder_with_the_hash_of_its_weights(form, tmp_path):
    hubert = tiny_hubert(form)
    hubert.save_pretrained(tmp_path)
    found = load_speech_encoder(str(tmp_path))
    assert found.sha256 == weights_sha256(hubert) == load_speech_encoder(str(tmp_path)).sha256
    waveforms, mask = make_waveforms((3000, 900))
    expected = HubertEncoder(hubert)(waveforms, mask.sum(dim=1))
    torch.testing.assert_close(found.model(waveforms, mask.sum(dim=1)), expected)


def test_a_whisper_gives_its_encoder(tmp_path):
    found = load_speech_encoder(save_tiny_whisper(tmp_path))
    assert (found.model.width, found.model.num_layers) == (16, 2)
    assert found.sha256 == weights_sha256(tiny_whisper().encoder)


def test_what_is_no_encoder_is_one_line(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"no folder .* choose hubert_large_ll60k, .* whisper-base"):
        load_speech_encoder(str(tmp_path / "nothing"))
    with pytest.raises(FileNotFoundError, match="cannot load the speech encoder"):
        load_speech_encoder(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="of type 'bert'; a HuBERT is needed"):
        load_speech_encoder(str(tmp_path))
    monkeypatch.setattr("brewclip.config.extras.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs transformers.* pip install 'brewclip\[baselines\]'"):
        load_speech_encoder("hubert_base_ls960")
