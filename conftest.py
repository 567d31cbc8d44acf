"""What every test run shares: the CPU, no hub, runs in a folder of their own; and nbval compares no stderr."""

import os
import sys
import tempfile

import pytest

from tests.limits import HALF_OF_FREE_COLAB, MemoryLimit

if (
    os.environ.get("COURSE_GPU_TESTS") != "1"
):  # notebooks/ holds what a CPU gives; tests/gpu wants the GPUs that are there
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
    PYDEVD_DISABLE_FILE_VALIDATION="1",
    COURSE_STRICT="1",  # an untrue verdict fails its cell
)
# One folder for the whole test run, so that lesson 04 finds what 03 left, and nobody's runs/ is touched.
os.environ.setdefault("COURSE_RUNS", tempfile.mkdtemp(prefix="course-tests-"))


@pytest.hookimpl(hookwrapper=True)
def pytest_collect_file(file_path, parent):
    """Progress bars and warnings on stderr are no result: keep nbval from comparing them (nbval#88)."""
    outcome = yield
    for collector in outcome.get_result() or []:
        if hasattr(collector, "skip_compare"):
            collector.skip_compare = (*collector.skip_compare, "stderr")


# Every notebook's kernel is held to half of the memory of free Colab, for real: see tests/limits.py.
_limits: dict = {}


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item):
    """Before a notebook's first cell runs, limit its kernel; a kernel that takes too much dies, and its cell fails."""
    manager = getattr(getattr(item.parent, "kernel", None), "km", None)
    if manager is not None and sys.platform == "linux" and os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        pid, name = manager.provisioner.pid, item.parent.name
        if name not in _limits or _limits[name].pid != pid:
            limit = int(float(os.environ.get("COURSE_MEMORY_LIMIT", HALF_OF_FREE_COLAB)))
            _limits[name] = MemoryLimit(pid, limit).start()
    yield


def pytest_terminal_summary(terminalreporter):
    """Say what each notebook took, and what it was held to."""
    for name, watched in _limits.items():
        watched.stop()
        said = f"more than {watched.limit / 1e9:.1f} GB: KILLED" if watched.exceeded else f"{watched.peak / 1e9:.2f} GB"
        terminalreporter.write_line(f"{name}: resident at most {said}, limit {watched.limit / 1e9:.1f} GB")
