"""The course as it lies on disk: its lessons, its address, and the notebook that each lesson becomes."""

import hashlib
import json
import re
import tomllib
from pathlib import Path

from helpers import COURSE_ROOT, CourseError

LESSONS, NOTEBOOKS = COURSE_ROOT / "lessons", COURSE_ROOT / "notebooks"
TIMES = COURSE_ROOT / "measurements" / "lesson_times.json"
KERNELSPEC = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}


def lessons() -> list[Path]:
    """The lesson sources in order."""
    return sorted(LESSONS.glob("[0-9][0-9]_*.py"))


def find_lesson(text: str) -> Path:
    """The lesson that a number ("3", "03") or a name ("03_t4_training") means; CourseError if none."""
    found = [p for p in lessons() if p.stem == text or (text.isdecimal() and int(text) == int(p.stem[:2]))]
    if not found:
        raise CourseError(f"no lesson {text!r}; there are: {', '.join(p.stem for p in lessons())}")
    return found[0]


def address() -> tuple[str, str]:
    """Repository as owner/name, and release tag: the one address, from pyproject.toml."""
    course = tomllib.loads((COURSE_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["course"]
    return course["repository"], course["tag"]


def badges(stem: str) -> str:
    """Markdown badges that open one notebook, at the release tag, in Colab and in Kaggle."""
    repository, tag = address()
    page = f"github/{repository}/blob/{tag}/notebooks/{stem}.ipynb"
    colab = f"https://colab.research.google.com/{page}"
    kaggle = f"https://kaggle.com/kernels/welcome?src=https://github.com/{repository}/blob/{tag}/notebooks/{stem}.ipynb"
    return (
        f"[![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)]({colab}) "
        f"[![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)]({kaggle})"
    )


def bootstrap_source() -> str:
    """The bootstrap cell with the address filled in: the same in every notebook."""
    repository, tag = address()
    text = (COURSE_ROOT / "helpers" / "tools" / "_bootstrap.txt").read_text(encoding="utf-8").strip()
    return text.replace("OWNER/NAME", repository).replace("TAG", tag)


def source_hash(lesson: Path) -> str:
    return hashlib.sha256(lesson.read_bytes()).hexdigest()


def to_notebook(lesson: Path):
    """The notebook, without outputs, that a lesson becomes: badges, bootstrap, times and cell ids put in."""
    import jupytext

    notebook = jupytext.read(lesson, fmt="py:percent")
    notebook.cells[0].source = f"{badges(lesson.stem)}\n\n{notebook.cells[0].source}"
    folded = {"tags": ["bootstrap"], "cellView": "form", "jupyter": {"source_hidden": True}}  # in Colab and JupyterLab
    bootstrap = notebook.cells[0].__class__(
        cell_type="code", execution_count=None, metadata=folded, outputs=[], source=bootstrap_source()
    )
    notebook.cells.insert(1, bootstrap)
    times = json.loads(TIMES.read_text(encoding="utf-8"))["lessons"].get(lesson.stem, {}) if TIMES.is_file() else {}
    seen: dict[str, int] = {}
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = re.sub(r"\{\{(\w+)\}\}", lambda m: str(times.get(m[1], "not measured yet")), cell.source)
        digest = hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:8]
        seen[digest] = seen.get(digest, 0) + 1
        cell.id = digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"
    notebook.metadata = notebook.metadata.__class__(
        kernelspec=KERNELSPEC,
        language_info={"name": "python"},
        course={"lesson": lesson.stem, "source_sha256": source_hash(lesson)},
    )
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return notebook


def lesson_parameters(lesson: Path) -> dict:
    """The names and defaults of a lesson's `parameters` cell."""
    cell = lesson.read_text(encoding="utf-8").partition('# %% tags=["parameters"]\n')[2].partition("\n# %%")[0]
    values: dict = {}
    exec(cell, {}, values)  # our own file, the cell that holds assignments only
    return values
