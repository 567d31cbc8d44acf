"""Run lessons in order through papermill, with their records and one report, into runs/NAME/ (make course)."""

import datetime
import json
import os
import sys
import time
from pathlib import Path

from helpers import CourseError, course
from helpers.files import output_folder, write_whole
from helpers.lesson import validate
from helpers.records import read_record

# The first two quiet what libraries would print into every notebook.
# A run that nobody watches ends at the first untrue verdict, unless COURSE_STRICT=0 is set.
SURROUNDINGS = {"TOKENIZERS_PARALLELISM": "false", "PYDEVD_DISABLE_FILE_VALIDATION": "1", "COURSE_STRICT": "1"}


def add_arguments(parser):
    parser.add_argument("lessons", nargs="*", help="numbers or names; all by default")
    parser.add_argument("--times", action="store_true", help="maintainers: keep the seconds for the lessons' heads")
    parser.add_argument("--name", default="course", help="the folder under runs/ (default: course)")
    parser.add_argument(
        "-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="a parameter's value"
    )


def main(arguments) -> int:
    chosen = [course.find_lesson(text) for text in arguments.lessons] or course.lessons()
    values = {name: parse_value(text) for name, text in arguments.p}
    check_parameters(chosen, values)
    folder = run_folder(arguments.name)
    results = run_lessons(chosen, folder, values)

    from helpers.commands import _report

    report = _report.write_report(folder, results)
    print()
    print(_report.as_text(results))
    print(f"\nreport: {_relative(report)}")
    if arguments.times:
        write_times(folder, results)
    for result in results:
        if result["error"]:
            print(f"{result['lesson']} failed in {result['error']}", file=sys.stderr)
        for claim in result["untrue"]:
            print(f"{result['lesson']}: not so in this run: {claim}", file=sys.stderr)
    return 1 if any(result["error"] or result["untrue"] for result in results) else 0


def run_lessons(chosen: list[Path], folder: Path, values: dict) -> list[dict]:
    """Run each lesson into `folder`, with a bar for the lessons and one for the cells."""
    from tqdm import tqdm

    results = []
    with tqdm(chosen, unit="lesson", bar_format="{desc:<28}{bar:20} lesson {n_fmt}/{total_fmt} [{elapsed}]") as bar:
        for lesson in bar:
            bar.set_description(lesson.stem)
            cells = {"position": 1, "leave": False, "desc": "  cells"}
            results.append(run_lesson(lesson, folder, values, progress_bar=cells))
        bar.set_description("done")
    return results


def run_lesson(lesson: Path, folder: Path, values: dict, cwd: str | None = None, progress_bar=False) -> dict:
    """Execute one notebook through papermill; returns lesson, seconds, error (or None), untrue verdicts, the notebook's file.

    The kernel works in `cwd`, or where this process does, so that a relative path in a parameter means what it meant
    where the command was typed. A run that succeeds replaces <folder>/<lesson>.ipynb; one that fails leaves
    <lesson>.failed.ipynb beside it.
    """
    import papermill

    os.environ.update({name: os.environ.get(name, value) for name, value in SURROUNDINGS.items()})
    has = course.lesson_parameters(lesson)
    given = {name: value for name, value in values.items() if name in has} | {"output_dir": str(folder)}
    done, part = folder / f"{lesson.stem}.ipynb", folder / f".{lesson.stem}.{os.getpid()}.ipynb"
    failed, error, begun = folder / f"{lesson.stem}.failed.ipynb", None, time.perf_counter()
    try:
        papermill.execute_notebook(
            str(course.NOTEBOOKS / f"{lesson.stem}.ipynb"),
            str(part),
            parameters=given,
            kernel_name="python3",
            cwd=cwd or os.getcwd(),
            progress_bar=progress_bar,
            start_timeout=300,  # seconds until a kernel answers; papermill's 60 are too few where many start at once
        )
        os.replace(part, done)
        failed.unlink(missing_ok=True)
    except papermill.PapermillExecutionError as problem:
        lines = [line for line in problem.source.splitlines() if line and not line.startswith(("#", "import", "from"))]
        error = f"cell {problem.exec_count} ({(lines or ['?'])[0][:60]}): {problem.ename}: {problem.evalue}"
        os.replace(part, failed)
    except RuntimeError as problem:  # nbclient's DeadKernelError, or jupyter_client's own, when it died at its start
        if "ernel died" not in str(problem):
            raise
        error = f"cell {_executed(part) + 1}: the kernel died; it was killed, perhaps since memory ran out"
        os.replace(part, failed)
    finally:
        part.unlink(missing_ok=True)
    verdicts = [] if error else read_record(folder, lesson.stem).get("verdicts", [])
    return {
        "lesson": lesson.stem,
        "seconds": time.perf_counter() - begun,
        "error": error,
        "untrue": [verdict["claim"] for verdict in verdicts if not verdict["holds"]],
        "notebook": failed if error else done,
    }


def _executed(notebook: Path) -> int:
    """How many code cells of a notebook ran to their end; papermill marks the others "completed" as well."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return sum(
        cell.get("metadata", {}).get("papermill", {}).get("exception") is False for cell in cells if "outputs" in cell
    )


def write_times(folder: Path, results: list[dict]) -> None:
    """Write measurements/lesson_times.json, which the build quotes in each lesson's first cell (kernel start included)."""
    good = [result for result in results if not result["error"]]
    about = read_record(folder, good[0]["lesson"])["run"]
    times = {result["lesson"]: {"cpu_time": f"about {max(5, 5 * round(result['seconds'] / 5))} s"} for result in good}
    measured = {"date": datetime.date.today().isoformat(), "machine": about["machine"], "cores": os.cpu_count()}
    measured |= {"python": about["python"], "versions": about["versions"]}
    write_whole(course.TIMES, json.dumps({"measured": measured, "lessons": times}, indent=1) + "\n")


def check_parameters(chosen: list[Path], values: dict) -> None:
    """Stop before anything is run: a name that none of the lessons has, or a value that no lesson can take."""
    known = set().union(*(course.lesson_parameters(lesson) for lesson in chosen)) - {"output_dir"}
    validate(values, known)


def parse_value(text: str):
    """A parameter's value from the command line: a number, True, False or text."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"True": True, "true": True, "False": False, "false": False}.get(text, text)


def run_folder(name: str) -> Path:
    """runs/NAME beside the runs/default of lessons, made if need be; CourseError if that is no folder's name."""
    if not name or name in (".", "..") or "/" in name or "\\" in name or "\0" in name:
        raise CourseError(f"--name {name!r} is no folder's name: give one word")
    return output_folder("auto", run=name)


def _relative(file: Path) -> str:
    return os.path.relpath(file) if file.is_relative_to(Path.cwd()) else str(file)
