"""One folder and one MLflow run for all that is published, and one identity for all that is reused."""

import json
from dataclasses import asdict, replace

import mlflow
import pytest
from PIL import Image

from brewclip.config import Config, preset
from brewclip.config.probe import ProbeConfig
from brewclip.evaluation import identity
from brewclip.evaluation.folders import latest_evaluation, open_experiment, open_folder
from brewclip.evaluation.identity import ResultCache, digest_of, identify
from brewclip.evaluation.intervals_figure import Panel, Value, draw_intervals
from brewclip.evaluation.pages import Page, Section
from brewclip.evaluation.publish import Publication, publish
from brewclip.evaluation.systems import System
from tests.training.features import write_features

PAGE = Page(
    "A study", "of <b>tags</b>", [Section("Part", "what it is", [["system", "R@1"], ["a", "50.0"]])], "python x"
)


@pytest.fixture
def config(tmp_path) -> Config:
    found = replace(preset("scenes"), storage=tmp_path.as_uri())
    write_features(found.features_url, "test", 2)
    return found


def a_figure() -> bytes:
    return draw_intervals("title", [Panel("R@1", [Value("a", 50.0, 40.0, 60.0)], 0.0), Panel("empty", [])])


def test_a_folder_has_every_form_of_the_results(config):
    folder = open_folder(config, "one", [System("a", "", config)], ["test"])
    publication = Publication("study", {"value": 1}, PAGE, {"figure.png": a_figure()}, files={"ranks/a.npz": b"1"})
    url = publish(config, folder, publication)
    assert url == latest_evaluation(config.storage, "one").url
    names = {"evaluation.json", "figure.png", "ranks/a.npz", "report.html", "results.json", "table.md"}
    assert set(folder.storage.list_names()) == names
    assert json.loads(folder.storage.read("results.json")) == {"value": 1}
    report = folder.storage.read("report.html").decode()
    assert "of &lt;b&gt;tags&lt;/b&gt;" in report and "<td>50.0</td>" in report
    assert (
        "default-src 'none'" in report
        and "data:image/png;base64," in report
        and "http:" not in report
        and "https:" not in report
    )


def test_a_page_is_one_content_in_three_forms():
    assert PAGE.terminal() == "of <b>tags</b>\n\nPart\n\nwhat it is\n\n  system  R@1\n  a       50.0"
    lines = PAGE.markdown(level=2).splitlines()
    assert lines[:5] == ["## A study", "", "```", "python x", "```"]
    assert lines[-5:] == ["what it is", "", "| system | R@1 |", "|---|---|", "| a | 50.0 |"] and "### Part" in lines


def test_the_figure_grows_with_its_rows(tmp_path):
    def height(count: int) -> int:
        path = tmp_path / "one.png"
        path.write_bytes(draw_intervals("title", [Panel("R@1", [Value("a", 1.0, 0.0, 2.0)] * count)]))
        return Image.open(path).size[1]

    assert height(20) > 3 * height(2)


def test_anything_that_a_result_depends_on_is_in_its_identity(config, monkeypatch):
    def of(system: System, **settings: object) -> str:
        return digest_of(identify(config, [system], ["test"], **settings))

    plain = System("a", "", config)
    others = [
        of(plain, probe=asdict(ProbeConfig())),
        of(plain, probe=asdict(ProbeConfig(mask_fraction=0.5))),
        of(replace(plain, step=3)),
        of(replace(plain, weights_sha256="trained")),
        of(replace(plain, config=replace(config, data=replace(config.data, transcript="ground_truth")))),
    ]
    assert len({of(plain), *others}) == 6
    elsewhere = replace(config, tracking=replace(config.tracking, uri="http://other"))
    assert of(replace(plain, config=elsewhere)) == of(plain)
    before = of(plain)
    monkeypatch.setattr(identity, "RESULTS_VERSION", identity.RESULTS_VERSION + 1)
    assert of(plain) != before, "code that gives other results"


def test_a_cached_result_is_reused_for_the_same_identity_only(config):
    cache = ResultCache(config, "cells")
    assert cache.load("one", {"step": 1}) is None
    cache.save("one", {"step": 1}, b"ranks\nwith lines")
    assert cache.load("one", {"step": 1}) == cache.load("one", None) == b"ranks\nwith lines"
    assert cache.load("one", {"step": 2}) is None
    cache.storage.write("one.cached", b"not a cached result")
    assert cache.load("one", None) is None


@pytest.mark.services
def test_mlflow_has_the_same_files(config, mlflow_server):
    config = replace(config, tracking=replace(config.tracking, uri=mlflow_server.tracking_uri))
    folder = open_experiment(config, "table1", seeds=[0])
    metrics = [({"a/R1": 50.0}, 7)]
    url = publish(
        config, folder, Publication("table", [], PAGE, {"f.png": a_figure()}, params={"p": 1}, metrics=metrics)
    )
    client = mlflow.MlflowClient(mlflow_server.tracking_uri)
    experiment = client.get_experiment_by_name(config.tracking.experiment).experiment_id
    (run,) = client.search_runs([experiment], f"tags.`brewclip.run_url` = '{url}'")
    assert (run.info.run_name, run.data.params["p"], run.data.metrics["a/R1"]) == ("experiments-table1", "1", 50.0)
    assert {one.path for one in client.list_artifacts(run.info.run_id)} == {
        "f.png", "origin", "report.html", "results.json", "table.md",
    }  # fmt: skip
