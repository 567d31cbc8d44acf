"""What every test run shares: the CPU, no hub, runs in a folder of their own; and nbval compares no stderr."""

import os
import tempfile

import pytest

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # notebooks/ holds what a CPU gives; tests/gpu asks for 0
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
    PYDEVD_DISABLE_FILE_VALIDATION="1",
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
