"""`python -m helpers COMMAND`: what maintainers, instructors and experimenters run."""

import argparse
import ast
import importlib
import sys

from helpers import COURSE_ROOT, CourseError

TOOLS = COURSE_ROOT / "helpers" / "tools"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m helpers",
        description=__doc__,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, width=150),
    )  # one line a command
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for file in sorted(TOOLS.glob("[a-z]*.py")):
        # The help line is read, not imported, so that listing commands stays fast.
        first_line = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))).splitlines()[0]
        commands.add_parser(file.stem, help=first_line, add_help=False)
    arguments = sys.argv[1:] if arguments is None else arguments
    chosen, rest = parser.parse_known_args(arguments[:1])[0].command, arguments[1:]
    if chosen is None:
        parser.print_help()
        return 0
    tool = importlib.import_module(f"helpers.tools.{chosen}")
    own = argparse.ArgumentParser(
        prog=f"python -m helpers {chosen}",
        description=tool.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    tool.add_arguments(own)
    try:
        return tool.main(own.parse_args(rest)) or 0
    except CourseError as error:
        print(f"python -m helpers {chosen}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
