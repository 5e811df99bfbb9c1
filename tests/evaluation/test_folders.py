"""Folders of evaluations: another evaluation never overwrites one, the same one is reused, the latest is named."""

import json
from dataclasses import replace

import pytest

from brewclip.config import Config, preset
from brewclip.errors import UserError
from brewclip.evaluation.folders import latest_evaluation, open_folder, study_name
from brewclip.evaluation.systems import System
from tests.training.features import write_features


@pytest.fixture
def config(tmp_path) -> Config:
    found = replace(preset("scenes"), storage=tmp_path.as_uri())
    write_features(found.features_url, "test", 2)
    return found


def system(config: Config, name: str, sha256: str = "", **data: object) -> System:
    own = replace(config, data=replace(config.data, **data))  # type: ignore[arg-type]
    return System(name, "", own, weights_sha256=sha256)


def test_every_difference_has_its_own_folder(config):
    def folder(*systems: System, baseline: str = "a", study: str = "scenes-test-asr") -> str:
        return open_folder(config, study, systems, ["test"], baseline=baseline).storage.url

    first = folder(system(config, "a"), system(config, "b"))
    others = [
        folder(system(config, "a")),
        folder(system(config, "a"), system(config, "b", "trained on")),
        folder(system(config, "a"), system(config, "b"), baseline="b"),
        folder(system(config, "a"), system(config, "b", long_text="chunks")),
        folder(system(config, "a"), system(config, "b"), study=study_name(config, "test", "visualize")),
    ]
    assert len({first, *others}) == 6
    elsewhere = replace(config, tracking=replace(config.tracking, uri="http://other"))
    assert folder(system(elsewhere, "a"), system(elsewhere, "b", num_threads=7)) == first, "neither where nor how fast"
    write_features(config.features_url, "test", 3)
    assert folder(system(config, "a"), system(config, "b")) != first, "another split"


def test_folder_names_contain_system_names(config):
    one = open_folder(config, "scenes-test-asr", [system(config, "a"), system(config, "s3://b/runs/c")], ["test"])
    assert one.name.startswith("a--s3_b_runs_c-") and one.run_name == f"scenes-test-asr-{one.name}"
    many = open_folder(config, "scenes-test-asr", [system(config, f"run-{n}") for n in range(40)], ["test"])
    assert len(many.name) < 100


def test_latest_json_names_the_latest_folder(config):
    with pytest.raises(UserError, match=r"no evaluation is finished at .*/evaluations/scenes-test-asr"):
        latest_evaluation(config.storage, "scenes-test-asr")
    for names in ("a", "b", "a"):
        folder = open_folder(config, "scenes-test-asr", [system(config, names)], ["test"])
        folder.write({"table.md": names.encode()})
        assert latest_evaluation(config.storage, "scenes-test-asr").read("table.md") == names.encode()
    assert len({name.partition("/")[0] for name in folder.parent.list_names()} - {"latest.json"}) == 2
    latest = json.loads(folder.parent.read("latest.json"))
    assert (latest["folder"], latest["url"], latest["systems"]) == (folder.name, folder.storage.url, ["a"])
    assert json.loads(folder.storage.read("evaluation.json"))["splits"].keys() == {"test"}
