"""The table of known failures (table.toml): site/failures.md shows it, and `recognise` goes by it."""

import re
import tomllib
from dataclasses import dataclass

from helpers import COURSE_ROOT

PAGE = "site/failures.md"  # all of the table, written by `python -m helpers build`
PARTS = {  # of that page
    1: "Python itself",
    2: "The environment",
    3: "Renamed arguments",
    4: "The hub and the disk",
    5: "Number formats",
    6: "No gradient",
    7: "A loss that is NaN, or stuck",
    8: "Out of memory",
    9: "Parts that do not belong together",
    10: "It runs, and the answers are wrong",
}
# What pip calls a package whose import has another name.
PACKAGE_OF = {"sklearn": "scikit-learn", "PIL": "pillow", "yaml": "pyyaml", "pynvml": "nvidia-ml-py"}


@dataclass(frozen=True)
class Renamed:
    """An old name, where it was passed or imported from, what to write today, the release that changed it, a thread."""

    where: str
    old: str
    new: str
    since: str = ""
    still: bool = False  # it works, with a warning
    also: str = ""  # a pattern of further classes that had the same argument

    @property
    def pattern(self) -> str:
        """What Python or the library says to who uses the old name."""
        if self.still:
            return rf"`{self.old}` is deprecated"
        if self.where in ("trl", "peft", "transformers"):
            no_attribute = rf"module '?{self.where}\b.{{0,40}} has no attribute '?{self.old}\b"
            return rf"cannot import name '{self.old}' from '{self.where}|{no_attribute}"
        called = self.where if self.where != "from_pretrained" else r"\w{1,80}"  # it ends up in a model's own class
        classes = rf"(?P<called>{called}{'|' if self.also else ''}{self.also})"
        # Before Python 3.10 the message had no class: "__init__() got an unexpected ...".
        refused = rf"(?:\b{classes}\.|(?<![\w.]))__init__\(\) got an unexpected keyword argument '{self.old}'"
        return rf"{refused}|'{called}' object has no attribute '{self.old}'" if self.where == "SFTTrainer" else refused


@dataclass(frozen=True)
class Failure:
    """One failure: the part of the page, what a learner sees, what it means, what to do, its compiled patterns.

    `raised_in`, where it is set, matches the name of a module that must be in the traceback: KeyError: 'text' out of a
    learner's own dictionary is another matter than the same words out of a library. `link` is where people talked about it,
    and `causes` names the failures that may be behind it: the first one that the same log shows is the answer then.
    `lesson` is the section of lesson 06 that provokes it, 0 for most, and `heading` a heading within it, "" for most. `words`
    are what people type who look for it and do not have its message.
    """

    name: str
    part: int
    shown: str
    means: str
    do: str
    patterns: tuple = ()
    raised_in: str = ""
    link: str = ""
    causes: tuple = ()
    lesson: int = 0
    heading: str = ""
    words: tuple = ()

    @staticmethod
    def general(text: str) -> str:
        """`means` or `do` for a table: <name> where the message has a name."""
        return re.sub(r"\{(\w+)\}", r"<\1>", text)

    @property
    def where(self) -> str:
        """Where to read on: the section of lesson 06 that provokes it, or the part of the page of all failures."""
        return f"lesson 06, section {self.lesson}" if self.lesson else f"{PAGE}, part {self.part}: {PARTS[self.part]}"


def _read() -> tuple[list[Failure], list[Renamed]]:
    table = tomllib.loads((COURSE_ROOT / "helpers" / "failures" / "table.toml").read_text(encoding="utf-8"))
    renamed = [Renamed(**row) for row in table["renamed"]]
    failures = []
    for row in table["failure"]:
        texts = row.pop("patterns", [])
        row |= {name: tuple(row.get(name, ())) for name in ("causes", "words")}
        texts = [r.pattern for r in renamed] if row["name"] == "renamed" else texts
        failures.append(Failure(**row, patterns=tuple(re.compile(text, re.MULTILINE) for text in texts)))
    return failures, renamed


FAILURES, RENAMED = _read()


def failure(name: str) -> Failure:
    """The failure of that name; KeyError if there is none."""
    return {it.name: it for it in FAILURES}[name]


def words_of(it: Failure, pattern: re.Pattern, match: re.Match) -> dict[str, str]:
    """The words that replace the {names} in `means` and `do`, taken from what was matched."""
    words = {name: value or "" for name, value in match.groupdict().items()}
    if it.name == "renamed":
        row = RENAMED[it.patterns.index(pattern)]
        called = words.get("called") if row.also else ""
        words |= {"old": row.old, "new": row.new.replace(f"{row.where}(", f"{called or row.where}(")}
    if "module" in words:
        top = words["module"].split(".")[0]
        words["package"] = PACKAGE_OF.get(top, top)
    return words
