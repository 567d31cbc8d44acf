"""Rows about lessons say which lesson they are about: date, device, versions and the hash of its source."""

import ast
import importlib
import json
import warnings

import pytest

from helpers import COURSE_ROOT
from helpers.course import disk as course
from tests.scripts import measuring_script

FOLDER = COURSE_ROOT / "measurements"
FILES = sorted(FOLDER.glob("*_lessons.jsonl"))


def rows_of(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_row_says_when_on_what_and_with_which_versions(file):
    for row in rows_of(file):
        assert row["date"] >= "2026-11-01"
        assert row["device"].startswith("NVIDIA")
        assert {"torch", "transformers", "trl", "peft", "bitsandbytes"} <= set(row["versions"])
        assert row["verdicts_that_held"] <= row["verdicts"]
        assert row["lesson"] in [lesson.stem for lesson in course.lessons()]


def test_the_rows_that_are_of_another_version_of_a_lesson_are_named():
    """No failure: the rows stay true of the lesson that they name. Whoever reads the tests' end sees which to run again."""
    now = {lesson.stem: course.source_hash(lesson) for lesson in course.lessons()}
    stale = [
        f"{file.name}: {row['run']} {row['lesson']} ({row['date']})"
        for file in FILES
        for row in rows_of(file)
        if row.get("source_sha256") != now[row["lesson"]]
    ]
    if stale:
        warnings.warn("measured on another version of the lesson: " + "; ".join(stale), stacklevel=1)
    assert all(now.values())


def test_a_row_keeps_no_path_of_a_machine(tmp_path):
    script = measuring_script("record_lessons")
    about = {
        "parameters": {"model_id": "/srv/somebody/m", "output_dir": "/srv/somebody/out", "rank": 4},
        "machine": "NVIDIA H100, 14.56 GiB, under T4 rules: computes in float16",
        "model": "m", "gpus": 2, "date": "2026-11-25", "python": "3.12.3", "versions": {}, "source_sha256": "0",
    }  # fmt: skip
    record = {"loss": 0.5, "curve": [1, 2], "run": about, "verdicts": [{"claim": "c", "holds": False}]}
    file = tmp_path / "two-gpus-03_t4_training.json"
    file.write_text(json.dumps(record))
    row = script.row_of("two-gpus", file)
    assert "somebody" not in json.dumps(row)
    assert (row["lesson"], row["device"], row["gpus"]) == ("03_t4_training", "NVIDIA H100", 2)
    assert row["recorded"] == {"loss": 0.5}
    assert (row["verdicts"], row["verdicts_that_held"], row["untrue"]) == (1, 0, ["c"])


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.py")), ids=lambda file: file.name)
def test_what_a_measuring_script_takes_from_the_helpers_is_there(file):
    """Most of these scripts need a GPU to run, so nobody would notice a name that has moved."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "helpers":
            room = importlib.import_module(node.module)
            for alias in node.names:
                if not hasattr(room, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")  # a file of the room
