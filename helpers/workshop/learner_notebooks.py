"""The notebooks of a class: for learners without outputs and solutions, for the instructor with the solutions as cells.

Both are made from the lesson's notebook, and what the build wrote into its prose comes along. `short` keeps what is taught
in class, and of the code between only what a kept cell needs, folded away.
"""

import ast
import re
import symtable
from pathlib import Path
from typing import Any

from helpers import COURSE_ROOT, course
from helpers.course import read_notebook, write_notebook
from helpers.workshop.sections import with_kinds

WORKSHOP = COURSE_ROOT / "workshop"  # made by commands, never tracked
SOLUTION = re.compile(r"<details><summary>Solution</summary>\s*(.*?)\s*</details>", re.DOTALL)
CODE = re.compile(r"^```python\n(.*?)^```\s*", re.DOTALL | re.MULTILINE)
TOLD = re.compile(
    r"\s*[^.\n]?[^.]*\b(?i:solutions?)\s+(?:is|are)\s+folded\s+away[^.]*\."
)  # a sentence that is not so here
SHOWS = {
    "print",
    "show",
    "display",
    "table",
    "verdict",
    "record",
    "check",
}  # calls that change nothing that they are given
KEEP = 4  # title, set-up, parameters and begin: no lesson runs without them
FOR_CLASS = """## For your class

If your instructor asks for it: this cell saves one file that says what works on your machine, how far you came, and your
held-out scores. It holds no rows, no answers, and no name but the one that you put in."""
HAND_IN = """from helpers.workshop import save_class_file

save_class_file("my name or a number", run.folder)  # writes one file here, and in Colab downloads it"""


def write_learner_notebooks(lessons: list[Path], short: bool = False, folder: Path = WORKSHOP) -> list[Path]:
    """Write <folder>/learner/NN.ipynb and <folder>/solutions/NN.ipynb of each lesson; returns the files."""
    written = []
    for lesson in lessons:
        for name, made in (
            ("learner", learner_notebook(lesson, short)),
            ("solutions", solutions_notebook(lesson, short)),
        ):
            file = folder / name / f"{lesson.stem[:2]}.ipynb"
            file.parent.mkdir(parents=True, exist_ok=True)
            write_notebook(made, file)
            written.append(file)
    return written


def learner_notebook(lesson: Path, short: bool = False):
    """A lesson without outputs and solutions: text, stubs, checks, and a last cell that saves what she hands in."""
    notebook = _bare(lesson, short)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = SOLUTION.sub("", TOLD.sub("", cell.source)).strip()
    notebook.cells = [cell for cell in notebook.cells if cell.source]
    notebook.cells += [_cell(notebook, "markdown", FOR_CLASS), _cell(notebook, "code", HAND_IN, "hand-in")]
    return _named(notebook, "learner")


def solutions_notebook(lesson: Path, short: bool = False):
    """The same with each solution as text and a cell below its exercise, so that all of it runs from top to bottom."""
    notebook, cells = _bare(lesson, short), []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cells += _unfolded(notebook, TOLD.sub("", cell.source))
        else:
            cells.append(cell)
    notebook.cells = cells
    return _named(notebook, "solutions")


def _unfolded(notebook, text: str) -> list:
    """A text as cells: prose, and the code of each solution in a cell of its own."""
    cells = []
    for place, part in enumerate(SOLUTION.split(text)):
        pieces = CODE.split(part) if place % 2 else [part]
        if place % 2 and pieces:
            pieces[0] = f"**Solution.** {pieces[0]}".strip()
        for turn, piece in enumerate(pieces):
            if piece.strip():
                kind, tags = ("code", ["solution"]) if turn % 2 else ("markdown", [])
                cells.append(_cell(notebook, kind, piece.strip(), *tags))
    return cells


# --- what both have in common -----------------------------------------------------------------------------------


def filled(lesson: Path):
    """The notebook of a lesson: the executed one, whose prose holds the numbers of its run, if it is of this source."""
    new, stored = course.to_notebook(lesson), read_notebook(course.NOTEBOOKS / f"{lesson.stem}.ipynb")
    current = stored is not None and stored.metadata.get("course", {}).get("source_sha256") == course.source_hash(
        lesson
    )
    return stored if current else new


def _bare(lesson: Path, short: bool):
    """A lesson's notebook without outputs, badges and GitHub's names of the other notebooks; in short what is taught."""
    notebook = filled(lesson)
    if short:
        notebook.cells = taught([(kind, cell) for _, kind, cell in with_kinds(lesson, notebook)])
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        else:
            cell.source = re.sub(r"\]\((\d\d)_\w+\.ipynb\)", r"](\1.ipynb)", cell.source)
    first = notebook.cells[0]
    first.source = re.sub(r"\A(\[!\[[^\n]+\n+)", "", first.source)  # the badges open the published notebook
    return notebook


def taught(pieces: list[tuple[str, Any]]) -> list:
    """The cells that are taught, and of the others the code that these need, folded away."""
    kept: list = []
    wanted: set[str] = set()
    for place, (kind, cell) in reversed(list(enumerate(pieces))):
        code = cell.cell_type == "code"
        stores, loads = names(cell.source) if code else (set(), set())
        if place < KEEP or kind == "teach":
            kept.append(cell)
        elif code and stores & wanted:
            cell.metadata |= {"cellView": "form", "jupyter": {"source_hidden": True}}
            cell.source = f"# @title Run this: a later cell needs it\n{cell.source}"
            kept.append(cell)
        else:
            continue
        wanted |= loads
    return kept[::-1]


def names(source: str) -> tuple[set[str], set[str]]:
    """(names that a cell makes or changes, names that it takes): a `x.train()` changes x, a `print(x)` does not."""
    source = re.sub(r"^\s*[%!].*$", "pass", source, flags=re.MULTILINE)
    stores, loads = set(), set()
    top = symtable.symtable(source, "cell", "exec")
    for table in _tables(top):
        for symbol in table.get_symbols():
            if table is top or symbol.is_global():
                loads |= {symbol.get_name()} if symbol.is_referenced() else set()
                stores |= {symbol.get_name()} if symbol.is_assigned() or symbol.is_imported() else set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute | ast.Subscript) and not isinstance(node.ctx, ast.Load):
            stores |= _root(node)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and _root(node.value.func) - SHOWS:
            method = [node.value.func] if isinstance(node.value.func, ast.Attribute) else []
            stores |= {name for each in [*method, *node.value.args] for name in _root(each)}
    return stores, loads


def _tables(table) -> list:
    """A scope and all scopes within it."""
    return [table, *(inner for child in table.get_children() for inner in _tables(child))]


def _root(node) -> set[str]:
    """The name that an expression such as x.y[0].z begins with."""
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call):
        node = node.func if isinstance(node, ast.Call) else node.value
    return {node.id} if isinstance(node, ast.Name) else set()


def _cell(notebook, kind: str, source: str, *tags: str):
    """A new cell, of the class that the notebook's cells have."""
    cell = type(notebook.cells[0])(cell_type=kind, metadata={"tags": list(tags)} if tags else {}, source=source)
    if kind == "code":
        cell |= {"outputs": [], "execution_count": None}
    return cell


def _named(notebook, form: str):
    """Ids by place, so that no two are alike, and which form of the lesson this is."""
    for place, cell in enumerate(notebook.cells, 1):
        cell.id = f"{form}-{place}"
    notebook.metadata["course"] = dict(notebook.metadata["course"]) | {"form": form}
    return notebook
