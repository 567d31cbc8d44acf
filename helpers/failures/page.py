"""The page of all known failures, site/failures.md, made from the table."""

import re

from helpers import CourseError
from helpers.course import find_lesson
from helpers.failures.table import FAILURES, PARTS, RENAMED, Failure

# What Markdown would take for a mark; an underscore within a word is none.
_MARKS = re.compile(r"[*<>|]|(?<![A-Za-z0-9])_+|_+(?![A-Za-z0-9])")
_LESSON = re.compile(r"\blesson (\d\d)\b")

HEAD = """\
<!-- written by `python -m helpers build`: do not edit -->

# Known failures

Search this page for a few words of your message, without your own paths and numbers. In a notebook of the course the same
explanation appears under the traceback by itself, and `python -m helpers explain < log.txt` finds it in a log. {number} failures
are known. A name in angle brackets stands for what the message says there. Code in a cure uses the names of
[lesson 00](../notebooks/00_start_here.ipynb)'s script, such as model, tokenizer, trainer and rows; what it needs besides it
imports, and text, file or folder stand for yours.
[Lesson 06](../notebooks/06_troubleshooting.ipynb) provokes more than twelve of them and cures them.
"""
RENAMES = """\
### renamed names

What old texts write, what to write today, and what the installed release does with the old name. `trl#2162` is issue or pull
request 2162 of the library trl on GitHub.

| where | old | today | the old name | since |
|---|---|---|---|---|
"""


def failures_page() -> str:
    """Every failure of the table, part by part, as Markdown."""
    text = [HEAD.format(number=len(FAILURES)), "".join(_index())]
    for number, title in PARTS.items():
        text.append(f"## {number} {title}\n")
        text += [_entry(it) for it in FAILURES if it.part == number]
        if any(it.name == "renamed" for it in FAILURES if it.part == number):
            text.append(RENAMES + "".join(_rename(row) for row in RENAMED))
    return "\n".join(text)


def _index():
    """A line for each part: its title and the names of its failures, linked."""
    for number, title in PARTS.items():
        names = ", ".join(f"[{it.name}](#{it.name})" for it in FAILURES if it.part == number)
        yield f"{number}. {title}: {names}\n"


def _entry(it: Failure) -> str:
    """One failure: its heading, message, meaning, cure, and where to read on."""
    silent = "(no message) "
    seen = (
        f"No message: {it.shown.removeprefix(silent)}." if it.shown.startswith(silent) else f"```text\n{it.shown}\n```"
    )
    more = [section_of(it)] if it.lesson else []
    more += [f"[a thread of people who met it]({it.link})"] if it.link else []
    lines = [f"### {it.name}\n", f"{seen}\n", f"**It means:** {_plain(it.general(it.means))}\n"]
    lines += [f"**Do this:** {_plain(it.general(it.do))}\n", *([f"See {' and '.join(more)}.\n"] if more else [])]
    return "\n".join(lines)


def section_of(it: Failure) -> str:
    """A link to where lesson 06 treats a failure: to its heading. CourseError where the lesson has no such heading."""
    lesson = find_lesson("06")
    headings = re.findall(r"^# ##+ (.+)$", lesson.read_text(encoding="utf-8"), re.MULTILINE)
    found = [
        heading for heading in headings if heading == it.heading or not it.heading and _number(heading) == it.lesson
    ]
    if len(found) != 1:
        raise CourseError(
            f"failures: {it.name} names a section of lesson 06 that is not there: {it.heading or it.lesson}"
        )
    words = f"lesson 06, section {it.lesson}" + (f", {it.heading}" if it.heading else "")
    return f"[{words}](../notebooks/{lesson.stem}.ipynb#{_anchor(found[0])})"


def _number(heading: str) -> int:
    return int(heading.partition(" ")[0]) if heading[0].isdecimal() else 0


def _anchor(heading: str) -> str:
    """A heading's address: in lower case, words joined by dashes, without other marks."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def _rename(row) -> str:
    what = "works, and warns" if row.still else "is refused"
    return f"| `{row.where}` | `{row.old}` | `{row.new}` | {what} | {row.since} |\n"


def _plain(text: str) -> str:
    """Text of the table with what Markdown would take for marks escaped, outside of backticks."""
    pieces = text.split("`")
    for place in range(0, len(pieces), 2):
        escaped = _MARKS.sub(lambda mark: "".join("\\" + sign for sign in mark[0]), pieces[place])
        pieces[place] = _LESSON.sub(_to_lesson, escaped)
    return "`".join(pieces)


def _to_lesson(words: re.Match) -> str:
    """A link from "lesson 05" to its notebook."""
    return f"[{words[0]}](../notebooks/{find_lesson(words[1]).stem}.ipynb)"
