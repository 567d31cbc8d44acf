"""Say what a pasted log's error means and what to do; exit status 1 for one that the course does not know."""

import json
import sys
from pathlib import Path

from helpers import CourseError
from helpers.failures import LOG, all_in, last_error, recognise

SHOWN = 3  # further failures of one log
NOTHING = "There is no error in it that the course knows."
UNKNOWN = """{what}
site/failures.md has the whole list of what the course knows.
Search for its words first, without your own paths and numbers: the library's issues often have it.
To ask, open an issue with these four:
  the whole message, from the first line of the traceback to the last, as text and no picture
  the cell or the command that raised it, and the cells above that it needs
  the versions and the machine: all that `python -m helpers doctor` prints (in a notebook with ! before it)
  what you changed since it last worked
Look through it before you post it: a log can hold tokens and names of folders."""


def add_arguments(parser):
    parser.add_argument("file", nargs="?", help="a log, or a notebook that failed; without it, standard input is read")


def main(arguments) -> int:
    log = read(arguments.file)
    first, known = recognise(log), all_in(log)
    if first is None:
        last = last_error(log)
        print(UNKNOWN.format(what=f"Its last error is unknown to the course:\n  {last}" if last else NOTHING))
        also = known
    else:
        print(known[0].failure.shown)
        print(known[0])
        also = known[1:]
    for other in also[:SHOWN]:
        print(f"\nAlso in this log: {other.failure.shown}\n{other}")
    return 1 if first is None else 0


def read(file: str | None) -> str:
    """The end of a log, or the errors of a notebook, as text; CourseError, one line, if there is no such file."""
    if file is None:
        if sys.stdin.isatty():
            print("Paste the log, then press Ctrl-D on a line of its own.", file=sys.stderr)
        return _end(sys.stdin.buffer)
    try:
        with Path(file).expanduser().open("rb") as stream:
            if file.endswith(".ipynb"):
                return _of_notebook(stream.read())
            return _end(stream)
    except OSError as error:
        raise CourseError(f"{file!r} cannot be read: {error.strerror or error}") from error


def _end(stream) -> str:
    """The last part of a stream of bytes, whatever they are, as text; a longer one takes no more memory."""
    kept = b""
    while block := stream.read(1 << 16):
        kept = (kept + block)[-4 * LOG :]
    return kept.decode("utf-8", errors="replace")


def _of_notebook(content: bytes) -> str:
    try:
        cells = json.loads(content)["cells"]
        outputs = [output for cell in cells for output in cell.get("outputs", [])]
        errors = [out for out in outputs if out.get("output_type") == "error"]
        return "\n".join(f"{out['ename']}: {out['evalue']}" for out in errors)
    except (ValueError, KeyError, TypeError, AttributeError):  # not a notebook after all
        return content.decode("utf-8", errors="replace")
