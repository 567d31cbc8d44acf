"""The minutes "to read" in a lesson's head are counted from its text: nobody has timed a reader."""

import re

import pytest

from helpers.course import disk as course

# Adults read 238 words of English non-fiction a minute (Brysbaert 2019, doi:10.1016/j.jml.2019.104047), and fewer with formulas.
WORDS_A_MINUTE = 200
SECONDS_A_LINE = 5  # of code: an estimate


def minutes(notebook) -> float:
    """What the text and the code of a lesson take to read; exercises have minutes of their own, "Further down" is for later."""
    words = lines = 0
    counted = True
    for cell in notebook.cells:
        for line in cell.source.splitlines():
            if cell.cell_type == "markdown" and line.startswith("## "):
                counted = line[3:].strip() not in ("Exercises", "Further down")
            if not counted or "bootstrap" in cell.metadata.get("tags", []):
                continue
            if cell.cell_type == "markdown":
                words += len(re.sub(r"\]\([^)]*\)|<[^>]*>|[|*`]", " ", line).split())
            else:
                lines += bool(line.strip())
    return words / WORDS_A_MINUTE + lines * SECONDS_A_LINE / 60


@pytest.mark.parametrize("lesson", course.lessons(), ids=lambda lesson: lesson.stem)
def test_the_minutes_to_read_are_those_of_its_words_and_lines(lesson):
    notebook = course.to_notebook(lesson)
    head = "\n".join(cell.source for cell in notebook.cells[:3] if cell.cell_type == "markdown")
    stated = re.search(r"to read \| (\d+) minutes|\*\*Time:\*\* (\d+) minutes to read", head)
    assert stated, "its head says how long it takes to read"
    assert abs(int(stated[1] or stated[2]) - minutes(notebook)) <= 5
