"""The examples at the head of the API's pages: each runs as it stands, outside of the course, and prints what it says."""

import os
import subprocess
import sys

import pytest

from helpers import COURSE_ROOT

sys.path.insert(0, str(COURSE_ROOT / "site"))
import engines  # noqa: E402


def printed(code: str, folder) -> list[str]:
    """What a script prints in an empty folder, with the course on Python's path."""
    (folder / "example.py").write_text(code, encoding="utf-8")
    around = os.environ | {"PYTHONPATH": str(COURSE_ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "example.py"], cwd=folder, env=around, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()


def told(code: str) -> list[str]:
    """The lines that an example says it prints."""
    return [line.removeprefix("#   ") for line in code.partition("# It prints:\n")[2].splitlines()]


@pytest.mark.parametrize("room", engines.ENGINES)
def test_the_example_of_each_engine_runs_and_prints_what_it_says(room, tmp_path):
    code = engines.engine(room)["example"]
    assert f"from helpers.{room} import " in code
    assert len(code.splitlines()) <= 16, "short"
    assert told(code)
    assert printed(code, tmp_path) == told(code)


def test_an_example_that_prints_something_else_or_stops_is_noticed(tmp_path):
    code = engines.engine("failures")["example"]
    assert printed(code.replace("'sklearn'", "'PIL'"), tmp_path) != told(code)
    with pytest.raises(AssertionError, match="cannot import name 'recognize'"):
        printed(code.replace("recognise", "recognize"), tmp_path)
