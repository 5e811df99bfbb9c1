"""Hidden states of HuBERT and Whisper against transformers and openai-whisper, alone and in padded batches."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from whisper.audio import SAMPLE_RATE

from brewclip.models.audio_chunks import compute_mel, split_into_chunks
from brewclip.models.encoder_layers import encode_layers
from brewclip.models.speech_encoders import HubertEncoder, normalise_waveforms
from brewclip.models.whisper_encoder import WhisperEncoder
from tests.models.tiny_encoders import FORMS, make_waveforms, tiny_hubert, tiny_whisper

LENGTHS = (4000, 1501, 90, 2777)


@pytest.mark.parametrize("form", FORMS)
def test_hubert_in_a_padded_batch_equals_transformers_on_each_recording(form):
    """The waveform is normalised as fairseq does it; every layer of every real frame is the same."""
    waveforms, mask = make_waveforms(LENGTHS)
    encoder, reference = HubertEncoder(tiny_hubert(form)), tiny_hubert(form)
    lengths = mask.sum(dim=1)
    with torch.no_grad():
        hidden, counts = encoder(waveforms, lengths), encoder.num_frames(lengths)
        for row, length in enumerate(LENGTHS):
            alone = waveforms[row, :length]
            alone = F.layer_norm(alone, alone.shape) if form == "large" else alone
            expected = torch.stack(reference(alone[None], output_hidden_states=True).hidden_states)[:, 0]
            assert expected.shape[1] == counts[row]
            torch.testing.assert_close(hidden[row, :, : counts[row]], expected, rtol=1e-5, atol=1e-5)
    assert hidden.shape == (4, 4, counts.max(), 32) == (4, encoder.num_layers, counts.max(), encoder.width)
    assert hidden.isfinite().all()


def test_hubert_large_equals_transformers_on_the_same_padded_batch():
    waveforms, mask = make_waveforms(LENGTHS)
    encoder, reference = HubertEncoder(tiny_hubert("large")), tiny_hubert("large")
    values = normalise_waveforms(waveforms, mask) * mask
    with torch.no_grad():
        expected = reference(values, attention_mask=mask.long(), output_hidden_states=True).hidden_states
        torch.testing.assert_close(encoder(waveforms, mask.sum(dim=1)), torch.stack(expected, dim=1))


@pytest.mark.parametrize("form", FORMS)
def test_hubert_takes_a_recording_shorter_than_its_first_frame(form):
    waveforms, mask = make_waveforms((5, 0))
    encoder = HubertEncoder(tiny_hubert(form))
    hidden = encoder(waveforms, mask.sum(dim=1))
    assert hidden.shape == (2, 4, 1, 32) and hidden.isfinite().all()
    assert encoder.num_frames(mask.sum(dim=1)).tolist() == [1, 1]


def test_a_frozen_encoder_stays_in_eval_mode_and_has_no_gradient():
    encoder = HubertEncoder(tiny_hubert("base")).train()
    assert not any(module.training for module in encoder.modules())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_whisper_layers_of_short_recordings_are_those_of_their_own_mel():
    whisper = tiny_whisper()
    encoder, (waveforms, mask) = WhisperEncoder(whisper), make_waveforms((16_000, 9_000, 10 * SAMPLE_RATE))
    with torch.no_grad():
        hidden, counts = encoder(waveforms, mask.sum(dim=1)), encoder.num_frames(mask.sum(dim=1))
        for row, (seconds, count) in enumerate(zip((4, 4, 12), counts.tolist(), strict=True)):
            mel = compute_mel(waveforms[row, mask[row]].numpy(), seconds, 80, torch.device("cpu"))
            expected = encode_layers(whisper.encoder, mel[None])[0, :, :count]
            torch.testing.assert_close(hidden[row, :, :count], expected, rtol=1e-5, atol=1e-5)
    assert counts.tolist() == [50, 29, 500] and hidden.shape == (3, 2, 500, 16)


def test_whisper_layers_of_a_long_recording_are_those_of_its_chunks():
    whisper = tiny_whisper()
    encoder, (waveforms, mask) = WhisperEncoder(whisper), make_waveforms((40 * SAMPLE_RATE,))
    first, second = split_into_chunks(waveforms[0].numpy())
    with torch.no_grad():
        hidden = encoder(waveforms, mask.sum(dim=1))[0]
        mel = compute_mel(waveforms[0, second.start :].numpy(), 12, 80, torch.device("cpu"))
        expected = encode_layers(whisper.encoder, mel[None])[0, :, : second.num_frames]
    assert hidden.shape[1] == first.num_frames + second.num_frames
    torch.testing.assert_close(hidden[:, first.num_frames :], expected, rtol=1e-5, atol=1e-5)


def test_whisper_takes_a_recording_without_samples():
    encoder = WhisperEncoder(tiny_whisper())
    hidden = encoder(torch.zeros(1, 0), torch.tensor([0]))
    np.testing.assert_array_equal(hidden, np.zeros((1, 2, 1, 16)))
