"""The benchmark of the step: what it switches is what it says, and its operations are those that one can count."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from brewclip.benchmarks.corpus import write_features
from brewclip.benchmarks.open_clip_step import OpenClipStep
from brewclip.benchmarks.scaling_results import SCENES
from brewclip.benchmarks.steps import build_config, build_trainee, count_flops, make_batches, read_pairs
from brewclip.benchmarks.traffic import Tower
from brewclip.benchmarks.train import SWITCHES, Options, run
from brewclip.errors import UserError


@pytest.fixture(scope="module")
def trainee_and_batch(tmp_path_factory: pytest.TempPathFactory):
    config = build_config(tmp_path_factory.mktemp("storage").as_uri(), 4, 2)
    write_features(config.features_url, "train", 4)
    trainee = build_trainee(config, torch.device("cpu"))
    (batch,) = make_batches(trainee, read_pairs(trainee, "train", 4), torch.device("cpu"))
    return trainee, batch


def test_the_steps_are_real_ones(trainee_and_batch) -> None:
    trainee, batch = trainee_and_batch
    before = trainee.model.trained_state()
    assert trainee.rate(iter([batch, batch])) > 0
    assert all(not torch.equal(value, before[name]) for name, value in trainee.model.trained_state().items())


def test_what_a_switch_turns_off_changes_nothing_but_the_work(trainee_and_batch) -> None:
    """Padding to all of Whisper's frames gives the same features; a caption that fills the context is the longest."""
    trainee, batch = trainee_and_batch
    model = trainee.model.eval()
    padded, longest = SWITCHES["real_frames"].off(batch), SWITCHES["trimmed_text"].off(batch)
    assert padded.audio.shape[1] == 1500
    with torch.no_grad():
        for one, other in zip(
            model(batch.images, batch.tokens, batch.audio, batch.audio_mask),
            model(padded.images, padded.tokens, padded.audio, padded.audio_mask),
            strict=True,
        ):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    fitted, ends = model.clip._fit(longest.tokens, 4)
    assert fitted.shape[1] == 73 and int(ends.max()) == 72
    assert model.clip._fit(batch.tokens, 4)[0].shape[1] < 40
    assert torch.equal(longest.tokens[1:, : batch.tokens.shape[1]], batch.tokens[1:])


def test_the_peer_computes_and_trains_the_same(trainee_and_batch) -> None:
    """open_clip with the prompts has the features of the variant `pipeline`, and as many trained parameters."""
    trainee, batch = trainee_and_batch
    config = replace(trainee.config, model=replace(trainee.config.model, variant="pipeline"))
    own = build_trainee(config, torch.device("cpu"))
    peer = OpenClipStep(own)
    image, text, scale = peer.encode(batch)
    features = own.model(batch.images, batch.tokens, batch.audio, batch.audio_mask)
    torch.testing.assert_close(image, F.normalize(features.image, dim=-1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(text, F.normalize(features.text, dim=-1), rtol=1e-4, atol=1e-5)
    assert scale.item() == pytest.approx(1 / 0.07, rel=1e-4)
    sizes = [
        sum(one.numel() for one in parameters) for parameters in (peer.trained, own.model.trained_parameters().values())
    ]
    assert sizes[0] == sizes[1]
    before = [parameter.detach().clone() for parameter in peer.trained]
    assert peer.rate([batch, batch]) > 0
    assert all(not torch.equal(one, other) for one, other in zip(peer.trained, before, strict=True))


def test_counted_operations_are_those_of_the_arithmetic(trainee_and_batch) -> None:
    """The formula of `traffic` leaves out the acoustic row, the projections and the loss: within 15 %."""
    trainee, batch = trainee_and_batch
    length = trainee.model.clip._fit(batch.tokens, 4)[0].shape[1] + 4
    workload = replace(SCENES, text=Tower(SCENES.text.width, SCENES.text.num_layers, length))
    assert 4 * workload.flops() == pytest.approx(count_flops(trainee.config, trainee.model, batch), rel=0.15)


def test_figures_of_a_short_run(capsys: pytest.CaptureFixture[str]) -> None:
    options = Options(
        global_batch_size=2, num_steps=1, num_pairs=1, whisper_batch_size=0, switches=("trimmed_text", "math_attention")
    )
    figures = run(options)
    assert [row["name"] for row in figures["comparisons"]] == [
        "step with trimmed_text against without (kept)",
        "step with math_attention against without (not used)",
        "step of the adapter on cached embeddings against prompts in both towers",
        "step with prompts in both towers against open_clip's model, ClipLoss and AdamW",
    ]
    ours, theirs = (row["value"] for row in figures["limits"])
    assert 0 < ours < theirs
    assert figures["arithmetic"]["gflop_of_a_step"] > 0.1
    assert 0 < sum(figures["arithmetic"]["operations"].values()) <= 1
    assert "its time by operation: " in capsys.readouterr().out


def test_options_without_meaning(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--switches has \['bf16'\]: allowed are trimmed_text"):
        run(Options(switches=("bf16",)))
