"""Slides of a lesson, by nbconvert and reveal.js, in one file that needs no network.

They are made from the executed notebook: its title, of each section that is taught its first figure and its first small table,
or how it begins, every cell that carries the tag `slide`, the questions for the room, and the lesson's close. The speaker's notes
come from the instructor's file. reveal.js lies in site/workshop/reveal, under its own licence.
"""

import base64
import re
from html import escape
from pathlib import Path

from helpers.course import title
from helpers.files import write_whole
from helpers.workshop.kit_pages import asked
from helpers.workshop.learner_notebooks import SOLUTION, WORKSHOP, filled
from helpers.workshop.sections import KIT, with_kinds

AT_MOST = 18  # slides of a lesson
CLOSE = ("What you have now", "What you did", "What you saw")
LONGEST, BESIDE = 560, 330  # characters of a paragraph on a slide, and of one above a table
LARGEST = (9, 8, 480)  # rows, columns and characters of a table on a slide


def write_slides(lessons: list[Path], folder: Path = WORKSHOP) -> list[Path]:
    """Write <folder>/slides/NN.html of each lesson; returns the files."""
    written = []
    for lesson in lessons:
        file = folder / "slides" / f"{lesson.stem[:2]}.html"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, as_html(slides_of(lesson), title(lesson)))
        written.append(file)
    return written


def slides_of(lesson: Path) -> list[tuple[str, str]]:
    """(markdown of a slide, the speaker's notes), at most AT_MOST: tables beside a figure go first, then mere text."""
    notebook, notes = filled(lesson), instructor_notes(lesson)
    parts: dict[str, list] = {}
    for heading, kind, cell in with_kinds(lesson, notebook):
        if (kind == "teach" and heading != "Exercises") or "slide" in cell.metadata.get("tags", []):
            parts.setdefault(heading, []).append(cell)
    first = next(iter(parts))
    begin = [(f"# {first}\n\n{paragraph(parts.pop(first))}", notes["before"])]
    close = next((heading for heading in CLOSE if heading in parts), None)
    end = [(f"## {close}\n\n{paragraph(parts.pop(close))}", notes["late"])] if close else []
    rooms = [question_slide(question, place) for place, question in enumerate(asked().get(lesson.stem[:2], []))]
    middle = [(heading, *slide) for heading, cells in parts.items() for slide in section_slides(heading, cells)]
    room_left = AT_MOST - len(begin) - len(rooms) - len(end)
    for least in ("table too", "text", "table"):
        for one in [one for one in middle if one[2] == least][::-1][: max(0, len(middle) - room_left)]:
            middle.remove(one)
    return begin + [(text, of_section(notes, heading)) for heading, text, _ in middle[:room_left]] + rooms + end


def section_slides(heading: str, cells: list) -> list[tuple[str, str]]:
    """(markdown, what it shows) of a section: what is tagged, else its first figure and table, else how it begins.

    Of a section without a number mere prose is no slide, and a list is one.
    """
    head = f"## {re.sub(r'^[0-9]+ ', '', heading)}"
    tagged = [cell for cell in cells if "slide" in cell.metadata.get("tags", [])]
    if tagged:
        return [(f"{head}\n\n{_shown(cell)}", "tagged") for cell in tagged]
    found = [(f"{head}\n\n{figure}", "figure") for cell in cells for figure in figures(cell)][:1]
    words = paragraph(cells, opening=True)
    above = f"{words}\n\n" if words and not found and len(words) <= BESIDE else ""
    kind = "table too" if found else "table"
    found += [(f"{head}\n\n{above}{table}", kind) for cell in cells for table in tables(cell)][:1]
    if found:
        return found
    words = f"{words}\n\n{items(cells)}".strip()
    return [(f"{head}\n\n{words}", "text")] if words and (re.match(r"\d", heading) or words[:2] == "- ") else []


def _shown(cell) -> str:
    """A tagged cell: prose as it stands without its heading, code in a fence, and its figures."""
    if cell.cell_type == "markdown":
        return re.sub(r"\A#+ .*\n*", "", cell.source)
    return "\n\n".join([f"```python\n{cell.source}\n```", *figures(cell)])


def figures(cell) -> list[str]:
    """The figures that a cell showed in its run, as HTML with their alternative texts."""
    found = []
    for out in cell.get("outputs", []):
        png = out.get("data", {}).get("image/png")
        if png:
            alt = out.get("metadata", {}).get("image/png", {}).get("alt", "")
            base64.b64decode(png)  # a damaged notebook stops here, not in front of a class
            found.append(f'<img src="data:image/png;base64,{"".join(png.split())}" alt="{escape(alt)}">')
    return found


def tables(cell) -> list[str]:
    """The tables that a cell showed in its run, as HTML, if they are small enough for a slide."""
    shown = [out.get("data", {}).get("text/html", "") for out in cell.get("outputs", [])]
    found = [match[0] for page in shown for match in re.finditer(r"<table>.*?</table>", page, re.DOTALL)]
    small = []
    for table in found:
        rows, columns = table.count("<tr>") - 1, table.partition("</tr>")[0].count("<th")
        said = re.sub(r"<[^>]*>", "", table)
        if (
            all(size <= most for size, most in zip((rows, columns, len(said)), LARGEST, strict=True))
            and "$" not in said
        ):
            small.append(re.sub(r"\n\s*\n", "\n", table))  # a blank line would end it in Markdown
    return small


def items(cells: list) -> str:
    """The list with which a section begins, or which follows on its first paragraph: of each item the first sentence."""
    prose = next((cell.source for cell in cells if cell.cell_type == "markdown"), "")
    blocks = [text.strip() for text in prose.split("\n\n") if text.strip() and text.strip()[0] != "#"]
    listed = next((block for block in blocks[:2] if block.startswith("- ")), "")
    said = [" ".join(item.split()) for item in re.split(r"^- ", listed, flags=re.MULTILINE) if item.strip()]
    firsts = [re.split(r"(?<=[.?])(?:\*\*)? (?=[A-Z`(])", item)[0] for item in said]
    whole = [first + "**" * (first.count("**") % 2) for first in firsts]  # a bold beginning that is cut is closed again
    return "\n".join(f"- {_unlinked(item)}" for item in whole) if len(whole) <= LARGEST[0] else ""


def _unlinked(text: str) -> str:
    return re.sub(r"\[([^]]+)\]\([^)]*\)", r"\1", text)  # a link leads a class away


def _to_the_point(text: str) -> str:
    """A paragraph without sentences in brackets, and without one about lines that the slide does not show."""
    text = re.sub(r"\s*\((?=[A-Z`])[^()]*\.\)", "", " ".join(text.split()))
    sentences = re.split(r"(?<=[.?!]) (?=[A-Z`*])", text)
    return " ".join(one for one in sentences if not re.search(r"\b(?:first|last|next|two|three) lines\b", one))


def paragraph(cells: list, opening: bool = False) -> str:
    """The first paragraph that stands alone on a slide, without table, list, box or formula; "" for none.

    With `opening` the first paragraph or none: what stands further down in a section leans on what is before it.
    """
    prose = [SOLUTION.sub("", cell.source) for cell in cells if cell.cell_type == "markdown"]
    texts = [
        text.strip() for source in prose for text in source.split("\n\n") if text.strip() and text.strip()[0] != "#"
    ]
    for plain in map(_to_the_point, texts[:1] if opening else texts):
        leans = plain.endswith(":") or re.search(
            r"(?<!empty )\bcells?\b|\b[Hh]ere (?:is|are)\b", plain
        )  # on what the slide does not show; the empty cells of a table are no cells of the notebook
        if plain and plain[0] not in "|-*>!`<[(1" and "$" not in plain and not leans and len(plain) <= LONGEST:
            return _unlinked(plain)
    return ""


def question_slide(question: dict, place: int) -> tuple[str, str]:
    """A question for the room; which answer is right, and what the others tell, stands in the notes."""
    answers = [(wrong["answer"], wrong["belief"]) for wrong in question["wrong"]]
    answers.insert(place % 4, (question["right"], f"right. {question['why']}"))
    items = "".join(f"<li>{escape(answer)}</li>" for answer, _ in answers)
    notes = "\n".join(f"- {letter}: {belief}" for letter, (_, belief) in zip("ABCD", answers, strict=True))
    return f'## {question["ask"]}\n\n<ol class="answers">{items}</ol>', notes


def instructor_notes(lesson: Path) -> dict[str, str]:
    """The instructor's file: what stands before its first heading, what is said when time runs out, and the rest by lines."""
    text = lesson.with_suffix(".instructor.md").read_text(encoding="utf-8")
    before, *rest = re.split(r"^## ", text.partition("\n")[2], flags=re.MULTILINE)
    late = next((part for part in rest if part.startswith("When time runs out")), "")
    others = "\n".join(part.partition("\n")[2] for part in rest if part is not late)
    return {"before": before.strip(), "late": late.partition("\n")[2].strip(), "others": others}


def of_section(notes: dict[str, str], heading: str) -> str:
    """The lines of the instructor's file that name a section by its number."""
    number = re.match(r"(\d+) ", heading)
    lines = re.split(r"\n(?=- )", notes["others"].strip())
    named = [line for line in lines if number and re.search(rf"\b[Ss]ection {number[1]}\b", line)]
    return "\n".join(named)


def as_html(slides: list[tuple[str, str]], name: str) -> str:
    """The slides as one page of HTML that asks nothing of a network."""
    import nbformat
    from nbconvert import SlidesExporter

    notebook = nbformat.v4.new_notebook(metadata={"title": name})
    for text, notes in slides:
        for source, kind in ((text, "slide"), (notes, "notes")):
            if source:
                notebook.cells.append(
                    nbformat.v4.new_markdown_cell(source, metadata={"slideshow": {"slide_type": kind}})
                )
    exporter = SlidesExporter(template_name="slides", extra_template_basedirs=[str(KIT)])
    made, _ = exporter.from_notebook_node(notebook, resources={"course": reveal()})
    return made


def reveal() -> dict[str, str]:
    """reveal.js with its notes, and its styles without the fonts that they would fetch."""
    folder = KIT / "reveal"
    css = "\n".join((folder / name).read_text(encoding="utf-8") for name in ("reveal.css", "white.css"))
    js = "\n".join((folder / name).read_text(encoding="utf-8") for name in ("reveal.js", "notes.js"))
    licence = (folder / "LICENSE").read_text(encoding="utf-8")
    return {"css": re.sub(r"@import[^;]*;", "", css), "js": f"/* {licence} */\n" + js.replace("</script", "<\\/script")}
