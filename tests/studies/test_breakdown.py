"""Recall by fields of the metadata: groups, their ranks, the page, and mistakes."""

from dataclasses import replace

import numpy as np
import pytest

from brewclip.config import preset
from brewclip.data.manifest import open_manifest
from brewclip.errors import UserError
from brewclip.metrics import retrieval
from brewclip.studies.breakdown import ALL, break_down, breakdown_page, breakdown_record, draw_breakdown, read_fields
from tests.evaluation.results import evaluate_here, system_of
from tests.evaluation.spoken import write_spoken


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    storage = tmp_path_factory.mktemp("breakdown").as_uri()
    conditions = {number: {"condition": "babble" if number % 3 else "clear"} for number in range(8)}
    write_spoken(f"{storage}/scenes", "test", 8, metadata=conditions)
    return replace(preset("scenes"), storage=storage)


@pytest.fixture(scope="module")
def results(config):
    return [evaluate_here(system_of(config, variant), "test") for variant in ("zero_shot", "brewclip")]


def test_each_group_is_ranked_on_its_own_and_all_together(config, results):
    values = read_fields(open_manifest(f"{config.features_url}/test"), ["condition"])
    groups = break_down(results, values, "zero_shot")
    assert [(group.value, len(group.rankings["zero_shot"].keys)) for group in groups] == [
        (ALL, 8), ("clear", 3), ("babble", 5),
    ]  # fmt: skip
    found = results[1].embeddings
    rows = [row for row, key in enumerate(found.keys) if values["condition"][key] == "babble"]
    ids = np.array(found.speech_image_ids)[rows]
    expected = retrieval(found.speech[rows], ids, found.images, np.array(found.image_ids))
    assert (groups[2].rankings["brewclip"].result.speech_to_image_rank == expected.speech_to_image_rank).all()
    assert (groups[2].rankings["brewclip"].result.image_to_speech_rank == expected.image_to_speech_rank).all()
    whole = groups[0].rankings["brewclip"].recall("speech_to_image", 1)
    parts = [len(g.rankings["brewclip"].keys) * g.rankings["brewclip"].recall("speech_to_image", 1) for g in groups[1:]]
    assert whole == pytest.approx(sum(parts) / 8)  # the gallery of images is the same


def test_page_figure_and_record_have_every_group_and_system(config, results):
    values = read_fields(open_manifest(f"{config.features_url}/test"), ["condition"])
    groups = break_down(results, values, "zero_shot")
    recall, above = breakdown_page("recall by condition", groups, "zero_shot").sections
    assert [row[:2] for row in recall.rows[1:]] == [
        ["all (8)", "zero_shot"], ["", "brewclip"], ["clear (3)", "zero_shot"], ["", "brewclip"],
        ["babble (5)", "zero_shot"], ["", "brewclip"],
    ]  # fmt: skip
    assert [row[:2] for row in above.rows[1:]] == [[name, "brewclip"] for name in (ALL, "clear", "babble")]
    assert draw_breakdown("recall", groups, "condition").startswith(b"\x89PNG")
    record = breakdown_record(groups)
    assert len(record) == 6
    assert record[3]["above_baseline"]["speech_to_image/R1"]["num_queries"] == 3


def test_what_two_fields_have_alike_is_shown_once_and_a_number_behind_its_field(config, results):
    values = read_fields(open_manifest(f"{config.features_url}/test"), ["condition"])
    values["snr_db"] = {key: {"babble": "2"}.get(value, value) for key, value in values["condition"].items()}
    groups = break_down(results, values, "zero_shot")
    recall, above = breakdown_page("recall", groups, "zero_shot").sections
    assert [row[0] for row in recall.rows[1::2]] == ["all (8)", "clear (3)", "babble (5)", "snr_db 2 (5)"]
    assert [row[0] for row in above.rows[1:]] == [ALL, "clear", "babble", "snr_db 2"]
    assert len(breakdown_record(groups)) == 10


def test_a_field_that_no_recording_has_and_one_of_many_values_are_named(config):
    manifest = open_manifest(f"{config.features_url}/test")
    with pytest.raises(
        UserError,
        match=r"--by accent: no recording of .* there are alternatives, caption_id, condition, dur",
    ):
        read_fields(manifest, ["accent"])
    write_spoken(f"{config.storage}/many", "test", 30)
    with pytest.raises(UserError, match="--by caption_id: 30 different values"):
        read_fields(open_manifest(f"{config.storage}/many/whisper-base/test"), ["caption_id"])
