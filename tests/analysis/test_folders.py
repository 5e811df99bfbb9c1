"""Evaluations are stored apart: the same one in the same folder, another one in another, the latest by a pointer."""

from dataclasses import replace

import pytest

from brewclip.analysis.folders import evaluation_group, latest_url, name_latest, study_url
from brewclip.analysis.systems import System
from brewclip.config import Config, DataConfig, RunConfig, UserError
from tests.training.features import write_features


def test_only_the_same_evaluation_has_the_same_folder(tmp_path):
    storage = tmp_path.as_uri()
    write_features(f"{storage}/scenes/whisper-base", "test", 2)
    config = Config(storage=storage, data=DataConfig(corpus="scenes"))
    system = System("a-run", "s3://bucket/runs/a-run", config, 10, weights_sha256="1234")

    def url(config=config, study="evaluate", systems=(system,)):
        return study_url(config, study, evaluation_group(config, "test"), ["test"], systems)

    assert url().startswith(f"{storage}/evaluations/scenes-test-asr/evaluate-a-run-")
    assert url(replace(config, run=RunConfig(global_batch_size=7))) == url(), (
        "how a run is trained decides nothing here"
    )
    other_weights = replace(system, weights_sha256="5678")
    letterboxed = replace(config, data=replace(config.data, image_transform="letterbox"))
    zero_shot = System("zero_shot", "", config)
    others = [url(systems=(other_weights,)), url(letterboxed), url(study="look"), url(systems=(zero_shot, system))]
    write_features(f"{storage}/scenes/whisper-base", "test", 3)
    others.append(url())
    assert len({*others}) == len(others)

    with pytest.raises(UserError, match=r"no evaluation at .*/evaluations/scenes-test-asr: run jobs/evaluate.py first"):
        latest_url(storage, "scenes-test-asr", "evaluate")
    for one in others[:2]:
        name_latest(one, "evaluate")
        assert latest_url(storage, "scenes-test-asr", "evaluate") == one


def test_a_long_list_of_systems_is_a_name_that_storage_takes(tmp_path):
    storage = tmp_path.as_uri()
    write_features(f"{storage}/scenes/whisper-base", "test", 2)
    config = Config(storage=storage, data=DataConfig(corpus="scenes"))
    systems = [System(f"s3://bucket/a run#{n}", "", config) for n in range(30)]
    name = study_url(config, "evaluate", "group", ["test"], systems).rpartition("/")[2]
    assert len(name) < 120 and not set(name) & set("/#? ")
