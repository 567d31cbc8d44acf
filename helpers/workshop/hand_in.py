"""What a learner hands in: one file with the doctor's lines and how far the lessons went, and nothing of her data."""

import contextlib
import importlib
import json
import re
import time
from pathlib import Path

from helpers import CourseError, course, doctor
from helpers.files import output_folder, write_whole
from helpers.packages import requirements
from helpers.records import read_record
from helpers.workshop.class_files import KIND, LOSSES, SCORES

KEPT_OF_A_RUN = ("lesson", "machine", "python", "date", "versions", "source_sha256")


def save_class_file(name: str = "learner", runs: Path | None = None) -> Path:
    """Write NAME.json into the current folder, and in Colab have the browser download it; returns the file.

    It holds what the doctor says now and, of each lesson's record in `runs` (by default runs/default), which parts it
    came to, how many verdicts hold, held-out scores and losses, versions and dates. No answers, no rows, no paths.
    """
    if not re.fullmatch(r"[\w .-]{1,40}", name) or name.startswith("."):
        raise CourseError(f"{name[:40]!r} cannot be a file's name here: letters, digits, spaces and - _ . are allowed")
    file = Path.cwd() / f"{name}.json"
    write_whole(file, json.dumps(class_file(runs or output_folder("auto")), indent=1) + "\n")
    print(f"{file.name} is saved; it holds the doctor's lines and how far your lessons went, and none of your data.")
    with contextlib.suppress(ImportError):  # outside of Colab the file lies beside the notebook
        importlib.import_module("google.colab.files").download(str(file))
    return file


def class_file(runs: Path) -> dict:
    """What save_class_file writes."""
    findings = doctor.examine(*doctor.INSTALLED, *doctor.MACHINE, *doctor.NETWORK, *doctor.TORCH)
    examined = {
        "worst": doctor.worst(findings),
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "checks": [vars(finding) for finding in findings],
        "about": doctor.machine_in_numbers()
        | {"versions": {name: here for name, _, here, _ in requirements() if here}},
    }
    records = {lesson.stem: read_record(runs, lesson.stem) for lesson in course.lessons()}
    return {KIND: 1, "doctor": examined, "lessons": {stem: without_data(r) for stem, r in records.items() if r}}


def without_data(record: dict) -> dict:
    """A lesson's record with the names of what was recorded, and of values only those that the class's page shows."""
    run = record.get("run", {})
    kept: dict = {name: record[name] if name in (*SCORES, *LOSSES) else None for name in record}
    kept["verdicts"] = [{"holds": bool(verdict.get("holds"))} for verdict in record.get("verdicts", [])]
    kept["run"] = {name: run[name] for name in KEPT_OF_A_RUN if name in run}
    kept["run"]["data"] = (
        "the bundled rows" if str(run.get("data") or "the bundled").startswith("the bundled") else "own"
    )
    return kept
