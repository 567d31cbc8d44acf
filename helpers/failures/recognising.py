"""What a known error means and what to do, under the ordinary traceback: `switch_on()` in the bootstrap cell does it.

It never hides or replaces an error, and never fails itself. `python -m helpers explain < log.txt` does the same for a
pasted log. What is known stands in helpers/failures/table.toml; lesson 06 provokes more than twelve of them.
"""

import re
import textwrap
from collections.abc import Set
from dataclasses import dataclass

from helpers import CourseError
from helpers.failures.pasted import MESSAGE, errors_of, modules_in, plain, unwrapped
from helpers.failures.table import FAILURES, Failure, failure, words_of

WIDTH = 100  # columns of an explanation
LOG = 300_000  # characters of a log, from its end


@dataclass(frozen=True)
class Known:
    """A recognised failure, with the words of this case filled in."""

    failure: Failure
    means: str
    do: str

    def __str__(self) -> str:
        """The block that is shown: what it means, what to do, where in the course, and who met it before."""
        rows = [("It means", self.means), ("Do this", self.do), ("More", self.failure.where)]
        rows += [("Thread", self.failure.link)] if self.failure.link else []
        return "\n".join(_block(label, text) for label, text in rows)


def _block(label: str, text: str) -> str:
    """One labelled paragraph, and under it the points of a list, a line each in `text`.

    Addresses and names stay whole, and code does, so that it can be pasted.
    """
    kept = re.sub(r"`[^`]*`", lambda code: code[0].replace(" ", "\0"), text)
    whole = textwrap.TextWrapper(WIDTH, break_on_hyphens=False, break_long_words=False)
    whole.initial_indent, lines = f"{label:<10}", []
    for line in kept.split("\n"):
        whole.subsequent_indent = " " * (13 if re.match(r"\d\. ", line) else 10)
        lines += whole.wrap(line)
        whole.initial_indent = " " * 10
    return "\n".join(lines).replace("\0", " ")


def explanation(what: BaseException | str) -> str:
    """The explanation of an error, or of a message or log, ready to print; "" for an error that the course does not know."""
    known = recognise(what)
    return "" if known is None else str(known)


def recognise(what: BaseException | str) -> Known | None:
    """The failure that an exception or a text shows, or None. In a text the last error decides, if there is an error."""
    if isinstance(what, BaseException):
        said = list(_messages(what))
        known = next(filter(None, (_look(message, modules) for message, modules in said)), None)
        return _cause(known, "\n".join(message for message, _ in said))
    text = plain(str(what)[-LOG:])
    errors = errors_of(text)
    if not errors:
        return _cause(_look(text, modules_in(text)), text)
    for error in errors:
        known = _look(error.text, error.modules)
        if known is not None or not error.leads_back:
            return _cause(known, text)
    return _look(text, modules_in(text))  # it leads back to what stands before all errors


def all_in(text: str) -> list[Known]:
    """Every failure that a log shows, the one of its last error first, if that is known."""
    first = recognise(text)
    text = plain(text[-LOG:])
    modules = modules_in(text)
    rest = [_fill(it, text, modules) for it in FAILURES if first is None or it.name != first.failure.name]
    return [known for known in [first, *rest] if known is not None]


def last_error(text: str) -> str:
    """The first line of a log's last error, shortened; "" where there is none."""
    errors = errors_of(plain(text[-LOG:]))
    return textwrap.shorten(errors[0].text.partition("\n")[0], 2 * WIDTH) if errors else ""


def _cause(known: Known | None, text: str) -> Known | None:
    """What is behind a failure, where the table names what it may be and the rest of the log shows that."""
    for name in known.failure.causes if known else ():
        if behind := _fill(failure(name), text, frozenset()):
            return behind
    return known


def _look(text: str, modules: Set[str]) -> Known | None:
    """The first failure of the table that the text shows: as it stands, then with broken lines made whole."""
    for said in (text, unwrapped(text)):
        for it in FAILURES:
            if known := _fill(it, said, modules):
                return known
    return None


def _fill(it: Failure, text: str, modules: Set[str]) -> Known | None:
    """The failure with its words filled in, if one of its patterns is in `text`; `modules` may be empty (unknown)."""
    if it.raised_in and modules and not any(re.match(it.raised_in, name) for name in modules):
        return None
    for pattern in it.patterns:
        if match := pattern.search(text):
            words = words_of(it, pattern, match)

            def put(template, words=words):
                return re.sub(r"\{(\w+)\}", lambda name: words.get(name[1], name[0]), template)

            return Known(it, put(it.means), put(it.do))
    return None


def _modules_of(error: BaseException) -> set[str]:
    """The modules that an error came through."""
    names, step = set(), error.__traceback__
    while step is not None:
        names.add(str(step.tb_frame.f_globals.get("__name__")))
        step = step.tb_next
    return names


def _messages(error: BaseException | None):
    """("Type: message", modules it came through) of an error, then of what caused it, at most eight of them."""
    seen = 0
    while error is not None and seen < 8:
        try:
            said = str(error)
        except Exception:  # an error that cannot even be printed
            said = ""
        yield f"{type(error).__name__}: {said[:MESSAGE]}", _modules_of(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        seen += 1


# ------------------------------------------------------------------------------------------------ in a notebook


def switch_on() -> None:
    """Explain known errors under each cell that fails, from now on; outside of IPython it does nothing."""
    import sys

    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is not None:
        switch_off()
        shell.events.register("post_run_cell", explain_cell)


def switch_off() -> None:
    """Stop explaining errors under cells."""
    import sys

    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is None:
        return
    for callback in list(shell.events.callbacks["post_run_cell"]):
        if getattr(callback, "__module__", "") == __name__:  # also one of an earlier import of this file
            shell.events.unregister("post_run_cell", callback)


def explain_cell(result) -> None:
    """What IPython calls after each cell, the traceback already shown: print what is known about the cell's error."""
    try:
        error = getattr(result, "error_in_exec", None) or getattr(result, "error_before_exec", None)
        known = recognise(error) if isinstance(error, Exception) else None
        if known is None:
            return
        if isinstance(error, CourseError):  # its one line says already what to do
            print(f"More about it: {known.failure.where}")
        else:
            print(f"\n{known}")
    except Exception:  # whatever goes wrong here is not the learner's problem
        return
