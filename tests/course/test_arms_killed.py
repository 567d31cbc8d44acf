"""measure_arms.py, killed and begun again: what was whole stays, what was not is done, and nothing is done twice."""

import json
import os
import signal
import subprocess
import sys
import time
import tomllib

import pytest

from helpers import COURSE_ROOT
from tests.scripts import measuring_script

FOLDER = COURSE_ROOT / "measurements"
SCRIPT = FOLDER / "measure_arms.py"
SMALL = """
[arms]
lora = { rank = 4, alpha = 32 }
nf4 = { rank = 4, alpha = 32, bits = "nf4" }
[tasks.form]
model = "bundled"
compute = "float32"
arms = ["nf4", "lora"]
seeds = [0]
search_seeds = [100]
rates = { full = [1e-3], adapter = [1e-3] }
steps = 1
batch = 2
max_length = 96
new_tokens = 2
asked_at_once = 12
compared_windows = 1
"""


@pytest.fixture(scope="module")
def arms():
    return measuring_script("measure_arms")


def started(design, out):
    command = [sys.executable, SCRIPT, "--design", design, "run", "--out", out, "--smoke", "1"]
    return subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, text=True, cwd=COURSE_ROOT)


def test_after_a_kill_the_rest_is_done_and_nothing_twice(tmp_path, arms):
    design, rows = tmp_path / "design.toml", tmp_path / "out" / arms.ROWS
    design.write_text(SMALL, encoding="utf-8")
    first, end = started(design, rows.parent), time.monotonic() + 500
    while not (rows.exists() and b"\n" in rows.read_bytes()) and time.monotonic() < end and first.poll() is None:
        time.sleep(0.05)
    os.kill(first.pid, signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    kept = rows.read_text(encoding="utf-8")
    assert 1 <= kept.count("\n") < 4
    rows.write_text(kept + kept[:200], encoding="utf-8")  # and a row that was being written
    said = started(design, rows.parent).communicate(timeout=500)[0]
    assert "4 rows, 0 runs are left, 0 failed" in said
    assert rows.read_text(encoding="utf-8").startswith(kept)
    found = [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()]
    assert sorted((row["phase"], row["arm"]) for row in found) == [
        ("runs", "lora"), ("runs", "nf4"), ("search", "lora"), ("search", "nf4"),
    ]  # fmt: skip
    nf4 = next(row for row in found if (row["phase"], row["arm"]) == ("runs", "nf4"))
    assert nf4["answers_distance_before"] > 0
    assert nf4["answers_distance_after"] > 0
    assert all(row["smoke"] and len(row["hits"]) == 3 and row["peak_bytes"] is None for row in found)


def test_a_run_waits_for_its_rate_and_for_the_adapter_that_it_is_compared_with(tmp_path, arms):
    design = tomllib.loads(SMALL)
    jobs = arms.all_jobs(design, with_chat=False)
    assert [(job["phase"], job["arm"]) for job in jobs] == [
        ("search", "lora"), ("search", "nf4"), ("runs", "lora"), ("runs", "nf4"),
    ]  # fmt: skip
    lora, nf4 = jobs[2:]
    searched = [job | {"loss": 1.0} for job in jobs[:2]]
    assert arms.ready(lora, searched[1:], design, tmp_path, []) is None
    assert arms.ready(lora, searched, design, tmp_path, [])["learning_rate"] == 1e-3
    assert arms.ready(nf4, searched, design, tmp_path, []) is None
    over = [*searched, lora | {"learning_rate": 1e-3}]
    lost = arms.ready(nf4, over, design, tmp_path, [])  # the row is there, but not the adapter: it is made anew
    assert (lost["arm"], lost["reference"]) == ("lora", True)
    assert arms.ready(nf4, over, design, tmp_path, [lost]) is None
    (tmp_path / "form-0").mkdir()
    assert arms.ready(nf4, over, design, tmp_path, [])["arm"] == "nf4"
