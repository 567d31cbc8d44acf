"""Write colab_badges.md; --repo owner/name (and --tag) first moves the whole course to another address."""

import re
import sys

from helpers import COURSE_ROOT, CourseError, course
from helpers.course import carry_outputs, read_notebook, write_badges, write_notebook
from helpers.files import write_whole


def add_arguments(parser):
    parser.add_argument("--repo", metavar="OWNER/NAME", help="the repository that learners' notebooks come from")
    parser.add_argument("--tag", help="the release that badges and bootstrap cells name")


def main(arguments) -> int:
    if arguments.repo is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", arguments.repo, re.ASCII):
        raise CourseError(f"--repo {arguments.repo!r} is not owner/name")
    if arguments.tag is not None and not re.fullmatch(r"[\w.][\w./-]*", arguments.tag, re.ASCII):
        raise CourseError(f"--tag {arguments.tag!r} is not a tag's name")
    old = course.address()
    new = (arguments.repo or old[0], arguments.tag or old[1])
    if new != old:
        move(old, new)
    write_badges()
    print(f"{new[0]} at {new[1]}: pyproject.toml, {len(course.lessons())} notebooks, README.md, colab_badges.md")
    return 0


def move(old: tuple[str, str], new: tuple[str, str]) -> None:
    """Rewrite the address in pyproject.toml and in what follows from it: README.md and every notebook."""
    project = COURSE_ROOT / "pyproject.toml"
    text = project.read_text(encoding="utf-8")
    text = text.replace(f'repository = "{old[0]}"', f'repository = "{new[0]}"').replace(
        f'tag = "{old[1]}"', f'tag = "{new[1]}"'
    )
    write_whole(project, text)
    readme = COURSE_ROOT / "README.md"
    if readme.is_file():
        text = readme.read_text(encoding="utf-8").replace(f"{old[0]}/blob/{old[1]}/", f"{new[0]}/blob/{new[1]}/")
        write_whole(readme, text.replace(f"github.com/{old[0]}", f"github.com/{new[0]}"))
    for lesson in course.lessons():
        file = course.NOTEBOOKS / f"{lesson.stem}.ipynb"
        before, after = read_notebook(file), course.to_notebook(lesson)
        if before is None or not carry_outputs(before, after):
            print(f"{file.name} is stale: run make notebooks", file=sys.stderr)
            continue
        write_notebook(after, file)
