"""The study of truncation: truncated shares, and recall with truncated and whole inputs."""

from dataclasses import replace

import pytest

from brewclip.config import preset
from brewclip.studies import truncation
from brewclip.studies.truncation import measure_truncation, truncation_record, truncation_rows, untruncated_inputs
from tests.evaluation.results import evaluate_here, system_of
from tests.evaluation.spoken import write_spoken

LONG = "a red apple on the left and then I see " + "well, you know, " * 40 + "a green bicycle in the snow"


@pytest.fixture
def config(tmp_path):
    write_spoken(f"{tmp_path.as_uri()}/scenes", "dev", 6, texts={2: LONG})
    config = replace(preset("scenes"), storage=tmp_path.as_uri())
    return replace(config, data=replace(config.data, max_audio_frames=4))


@pytest.mark.parametrize(
    ("variant", "names"),
    [
        ("zero_shot", ["image", "text"]),
        ("pipeline", ["image", "text"]),
        ("acoustic", ["image", "speech"]),
        ("brewclip", ["image", "text", "speech"]),
    ],
)
def test_each_input_of_a_variant_is_untruncated_alone(config, variant, names):
    system = system_of(config, variant)
    whole = untruncated_inputs(system.config)
    assert list(whole) == names
    for other in whole.values():
        changed = [name for name in vars(other.data) if getattr(other.data, name) != getattr(config.data, name)]
        assert len(changed) == 1


def test_both_recalls_and_the_truncated_share(config, monkeypatch):
    monkeypatch.setattr(truncation, "evaluate_system", evaluate_here)
    effects = measure_truncation(system_of(config, "brewclip"), "dev")
    image, text, speech = effects
    assert text.truncated.truncation.truncated_texts == 1
    assert text.truncated.truncation.truncated_tokens > 40
    assert text.whole.truncation.truncated_tokens == 0
    assert speech.truncated.truncation.truncated_frames > 0
    assert speech.whole.truncation.truncated_frames == 0
    assert (text.whole.embeddings.speech[2] != text.truncated.embeddings.speech[2]).any()
    assert abs(text.whole.embeddings.speech[[0, 1, 3]] - text.truncated.embeddings.speech[[0, 1, 3]]).max() < 1e-4
    assert abs(image.whole.embeddings.images - image.truncated.embeddings.images).max() < 1e-5  # they are square
    for one in effects:
        gain = one.whole.metrics["speech_to_image/R1"] - one.truncated.metrics["speech_to_image/R1"]
        assert one.differences[1].mean == pytest.approx(gain)
    table = truncation_rows(effects)
    assert len(table) == 4
    assert "in 16.7 % of texts" in table[2][2]
    assert [row["input"] for row in truncation_record(effects)] == ["image", "text", "speech"]
