"""The typed command line of every job: `JOB PRESET --section.field value`, one line for a mistake."""

import contextlib
import dataclasses
import difflib
import io
import os
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn, TypeVar

from brewclip.config.checks import check, ignored_settings
from brewclip.config.presets import PRESETS, preset
from brewclip.config.renamed import with_current_flags
from brewclip.config.settings import Config, flatten
from brewclip.config.submitted import check_submitted
from brewclip.errors import UserError

Form = TypeVar("Form")
ConfigForm = TypeVar("ConfigForm", bound=Config)


@contextlib.contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Print a `UserError` as one line and exit with code 2; other errors keep their traceback.

    Ctrl-C prints one line, too, and exits with code 130.
    """
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        raise SystemExit(130) from None


def parse_command_line(
    usage: str | None,
    form: type[ConfigForm] = Config,  # type: ignore[assignment]
    arguments: Sequence[str] | None = None,
) -> ConfigForm:
    """Read `PRESET --section.field value ...` from the command line.

    Args:
        usage: docstring of the job, shown first in the help.
        form: `Config`, or a dataclass that adds the job's own flags to it.
        arguments: words of the command line; `sys.argv` by default.

    Returns:
        The checked configuration.

    Raises:
        UserError: for an unknown preset or flag, a value of the wrong type, or incompatible settings.
    """
    words = with_current_flags(sys.argv[1:] if arguments is None else arguments)
    if words and not words[0].startswith("-"):
        name, words = words[0], words[1:]
    elif {"-h", "--help"} & set(words):
        name = "scenes"
        usage = f"{usage}\nPresets: {', '.join(PRESETS)}. Defaults below are those of {name!r}."
    else:
        raise UserError(f"no preset given: name one of {', '.join(PRESETS)} as the first word")
    try:
        start = preset(name)
        start_form = form(**{item.name: getattr(start, item.name) for item in dataclasses.fields(start)})
        config = _run_tyro(form, _with_gpu_value(words), usage, default=start_form)
        check(config)
        missing = check_submitted(config.storage, config.tracking.uri)
    except ValueError as error:
        raise UserError(str(error)) from None
    for line in ignored_settings(config) + missing:
        print(f"warning: {line}", file=sys.stderr)
    return config


def parse_options(usage: str | None, form: type[Form], arguments: Sequence[str] | None = None) -> Form:
    """Read the flags of a job that has no preset.

    Raises:
        UserError: for an unknown flag or a value of the wrong type.
    """
    return _run_tyro(form, list(sys.argv[1:] if arguments is None else arguments), usage)


def _run_tyro(target: type[Form], words: list[str], usage: str | None, **default: Any) -> Form:
    import tyro

    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            value, unknown = tyro.cli(target, args=words, description=usage, return_unknown_args=True, **default)
    except (SystemExit, BrokenPipeError) as stop:
        if isinstance(stop, SystemExit) and stop.code not in (0, None):
            raise UserError(_one_line(complaint.getvalue())) from None
        _end_help()
    if unknown:
        flags = [f"--{name.replace('_', '-')}" for name in flatten(value)]
        near = difflib.get_close_matches(unknown[0], flags, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else "see --help"
        raise UserError(f"unknown argument {unknown[0]!r}: {hint}")
    return value


def _with_gpu_value(words: list[str]) -> list[str]:
    """Add the value to a --cluster.use-gpu without one, as commands recorded by earlier versions have it."""
    spelled: list[str] = []
    for place, word in enumerate(words):
        if word == "--cluster.no-use-gpu":
            spelled += ["--cluster.use-gpu", "False"]
        elif word == "--cluster.use-gpu" and (words[place + 1 :] or ["--"])[0].startswith("-"):
            spelled += [word, "True"]
        else:
            spelled.append(word)
    return spelled


def _end_help() -> NoReturn:
    """Exit after `--help`, also if its output is closed early, as in `--help | head`."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes at its end
    raise SystemExit(0)


def _one_line(box: str) -> str:
    """Flatten a framed message of tyro to one line."""
    text = re.sub(r"\x1b\[[0-9;]*m|[\u2500-\u257f]", " ", box)
    text = re.sub(r"\s+", " ", text).strip()
    return re.sub(r" ?For full helptext.*$|^Parsing error ", "", text)
