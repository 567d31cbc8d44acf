"""What lessons and commands share, in rooms: each room lists the names that others may take from it.

Importing it is cheap: torch and its friends are imported where they are first needed.
"""

import os
import sys
from pathlib import Path

if sys.version_info < (3, 11):  # noqa: UP036 (files are imported, too, that nobody installed)
    raise SystemExit(
        f"Python {sys.version.split()[0]} is too old: install Python 3.11, 3.12 or 3.13, and make the environment again"
    )

# Idle OpenMP threads sleep instead of spinning. With another busy process on two cores, spinning made training of the
# bundled model several times slower. It must be set before torch loads its OpenMP, so lessons import helpers first.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

COURSE_ROOT = Path(__file__).resolve().parent.parent


class CourseError(Exception):
    """A problem a reader can mend: one line that says what is wrong and what to do.

    A notebook shows that line alone; the traceback stays out of the way. Its cause, if it has one, is chained.
    """

    def __str__(self) -> str:  # one line, whatever a value or a path in it holds
        return one_line(super().__str__())

    def _render_traceback_(self) -> list[str]:  # IPython calls this in place of printing a traceback
        return [f"{type(self).__name__}: {self}"]


def one_line(text: str) -> str:
    """The text in one line: a space for a line break, and an escape for what cannot be printed."""
    shown = (c if c.isprintable() else " " if c.isspace() else c.encode("unicode_escape").decode() for c in text)
    return "".join(shown)
