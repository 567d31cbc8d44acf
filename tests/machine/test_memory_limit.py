"""Every lesson runs in 6 GB of resident memory, half of what free Colab has: the limit is real, and it is on.

`pytest --nbval` holds every notebook's kernel to it (conftest.py), and prints what each took. Here the limit itself is
tried, and with COURSE_LONG_TESTS=1 the whole course once more, by the command, as a learner runs it.
"""

import json
import os
import signal
import subprocess
import sys
import time

import nbformat
import pytest

from helpers import COURSE_ROOT
from helpers.course import disk as course
from tests.limits import HALF_OF_FREE_COLAB, MemoryLimit

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the limit is made with what Linux has")
TOUCH = """
import mmap, sys, time
shared = mmap.mmap(-1, int(sys.argv[1]))
for page in range(0, len(shared), 4096):
    shared[page] = 1
time.sleep(2)
"""


def python(code: str, *words):
    return subprocess.Popen([sys.executable, "-c", code, *map(str, words)], stderr=subprocess.PIPE, text=True)


def test_a_process_that_takes_too_much_resident_memory_is_killed_at_once():
    """Shared memory, which no limit on private memory sees."""
    process = python(TOUCH, 600_000_000)
    watched = MemoryLimit(process.pid, 300_000_000).start()
    assert process.wait(20) == -signal.SIGKILL
    watched.stop()
    assert watched.exceeded
    assert 300e6 < watched.peak < 600e6


def test_a_child_process_counts_too():
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {TOUCH!r}, sys.argv[1]])"
    process = python(code, 600_000_000)
    watched = MemoryLimit(process.pid, 300_000_000).start()
    assert process.wait(20) == -signal.SIGKILL
    watched.stop()
    assert watched.exceeded


def test_private_memory_beyond_the_limit_is_refused_by_the_kernel_itself():
    process = python("import time; time.sleep(0.5)\nb = bytearray(600_000_000)")
    watched = MemoryLimit(process.pid, 300_000_000).start()
    assert "MemoryError" in process.communicate(timeout=20)[1]
    watched.stop()
    assert not watched.exceeded


def test_a_process_within_the_limit_is_left_alone_and_its_peak_is_right():
    process = python(TOUCH, 200_000_000)
    watched = MemoryLimit(process.pid, 300_000_000).start()
    assert process.wait(20) == 0
    watched.stop()
    assert 200e6 < watched.peak < 250e6
    assert watched.samples > 50


@pytest.mark.parametrize(("size", "passes"), [(20_000_000, True), (900_000_000, False)])
def test_the_limit_is_on_where_notebooks_are_tested(tmp_path, size, passes):
    cells = [nbformat.v4.new_code_cell(f"held = bytearray({size})"), nbformat.v4.new_code_cell("len(held) > 0")]
    cells[1].execution_count, cells[1].outputs = (
        2,
        [nbformat.v4.new_output("execute_result", {"text/plain": "True"}, execution_count=2)],
    )
    cells[0].execution_count = 1
    metadata = {"kernelspec": course.KERNELSPEC}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), tmp_path / "hungry.ipynb")
    surroundings = os.environ | {"COURSE_MEMORY_LIMIT": "500e6", "PYTHONPATH": str(COURSE_ROOT)}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "conftest",
        "-p",
        "no:cacheprovider",
        "--nbval",
        "--nbval-current-env",
    ]
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, cwd=tmp_path, env=surroundings)
    assert (done.returncode == 0) == passes, done.stdout
    assert "hungry.ipynb: resident at most" in done.stdout
    assert "limit 0.5 GB" in done.stdout


@pytest.mark.long
def test_the_whole_course_runs_within_the_limit(tmp_path, capsys):
    surroundings = os.environ | {"COURSE_RUNS": str(tmp_path), "PYTHONPATH": str(COURSE_ROOT), "HF_HUB_OFFLINE": "1"}
    begun = time.monotonic()
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "helpers", "run", "--name", "limited"],
            stdout=log,
            stderr=log,
            cwd=COURSE_ROOT,
            env=surroundings,
        )
        watched = MemoryLimit(process.pid).start()
        code = process.wait(3000)
    watched.stop()
    assert (code, watched.exceeded) == (0, False), (tmp_path / "log").read_text()[-3000:]
    peaks = {}
    for lesson in course.lessons():
        record = json.loads((tmp_path / "limited" / f"{lesson.stem}.json").read_text())
        assert all(v["holds"] for v in record["verdicts"])
        peaks[lesson.stem[:2]] = record["run"]["peak_resident_bytes"]
    assert max(peaks.values()) < watched.peak < HALF_OF_FREE_COLAB
    with capsys.disabled():
        said = ", ".join(f"{name} {peak / 1e9:.2f}" for name, peak in peaks.items())
        print(
            f"\n    in {time.monotonic() - begun:.0f} s, all processes at most {watched.peak / 1e9:.2f} GB; kernels (GB): {said} "
        )
