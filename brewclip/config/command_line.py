"""The typed command line of every job: `JOB PRESET --section.field value`, one line for a mistake."""

import contextlib
import dataclasses
import difflib
import io
import os
import re
import select
import sys
import traceback
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn, TypeVar

from brewclip.config.addresses import check_endpoint
from brewclip.config.checks import check, ignored_settings
from brewclip.config.extras import EXTRA_OF, describe_missing
from brewclip.config.flat import flatten
from brewclip.config.masking import without_secrets
from brewclip.config.presets import PRESETS, preset
from brewclip.config.ranges import check_ranges, describe_number, is_number, range_of, settings_of, show
from brewclip.config.renamed import with_current_flags
from brewclip.config.settings import Config
from brewclip.config.submitted import check_submitted
from brewclip.config.unused import unused_flags
from brewclip.errors import UserError

Form = TypeVar("Form")
ConfigForm = TypeVar("ConfigForm", bound=Config)
_LONGEST_LINE = 400
# Two messages of tyro 1.0, on a number and on a list of numbers.
_NO_NUMBER = re.compile(
    r"Error parsing (--[\w.-]+)(?:.*(?:invalid literal for int|could not convert).*?: |.* for arguments: \[)('.*')"
)


@contextlib.contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Print a `UserError` as one line and exit with code 2; other errors keep their traceback.

    Ctrl-C prints one line, too, and exits with code 130.
    """
    try:
        yield
    except UserError as error:
        print(f"error: {without_secrets(str(error))}", file=sys.stderr, flush=True)
        raise SystemExit(2) from None
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in EXTRA_OF:
            raise
        print(f"error: {describe_missing(error.name.partition('.')[0], 'this')}", file=sys.stderr, flush=True)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        raise SystemExit(130) from None
    except Exception:
        text = traceback.format_exc()
        if without_secrets(text) == text:
            raise
        print(without_secrets(text), file=sys.stderr, flush=True)  # Python would print it as it is
        raise SystemExit(1) from None


def parse_command_line(
    usage: str | None,
    form: type[ConfigForm] = Config,  # type: ignore[assignment]
    arguments: Sequence[str] | None = None,
    *,
    ignored: Sequence[str] = (),
) -> ConfigForm:
    """Read `PRESET --section.field value ...` from the command line.

    Args:
        usage: docstring of the job, shown first in the help.
        form: `Config`, or a dataclass that adds the job's own flags to it.
        arguments: words of the command line; `sys.argv` by default.
        ignored: settings and sections that the job does not use, see `unused`; flags of them are warned of.

    Returns:
        The checked configuration.

    Raises:
        UserError: for an unknown preset or flag, a value of the wrong type or out of range, or incompatible settings.
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
        check_endpoint(_texts_of(config))
        missing = check_submitted(config.storage, config.tracking.uri)
    except ValueError as error:
        raise UserError(str(error)) from None
    for line in unused_flags(words, ignored) + ignored_settings(config) + missing:
        print(f"warning: {without_secrets(line)}", file=sys.stderr)
    return config


def parse_options(usage: str | None, form: type[Form], arguments: Sequence[str] | None = None) -> Form:
    """Read the flags of a job that has no preset.

    Raises:
        UserError: for an unknown flag, or a value of the wrong type or out of range.
    """
    options = _run_tyro(form, list(sys.argv[1:] if arguments is None else arguments), usage)
    try:
        check_ranges(options)
        check_endpoint(_texts_of(options))
    except ValueError as error:
        raise UserError(str(error)) from None
    return options


def _texts_of(options: Any) -> list[str]:
    """Return all texts among the settings, also those of lists."""
    values = (value if isinstance(value, list) else [value] for value in flatten(options).values())
    return [one for value in values for one in value if isinstance(one, str)]


def _run_tyro(target: type[Form], words: list[str], usage: str | None, **default: Any) -> Form:
    import tyro

    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            value, unknown = tyro.cli(target, args=words, description=usage, return_unknown_args=True, **default)
    except (SystemExit, BrokenPipeError) as stop:
        if isinstance(stop, SystemExit) and stop.code not in (0, None):
            raise UserError(_wrong_type(_one_line(complaint.getvalue()), target)) from None
        _end_help(target)
    if unknown:
        flags = [f"--{name.replace('_', '-')}" for name in flatten(value)]
        raise UserError(f"unknown argument {show(unknown[0])}: {_hint(unknown[0], flags)}")
    return value


def _hint(word: str, flags: list[str]) -> str:
    """Return what may have been meant by a word that the parser does not know."""
    if not word.startswith("--"):
        return "it stands behind no flag that takes it, see --help"
    name = word.partition("=")[0].replace("_", "-")
    same_end = [flag for flag in flags if flag.removeprefix("--").rpartition(".")[2] == name.removeprefix("--")]
    near = same_end or difflib.get_close_matches(name, flags, n=1, cutoff=0.7)
    return f"did you mean {near[0]}?" if near else "see --help"


def _wrong_type(message: str, form: type) -> str:
    """Return what a number must be, instead of the parser's words on a text that is none."""
    found = _NO_NUMBER.search(message)
    kinds = {f"--{name.replace('_', '-')}": kind for name, _, kind in settings_of(form)} if found else {}
    if found is None or not is_number(kinds.get(found[1])):
        return message
    return f"{found[1]} {found[2]} {describe_number(kinds[found[1]])}"


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


@contextlib.contextmanager
def ending_with_its_reader(code: int = 141) -> Iterator[None]:
    """End without a traceback if what reads the output has ended, as in `brewclip search ... | head`.

    Other broken pipes are raised.

    Args:
        code: the exit code then; by default that of a program that SIGPIPE ends.
    """
    try:
        try:
            yield
        except SystemExit:
            sys.stdout.flush()
            raise
        sys.stdout.flush()
    except BrokenPipeError:
        poll = select.poll()
        poll.register(sys.stdout, select.POLLOUT)
        if not any(event & select.POLLERR for _, event in poll.poll(0)):  # another pipe
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes at its end
        raise SystemExit(code) from None


def _end_help(form: type) -> NoReturn:
    """Print the ranges of numbers and exit, also if the output is closed early, as in `--help | head`."""
    ranges = {f"--{name.replace('_', '-')}": range_of(kind) for name, _, kind in settings_of(form) if is_number(kind)}
    width = max(map(len, ranges), default=0)
    lines = ["ranges of numbers:", *(f"  {flag:<{width}}  {allowed}" for flag, allowed in ranges.items())]
    with ending_with_its_reader(code=0):
        print("\n".join(lines if ranges else []))
    raise SystemExit(0)


def _one_line(box: str) -> str:
    """Flatten a framed message of tyro to one line."""
    text = re.sub(r"\x1b\[[0-9;]*m|[\u2500-\u257f]", " ", box)
    text = re.sub(r"\s+", " ", text).strip()
    text = re.sub(r" ?(For full helptext|Argument helptext:).*$|^(Parsing|Value) error ", "", text)
    return text if len(text) <= _LONGEST_LINE else f"{text[:_LONGEST_LINE]}..."
