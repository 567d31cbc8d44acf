"""Turn lessons into notebooks and execute them on the CPU (make notebooks), and write the badges and the page of failures.

--check writes nothing and only lists the notebooks that are out of date. --learner makes those of a class instead:

python -m helpers build --learner            workshop/learner/NN.ipynb without outputs and solutions, and
                                             workshop/solutions/NN.ipynb with each solution in a cell
python -m helpers build --learner --short    the same with the sections that are taught in class alone
"""

import base64
import os
import shutil
import time

from helpers import COURSE_ROOT, CourseError, course
from helpers.course import carry_outputs, read_notebook, write_badges, write_notebook
from helpers.failures import failures_page
from helpers.files import write_whole
from helpers.workshop import write_learner_notebooks


def add_arguments(parser):
    parser.add_argument("lessons", nargs="*", help="numbers or names; all by default")
    parser.add_argument("--force", action="store_true", help="execute even where no code changed")
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 if a notebook is stale")
    parser.add_argument("--learner", action="store_true", help="write the notebooks of a class to workshop/")
    parser.add_argument("--short", action="store_true", help="with --learner: only what is taught in class")


def main(arguments) -> int:
    chosen = [course.find_lesson(text) for text in arguments.lessons] or course.lessons()
    if arguments.learner or arguments.short:
        return for_a_class(chosen, arguments)
    stale = 0
    for lesson in chosen:
        new, file = course.to_notebook(lesson), course.NOTEBOOKS / f"{lesson.stem}.ipynb"
        old = read_notebook(file)
        kept = not arguments.force and old is not None and carry_outputs(old, new)
        if kept and old == new:
            print(f"{lesson.stem}: up to date")
            continue
        stale += 1
        if arguments.check:
            print(f"{lesson.stem}: stale")
            continue
        begun = time.perf_counter()
        if not kept:
            execute(new)
        write_notebook(new, file)
        print(f"{lesson.stem}: " + ("text changed" if kept else f"executed in {time.perf_counter() - begun:.0f} s"))
    if not arguments.check:
        write_badges()
        write_whole(COURSE_ROOT / "site" / "failures.md", failures_page())
        write_whole(COURSE_ROOT / "site" / "figures" / "three_ways.png", readme_picture())
    return 1 if arguments.check and stale else 0


def readme_picture() -> bytes:
    """The README's figure, as a PNG: the one that lesson 00's notebook shows with its cell "to-scale" or soon after."""
    cells = read_notebook(course.NOTEBOOKS / "00_start_here.ipynb").cells
    begin = next(place for place, cell in enumerate(cells) if "to-scale" in cell.metadata.get("tags", []))
    shown = (out.get("data", {}).get("image/png") for cell in cells[begin:] for out in cell.get("outputs", []))
    return base64.b64decode(next(filter(None, shown)))


def for_a_class(chosen, arguments) -> int:
    """Write the notebooks of a class; CourseError, one line, for options that do not go together."""
    if not arguments.learner or arguments.force or arguments.check:
        raise CourseError(
            "--short goes with --learner, and --learner with neither --force nor --check: it runs nothing"
        )
    for file in write_learner_notebooks(chosen, arguments.short):
        print(file.relative_to(COURSE_ROOT))
    return 0


def execute(notebook) -> None:
    """Run a notebook from top to bottom on a fresh kernel, on the CPU, with no network; outputs go into it, cleaned."""
    from nbclient import NotebookClient

    runs = COURSE_ROOT / "runs" / "build"
    if notebook.metadata["course"]["lesson"].startswith("03"):  # its adapter is the first, as on a learner's machine
        for earlier in runs.glob("*/adapter*"):
            shutil.rmtree(earlier)
    surroundings = {
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "COURSE_STRICT": "1",
        "COURSE_RUNS": str(runs),
    }
    before = {name: os.environ.get(name) for name in surroundings}
    os.environ.update(surroundings)
    try:
        where = {"metadata": {"path": str(course.NOTEBOOKS)}}
        NotebookClient(notebook, timeout=900, kernel_name="python3", resources=where, coalesce_streams=True).execute()
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value
    clean(notebook)


def clean(notebook) -> None:
    """Remove what varies from run to run or cannot be shown: times, the state of widgets, progress bars on stderr."""
    notebook.metadata.pop("widgets", None)
    notebook.metadata["language_info"] = {"name": "python"}
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [out for out in cell.outputs if out.get("name") != "stderr"]
            for out in cell.outputs:  # a view without its state shows nothing; what stands beside it does
                out.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
