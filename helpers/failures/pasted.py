"""A pasted log taken apart: what launchers put before its lines is gone, and each error stands by itself.

The last error is the one that counts. Those before it count only where it leads back to them: it was raised while they
were handled, or it says no more than that some other process failed.
"""

import re
from dataclasses import dataclass

MESSAGE = 20_000  # characters of one message that are looked at; messages of libraries are far shorter

# Colours and other orders to a terminal.
_ESCAPES = re.compile(r"\x1b(?:\[[0-9;?]{0,30}[@-~]|\][^\x07\x1b\n]{0,300}(?:\x07|\x1b\\))")
# What stands before a line that the learner's program never wrote.
_BEFORE = re.compile(
    r"^[ \t]{0,8}(?:"
    r"\[(?:[a-z]{1,12}|\d{1,4},) ?\d{1,5}\](?:<\w{1,8}>)?:? ?"  # [rank0]:   [default3]:   [1,0]<stderr>:
    r"|\[[EWIF](?:\d{4})? [^\]\n]{1,120}\] ?"  # [E1126 10:00:00.123 ProcessGroupNCCL.cpp:616]
    r"|[EWIF]\d{4} [^\]\n]{1,160}\] ?"  # E0422 05:07:49.013000 204 torch/distributed/elastic/multiprocessing/api.py:732]
    r"|\(\w[\w.]{0,60} (?:pid|rank)=\d{1,9}[^)\n]{0,60}\) ?"  # (main_task pid=55440)
    r"|\[?\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d[.,\d]{0,10}(?:Z|[+-]\d\d:?\d\d)?\]? ?(?:[-|] )?"
    r"(?:\[?(?:ERROR|WARNING|INFO|CRITICAL)\]?[ :|-]{1,4})?"  # 2026-11-26 10:00:00,123 - ERROR -
    r"|\d{1,6}\.\d{1,6}s[ \t]{1,4}\d{1,6}[ \t]{1,4}"  # Kaggle's log of a saved notebook: 34.5s  12
    r"|\d{1,4}: (?=[A-Za-z_.]{1,120}(?:Error|Exception))"  # srun --label
    r"|[│┃] ?|> "  # the frame that rich draws, and quotation marks of an e-mail or a thread
    r")",
    re.MULTILINE,
)
_FRAME_ENDS = re.compile(r"[ \t]{0,200}[│┃][ \t]{0,8}$", re.MULTILINE)

# A line that begins an exception's message, as Python and papermill print it: "package.SomeError: what it says".
_BEGINS = re.compile(
    r"^[ \t]{0,3}(?:(?:[A-Za-z_][\w.]{0,120})?"
    r"(?:Error|Exception|Timeout|Interrupt|NotFound|Died|Invalid|NoSuchKernel|OutOfResources)(?::|[ \t]{0,8}$)"
    r"|what\(\):)",
    re.MULTILINE,
)
_CHAINED = re.compile(
    r"During handling of the above exception, another exception occurred"
    r"|The above exception was the direct cause of the following exception"
)
# Errors that report another one, which stands before them; and what Python says of errors that it dropped.
_REPORTS = re.compile(
    r"(?:[\w.]{0,120}\.)?(?:ChildFailedError|ProcessRaisedException|ProcessExitedException|CalledProcessError|"
    r"PapermillExecutionError|CellExecutionError|KeyboardInterrupt|BrokenPipeError)\b"
)
_DROPPED = re.compile(r"^Exception ignored (?:in|while)\b", re.MULTILINE)
# A file of an installed package in a traceback, as Python and IPython print it.
_PACKAGE_FILE = re.compile(r"(?:site|dist)-packages[/\\]([\w/\\]{1,200})\.py\b")


@dataclass(frozen=True)
class Said:
    """One error of a log: its message, the modules of its traceback, and whether it leads back to the error before it."""

    text: str
    modules: frozenset
    leads_back: bool = False


def plain(text: str) -> str:
    """The text without colours, and without what launchers, frames and quotations put around its lines."""
    text = _ESCAPES.sub("", text).replace("\r\n", "\n").replace("\u00a0", " ")
    for _ in range(3):  # a time before a rank before a source line
        text = _BEFORE.sub("", text)
    return _FRAME_ENDS.sub("", text)


def errors_of(text: str) -> list[Said]:
    """The errors of a log that went through `plain`, the last one first."""
    starts = [found.start() for found in _BEGINS.finditer(text)]
    found = []
    for number, start in enumerate(starts):
        before = text[starts[number - 1] if number else 0 : start]
        end = starts[number + 1] if number + 1 < len(starts) else len(text)
        message = text[start:end].lstrip()[:MESSAGE]
        back = _CHAINED.search(before) or _DROPPED.search(before) or _REPORTS.match(message)
        found.append(Said(message, modules_in(before), bool(back)))
    return found[::-1]


def unwrapped(text: str) -> str:
    """The text with the lines of each paragraph as one: a terminal or a forum breaks lines anywhere."""
    return re.sub(r"(?<!\n)[ \t]{0,200}\n[ \t]{0,200}(?!\n)", " ", text[-MESSAGE:])


def modules_in(text: str) -> frozenset:
    """The modules of installed packages whose files a printed traceback names."""
    return frozenset(re.sub(r"[/\\]", ".", found) for found in _PACKAGE_FILE.findall(text))
