"""The sections of a lesson, as its headings make them, with the minutes and the kind that site/workshop/plan.toml gives them.

A section is of the kind `teach`, `read` or `skip`. A cell that carries one of the three as a tag is of that kind, whatever
its section says. A lesson that the plan does not know yet is taught as a whole, but for its "Further down".
"""

import functools
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from helpers import COURSE_ROOT, CourseError, course

KIT = COURSE_ROOT / "site" / "workshop"  # the texts and templates of the workshop kit
KINDS = ("teach", "read", "skip")
HEADING = re.compile(r"^##?#? (.+)$")
TITLE = re.compile(r"^# (.+)$", re.MULTILINE)  # in the first cell, below the badges
EXERCISE = re.compile(r"\*\*(?:Exercise )?(\d+)\.")  # as each exercise begins
MINUTES = re.compile(r"(\d+) minutes, •")


@dataclass
class Section:
    """A part of a lesson, from one heading to the next."""

    heading: str
    kind: str
    minutes: int = 0  # to teach, an estimate
    cells: list[int] = field(default_factory=list)  # which cells of the notebook, counted from 1, as Jupyter shows none
    code: int = 0  # how many of them are code
    exercises: dict[int, int] = field(default_factory=dict)  # number: minutes


@functools.cache
def plan() -> dict:
    """site/workshop/plan.toml."""
    return tomllib.loads((KIT / "plan.toml").read_text(encoding="utf-8"))


def pieces(notebook) -> list[tuple[str, Any]]:
    """(heading, cell) in order; a cell of prose in which a new section begins is cut in two there."""
    found: list[tuple[str, Any]] = []
    heading = ""
    for cell in notebook.cells:
        for part in _cut(cell):
            match = HEADING.match(part.source.partition("\n")[0]) if cell.cell_type == "markdown" else None
            match = match if found else TITLE.search(part.source)
            heading = match[1] if match else heading
            found.append((heading, part))
    return found


def _cut(cell) -> list:
    """A cell of prose, cut before each heading that is not in a fence; any other cell as it is."""
    if cell.cell_type != "markdown":
        return [cell]
    texts: list[list[str]] = [[]]
    fenced = False
    for line in cell.source.splitlines():
        fenced ^= line.lstrip().startswith("```")
        if line.startswith(("## ", "### ")) and not fenced and "".join(texts[-1]).strip():
            texts.append([])
        texts[-1].append(line)
    if len(texts) == 1:
        return [cell]
    parts = [type(cell)(cell) for _ in texts]
    for number, (part, lines) in enumerate(zip(parts, texts, strict=True)):
        part.source = "\n".join(lines).strip()
        part.id = cell.id if number == 0 else f"{cell.id}-s{number}"
    return parts


def kind_of(lesson: Path, heading: str, further: bool) -> str:
    """The kind of a section: the plan's, else `read` below "Further down" and `teach` above it."""
    planned = plan()["lessons"].get(lesson.stem, {}).get("sections", {}).get(heading, {})
    return planned.get("kind", "read" if further else "teach")


def with_kinds(lesson: Path, notebook) -> list[tuple[str, str, Any]]:
    """(heading, kind, cell) of the pieces of a lesson's notebook. Raises CourseError for a cell of two kinds."""
    found, further = [], False
    for heading, cell in pieces(notebook):
        further = further or heading == "Further down"
        own = [tag for tag in cell.metadata.get("tags", []) if tag in KINDS]
        if len(own) > 1:
            raise CourseError(f"{lesson.stem}: a cell has the tags {' and '.join(own)}; it can be of one kind only")
        found.append((heading, own[0] if own else kind_of(lesson, heading, further), cell))
    return found


def sections(lesson: Path) -> list[Section]:
    """The sections of a lesson in order, with the cells of its notebook that belong to them."""
    notebook = course.to_notebook(lesson)
    number = {cell.id: place for place, cell in enumerate(notebook.cells, 1)}
    planned = plan()["lessons"].get(lesson.stem, {}).get("sections", {})
    found: list[Section] = []
    further, place = False, 1
    for heading, cell in pieces(notebook):
        further = further or heading == "Further down"
        if not found or found[-1].heading != heading:
            minutes = planned.get(heading, {}).get("minutes", 0)
            found.append(Section(heading, kind_of(lesson, heading, further), minutes))
        here = found[-1]
        place = number.get(cell.id, place)  # the later part of a cell that was cut stands in the same cell
        here.cells.append(place)
        here.code += cell.cell_type == "code"
        if cell.cell_type == "markdown":
            here.exercises |= exercises_in(cell.source)
    return found


def exercises_in(text: str) -> dict[int, int]:
    """{number: minutes} of the exercises that begin in a text."""
    found = {}
    for part in re.split(r"(?=\*\*(?:Exercise )?\d+\.)", text):
        number, minutes = EXERCISE.match(part), MINUTES.search(part)
        if number and minutes:
            found[int(number[1])] = int(minutes[1])
    return found
