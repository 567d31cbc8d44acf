"""The doubles by hand: `python -m tests.places colab 03`, each notebook in a fresh environment; --whole on the place's Python.

python -m tests.places colab [LESSON ...] [--whole]
python -m tests.places refresh FREEZE_FILE --date YYYY-MM-DD     makes colab.txt anew from a pip freeze
"""

import argparse
import datetime
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat

from helpers.course import disk as course
from tests.places import place as places


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.places", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in places.SURROUNDINGS:
        one = commands.add_parser(name, help="run lessons there")
        one.add_argument("lessons", nargs="*", help="numbers or names; all by default")
        one.add_argument("--whole", action="store_true", help="on the place's own Python, with its torch")
    refresh = commands.add_parser("refresh", help="make Colab's list anew from a pip freeze")
    refresh.add_argument("freeze", type=Path)
    refresh.add_argument("--date", type=datetime.date.fromisoformat, required=True)
    arguments = parser.parse_args()
    if arguments.command == "refresh":
        places.refresh("colab", arguments.freeze.read_text(encoding="utf-8"), arguments.date)
        return 0
    return run(arguments.command, arguments.lessons, arguments.whole)


def run(name: str, lessons: list[str], whole: bool) -> int:
    place = places.Place.read(name)
    python = interpreter(place.python) if whole else None
    if whole and python is None:
        print(f"{name}: left out, for there is no Python {place.python} here")
        return 0
    if not places.index_answers():
        print(f"{name}: left out, for no package index answers here")
        return 0
    template, failed = places.environment(place, python), 0
    with tempfile.TemporaryDirectory(dir=places.KEPT) as scratch:
        variables = places.release(Path(scratch))
        for lesson in [course.find_lesson(text) for text in lessons] or course.lessons():
            folder, begun = Path(scratch) / lesson.stem, time.perf_counter()
            folder.mkdir()
            notebook = nbformat.read(course.NOTEBOOKS / f"{lesson.stem}.ipynb", as_version=4)
            found = places.open_alone(notebook, place, template, folder, variables)
            cells = sum(cell.cell_type == "code" for cell in notebook.cells)
            seconds = time.perf_counter() - begun
            print(f"{name} {lesson.stem}: {len(found)} failures in {cells} code cells, {seconds:.0f} s", flush=True)
            for failure in found:
                print(f"  {failure}", flush=True)
            failed += len(found)
            shutil.copy(folder / "executed.ipynb", places.KEPT / f"{name}-{lesson.stem}.ipynb")
            shutil.rmtree(folder, ignore_errors=True)
    return 1 if failed else 0


def interpreter(version: str) -> str | None:
    """A Python of this version that starts: on the PATH, or among pyenv's."""
    on_path = shutil.which(f"python{version}")
    for candidate in [on_path, *sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python{version}"))]:
        if candidate and subprocess.run([candidate, "-c", ""], capture_output=True).returncode == 0:
            return str(candidate)
    return None


if __name__ == "__main__":
    sys.exit(main())
