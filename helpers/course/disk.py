"""The course as it lies on disk: its lessons, its address, and the notebook that each lesson becomes."""

import hashlib
import json
import re
import tomllib
from pathlib import Path

from helpers import COURSE_ROOT, CourseError
from helpers.files import write_whole

LESSONS, NOTEBOOKS = COURSE_ROOT / "lessons", COURSE_ROOT / "notebooks"
TIMES = COURSE_ROOT / "measurements" / "lesson_times.json"
TAKEN_HOME = ("transformers", "trl", "peft", "bitsandbytes", "accelerate", "datasets")
# The course is fetched over it, and Kaggle has it off until a notebook asks.
ASK_FOR_THE_INTERNET = {"kaggle": {"isInternetEnabled": True}}
# What Colab and Kaggle write into a notebook for which somebody chose a T4, and read when it is opened.
ASK_FOR_A_T4 = {
    "accelerator": "GPU",
    "colab": {"gpuType": "T4"},
    "kaggle": {"accelerator": "nvidiaTeslaT4", "isGpuEnabled": True} | ASK_FOR_THE_INTERNET["kaggle"],
}
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


def file_address() -> str:
    """Where the release's files can be read in a browser: in Colab and Kaggle a notebook has no folder beside it."""
    repository, tag = address()
    return f"https://github.com/{repository}/blob/{tag}"


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
    text = (COURSE_ROOT / "helpers" / "course" / "bootstrap.txt").read_text(encoding="utf-8").strip()
    return text.replace("OWNER/NAME", repository).replace("TAG", tag)


def source_hash(lesson: Path) -> str:
    return hashlib.sha256(lesson.read_bytes()).hexdigest()


def to_notebook(lesson: Path):
    """A lesson's notebook without outputs; badges, bootstrap cell, times, cell ids and addresses of files are put in."""
    import jupytext

    notebook = jupytext.read(lesson, fmt="py:percent")
    notebook.cells[0].source = f"{badges(lesson.stem)}\n\n{notebook.cells[0].source}"
    folded = {"tags": ["bootstrap"], "cellView": "form", "jupyter": {"source_hidden": True}}  # in Colab and JupyterLab
    bootstrap = notebook.cells[0].__class__(
        cell_type="code", execution_count=None, metadata=folded, outputs=[], source=bootstrap_source()
    )
    notebook.cells.insert(1, bootstrap)
    times = json.loads(TIMES.read_text(encoding="utf-8"))["lessons"].get(lesson.stem, {}) if TIMES.is_file() else {}
    quoted = times | {"own_notebook": " ".join(f'"{line}"' for line in own_notebook())}
    seen: dict[str, int] = {}
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = re.sub(r"\{\{(\w+)\}\}", lambda m: str(quoted.get(m[1], "not measured yet")), cell.source)
            cell.source = cell.source.replace("](../", f"]({file_address()}/")
        digest = hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:8]
        seen[digest] = seen.get(digest, 0) + 1
        cell.id = digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"
    notebook.metadata = notebook.metadata.__class__(
        kernelspec=KERNELSPEC,
        language_info={"name": "python"},
        course={"lesson": lesson.stem, "source_sha256": source_hash(lesson)},
        **(ASK_FOR_A_T4 if lesson_parameters(lesson).get("model_id") == "auto" else ASK_FOR_THE_INTERNET),
    )
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return notebook


def own_notebook() -> list[str]:
    """What a notebook that takes a lesson's lines home has to install, with the versions of requirements.txt."""
    lines = (COURSE_ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.split(">")[0] in TAKEN_HOME]


def lesson_parameters(lesson: Path) -> dict:
    """The names and defaults of a lesson's `parameters` cell."""
    cell = lesson.read_text(encoding="utf-8").partition('# %% tags=["parameters"]\n')[2].partition("\n# %%")[0]
    values: dict = {}
    exec(cell, {}, values)  # our own file, the cell that holds assignments only
    return values


def write_badges() -> None:
    """colab_badges.md: one row a lesson, generated from the lessons' titles."""
    rows = [f"| {title(lesson)} | {badges(lesson.stem)} |" for lesson in lessons()]
    text = "<!-- generated by `python -m helpers badges`: do not edit -->\n\n| lesson | open it |\n|---|---|\n"
    write_whole(COURSE_ROOT / "colab_badges.md", text + "\n".join(rows) + "\n")


def title(lesson) -> str:
    """A lesson's title: the first heading of its source."""
    heading = re.search(r"^# # (.+)$", lesson.read_text(encoding="utf-8"), re.MULTILINE)
    return heading[1] if heading else lesson.stem


def read_notebook(file):
    import nbformat

    return nbformat.read(file, as_version=4) if file.is_file() else None


def write_notebook(notebook, file) -> None:
    import nbformat

    file.parent.mkdir(exist_ok=True)
    write_whole(file, nbformat.writes(notebook) + "\n")


def carry_outputs(old, new) -> bool:
    """Copy the outputs of `old` into `new` if the code is the same, cell by cell, and all of it ran in order."""

    def code(notebook):
        return [c for c in notebook.cells if c.cell_type == "code"]

    def untouched(a, b):
        # Blank lines around a cell's code change no output, and neither does the address in the bootstrap cell.
        return a.source.strip() == b.source.strip() or {"bootstrap"} == set(a.metadata.get("tags", [])) == set(
            b.metadata.get("tags", [])
        )

    same = len(code(old)) == len(code(new)) and all(untouched(a, b) for a, b in zip(code(old), code(new), strict=True))
    if not same or [c.execution_count for c in code(old)] != list(range(1, len(code(old)) + 1)):
        return False
    for a, b in zip(code(old), code(new), strict=True):
        b.outputs, b.execution_count = a.outputs, a.execution_count
    return True
