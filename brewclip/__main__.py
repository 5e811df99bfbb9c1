"""Find images by speech, by text or by another image.

brewclip index IMAGES... --out INDEX         make an index of folders, files, globs or s3:// prefixes, or update it
brewclip search --index INDEX --audio FILE   find images; also --text "..." or --image FILE
brewclip serve --index INDEX                 the same as a page and an API
brewclip --version                           versions of this package and of what it runs on

`brewclip COMMAND --help` lists the settings of a command. Exit codes: 0, 1 if nothing is above --threshold, 2 for a
mistake, which is explained in one line, 141 if what reads the output has ended.
"""

import importlib
import sys
from collections.abc import Sequence

from brewclip.config import exit_on_user_error
from brewclip.config.command_line import ending_with_its_reader
from brewclip.errors import UserError
from brewclip.version import describe_versions

# Name -> module and function, which takes the words behind the name and returns the exit code; imported on use.
COMMANDS = {
    "index": ("brewclip.commands.index", "run"),
    "search": ("brewclip.commands.search", "run"),
    "serve": ("brewclip.service.command", "serve"),
}


def main(words: Sequence[str] | None = None) -> None:
    """Run the command named by the first word, and exit."""
    with exit_on_user_error(), ending_with_its_reader():
        name, *rest = (sys.argv[1:] if words is None else list(words)) or [""]
        if name in ("-h", "--help"):
            print((__doc__ or "").strip())
        elif name == "--version":
            print(describe_versions())
        elif name in COMMANDS:
            try:
                module, function = COMMANDS[name]
                code = getattr(importlib.import_module(module), function)(rest)
            except (ValueError, FileNotFoundError) as error:
                raise UserError(str(error)) from error
            raise SystemExit(code)
        else:
            raise UserError(f"no command {name!r}: there are {', '.join(COMMANDS)} (brewclip index --help)")


if __name__ == "__main__":
    main()
