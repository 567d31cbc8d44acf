"""kill -9 at random moments of lessons 03 and 05: nothing whole is harmed, nothing half has a name, the next run succeeds.

Each moment costs a part of a run and a whole one. `make test` tries two; COURSE_LONG_TESTS=1 tries twenty.
"""

import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest

from helpers import COURSE_ROOT
from helpers.files import reading as files
from helpers.files import safetensors_shapes
from helpers.saving import checkpoint_fault, last_complete_checkpoint

LONG = os.environ.get("COURSE_LONG_TESTS") == "1"
MOMENTS = 20 if LONG else 2
PLANTED = "hf_" + "PLANTED" * 5  # no real token
SMALL = {"3": ["max_steps=4", "batch_size=4", "eval_rows=8", "save_steps=2"], "5": ["eval_rows=8"]}
ABOUT = {"3": 40.0, "5": 30.0}  # seconds, until a whole run was measured
# Every Python that a run starts, kernels too, notes what an unpickler looks up (docs.python.org, audit events).
AUDIT = """
import os, sys

def note(event, details):
    if event == "pickle.find_class":
        with open(os.environ["UNPICKLED"], "a") as file:
            print(*details, file=file)

sys.addaudithook(note)
"""


class Lessons:
    """Runs lessons 03 and 05 into one folder by the course's own command, with a token in the environment."""

    def __init__(self, runs):
        self.runs, self.folder, self.said, self.seconds = runs, runs / "killed", [], dict(ABOUT)
        (runs / "site").mkdir()
        (runs / "site" / "sitecustomize.py").write_text(AUDIT)
        self.unpickled = runs / "unpickled"

    def surroundings(self) -> dict:
        path = f"{self.runs / 'site'}{os.pathsep}{COURSE_ROOT}"
        return os.environ | {"COURSE_RUNS": str(self.runs), "HF_TOKEN": PLANTED, "HF_HUB_OFFLINE": "1",
                             "PYTHONPATH": path, "UNPICKLED": str(self.unpickled)}  # fmt: skip

    def start(self, lesson: str, seed: int):
        given = [word for pair in [*SMALL[lesson], f"seed={seed}"] for word in ("-p", *pair.split("="))]
        command = [sys.executable, "-m", "helpers", "run", lesson, "--name", "killed", *given]
        log = open(self.runs / f"log-{len(self.said)}", "w")  # noqa: SIM115 (the child writes it)
        self.said.append(log.name)
        return subprocess.Popen(command, stdout=log, stderr=log, cwd=COURSE_ROOT, env=self.surroundings())

    def last_words(self) -> str:
        with open(self.said[-1], errors="replace") as log:
            return log.read()[-3000:]

    def whole_run(self, lesson: str, seed: int) -> None:
        begun = time.monotonic()
        code = self.start(lesson, seed).wait(timeout=900)
        assert code == 0, f"the run after a kill failed:\n{self.last_words()}"
        self.seconds[lesson] = time.monotonic() - begun

    def killed_run(self, lesson: str, seed: int, share: float, only_kernel: bool) -> float:
        """Start, wait for a share of a whole run's time, kill -9; returns the seconds it was given."""
        for _ in range(5):
            running, given = self.start(lesson, seed), share * self.seconds[lesson]
            with contextlib.suppress(subprocess.TimeoutExpired):
                running.wait(timeout=given)
            if running.poll() is None:
                break
            share *= 0.7  # it was faster than the last one
        else:
            pytest.fail("it always ended before it was killed")
        parent = psutil.Process(running.pid)
        victims = parent.children(recursive=True)
        if not only_kernel or not victims:
            victims.append(parent)
        for victim in victims:
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.send_signal(signal.SIGKILL)
        code = running.wait(timeout=120)
        if only_kernel and parent not in victims:
            assert code not in (0, -signal.SIGKILL), "the command must say that its kernel died"
            assert "Traceback" not in self.last_words(), self.last_words()
        psutil.wait_procs(victims, timeout=30)
        return given


def named(folder) -> dict[str, str]:
    """The SHA-256 of each file with a final name: hidden ones and checkpoints of the trainer are not yet final."""
    found = {}
    for file in folder.rglob("*"):
        parts = file.relative_to(folder).parts
        if file.is_file() and not any(part.startswith(".") or "checkpoint" in part for part in parts):
            found["/".join(parts)] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found


def halves(folder) -> list[str]:
    """What is not whole among the files with a final name, and among the checkpoints that would be resumed from."""
    wrong = []
    for name in named(folder):
        file = folder / name
        try:
            if file.suffix == ".safetensors":
                safetensors_shapes(file)
            if file.suffix == ".json":
                json.loads(file.read_text())
            if file.suffix == ".ipynb":
                nbformat.validate(nbformat.read(file, as_version=4))
        except Exception as error:
            wrong.append(f"{name}: {error!r:.200}")
        if file.name == "adapter_config.json" and files.adapter_fault(file.parent):
            wrong.append(f"{name}: {files.adapter_fault(file.parent)}")
        if file.name == "config.json" and files.model_fault(file.parent):
            wrong.append(f"{name}: {files.model_fault(file.parent)}")
    for checkpoints in {file.parent.parent for file in folder.rglob("checkpoint-*/*")}:
        last = last_complete_checkpoint(checkpoints)
        if last is not None and checkpoint_fault(last):
            wrong.append(f"{last.name} would be resumed from, and {checkpoint_fault(last)}")
    return wrong


def weights(state: dict[str, str]) -> dict[str, str]:
    return {name: digest for name, digest in state.items() if name.endswith(".safetensors")}


@pytest.fixture(scope="module")
def lessons(tmp_path_factory):
    lessons = Lessons(tmp_path_factory.mktemp("killed"))
    if LONG:  # else the moments are taken from ABOUT, in a folder that is empty at first
        for lesson in SMALL:
            lessons.whole_run(lesson, 0)
    return lessons


def test_after_a_kill_at_any_moment_nothing_is_harmed_and_the_next_run_succeeds(lessons, capsys):
    chance, done, halfway = random.Random(20_26), [], 0
    for moment in range(MOMENTS):
        lesson = "35"[moment % 2]
        before = weights(named(lessons.folder)) if lessons.folder.exists() else {}
        given = lessons.killed_run(lesson, moment + 1, chance.uniform(0.1, 0.98), only_kernel=moment % 5 == 3)
        assert halves(lessons.folder) == [], f"after moment {moment}, {given:.1f} s into lesson {lesson}"
        after = weights(named(lessons.folder))
        lessons.whole_run(lesson, moment + 1)
        assert halves(lessons.folder) == []
        whole = weights(named(lessons.folder))
        for name in set(after) & (
            set(before) | set(whole)
        ):  # what is in neither was scratch, and the next run removed it
            digest = after[name]
            assert digest in (before.get(name), whole.get(name)), f"{name} is neither the old nor the new one"
        for name in set(before) - set(after):  # between two renames: the next run puts it back
            halfway += 1
            assert name in whole, f"{name} was lost"
        assert not list(lessons.folder.rglob(".*.old")), "a replacement was not finished"
        done.append(f"{lesson}@{given:.0f}s")
        if LONG:
            with capsys.disabled():
                print(f"\n    killed {done[-1]}, recovered in {lessons.seconds[lesson]:.0f} s", end="", flush=True)
    with capsys.disabled():
        print(
            f"\n    {len(done)} kills ({', '.join(done)}), {len(done)} next runs succeeded, {halfway} between renames ",
            end="",
        )
    assert len(done) == MOMENTS


def test_the_token_in_the_environment_is_in_no_file_that_was_written_and_in_nothing_said(lessons):
    written = [file for file in lessons.runs.rglob("*") if file.is_file()]
    if not lessons.said:
        pytest.skip("no lesson was run")
    assert any(file.suffix == ".ipynb" for file in written)
    assert any(file.name == "report.html" for file in written)
    assert [file.name for file in written if PLANTED.encode() in file.read_bytes()] == []
    assert [log for log in lessons.said if PLANTED in Path(log).read_text(errors="replace")] == []


def test_no_process_of_these_runs_unpickled_anything(lessons):
    assert not lessons.unpickled.exists(), lessons.unpickled.read_text()
    control = "import pickle; pickle.loads(pickle.dumps(print))"
    subprocess.run([sys.executable, "-c", control], env=lessons.surroundings(), check=True)
    assert lessons.unpickled.read_text() == "builtins print\n"
