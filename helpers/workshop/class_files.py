"""What a class handed in: doctor files, lesson records and class files, read one by one; what cannot be believed is listed.

Of a file nothing goes further than what stands in `Examination` and `LessonRecord`: statuses, versions, dates, scores.
"""

import ast
import codecs
import datetime
import functools
import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path

from helpers import CourseError, course, one_line
from helpers.doctor import FAIL, OK, WARN, Finding, tidy, worst

KIND = "class_file"  # the key by which a file that save_class_file wrote is known
LARGEST_FILE, MOST_FILES = 2_000_000, 3_000  # bytes of a file; files of a folder
ALWAYS = ("python", "packages", "disk", "network")  # checks that every finished doctor has a line for
OF_A_RUN = ("machine", "python", "date", "versions")  # what every record says of its run
SCORES = ("exact_match_before", "exact_match_after")
LOSSES = ("heldout_loss_before", "heldout_loss_after")
HIGHEST_LOSS = 100  # nats; a guess among a million tokens has 14


class Unbelievable(ValueError):
    """A file that is not what it says: one line that says why, and what to do."""


@dataclass
class Examination:
    """One doctor file."""

    date: str
    findings: list[Finding]
    about: dict  # system, machine, python, gpu: text
    versions: dict  # package: version

    @property
    def status(self) -> str:
        return worst(self.findings)


@dataclass
class LessonRecord:
    """What one run of one lesson recorded, without anything that could hold somebody's data."""

    lesson: str
    date: str
    finished: bool
    held: int  # verdicts that hold, of `verdicts`
    verdicts: int
    current: bool  # of the lesson as it lies here
    own_data: bool  # trained on other rows than the course's
    scores: dict  # SCORES and LOSSES, as far as they were recorded


@dataclass
class Learner:
    """All that came from one person."""

    name: str
    doctor: Examination | None = None
    lessons: dict[str, LessonRecord] = field(default_factory=dict)


@dataclass
class Handed:
    """A folder that was read: the learners in order of their names, and (file, what is wrong, what to do)."""

    learners: list[Learner]
    faults: list[tuple[str, str, str]]


def read_class(folder: Path) -> Handed:
    """Read everything in a folder. Raises CourseError, one line, if it is no folder or holds too many files."""
    if not folder.is_dir():
        raise CourseError(f"{str(folder)!r} is no folder; name the one that holds the files of the class")
    files = sorted(p for p in folder.rglob("*") if not p.is_dir() and not _passed_over(p.relative_to(folder)))
    if len(files) > MOST_FILES:
        raise CourseError(
            f"{len(files):,} files in {folder.name!r}: at most {MOST_FILES:,} are read; is it the right folder?"
        )
    learners: dict[str, Learner] = {}
    faults = []
    for file in files:
        shown = one_line(str(file.relative_to(folder)))
        try:
            doctor, records = read_file(file)
        except Unbelievable as error:
            what, _, cure = str(error).partition("; ")
            faults.append((shown, _word(what), _word(cure)))
            continue
        name = learner_of(file.relative_to(folder)) or f"unnamed: {shown}"
        learner = learners.setdefault(name.casefold(), Learner(name))
        if doctor and (learner.doctor is None or doctor.date >= learner.doctor.date):
            learner.doctor = doctor
        for record in records:
            other = learner.lessons.get(record.lesson)
            if other is None or (record.finished, record.date) >= (other.finished, other.date):
                learner.lessons[record.lesson] = record
    return Handed([learners[key] for key in sorted(learners)], faults)


def _passed_over(inside: Path) -> bool:
    """Hidden files, what archives of a Mac bring along, and the page itself."""
    return any(part.startswith(".") or part == "__MACOSX" for part in inside.parts) or str(inside) == "class.html"


def learner_of(inside: Path) -> str:
    """Whose file this is: the name of the first folder, else the file's, without what the course put in; "" for none."""
    text = inside.parts[0] if len(inside.parts) > 1 else inside.stem
    for stem in _lessons():
        text = text.replace(stem, " ")
    text = re.sub(r"\s*\(\d+\)|(?i:\b|_)(?i:doctor|class)(?i:\b|_)", " ", text)
    return one_line(re.sub(r"\s+", " ", text).strip(" _-."))[:40]


# --- one file ---------------------------------------------------------------------------------------------------


def read_file(file: Path) -> tuple[Examination | None, list[LessonRecord]]:
    """What one file holds; raises Unbelievable for what is no file of this course, is cut off, or contradicts itself."""
    said = _object(file)
    if KIND in said:
        lessons = _dictionary(said.get("lessons", {}), "lessons")
        records = [lesson_record(stem, _dictionary(record, stem)) for stem, record in lessons.items()]
        doctor = said.get("doctor")
        return (None if doctor is None else examination(_dictionary(doctor, "doctor"))), records
    if "checks" in said:
        return examination(said), []
    if "run" in said:
        run = _dictionary(said["run"], "run")
        stem = run.get("lesson") or next((stem for stem in _lessons() if stem in file.stem), None)
        if stem is None:
            raise Unbelievable(
                "it does not say which lesson it is of; give it its first name back, such as 03_t4_training.json"
            )
        return None, [lesson_record(stem, said)]
    raise Unbelievable("it is neither a doctor's file nor a lesson's record; ask for the last cell of the notebook")


def _object(file: Path) -> dict:
    if file.is_symlink() or not file.is_file():
        raise Unbelievable("it is a link or a device, and those are not followed; copy the file itself")
    if file.suffix.lower() != ".json":
        zipped = file.suffix.lower() in (".zip", ".gz", ".7z", ".rar", ".tar")
        cure = "unpack it" if zipped else "ask for the file that ends in .json"
        raise Unbelievable(f"it is no .json file; {cure}")
    try:
        if file.stat().st_size > LARGEST_FILE:
            raise Unbelievable(f"it has {file.stat().st_size / 1e6:,.1f} MB, where some kB are usual; ask for it again")
        text = _decoded(file.read_bytes())
    except OSError as error:
        raise Unbelievable(f"it cannot be read ({error.strerror}); ask for it again") from error
    if not text.strip():
        raise Unbelievable("it is empty; ask for it again")
    begin = 0 if text.lstrip().startswith(("{", "[")) else text.find("\n{") + 1  # warnings that were printed before it
    try:
        said, _ = json.JSONDecoder().raw_decode(text[begin:].lstrip())
    except (ValueError, RecursionError) as error:
        if re.search(r"^(OK|WARN|FAIL) +\w+", text, re.MULTILINE):
            raise Unbelievable("it holds the doctor's lines; ask for python -m helpers doctor --json") from error
        raise Unbelievable("it is cut off or damaged; ask for it again") from error
    return _dictionary(said, "the file")


def _decoded(data: bytes) -> str:
    """PowerShell's > writes UTF-16; everything else that the course and its learners write is UTF-8."""
    utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return data.decode("utf-16" if utf16 else "utf-8-sig", errors="replace")


def _dictionary(value, name: str) -> dict:
    if not isinstance(value, dict):
        raise Unbelievable(f"{name} holds {type(value).__name__}, where an object is expected; ask for it again")
    return value


# --- the doctor's -----------------------------------------------------------------------------------------------


def examination(said: dict) -> Examination:
    """A doctor's JSON object; raises Unbelievable where lines are missing, are none, or contradict its summary."""
    checks = said.get("checks")
    if not isinstance(checks, list) or not checks:
        raise Unbelievable("the doctor's file holds no checks; ask for it again")
    findings = [_finding(check) for check in checks[:200]]
    missing = [name for name in ALWAYS if name not in {found.check for found in findings}]
    if missing:
        raise Unbelievable(f"the doctor did not come to: {', '.join(missing)}; have it run once more, to the end")
    if said.get("worst") != worst(findings):
        raise Unbelievable(
            f"it says {said.get('worst')!r}, and its worst line says {worst(findings)}; ask for it again"
        )
    given = said.get("about")
    about: dict = given if isinstance(given, dict) else {}
    kept = {name: _word(about.get(name)) for name in ("system", "machine", "python", "gpu", "colab")}
    return Examination(
        _date(said.get("date")), findings, {k: v for k, v in kept.items() if v}, _versions(about.get("versions"))
    )


def _finding(check) -> Finding:
    words: list = [check.get(name) for name in ("check", "status", "what", "cure")] if isinstance(check, dict) else []
    if len(words) != 4 or not all(isinstance(word, str) for word in words) or words[1] not in (OK, WARN, FAIL):
        raise Unbelievable("one of the doctor's lines is none; ask for it again")
    name, status, what, cure = words
    return Finding(_word(name)[:40], status, _word(what), _word(cure))


def _word(value) -> str:
    """Text of somebody's file in one printable line, without tokens and paths; "" for what is no text."""
    return one_line(tidy(value)) if isinstance(value, str) else ""


def _versions(value) -> dict[str, str]:
    """Packages and versions, as far as they look like some."""
    pairs = list(value.items())[:60] if isinstance(value, dict) else []
    return {
        k: v
        for k, v in pairs
        if isinstance(v, str) and re.fullmatch(r"[\w.-]{1,40}", k) and re.fullmatch(r"[\w.+!-]{1,30}", v)
    }


def _date(value) -> str:
    """The day, "2026-11-26"; raises Unbelievable for what is none, or lies ahead by more than the time zones explain."""
    try:
        day = datetime.date.fromisoformat(str(value)[:10])
    except ValueError as error:
        raise Unbelievable("it has no date, or one that is none; ask for it again") from error
    if day > datetime.date.today() + datetime.timedelta(days=1):
        raise Unbelievable(f"its date is {day}, which is yet to come; set that machine's clock")
    return day.isoformat()


# --- a lesson's -------------------------------------------------------------------------------------------------


def lesson_record(stem: str, said: dict) -> LessonRecord:
    """A lesson's record; raises Unbelievable where it lacks what every record has, or holds a number that cannot be."""
    if stem not in _lessons():
        raise Unbelievable(
            f"it is of the lesson {str(stem)[:40]!r}, which is none of this course; ask which course that is"
        )
    run = _dictionary(said.get("run"), "run")
    lacking = [name for name in OF_A_RUN if not run.get(name)]
    if lacking:
        raise Unbelievable(f"it lacks what every record of {stem} has: {', '.join(lacking)}; ask for it again")
    verdicts = said.get("verdicts", [])
    held: list = (
        [v.get("holds") if isinstance(v, dict) else None for v in verdicts] if isinstance(verdicts, list) else [None]
    )
    if not all(isinstance(holds, bool) for holds in held):
        raise Unbelievable(f"the verdicts of {stem} are none; ask for it again")
    return LessonRecord(
        lesson=stem,
        date=_date(run["date"]),
        finished=bool(held) and recorded_at_the_end(stem) <= set(said),
        held=sum(held),
        verdicts=len(held),
        current=run.get("source_sha256") == course.source_hash(course.LESSONS / f"{stem}.py"),
        own_data=not str(run.get("data") or "the bundled").startswith("the bundled"),
        scores=_scores(stem, said),
    )


def _scores(stem: str, said: dict) -> dict[str, float]:
    """The held-out scores and losses that a record holds. A score is a share; a loss is a number of nats."""
    found = {}
    for name in (*SCORES, *LOSSES):
        value = said.get(name)
        if value is None:
            continue
        highest = 1 if name in SCORES else HIGHEST_LOSS
        # `not <=` refuses a loss that is no number as well, which json reads as NaN
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not 0 <= value <= highest
            or math.isinf(value)
        ):
            raise Unbelievable(f"{name} of {stem} is {str(value)[:20]}, which cannot be; ask for it again")
        found[name] = float(value)
    return found


@functools.cache
def _lessons() -> tuple[str, ...]:
    return tuple(lesson.stem for lesson in course.lessons())


@functools.cache
def recorded_at_the_end(stem: str) -> frozenset[str]:
    """The names that a lesson records before its "Further down": a record that has them all is of a finished lesson."""
    text = (course.LESSONS / f"{stem}.py").read_text(encoding="utf-8").partition("\n# ## Further down")[0]
    calls = [
        node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    ]
    return frozenset(k.arg for call in calls if call.func.id == "record" for k in call.keywords if k.arg)  # type: ignore[attr-defined]
