"""Schedules of a workshop: steps down to sections and cells of the notebooks, with minutes that add up.

site/workshop/schedules.toml says which sections, exercises and breaks follow each other. How long a section takes to teach stands
in plan.toml, how long an exercise takes in the lesson, and how long the cells run was measured (lesson_times.json).
"""

import functools
import json
import tomllib
from dataclasses import dataclass

from helpers import CourseError, course
from helpers.course import title
from helpers.workshop.sections import KIT, Section, sections


@dataclass
class Step:
    """One line of a schedule; `begin` and `minutes` in minutes, `where` says which cells of which notebook."""

    what: str
    minutes: int
    begin: int
    kind: str  # teach, exercise, room or break
    where: str = ""


@dataclass
class Session:
    """What is done in one go; `minutes` is what it promises."""

    name: str
    minutes: int
    steps: list[Step]


@dataclass
class Schedule:
    """A workshop: its sessions, what to cut when late, and how long the cells of its lessons run."""

    name: str
    aim: str
    sessions: list[Session]
    cut: list[tuple[str, int]]  # what, and the minutes that it gives
    runs: list[tuple[str, str]]  # lesson, and how long its cells run on two cores

    @property
    def minutes(self) -> int:
        return sum(session.minutes for session in self.sessions)


def schedules() -> list[Schedule]:
    """All schedules in order. Raises CourseError for a section or an exercise that no lesson has."""
    found = tomllib.loads((KIT / "schedules.toml").read_text(encoding="utf-8"))["schedule"]
    return [_schedule(one) for one in found]


def late(minutes: int) -> str:
    """Minutes as a clock shows them: 75 is 1:15."""
    return f"{minutes // 60}:{minutes % 60:02}"


def _schedule(said: dict) -> Schedule:
    made = [_session(one) for one in said["session"]]
    steps = [step for session in said["session"] for step in session["steps"]]
    numbers = sorted({step["lesson"] for step in steps if "lesson" in step})
    times = json.loads(course.TIMES.read_text(encoding="utf-8"))["lessons"]
    stems = [course.find_lesson(number).stem for number in numbers]
    runs = [(title(course.find_lesson(s)), times.get(s, {}).get("cpu_time", "not measured yet")) for s in stems]
    cut = [(step.what, step.minutes) for one in said["cut"] for step in _steps(one, 0)]
    return Schedule(said["name"], said["aim"], made, cut, runs)


def _session(said: dict) -> Session:
    steps: list[Step] = []
    for one in said["steps"]:
        begin = steps[-1].begin + steps[-1].minutes if steps else 0
        steps += _steps(one, begin)
    return Session(said["name"], said["minutes"], steps)


def _steps(said: dict, begin: int) -> list[Step]:
    """A line of the file as steps: a pause or words with their minutes, or sections or exercises of a lesson."""
    if "lesson" not in said:
        return [Step(said["words"], said["minutes"], begin, said.get("kind", "room"))]
    found, parts = [], _sections(said["lesson"])
    for heading in said.get("sections", []):
        section = parts.get(heading)
        if section is None or not section.minutes:
            raise CourseError(f"schedules.toml: lesson {said['lesson']} has no planned section {heading!r}")
        found.append(Step(heading, section.minutes, begin, "teach", _where(said["lesson"], section)))
        begin += section.minutes
    for number in said.get("exercises", []):
        section = next((section for section in parts.values() if number in section.exercises), None)
        if section is None:
            raise CourseError(f"schedules.toml: lesson {said['lesson']} has no exercise {number}")
        minutes = section.exercises[number]
        what = f"Exercise {number} of lesson {said['lesson']}"
        found.append(Step(what, minutes, begin, "exercise", f"{said['lesson']}, {section.heading}"))
        begin += minutes
    return found


def _where(number: str, section: Section) -> str:
    first, last = section.cells[0], section.cells[-1]
    return f"{number}, cells {first} to {last}" if last > first else f"{number}, cell {first}"


@functools.cache
def _sections(number: str) -> dict[str, Section]:
    return {section.heading: section for section in sections(course.find_lesson(number))}
