"""Allowed values of settings, written with them as `Annotated[int, Range(1, 64)]`, and the one check of all of them.

Every command line, preset, sweep space and checkpoint passes through `check_ranges`: type, finiteness, range. Rules
between several settings are in `checks` and in the jobs.
"""

import dataclasses
import functools
import math
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, Union, get_args, get_origin, get_type_hints

from brewclip.errors import UserError

_LONGEST_SHOWN = 80


class Mark(Protocol):
    """What may stand in `Annotated` behind the type of a setting."""

    def problem(self, value: Any) -> str:
        """Return what the value must be, or an empty string if it is allowed."""


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both allowed.

    Attributes:
        low: smallest number.
        high: largest number; without one, mistakes of the unit or a few digits too many would be accepted.
        above: True if `low` itself is not allowed.
        below: True if `high` itself is not allowed.
        note: the meaning of a special value, or a remedy; the end of the error line.
    """

    low: float
    high: float
    above: bool = False
    below: bool = False
    note: str = ""

    def problem(self, value: float) -> str:
        """Return what the number must be, or an empty string if it is in the range."""
        is_high_enough = value > self.low if self.above else value >= self.low  # False for nan
        is_low_enough = value < self.high if self.below else value <= self.high
        return "" if is_high_enough and is_low_enough else f"must be {self}"

    def __str__(self) -> str:
        ends = [f"above {_number(self.low)}"] * self.above + [f"below {_number(self.high)}"] * self.below
        return f"{_number(self.low)}..{_number(self.high)}{''.join(f', {end}' for end in ends)}" + (
            f" ({self.note})" if self.note else ""
        )


FRACTION = Range(0, 1)
FRACTION_BELOW_1 = Range(0, 1, below=True)
SEED = Range(0, 2**32 - 1)
"""NumPy's older generators, which scikit-learn and Optuna use, take no larger seed."""
THREADS = Range(1, 256)
COUNT = Range(1, 10**9)
COUNT_OR_0 = Range(0, 10**9)


def check_ranges(form: Any) -> None:
    """Check each setting of a dataclass, also of nested ones.

    Raises:
        UserError: for the first value that is not allowed; one line with the flag, the value and what is allowed.
    """
    for name, value, kind in settings_of(form):
        # Of a list of values, name the one that is wrong.
        is_list = get_origin(_bare(kind)[0]) is tuple and isinstance(value, tuple)
        for one in value if is_list else (value,):
            problem = problem_of(one, _element(kind) if is_list else kind)
            if problem:
                raise UserError(f"--{name.replace('_', '-')} {show(one)} {problem}")


def settings_of(form: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield the dotted name, the value and the type of each setting of a dataclass, or of its defaults.

    Args:
        form: a dataclass, or a value of one.
        prefix: of the names.
    """
    hints = _hints(form if isinstance(form, type) else type(form))
    for item in dataclasses.fields(form):
        kind, name = hints[item.name], prefix + item.name
        value = None if isinstance(form, type) else getattr(form, item.name)
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            yield from settings_of(kind if value is None else value, f"{name}.")
        else:
            yield name, value, kind


def problem_of(value: Any, kind: Any) -> str:
    """Return what a value must be to have an annotated type, or an empty string if it has.

    Args:
        value: any value, not only one that the command line parser has converted.
        kind: type of a setting, with or without `Annotated`; numbers must be finite.
    """
    bare, marks = _bare(kind)
    problem = _type_problem(value, bare)
    return problem or next((found for mark in marks if (found := mark.problem(value))), "")


def show(value: Any) -> str:
    """Return a value for an error line: texts in quotes, long ones shortened."""
    shown = repr(value) if isinstance(value, str) else str(value)
    return shown if len(shown) <= _LONGEST_SHOWN else f"{shown[:_LONGEST_SHOWN]}... ({len(shown)} characters)"


def is_number(kind: Any) -> bool:
    """Return whether a setting of this type is a number, or a list of numbers."""
    bare, _ = _bare(kind)
    return bare in (int, float) or (get_origin(bare) is tuple and is_number(get_args(bare)[0]))


def range_of(kind: Any) -> Range | None:
    """Return the range of a number, or of the numbers of a list; None if its type states none."""
    bare, marks = _bare(kind)
    if get_origin(bare) is tuple:
        return range_of(_element(bare))
    return next((mark for mark in marks if isinstance(mark, Range)), None)


def describe_number(kind: Any) -> str:
    """Return what a number, or each number of a list, must be."""
    bare, _ = _bare(kind)
    if get_origin(bare) is tuple:
        return describe_number(_element(bare))
    return f"must be a {'whole' if bare is int else 'finite'} number, {range_of(kind)}"


def _type_problem(value: Any, kind: Any) -> str:
    """Return what a value must be to have a type without marks, or an empty string if it has."""
    if get_origin(kind) in (Union, types.UnionType):
        problems = [_type_problem(value, one) for one in get_args(kind)]
        return "" if "" in problems else " or ".join(dict.fromkeys(problems)).replace(" or must be ", " or ")
    if get_origin(kind) is Literal:
        # 1 == True: the type counts, too.
        fits = any(value == one and type(value) is type(one) for one in get_args(kind))
        return "" if fits else f"must be one of {', '.join(map(str, get_args(kind)))}"
    if get_origin(kind) is tuple:
        if not isinstance(value, list | tuple):
            return "must be a list"
        return next((found for one in value if (found := problem_of(one, _element(kind)))), "")
    if kind is float:
        fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        return "" if fits else "must be a finite number"
    if kind is int:
        return "" if isinstance(value, int) and not isinstance(value, bool) else "must be a whole number"
    names = {str: "a text", bool: "True or False", Path: "a path"}
    return "" if isinstance(value, kind) else f"must be {names.get(kind, kind)}"


@functools.cache
def _hints(form: type) -> dict[str, Any]:
    return get_type_hints(form, include_extras=True)


def _bare(kind: Any) -> tuple[Any, tuple[Mark, ...]]:
    """Return a type without its marks, and the marks."""
    if get_origin(kind) is Annotated:
        bare, *marks = get_args(kind)
        return bare, tuple(mark for mark in marks if hasattr(mark, "problem"))
    return kind, ()


def _element(kind: Any) -> Any:
    """Return the type of the elements of `tuple[TYPE, ...]`."""
    return get_args(_bare(kind)[0])[0]


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"
