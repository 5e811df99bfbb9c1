"""Search spaces are checked before a trial starts: every mistake is one line that names the setting."""

import pytest

from brewclip.errors import UserError
from tune.spaces import SPACES, check_space, load_space


@pytest.mark.parametrize("name", SPACES)
def test_the_spaces_of_the_house_are_in_order(name):
    assert load_space(name) == SPACES[name]


def test_the_papers_space():
    space = load_space("paper")
    assert space["loss.alpha"] == [0, 0.05, 0.1, 0.25, 0.5]
    assert space["model.prompt_length"] == [0, 2, 4, 8, 16]
    assert space["optim.peak_lr"] == ("log_uniform", 1e-5, 1e-2)


def test_a_file_of_ones_own(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text('SPACE = {"model.dropout": ("uniform", 0.0, 0.3), "model.num_layers": ("integers", 1, 3)}\n')
    assert load_space(str(path)) == {"model.dropout": ("uniform", 0.0, 0.3), "model.num_layers": ("integers", 1, 3)}


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({}, "not empty"),
        ({"optim.peek_lr": [1]}, "there is no such setting: did you mean 'optim.peak_lr'?"),
        ({"loss.alpha": []}, "setting 'loss.alpha': no values to choose from"),
        ({"loss.alpha": [0.1, "much"]}, "'much' must be a finite number"),
        ({"model.prompt_length": [4, 2.5]}, "2.5 must be a whole number"),
        ({"model.prompt_length": [True]}, "True must be a whole number"),
        ({"model.variant": ["brewclip", "tea"]}, "'tea' must be one of brewclip, acoustic"),
        ({"loss.learn_temperature": [1]}, "1 must be True or False"),
        ({"optim.peak_lr": ("log_uniform", 1e-2, 1e-5)}, "the range 0.01..1e-05 is empty"),
        ({"optim.final_lr": ("log_uniform", 0.0, 1e-2)}, "must be above 0 below high"),
        ({"optim.peak_lr": ("log_uniform", 0.0, 1e-2)}, "0.0 must be 0..10, above 0"),
        ({"loss.alpha": [0.1, 1.5]}, "1.5 must be 0..1"),
        ({"loss.alpha": [float("nan")]}, "nan must be a finite number"),
        ({"model.num_layers": ("integers", -1, 3)}, "-1 must be 1..64"),
        ({"optim.final_lr": ("uniform", 0.0, float("inf"))}, "inf must be a finite number"),
        ({"optim.peak_lr": ("normal", 0.0, 1.0)}, "neither a list of values nor a tuple"),
        ({"optim.peak_lr": 0.1}, "neither a list of values nor a tuple"),
        ({"optim.peak_lr": ("integers", 1, 2)}, "a range 'integers' does not fit this setting"),
        ({"model.prompt_length": ("uniform", 1, 8)}, "a range 'uniform' does not fit this setting"),
        ({"run.name": ["a"]}, "belongs to the whole sweep"),
        ({"data.dev_split": ["test"]}, "belongs to the whole sweep"),
        ({"tracking.uri": ["a"]}, "belongs to the whole sweep"),
    ],
)
def test_mistakes_are_reported(space, message):
    with pytest.raises(UserError, match="space 'mine'") as caught:
        check_space("mine", space)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("papers", None, "unknown space 'papers': paper, quick, or the path"),
        ("mine.py", None, "there is no such file"),
        ("mine.py", "SPACES = {}", "defines no SPACE"),
        ("mine.py", "SPACE = {", "cannot be read: SyntaxError"),
    ],
)
def test_files_that_are_no_space(name, text, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError) as caught:
        load_space(name)
    assert message in str(caught.value)
