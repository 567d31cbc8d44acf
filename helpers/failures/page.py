"""The page of all known failures, site/failures.md, made from the table."""

import re

from helpers.failures.table import FAILURES, PARTS, RENAMED, Failure

# What Markdown would take for a mark; an underscore within a word is none.
_MARKS = re.compile(r"[*<>|]|(?<![A-Za-z0-9])_+|_+(?![A-Za-z0-9])")

HEAD = """\
<!-- written by `python -m helpers build`: do not edit -->

# Known failures

Search this page for a few words of your message, without your own paths and numbers. In a notebook of the course the same
explanation appears under the traceback by itself, and `python -m helpers explain < log.txt` finds it in a log. {number} failures
are known. A name in angle brackets stands for what the message says there.
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
    more = [f"[lesson 06, section {it.lesson}](../notebooks/06_troubleshooting.ipynb)"] if it.lesson else []
    more += [f"[a thread of people who met it]({it.link})"] if it.link else []
    lines = [f"### {it.name}\n", f"{seen}\n", f"**It means:** {_plain(it.general(it.means))}\n"]
    lines += [f"**Do this:** {_plain(it.general(it.do))}\n", *([f"See {' and '.join(more)}.\n"] if more else [])]
    return "\n".join(lines)


def _rename(row) -> str:
    what = "works, and warns" if row.still else "is refused"
    return f"| `{row.where}` | `{row.old}` | `{row.new}` | {what} | {row.since} |\n"


def _plain(text: str) -> str:
    """Text of the table with what Markdown would take for marks escaped, outside of backticks."""
    pieces = text.split("`")
    for place in range(0, len(pieces), 2):
        pieces[place] = _MARKS.sub(lambda mark: "".join("\\" + sign for sign in mark[0]), pieces[place])
    return "`".join(pieces)
