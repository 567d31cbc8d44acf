"""The notebooks of a class: no output and no solution for learners, every solution a cell for the instructor, and both run."""

import builtins
import json
import os
import re

import nbformat
import pytest

from helpers import COURSE_ROOT, CourseError, course
from helpers.__main__ import main
from helpers.workshop import write_learner_notebooks
from helpers.workshop.learner_notebooks import SOLUTION, filled, learner_notebook, names, solutions_notebook, taught
from helpers.workshop.sections import KINDS, exercises_in, pieces, plan, sections, with_kinds
from tests.cells import solutions, tagged

LESSONS, SOLUTIONS = course.lessons(), solutions()
BOTH = [(make, short) for make in (learner_notebook, solutions_notebook) for short in (False, True)]


@pytest.fixture(scope="module")
def made():
    return {(lesson.stem, make, short): make(lesson, short) for lesson in LESSONS for make, short in BOTH}


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def prose(notebook):
    return "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def missing(cells) -> set[str]:
    """Names that a cell takes and that no cell before it, nor Python, has."""
    have, lost = set(dir(builtins)) | {"display", "get_ipython"}, set()
    for cell in cells:
        stores, loads = names(cell.source)
        lost |= loads - have - stores
        have |= stores
    return lost


OF_A_LESSON = pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.stem)


@OF_A_LESSON
@pytest.mark.parametrize("short", [False, True])
def test_a_learner_gets_neither_outputs_nor_solutions(lesson, short, made):
    notebook = made[lesson.stem, learner_notebook, short]
    nbformat.validate(notebook)
    assert [cell for cell in code(notebook) if cell.outputs or cell.execution_count] == []
    assert not re.search(r"Solution|folded away|\[!\[", prose(notebook))
    text = "\n".join(cell.source for cell in notebook.cells)
    own = {name: block for name, block in SOLUTIONS.items() if name.startswith(lesson.stem[:2])}
    assert [name for name, block in own.items() if block.strip() in text] == []


@OF_A_LESSON
def test_a_learner_keeps_every_stub_with_its_check_and_every_other_line(lesson, made):
    notebook, whole = made[lesson.stem, learner_notebook, False], course.to_notebook(lesson)
    assert [cell.source for cell in code(notebook)[:-1]] == [cell.source for cell in code(whole)]
    for name in SOLUTIONS:
        if name.startswith(lesson.stem[:2]):
            assert sum(f'check("{name}"' in cell.source for cell in code(notebook)) == 1, name
    kept = [line for line in prose(notebook).splitlines() if line.startswith("#")]
    assert kept[:-1] == [line for line in prose(whole).splitlines() if line.startswith("#") and line in kept]


@OF_A_LESSON
@pytest.mark.parametrize("short", [False, True])
def test_the_instructor_has_each_solution_as_a_cell_below_its_stub(lesson, short, made):
    """These are the very blocks that tests/lesson/test_checks.py, test_lesson00, 01 and 04 run and find right."""
    cells = code(made[lesson.stem, solutions_notebook, short])
    found = [cell.source for cell in cells if "solution" in cell.metadata.get("tags", [])]
    wanted = {name: block.strip() for name, block in SOLUTIONS.items() if name.startswith(lesson.stem[:2])}
    assert found == list(wanted.values())
    places = [cell.source for cell in cells]
    for name, block in wanted.items():
        stub = next(place for place, source in enumerate(places) if f'check("{name}"' in source)
        assert places[stub + 1] == block
    assert "<summary>Solution" not in prose(made[lesson.stem, solutions_notebook, short])


@OF_A_LESSON
@pytest.mark.parametrize("make", [learner_notebook, solutions_notebook])
def test_a_short_notebook_lacks_no_name_that_the_whole_one_has(lesson, make, made):
    whole, short = (code(made[lesson.stem, make, short]) for short in (False, True))
    assert missing(short) - missing(whole) == set()


@OF_A_LESSON
def test_a_short_notebook_begins_alike_and_keeps_only_what_is_taught(lesson, made):
    whole, short = (made[lesson.stem, learner_notebook, short] for short in (False, True))
    assert [cell.source for cell in code(short)[:3]] == [cell.source for cell in code(whole)[:3]]
    headings = {heading for heading, kind, _ in with_kinds(lesson, filled(lesson)) if kind != "teach"}
    assert [heading for heading in headings if f"# {heading}\n" in prose(short)] == []
    assert set(prose(short).splitlines()) <= set(prose(whole).splitlines())


@OF_A_LESSON
def test_links_between_notebooks_lead_to_the_class_s_own(lesson, made):
    for make, short in BOTH:
        targets = re.findall(r"\]\(([\w./-]+\.ipynb)\)", prose(made[lesson.stem, make, short]))
        assert all(re.fullmatch(r"\d\d\.ipynb", target) for target in targets)
        assert {target[:2] for target in targets} <= {other.stem[:2] for other in LESSONS}


def test_the_last_cell_hands_in(made):
    for lesson in LESSONS:
        cell = tagged(made[lesson.stem, learner_notebook, True], "hand-in")
        assert "save_class_file(" in cell.source
        assert "run.folder" in cell.source
        assert any(re.search(r"^run = begin\(", other.source, re.MULTILINE) for other in code(filled(lesson)))


# --- kinds of cells ----------------------------------------------------------------------------------------------


def notebook_of(*cells):
    made = {"markdown": nbformat.v4.new_markdown_cell, "code": nbformat.v4.new_code_cell}
    return nbformat.v4.new_notebook(
        cells=[made[kind](text, metadata={"tags": list(tags)}) for kind, text, *tags in cells]
    )


HEAD = [("markdown", "# 00 A"), ("code", "import os"), ("code", "rank = 4"), ("code", "run = rank")]


def test_a_cell_s_own_tag_goes_before_its_section_s_kind():
    own = [
        ("markdown", "## Further down"),
        ("markdown", "kept", "teach"),
        ("markdown", "dropped"),
        ("code", "print(1)", "skip"),
    ]
    of_kinds = [(kind, cell) for _, kind, cell in with_kinds(LESSONS[0], notebook_of(*HEAD, *own))]
    assert [cell.source for cell in taught(of_kinds)][4:] == ["kept"]


def test_a_cell_of_two_kinds_is_refused():
    with pytest.raises(CourseError, match="a cell has the tags read and skip"):
        with_kinds(LESSONS[0], notebook_of(*HEAD, ("markdown", "b", "read", "skip")))


@pytest.mark.parametrize(
    ("between", "after", "kept"),
    [
        ("x = 1", "print(x)", True),
        ("x = 1", "print(y)", False),
        ("def x():\n    return y", "x()", True),
        ("import numpy as x", "x.zeros(1)", True),
        ("run.train()", "run.rows", True),
        ("run.rows = 1", "run.rows", True),
        ("run['a'] = 1", "run", True),
        ("prepare(run)", "run", True),
        ("print(run)", "run", False),
        ("show(x)", "run", False),
        ("with open('a') as x:\n    pass", "x", True),
        ("%pip install a\nx = 1", "x", True),
        ("for x in 'ab':\n    pass", "f = lambda: x", True),
        ("x = 1", "def f(x):\n    return x", False),
    ],
)
def test_code_between_is_kept_folded_if_what_is_taught_needs_it(between, after, kept):
    own = [("code", between, "read"), ("markdown", "words", "read"), ("code", after)]
    of_kinds = [(kind, cell) for _, kind, cell in with_kinds(LESSONS[0], notebook_of(*HEAD, *own))]
    cells = taught(of_kinds)[4:]
    assert [between in cell.source for cell in cells] == ([True, False] if kept else [False])
    assert cells[0].metadata.get("cellView") == ("form" if kept else None)


def test_a_cell_of_prose_is_cut_where_a_section_begins_and_not_in_a_fence():
    text = "end of one\n\n```python\n## no heading\n```\n\n## Further down\n\nwords"
    found = [(heading, cell.source) for heading, _, cell in with_kinds(LESSONS[0], notebook_of(("markdown", text)))]
    assert found == [("", text.partition("\n\n## F")[0]), ("Further down", "## Further down\n\nwords")]


# --- the plan of sections ------------------------------------------------------------------------------------------


def test_every_lesson_is_planned_and_no_other():
    assert list(plan()["lessons"]) == [lesson.stem for lesson in LESSONS]


@OF_A_LESSON
def test_the_plan_has_each_section_of_the_lesson_and_no_other(lesson):
    found = [section.heading for section in sections(lesson)]
    planned = plan()["lessons"][lesson.stem]["sections"]
    assert [heading for heading in planned if heading not in found] == []
    above = found[: found.index("Further down")] if "Further down" in found else found
    assert [heading for heading in above if heading not in planned] in (
        [], ["Exercises", "What you have now"], ["Exercises", "What you did"], ["Exercises", "What you saw"],
        ["What you have now"],
    )  # fmt: skip
    assert all(each.get("kind", "teach") in KINDS and each["minutes"] > 0 for each in planned.values())


# --- minutes: the notes, the head of the lesson and its exercises say the same ------------------------------------------


def minutes_of_notes(notes: str) -> tuple[int, int]:
    """(to teach, for the exercises), as each instructor's file says it."""
    found = re.findall(r"(\d+) to teach, (\d+) for the\s+(?:\w+\s+)?exercises", notes)
    assert len(found) == 1, f"{len(found)} times 'N to teach, N for the exercises'"
    return int(found[0][0]), int(found[0][1])


def minutes_of_head(first_cell: str) -> tuple[int, int]:
    """(to read, for the exercises) as the first cell of a lesson says it, in a sentence or in a table."""
    in_words = re.search(r"\*\*Time:\*\* (\d+) minutes to read, (\d+) for the exercises", first_cell)
    in_table = re.search(r"\| to read \| (\d+) minutes\b.*\n\| exercises[\w ]* \| (\d+) minutes \|", first_cell)
    found = in_words or in_table
    assert found, "the head does not say how long it takes to read, and how long the exercises take"
    return int(found[1]), int(found[2])


def reading_minutes(lesson) -> float:
    """200 words of prose in a minute, and twelve lines of code, without exercises and "Further down"; an estimate."""
    words = lines = 0
    for heading, cell in pieces(course.to_notebook(lesson)):
        if heading in ("Exercises", "Further down") or exercises_in(cell.source):
            if heading == "Further down":
                break
            continue
        if cell.cell_type == "markdown":
            words += len(SOLUTION.sub("", cell.source).split())
        elif not {"bootstrap", "parameters"} & set(cell.metadata.get("tags", [])) and "check(" not in cell.source:
            lines += len([line for line in cell.source.splitlines() if line.strip()])
    return words / 200 + lines / 12


@OF_A_LESSON
def test_the_minutes_of_sections_and_exercises_are_those_in_the_instructor_s_notes(lesson):
    found = sections(lesson)
    exercises = sum(sum(section.exercises.values()) for section in found)
    notes = lesson.with_suffix(".instructor.md").read_text(encoding="utf-8")
    assert minutes_of_notes(notes) == (sum(section.minutes for section in found), exercises)


@OF_A_LESSON
def test_the_head_of_a_lesson_says_the_minutes_of_its_exercises_and_of_reading_it(lesson):
    to_read, for_exercises = minutes_of_head(course.to_notebook(lesson).cells[0].source)
    assert for_exercises == sum(sum(section.exercises.values()) for section in sections(lesson))
    assert 0.9 <= to_read / reading_minutes(lesson) <= 1.1, f"{reading_minutes(lesson):.0f} minutes by its words"


def test_an_exercise_whose_minutes_nobody_added_is_noticed():
    text = "**1. Write** (5 minutes, •). Write.\n\n**2. Repair** (10 minutes, ••). Repair.\n\n**3.** *Decide*, 5 minutes, •."
    assert exercises_in(text) == {1: 5, 2: 10, 3: 5}


@pytest.mark.parametrize("words", ["45 to read, 60 for the exercises", "45 to teach, sixty for the exercises", ""])
def test_notes_in_other_words_are_noticed(words):
    with pytest.raises(AssertionError, match="0 times"):
        minutes_of_notes(f"- **Minutes:** {words}.")


# --- the command, and a run ----------------------------------------------------------------------------------------


def test_the_command_writes_both_for_the_lessons_that_are_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        "helpers.commands.build.write_learner_notebooks", lambda *a: write_learner_notebooks(*a, tmp_path)
    )
    monkeypatch.setattr("helpers.commands.build.COURSE_ROOT", tmp_path)
    assert main(["build", "--learner", "00", "3"]) == 0
    assert capsys.readouterr().out.split() == [f"{f}/{n}.ipynb" for n in ("00", "03") for f in ("learner", "solutions")]
    notebook = nbformat.read(tmp_path / "learner" / "03.ipynb", as_version=4)
    assert notebook.metadata["course"]["form"] == "learner"
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)


@pytest.mark.parametrize("words", [["--short"], ["--learner", "--force"], ["--learner", "--check"]])
def test_options_that_do_not_go_together_are_refused(words, capsys):
    assert main(["build", *words]) == 2
    assert "--short goes with --learner" in capsys.readouterr().err


def test_what_is_made_is_not_tracked():
    assert "\n/workshop/\n" in (COURSE_ROOT / ".gitignore").read_text()


@pytest.mark.long
@OF_A_LESSON
def test_the_instructor_s_short_notebook_runs_from_top_to_bottom_and_every_solution_is_right(
    lesson, made, tmp_path, monkeypatch
):
    from nbclient import NotebookClient

    monkeypatch.setenv("COURSE_RUNS", os.environ.get("COURSE_RUNS", str(tmp_path)))
    notebook = made[lesson.stem, solutions_notebook, True]
    where = {"metadata": {"path": str(course.NOTEBOOKS)}}
    NotebookClient(notebook, timeout=900, kernel_name="python3", resources=where).execute()
    for cell in code(notebook):
        if "solution" in cell.metadata.get("tags", []):
            assert ": right." in json.dumps(cell.outputs), cell.source
