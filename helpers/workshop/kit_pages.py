"""Pages of the workshop kit: set-up for each system, who it is for, questions for the room, schedules; and their index."""

import tomllib
from pathlib import Path

from helpers import course
from helpers.course import title
from helpers.files import write_whole
from helpers.workshop.schedules import late, schedules
from helpers.workshop.sections import KIT

SYSTEMS = {"linux": "Linux", "macos": "macOS", "windows": "Windows", "colab": "Colab", "kaggle": "Kaggle"}


def write_pages(folder: Path) -> list[Path]:
    """Write every page of the kit into a folder; returns the files, the index last."""
    pages = {f"setup-{name}": (f"Set up: {words}", setup_page(name)) for name, words in SYSTEMS.items()}
    pages["learners"] = ("Who it is for", _html(_text("learners.md")))
    pages |= {f"questions-{number}": (f"Questions: {number}", questions_page(number)) for number in asked()}
    pages["schedules"] = ("Schedules", _filled("schedules.html.j2", schedules=schedules(), late=late))
    return [_write(folder / f"{name}.html", *page) for name, page in pages.items()] + [write_index(folder)]


def write_index(folder: Path) -> Path:
    """Write index.html, with a link to everything of the kit that lies in the folder now."""
    lessons = [(lesson.stem[:2], title(lesson)) for lesson in course.lessons()]
    there = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.suffix in (".html", ".ipynb")}
    body = _filled("index.html.j2", lessons=lessons, there=there, systems=SYSTEMS)
    return _write(folder / "index.html", "The workshop", body)


def _write(file: Path, name: str, body: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, _filled("page.html.j2", title=name, body=body))
    return file


# --- one page ---------------------------------------------------------------------------------------------------


def setup_page(system: str) -> str:
    """How to set up on one system: two commands, and what the doctor should say."""
    repository, tag = course.address()
    lines = tomllib.loads(_text("doctor.toml"))["line"]
    expected = _filled("doctor.html.j2", lines=lines, system=system)
    return _html(_markdown(f"setup/{system}.md", repository=repository, tag=tag, doctor=expected))


def asked() -> dict[str, list[dict]]:
    """The questions for the room, by the lesson's number."""
    files = sorted((KIT / "questions").glob("*.toml"))
    return {file.stem: tomllib.loads(file.read_text(encoding="utf-8"))["question"] for file in files}


def questions_page(number: str) -> str:
    """The questions of one lesson, each with its answers in an order of its own; what is right is folded away."""
    shown = []
    for place, question in enumerate(asked()[number]):
        answers = [(wrong["answer"], wrong["belief"]) for wrong in question["wrong"]]
        answers.insert((3 * place + int(number)) % (len(answers) + 1), (question["right"], None))
        shown.append(question | {"answers": list(zip("ABCDEF", answers, strict=False))})
    return _filled("questions.html.j2", lesson=title(course.find_lesson(number)), questions=shown)


# --- templates --------------------------------------------------------------------------------------------------


def _text(name: str) -> str:
    return (KIT / name).read_text(encoding="utf-8")


def _filled(name: str, **values) -> str:
    """A template of HTML, filled in; what is put in is escaped, but for `body`."""
    import jinja2

    loader = jinja2.FileSystemLoader(KIT)
    return jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True).get_template(name).render(values)


def _markdown(name: str, **values) -> str:
    """A text with the course's address put in; the names in it are our own, so nothing is escaped."""
    import jinja2

    return jinja2.Environment().from_string(_text(name)).render(values)


def _html(markdown: str) -> str:
    """Markdown as HTML, by the package that also shows notebooks as pages."""
    from nbconvert.filters.markdown import markdown2html

    return markdown2html(markdown)
