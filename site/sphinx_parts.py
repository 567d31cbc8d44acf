"""What the site adds to Sphinx: formulas as MathML, glossary words linked in the lessons, docstrings as they stand."""

import posixpath
import re

import latex2mathml.converter
from docutils import nodes

# Where a glossary word is no link: code and output, formulas, links, headings, tables, and figures.
_APART = (
    nodes.literal, nodes.literal_block, nodes.math, nodes.math_block, nodes.reference, nodes.title, nodes.table,
    nodes.raw, nodes.image,
)  # fmt: skip
# In these lines of a docstring a mark is no markup: RST would take it for emphasis, a link or a substitution.
_MARKS = re.compile(r"([*|\\]|(?<=\w)_(?=\W|$))")


# --- formulas ---------------------------------------------------------------------------------------------------------


def _in_a_line(self, node) -> None:
    self.body.append(latex2mathml.converter.convert(node.astext(), display="inline"))
    raise nodes.SkipNode


def _by_itself(self, node) -> None:
    self.body.append(f'<div class="formula">{latex2mathml.converter.convert(node.astext(), display="block")}</div>')
    raise nodes.SkipNode


# --- the glossary's words ---------------------------------------------------------------------------------------------


def glossary_terms(text: str) -> dict[str, str]:
    """{word: the first sentence that the glossary says of it} of the glossary's Markdown."""
    parts = re.split(r"^##+ ", text, flags=re.MULTILINE)[1:]
    said = {}
    for part in parts:
        word, _, body = part.partition("\n")
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)|`", r"\1", " ".join(body.split()))
        said[word.strip()] = re.split(r"(?<=[.:])\s", plain, maxsplit=1)[0]
    return said


def _pattern(words) -> re.Pattern:
    """The words as they may stand in a sentence: whole, in either number, the longest first."""
    longest_first = sorted(words, key=len, reverse=True)
    return re.compile(rf"(?<![\w-])({'|'.join(map(re.escape, longest_first))})s?(?![\w-])", re.IGNORECASE)


def link_terms(section: nodes.Element, terms: dict[str, str], target: str) -> int:
    """Link the first place in a section at which each glossary word stands, if it is no link already; returns how many."""
    lower = {word.lower(): word for word in terms}
    anchors = {nodes.make_id(word): word for word in terms}
    seen = {
        anchors[link["refuri"].partition("#")[2]]
        for link in section.findall(nodes.reference)
        if link.get("refuri", "").partition("#")[2] in anchors
    } | {
        anchors.get(str(link.get("reftargetid", link.get("reftarget", ""))).partition("#")[2])
        for link in section.findall(lambda node: node.tagname == "pending_xref")
    }
    pattern, made = _pattern(terms), 0
    for text in list(section.findall(nodes.Text)):
        if _stands_apart(text, section):
            continue
        pieces, at = [], 0
        for found in pattern.finditer(text):
            word = lower[found[1].lower()]
            if word in seen:
                continue
            seen.add(word)
            link = nodes.reference(
                "", found[0], internal=True, refuri=f"{target}#{nodes.make_id(word)}", classes=["term"],
                reftitle=terms[word],
            )  # fmt: skip
            pieces += [nodes.Text(text[at : found.start()]), link]
            at = found.end()
        if pieces:
            made += len(pieces) // 2
            text.parent.replace(text, [*pieces, nodes.Text(text[at:])])
    return made


def _stands_apart(text: nodes.Text, section: nodes.Element) -> bool:
    node = text.parent
    while node is not None and node is not section:
        if isinstance(node, _APART) or node.tagname == "pending_xref" or "cell_output" in node.get("classes", ()):
            return True
        node = node.parent
    return False


def _link_lesson(app, doctree) -> None:
    page = app.env.docname
    if not page.startswith("lessons/"):
        return
    terms = glossary_terms((app.env.srcdir / "glossary.md").read_text(encoding="utf-8"))
    target = posixpath.relpath("glossary.html", posixpath.dirname(page))
    for title in doctree.findall(lambda node: isinstance(node, nodes.section)):
        if isinstance(title.parent, nodes.document):
            for section in title.children:
                if isinstance(section, nodes.section):
                    link_terms(section, terms, target)


# --- docstrings -------------------------------------------------------------------------------------------------------


def as_rst(lines: list[str]) -> list[str]:
    """A docstring of the course as RST: `code` in single backticks, an indented block as it stands, no other markup."""
    made: list[str] = []
    for line in lines:
        indented = line.startswith("    ")
        if indented and made and not made[-1].strip() and not _in_block(made):
            made += ["::", ""]
        made.append(line if indented else _plain(line))
    return made


def _in_block(made: list[str]) -> bool:
    """Whether the lines end within an indented block."""
    last = next((line for line in reversed(made) if line.strip()), "")
    return last.startswith("    ")


def _plain(line: str) -> str:
    pieces = line.split("`")
    if len(pieces) % 2 == 0:  # a lone backtick: no code
        return _MARKS.sub(r"\\\1", line.replace("`", "'"))
    marked = [f"``{p}``" if i % 2 else _MARKS.sub(r"\\\1", p) for i, p in enumerate(pieces)]
    return "".join(marked)


def _read_docstring(app, what, name, obj, options, lines) -> None:
    lines[:] = as_rst(lines)


# --- what a screen reader says ----------------------------------------------------------------------------------------

LABELS = {  # Furo's parts of a page, of which there are two of a kind, and headings without a level
    '<aside class="sidebar-drawer"': '<aside class="sidebar-drawer" aria-label="All pages"',
    '<aside class="toc-drawer': '<aside aria-label="On this page" class="toc-drawer',
    '<p class="caption" role="heading">': '<p class="caption" role="heading" aria-level="2">',
}


def _label(app, exception) -> None:
    """Give names to what has none in the written pages."""
    if exception is None and app.builder.name == "html":
        for file in app.outdir.rglob("*.html"):
            text = file.read_text(encoding="utf-8")
            for old, new in LABELS.items():
                text = text.replace(old, new)
            file.write_text(text, encoding="utf-8")


def setup(app):
    app.add_html_math_renderer("mathml", (_in_a_line, None), (_by_itself, None))
    app.connect("doctree-read", _link_lesson)
    app.connect("autodoc-process-docstring", _read_docstring)
    app.connect("build-finished", _label)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
