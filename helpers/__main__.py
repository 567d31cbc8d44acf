"""`python -m helpers COMMAND`: what maintainers, instructors and experimenters run."""

import argparse
import ast
import functools
import importlib
import os
import sys
from pathlib import Path

from helpers import COURSE_ROOT, CourseError, one_line

FOLDER = COURSE_ROOT / "helpers" / "commands"


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage, which can be thirty lines long."""

    def error(self, message):
        self.exit(2, f"{self.prog}: {one_line(message)}; --help says what there is\n")


def main(arguments: list[str] | None = None) -> int:
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # what a terminal or a pipe of Windows cannot show is written as an escape
            stream.reconfigure(errors="backslashreplace")
    parser = Parser(
        prog="python -m helpers",
        description=__doc__,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, width=150),
    )  # one line a command
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for file in sorted(FOLDER.glob("[a-z]*.py")):
        commands.add_parser(file.stem, help=first_line(file), add_help=False)
    arguments = sys.argv[1:] if arguments is None else arguments
    chosen, rest = parser.parse_known_args(arguments[:1])[0].command, arguments[1:]
    if chosen is None:
        parser.print_help()
        return 0
    tool = importlib.import_module(f"helpers.commands.{chosen}")
    own = Parser(
        prog=f"python -m helpers {chosen}",
        description=tool.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    tool.add_arguments(own)
    try:
        refuse_odd(rest)
        return tool.main(own.parse_args(rest)) or 0
    except CourseError as error:
        print(f"python -m helpers {chosen}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


@functools.cache
def first_line(file: Path) -> str:
    """A command's help line: read, not imported, so that listing commands stays fast."""
    return (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").partition("\n")[0]


def refuse_odd(words: list[str]) -> None:
    """Raise CourseError for words that no file system and no parameter takes, in one place for all commands."""
    for word in words:
        if not word.isprintable():
            raise CourseError(f"{word!r} holds characters that cannot be printed")
        if word.startswith("~") and os.path.expanduser(word) == word:
            raise CourseError(f"{word!r}: there is no such user")
        if "=" not in word and any(len(part.encode()) > 255 for part in word.split("/")):
            raise CourseError(f"{word[:40] + '...'!r} is longer than a file's name can be")


if __name__ == "__main__":
    sys.exit(main())
