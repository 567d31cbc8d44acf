"""The encoding of the terminal stops no command: what it cannot show is written as an escape."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import COURSE_ROOT
from helpers.commands._processes import STOPPED, told

NARROW = ["cp1252:strict", "utf-8:strict"]
TO_LEARN = "".join(f"word{n} what,{n * 7}\n" for n in range(12))


def run(*words, encoding: str, **more) -> subprocess.CompletedProcess:
    around = os.environ | {"PYTHONPATH": str(COURSE_ROOT), "PYTHONIOENCODING": encoding, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "helpers", *map(str, words)]
    return subprocess.run(command, capture_output=True, env=around, **more)


@pytest.fixture
def folder(tmp_path):
    """A folder with rows to learn that have a column of arrows, and beside them a file whose name is no UTF-8."""
    rows = tmp_path / "rows"
    rows.mkdir()
    heading = "question,answer,Größe→\n"
    (rows / "train.csv").write_text(heading + TO_LEARN.replace("\n", ",x\n"), encoding="utf-8")
    Path(os.fsdecode(os.fsencode(rows) + b"/t\xe4st.csv")).write_text("question,answer\na,b\n")
    return rows


def settings(folder) -> Path:
    file = folder.parent / "config.toml"
    small = 'model_id = "bundled"\nmax_steps = 1\nbatch_size = 2\nrank = 4\neval_rows = 4\nmax_length = 64\n'
    file.write_text(f'{small}dataset_id = "{folder}"\noutput_dir = "{folder.parent / "out"}"\n')
    return file


def well(done) -> bytes:
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    return done.stdout


@pytest.mark.parametrize("encoding", NARROW)
@pytest.mark.parametrize("words", [("train", "--dry-run"), ("data", "look")], ids=" ".join)
def test_rows_that_the_terminal_cannot_show_are_looked_at(folder, encoding, words):
    command = ("train", settings(folder), "--dry-run") if words[0] == "train" else ("data", "look", folder)
    shown = well(run(*command, encoding=encoding))
    arrow = "→".encode() if encoding.startswith("utf-8") else rb"\u2192"
    assert b"columns not used: " in shown.replace(b"  ", b"")
    assert arrow in shown
    assert rb"t\udce4st.csv" in shown


def test_rows_that_the_terminal_cannot_show_are_trained_on(folder):
    assert rb"t\udce4st.csv" in well(run("train", settings(folder), encoding="cp1252:strict"))
    assert (folder.parent / "out" / "adapter").is_dir()


def test_what_stops_a_process_is_kept_whatever_the_name_in_it(tmp_path, monkeypatch):
    def fail():
        raise OSError("t\udce4st.csv → is cut off")

    monkeypatch.delenv("RANK", raising=False)
    assert told(tmp_path, fail) == 1
    assert (tmp_path / "0").read_text(encoding="utf-8") == rf"{STOPPED}OSError: t\udce4st.csv → is cut off"
