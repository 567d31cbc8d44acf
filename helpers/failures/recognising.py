"""What a known error means and what to do, under the ordinary traceback: `switch_on()` in the bootstrap cell does it.

It never hides or replaces an error, and never fails itself. `python -m helpers explain < log.txt` does the same for a
pasted log. What is known stands in helpers/failures/table.toml; lesson 06 provokes it.
"""

import re
import textwrap
from dataclasses import dataclass

from helpers import CourseError
from helpers.failures.table import FAILURES, Failure, words_of

WIDTH = 100  # columns of an explanation
MESSAGE = 20_000  # characters of one message that are looked at; messages of libraries are far shorter
LOG = 300_000  # characters of a log, from its end

# A line that begins an exception's message, as Python and papermill print it: "package.SomeError: what it says".
_BEGINS = re.compile(
    r"^(?:[A-Za-z_][\w.]{0,120})?(?:Error|Exception|Timeout|Interrupt|NotFound|Died)(?::|$)", re.MULTILINE
)
# A file of an installed package in a traceback, as Python and IPython print it.
_PACKAGE_FILE = re.compile(r"(?:site|dist)-packages[/\\]([\w/\\]{1,200})\.py\b")
_ESCAPES = re.compile(r"\x1b\[[0-9;]{0,20}[A-Za-z]")


@dataclass(frozen=True)
class Known:
    """A recognised failure, with the words of this case filled in."""

    failure: Failure
    means: str
    do: str

    def __str__(self) -> str:
        """The block that is shown: what it means, what to do, where in the course."""
        rows = (("It means", self.means), ("Do this", self.do), ("More", self.failure.where))
        return "\n".join(
            textwrap.fill(
                text, WIDTH, initial_indent=f"{label:<10}", subsequent_indent=" " * 10, break_on_hyphens=False
            )
            for label, text in rows
        )


def explanation(what: BaseException | str) -> str:
    """The explanation of an error, or of a message or log, ready to print; "" for an error that the course does not know."""
    known = recognise(what)
    return "" if known is None else str(known)


def recognise(what: BaseException | str) -> Known | None:
    """The failure that an exception or a text shows, or None. In a text the last error counts, then all of it."""
    if isinstance(what, BaseException):
        return next(filter(None, (_look(said, modules) for said, modules in _messages(what))), None)
    text = _ESCAPES.sub("", str(what)[-LOG:])
    begins = [found.start() for found in _BEGINS.finditer(text)]
    last, modules = text[begins[-1] :][:MESSAGE] if begins else "", _modules_in(text)
    return _look(last, modules) or _look(text, modules)


def all_in(text: str) -> list[Known]:
    """Every failure that a log shows, the one of its last error first."""
    first = recognise(text)
    text = _ESCAPES.sub("", text[-LOG:])
    modules = _modules_in(text)
    rest = [_fill(it, text, modules) for it in FAILURES if first is None or it.name != first.failure.name]
    return [known for known in [first, *rest] if known is not None]


def _look(text: str, modules: set[str]) -> Known | None:
    return next((known for it in FAILURES if (known := _fill(it, text, modules)) is not None), None)


def _fill(it: Failure, text: str, modules: set[str]) -> Known | None:
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


def _modules_in(text: str) -> set[str]:
    """The modules of installed packages whose files a printed traceback names."""
    return {re.sub(r"[/\\]", ".", found) for found in _PACKAGE_FILE.findall(text)}


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
