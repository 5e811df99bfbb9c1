"""Search spaces as plain data, by the dotted names of the settings.

A space is a dictionary. A list is a choice of values; a tuple is a range of numbers:

    SPACE = {
        "loss.alpha": [0, 0.1, 0.5],
        "optim.peak_lr": ("log_uniform", 1e-5, 1e-2),
        "model.dropout": ("uniform", 0.0, 0.3),
        "model.num_layers": ("integers", 1, 3),       # both ends are possible
    }

Such a file, given by its path, is used like the spaces below; it needs no imports.
"""

import difflib
import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from brewclip.config import Config
from brewclip.config.ranges import problem_of, settings_of
from brewclip.errors import UserError

Space = dict[str, list[Any] | tuple[Any, ...]]

SPACES: dict[str, Space] = {
    # The three settings that the paper fixes (appendix A), each around its value.
    "paper": {
        "loss.alpha": [0, 0.05, 0.1, 0.25, 0.5],
        "model.prompt_length": [0, 2, 4, 8, 16],
        "optim.peak_lr": ("log_uniform", 1e-5, 1e-2),
    },
    # The same three, as coarse as a few dozen steps on the scenes can distinguish.
    "quick": {
        "loss.alpha": [0, 0.1, 0.5],
        "model.prompt_length": [0, 4, 8],
        "optim.peak_lr": ("log_uniform", 3e-5, 3e-3),
    },
}
# Default preset of a space; `scenes` for all others.
PRESET_OF_SPACE = {"paper": "flickr8k"}
RANGES = ("log_uniform", "uniform", "integers")
# Settings of the whole sweep.
_FIXED = ("storage", "data.dev_split", "run.name", "run.fresh", "run.selection_metric", "tracking.")


def load_space(name: str) -> Space:
    """Load a space by its name here or by the path of a Python file that defines SPACE.

    Raises:
        UserError: if there is none, or it is invalid.
    """
    if name in SPACES:
        return check_space(name, SPACES[name])
    path = Path(name)
    if path.suffix != ".py":
        raise UserError(f"unknown space {name!r}: {', '.join(SPACES)}, or the path of a .py file that defines SPACE")
    if not path.is_file():
        raise UserError(f"space {name!r}: there is no such file")
    try:
        defined = runpy.run_path(str(path))
    except Exception as error:
        raise UserError(f"space {name!r} cannot be read: {type(error).__name__}: {error}") from error
    if "SPACE" not in defined:
        raise UserError(f"space {name!r} defines no SPACE: see tune/spaces.py for the form")
    return check_space(name, defined["SPACE"])


def check_space(name: str, space: Any) -> Space:
    """Check a space before a trial is started: names of settings, types of values, ranges.

    Raises:
        UserError: if it is invalid; one line that names the setting.
    """
    if not isinstance(space, dict) or not space:
        raise UserError(f"space {name!r} must be a dictionary of settings that is not empty")
    kinds = {name: kind for name, _, kind in settings_of(Config)}
    for field, values in space.items():
        where = f"space {name!r}, setting {field!r}"
        if field not in kinds:
            near = difflib.get_close_matches(str(field), kinds, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else "see jobs/train.py --help"
            raise UserError(f"{where}: there is no such setting: {hint}")
        if field.startswith(_FIXED):
            raise UserError(f"{where}: it belongs to the whole sweep and cannot vary between trials")
        problem = _problem_of(kinds[field], values)
        if problem:
            raise UserError(f"{where}: {problem}")
    return space


def _problem_of(kind: Any, values: Any) -> str:
    """Return the problem with the values of a setting of a type, or an empty string."""
    if isinstance(values, list):
        if not values:
            return "no values to choose from"
        return _first_problem(kind, values)
    if not isinstance(values, tuple) or len(values) != 3 or values[0] not in RANGES:
        return f"{values!r} is neither a list of values nor a tuple ({' | '.join(RANGES)}, low, high)"
    form, low, high = values
    plain = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    if plain not in (int, float) or (plain is int) != (form == "integers"):
        return f"a range {form!r} does not fit this setting"
    problem = _first_problem(kind, (low, high))
    if problem:
        return problem
    if low >= high or (form == "log_uniform" and low <= 0):
        above = " above 0" if form == "log_uniform" else ""
        return f"the range {low}..{high} is empty: low must be{above} below high"
    return ""


def _first_problem(kind: Any, values: Sequence[Any]) -> str:
    """Return what is wrong with the first value that a setting of this type and range does not take."""
    problems = ((value, problem_of(value, kind)) for value in values)
    return next((f"{value!r} {problem}" for value, problem in problems if problem), "")


def is_in_space(value: Any, values: list[Any] | tuple[Any, ...]) -> bool:
    """Return whether a value can have been drawn from the values of a setting."""
    if isinstance(values, list):
        return value in values
    form, low, high = values
    kind = int if form == "integers" else float
    return isinstance(value, kind) and not isinstance(value, bool) and low <= value <= high


def tune_space(space: Space) -> dict[str, Any]:
    """Return a space in Tune's terms."""
    from ray import tune

    forms = {"log_uniform": tune.loguniform, "uniform": tune.uniform}
    domains: dict[str, Any] = {}
    for field, values in space.items():
        if isinstance(values, list):
            domains[field] = tune.choice(values)
        elif values[0] == "integers":
            domains[field] = tune.randint(values[1], values[2] + 1)
        else:
            domains[field] = forms[values[0]](values[1], values[2])
    return domains
