"""All that a workshop needs, written to workshop/: pages, schedules, questions, learners' notebooks, slides.

    python -m helpers workshop                 everything, in some seconds; nothing is run
    python -m helpers workshop --out FOLDER    into another folder

It ends with index.html, which links to all of it. The page of a class is `python -m helpers class FOLDER`. Pages and slides need
one more package: pip install -c constraints.txt -e '.[workshop]'
"""

import importlib.util
from pathlib import Path

from helpers import CourseError, course
from helpers.workshop import WORKSHOP, write_learner_notebooks, write_pages, write_slides


def add_arguments(parser):
    parser.add_argument(
        "--out", type=Path, default=WORKSHOP, help="the folder to write (default: workshop/ in the course)"
    )
    parser.add_argument("--short", action="store_true", help="in notebooks only what is taught in class")


def main(arguments) -> int:
    if importlib.util.find_spec("nbconvert") is None:
        raise CourseError("the pages need nbconvert: pip install -c constraints.txt -e '.[workshop]'")
    try:
        written = write_learner_notebooks(course.lessons(), arguments.short, arguments.out)
        written += write_slides(course.lessons(), arguments.out)
        written += write_pages(arguments.out)
    except OSError as error:
        raise CourseError(
            f"{str(arguments.out)!r} cannot be written ({error.strerror}): name another with --out"
        ) from error
    print(f"{len(written)} files; begin with {arguments.out / 'index.html'}")
    return 0
