"""The benchmark of prompts against an adapter: both are trained and measured on the way, and leave no run behind."""

from dataclasses import replace

import pytest

from brewclip.benchmarks import adaptation
from brewclip.benchmarks.adaptation import Course, Options, run
from brewclip.config import Config, preset
from brewclip.data.storage import open_storage
from tests.corpora.cached import write_embeddings
from tests.training.features import write_features


def small(name: str) -> Config:
    """A preset of six steps over a few pairs."""
    made = preset(name)
    run_settings = replace(made.run, global_batch_size=8, log_every_steps=1)
    optim = replace(made.optim, total_steps=6, warmup_steps=1)
    return replace(made, model=replace(made.model, ff_dim=64), optim=optim, run=run_settings)


@pytest.mark.slow
def test_both_are_trained_and_measured_and_the_adapter_takes_fewer_operations(tmp_path, monkeypatch, capsys):
    storage = tmp_path.joinpath("storage").as_uri()
    monkeypatch.setattr(adaptation, "preset", small)
    for split, count in (("train", 10), ("dev", 6)):
        write_features(f"{storage}/scenes/whisper-base", split, count)
        write_embeddings(replace(small("scenes_adapter"), storage=storage), split)
    image = tmp_path / "figure.png"
    options = Options(storage=storage, presets=("scenes", "scenes_adapter"), num_evaluations=3, image=str(image))
    prompts, adapter = run(options)["courses"]
    for course in (prompts, adapter):
        assert [step for step, _, _ in course["points"]] == [0, 2, 4, 6]
        seconds = [passed for _, passed, _ in course["points"]]
        assert seconds == sorted(seconds) and seconds[0] == 0 < seconds[1]
        assert all(0 <= recall <= 100 for _, _, recall in course["points"])
    assert prompts["step_flops"] > 20 * adapter["step_flops"] > 0
    assert "a step of scenes_adapter takes 1/" in capsys.readouterr().out
    assert image.read_bytes().startswith(b"\x89PNG")
    assert not list(open_storage(f"{storage}/runs").list_names())


def test_the_time_to_a_recall_is_that_of_the_first_evaluation_that_reaches_it():
    course = Course("scenes", 10, [(0, 0.0, 40.0), (5, 1.0, 45.0), (10, 2.0, 44.0), (15, 3.0, 50.0)])
    assert [course.seconds_to(recall) for recall in (40, 45, 46, 51)] == [0.0, 1.0, 3.0, None]
