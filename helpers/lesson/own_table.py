"""A CSV file that a learner brings: read to its end once, so that what is wrong with it is said in one line at the start."""

from pathlib import Path

from helpers import data
from helpers.lesson.parameters import ParameterError


def look_at_table(named: str, encoding: str = "auto") -> tuple[dict, str]:
    """(how pandas has to read the CSV file `named`: its encoding and sep, what was understood of it in words).

    Raises a CourseError, one line, for a file that is not there, that is no CSV, that has no rows, or that is damaged or
    written in another encoding anywhere in it.
    """
    if not Path(named).expanduser().is_file():
        raise ParameterError(
            f"data_file = {named!r} is no file, seen from {Path.cwd()}: give its whole path. In Colab, drag the file into "
            "the file browser on the left, and copy its path from there"
        )
    (file,) = data.Reading(named, encoding=encoding).files
    if file.kind not in ("CSV", "TSV"):
        raise ParameterError(
            f"data_file = {named!r} holds {file.kind}, and this lesson reads CSV: save it as CSV (UTF-8)"
        )
    count = sum(1 for _ in file.rows())
    if not count:
        raise data.DataError(f"{file.path.name} holds no rows below its heading")
    return {"encoding": file.encoding, "sep": file.delimiter}, f"{file.path.name}: {file}; {count:,} rows"
