"""The page of a class, from the files that learners handed in: who is ready, who fails on what, who finished what.

    python -m helpers class FOLDER              writes FOLDER/class.html
    python -m helpers class FOLDER --out FILE   writes FILE

FOLDER holds what `python -m helpers doctor --json` wrote, records of lessons (runs/default/NN_*.json), and the files that
the last cell of a learner's notebook saves. A file's name, or the folder that it lies in, says whose it is. What cannot
be read, or contradicts itself, is listed on the page and not counted.
"""

from pathlib import Path

from helpers import CourseError
from helpers.workshop import read_class, write_class_page


def add_arguments(parser):
    parser.add_argument("folder", type=Path, help="the folder with the files of the class")
    parser.add_argument("--out", type=Path, help="the page to write (default: class.html in that folder)")


def main(arguments) -> int:
    handed = read_class(arguments.folder)
    file = arguments.out or arguments.folder / "class.html"
    try:
        write_class_page(handed, file)
    except OSError as error:
        raise CourseError(f"{str(file)!r} cannot be written ({error.strerror}): name another with --out") from error
    for name, what, cure in handed.faults:
        print(f"not counted: {name}: {what}; {cure}")
    print(f"{len(handed.learners)} learners, {len(handed.faults)} files not counted: {file}")
    return 0
