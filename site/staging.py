"""Writes what Sphinx reads: lessons as read and pages of Markdown, their links led to the site's own pages.

A link that leads into the repository and not to a page becomes an address of the release; what it names has to be there.
"""

import copy
import posixpath
import re
from pathlib import Path

from engines import ENGINES, engine
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from helpers import COURSE_ROOT, CourseError
from helpers.course import NOTEBOOKS, address, read_notebook, write_notebook
from helpers.files import write_whole

SITE = COURSE_ROOT / "site"
# Pages that lie in the repository as Markdown, and the page that each becomes. (failures.md is in site/pages/, too.)
PAGES = {
    "site/glossary.md": "glossary",
    "site/claims.md": "claims",
    "site/decide.md": "decide",
    "measurements/README.md": "how-measured",
}
TITLES = {"how-measured": "How it was measured"}  # where the page's own is that of another
_CODE = re.compile(  # fenced, or between backticks within a paragraph
    r"^([ \t>]*)(?P<fence>`{3,}|~{3,}).*?^\1(?P=fence)[ \t]*$|(?<!`)(?P<ticks>`{1,2})(?!`)(?:(?!\n\n).)+?(?<!`)(?P=ticks)(?!`)",
    re.MULTILINE | re.DOTALL,
)
_LINK = re.compile(r"\]\(([^()\s]+(?:\([^()\s]*\)[^()\s]*)*)\)")
_PROGRESS = re.compile(r"<progress\b.*?</progress>", re.DOTALL)


def outside_of_code(text: str, change) -> str:
    """`change` applied to all of a Markdown text but its code."""
    parts, at = [], 0
    for code in _CODE.finditer(text):
        parts += [change(text[at : code.start()]), code[0]]
        at = code.end()
    return "".join([*parts, change(text[at:])])


def templates() -> dict[str, str]:
    """{page of the site: the template in site/pages/ that it is made from}."""
    pages = {file.stem: file.name for file in sorted((SITE / "pages").glob("*.md"))}
    return pages | {f"api/{room}": "engine.md.j2" for room in ENGINES}


class Links:
    """Where links lead, for a site that has these lessons (their stems)."""

    def __init__(self, lessons: list[str]):
        repository, tag = address()
        self.release = f"https://github.com/{repository}/blob/{tag}/"
        self.pages = PAGES | {f"notebooks/{stem}.ipynb": f"lessons/{stem}" for stem in lessons} | {"README.md": "index"}
        self.pages |= {f"site/{page}.md": page for page in (*PAGES.values(), *templates())}

    def led(self, target: str, folder: str, page: str) -> str:
        """A link's target as it has to stand on `page`; `folder` is where its file lies in the repository.

        Raises CourseError for a file that the repository does not have.
        """
        path, mark, anchor = target.partition("#")
        if path.startswith(self.release):
            path = path.removeprefix(self.release)
        elif not path or re.match(r"[a-z]+:", path):
            return target
        else:
            path = posixpath.normpath(posixpath.join(folder, path))
        if path not in self.pages:
            if not (COURSE_ROOT / path).exists():
                raise CourseError(f"site: {page} links to {path}, which is not there")
            return f"{self.release}{path}{mark}{anchor}"
        ending = ".ipynb" if path.endswith(".ipynb") else ".md"
        return posixpath.relpath(self.pages[path] + ending, posixpath.dirname(page) or ".") + mark + anchor

    def lead(self, text: str, folder: str, page: str) -> str:
        """A Markdown text with all its links led."""
        return outside_of_code(
            text, lambda part: _LINK.sub(lambda found: f"]({self.led(found[1], folder, page)})", part)
        )


def staged_page(text: str, folder: str, page: str, links: Links) -> str:
    """A page of the repository as the site has it: links led, headings in order, anchors as Sphinx knows them."""
    text = re.sub(r"^<!-- .*? -->\n+", "", text)
    if page in TITLES:
        text = re.sub(r"^# .+$", f"# {TITLES[page]}", text, count=1, flags=re.MULTILINE)
    if not re.search(r"^## ", text, re.MULTILINE):  # GitHub's small headings are the next level here
        text = re.sub(r"^###(#*) ", r"##\1 ", text, flags=re.MULTILINE)
    text = re.sub(r'<a id="([\w.-]+)"></a>', r'[]{id="\1"}', text)
    return links.lead(text, folder, page)


def staged_notebook(notebook, stem: str, links: Links):
    """A notebook as the site shows it: badges as words, the set-up folded, and alternative texts where myst-nb looks."""
    notebook, page = copy.deepcopy(notebook), f"lessons/{stem}"
    notebook.cells[0].source = _badges_as_words(notebook.cells[0].source)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = links.lead(cell.source, "notebooks", page)
            continue
        if "bootstrap" in cell.metadata.get("tags", []):
            cell.metadata.tags = [*cell.metadata.tags, "hide-input"]
        for output in cell.outputs:
            shown = output.get("data", {})
            if "text/html" in shown:
                shown["text/html"] = _PROGRESS.sub("", shown["text/html"])
            if "image/png" in shown:
                alt = output.metadata.get("image/png", {}).get("alt")
                if not alt:
                    raise CourseError(f"site: a figure of {stem} has no alternative text")
                cell.metadata["mystnb"] = {"image": {"alt": alt}}
    return notebook


def _badges_as_words(source: str) -> str:
    """The first cell with two links below the title in place of the badges, which are pictures from elsewhere."""
    badges, _, rest = source.partition("\n\n")
    where = re.findall(r"\[!\[([^\]]+)\]\([^)]+\)\]\(([^)]+)\)", badges)
    if not where:
        return source
    title, _, text = rest.partition("\n\n")
    return f"{title}\n\n{' · '.join(f'[{words}]({target})' for words, target in where)}\n\n{text}"


def write_sources(folder: Path, lessons: list[str], values: dict) -> None:
    """Fill `folder` with what Sphinx reads: lessons, pages, and site/pages/ with `values` filled in."""
    links = Links(lessons)
    for stem in lessons:
        (folder / "lessons").mkdir(parents=True, exist_ok=True)
        notebook = read_notebook(NOTEBOOKS / f"{stem}.ipynb")
        write_notebook(staged_notebook(notebook, stem, links), folder / "lessons" / f"{stem}.ipynb")
    for path, page in PAGES.items():
        text = (COURSE_ROOT / path).read_text(encoding="utf-8")
        own = f'\n<script src="_static/{page}.js"></script>\n' if (SITE / "static" / f"{page}.js").is_file() else ""
        write_whole(folder / f"{page}.md", staged_page(text, posixpath.dirname(path), page, links) + own)
    rendering = Environment(
        loader=FileSystemLoader(SITE / "pages"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    for page, template in templates().items():
        of_engine = engine(page.removeprefix("api/")) if page.startswith("api/") else {}
        text = rendering.get_template(template).render(values | of_engine)
        (folder / page).parent.mkdir(parents=True, exist_ok=True)
        write_whole(folder / f"{page}.md", links.lead(text, "site", page))
