"""python -m helpers train, stopped: what is killed ends whole and goes on, two are not one, and what stopped it is said once."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from helpers import COURSE_ROOT, CourseError, machine
from helpers.commands import _job, _processes, train
from helpers.commands._training import Training
from helpers.files import adapter_fault
from helpers.saving import last_complete_checkpoint
from helpers.training import Way

ENV = os.environ | {"PYTHONPATH": str(COURSE_ROOT), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}


def write(folder: Path, text: str = "") -> Path:
    """A file of settings for a short training that writes to the folder "out" beside it."""
    file = folder / "config.toml"
    small = 'model_id = "bundled"\neval_rows = 8\nbatch_size = 2\nrank = 4\nmax_length = 64\nsave_steps = 2\n'
    file.write_text(f'{small}output_dir = "{folder / "out"}"\n{text}', encoding="utf-8")
    return file


def command(config: Path, **more) -> subprocess.Popen:
    words = [sys.executable, "-m", "helpers", "train", str(config)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV, **more)


# --- killed -------------------------------------------------------------------------------------------------------


def test_a_killed_command_leaves_no_process_and_the_same_command_goes_on(tmp_path):
    config, out = write(tmp_path, 'way = "ddp"\ngpus = 2\nmax_steps = 12\n'), tmp_path / "out"
    running = command(config)
    while not any(last_complete_checkpoint(place, 2) for place in out.glob("checkpoints-*")):
        assert running.poll() is None, running.communicate()
        time.sleep(0.02)
    processes = psutil.Process(running.pid).children(recursive=True)
    assert len(processes) >= 3  # the launcher, and two that train
    running.kill()
    running.communicate()
    assert psutil.wait_procs(processes, timeout=20)[1] == []
    assert not (out / "adapter").exists()
    config.write_text(config.read_text().replace("max_steps = 12", "max_steps = 0xC"))  # the same, written otherwise
    again = command(config)
    said = again.communicate(timeout=120)[1]
    assert again.returncode == 0, said
    found = json.loads((out / "train.json").read_text())
    assert found["resumed_from"].startswith("checkpoint-")
    assert len(found["losses"]) == 12
    assert adapter_fault(out / "adapter") is None


ON_A_LEASH = """
import sys, time
from helpers.commands import _processes
time.sleep(float(sys.argv[1]))
_processes.end_on_leash()
print("begun", flush=True)
time.sleep(600)
"""
HOLDS_ONE = """
import os, subprocess, sys
from helpers.commands import _processes
with _processes.leash() as leash:
    child = subprocess.Popen([sys.executable, *sys.argv[1:]], env=os.environ | leash, start_new_session=True)
    print(child.pid, flush=True)
    child.wait()
"""


@pytest.mark.parametrize("late", ["0", "1"], ids=["a child that trains", "a child that has only begun"])
def test_a_child_on_a_leash_ends_with_whoever_holds_it_and_not_before(tmp_path, late):
    (tmp_path / "child.py").write_text(ON_A_LEASH)
    words = [sys.executable, "-c", HOLDS_ONE, str(tmp_path / "child.py"), late]
    holder = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=ENV)
    child = psutil.Process(int(holder.stdout.readline()))
    if late == "0":
        assert holder.stdout.readline() == "begun\n"
        time.sleep(0.3)
    assert child.is_running()
    holder.kill()
    assert psutil.wait_procs([child], timeout=10)[1] == []


# --- what is said -------------------------------------------------------------------------------------------------

STANDS_IN = """
import os, signal, sys, time
from pathlib import Path

first, words = os.environ["RANK"] == "1", Path(sys.argv[-1])
what = sys.argv[1]
if first and what in ("SIGKILL", "SIGTERM"):
    os.kill(os.getpid(), getattr(signal, what))
time.sleep(0 if first else 60 if what == "waits" else 0.5)
if what != "silent":
    (words / os.environ["RANK"]).write_text("rows are missing" if first else "training stopped: RuntimeError: reset by peer")
sys.exit(1)
"""


@pytest.mark.parametrize(
    ("what", "said"),
    [
        (
            "SIGKILL",
            r"^training stopped: a process of it was killed \(SIGKILL, as the system does when memory runs out\)",
        ),
        ("SIGTERM", r"^training stopped: a process of it was killed \(SIGTERM\)"),
        ("refused", r"^rows are missing$"),
        ("waits", r"^rows are missing$"),
        ("silent", r"^training stopped: .*\w.*; .*train\.log has all of it$"),
    ],
)
def test_of_two_processes_what_stopped_the_first_is_said(tmp_path, what, said):
    script = tmp_path / "stands_in.py"
    script.write_text(STANDS_IN)
    way = SimpleNamespace(command=lambda *words: Way("ddp", 2).command(str(script), what, *words))
    with open(tmp_path / "train.log", "w") as log, pytest.raises(CourseError, match=said):
        train.start(SimpleNamespace(way=way, text=b""), ENV, log)


def test_a_process_alone_that_was_killed_is_told_from_one_that_said_why(tmp_path):
    (tmp_path / "log").write_text("Traceback\nValueError: a last line\n======\n\n")
    (tmp_path / "words").mkdir()
    told = tmp_path / "words", tmp_path / "log"
    assert "was killed (SIGTERM); the same command goes on" in _processes.what_stopped(-15, *told)
    assert "ValueError: a last line; " in _processes.what_stopped(1, *told)


def test_a_full_disk_is_one_line_that_says_so(tmp_path):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    config = write(tmp_path, "max_steps = 2\n")
    running = command(config, preexec_fn=limit)
    said = running.communicate(timeout=120)[1]
    assert running.returncode == 2
    assert "training stopped: SafetensorError: " in said
    assert "File too large" in said
    assert f"{tmp_path / 'out' / 'train.log'} has all of it" in said
    assert said.count("\n") == 1


# --- whose folder, and which run ------------------------------------------------------------------------------------


def test_two_trainings_in_one_folder_are_not_begun(tmp_path):
    config = write(tmp_path)
    with _job.Job.read(config).alone() as log:
        log.write("the first one's")
        log.flush()
        second = command(config)
        said = second.communicate(timeout=60)[1]
    assert second.returncode == 2
    assert f"another training writes to {tmp_path / 'out'}: wait for it, or name another output_dir" in said
    assert (tmp_path / "out" / "train.log").read_text() == f"{_processes.LOG_HEAD}the first one's"
    with _job.Job.read(config).alone():  # it is let go
        pass


def test_a_folder_that_cannot_be_written_into_is_one_line(tmp_path):
    (tmp_path / "out" / "train.log").mkdir(parents=True)
    job = _job.Job.read(write(tmp_path))
    with pytest.raises(CourseError, match="train.log cannot be written: Is a directory"), job.alone():
        pass


@pytest.mark.parametrize("change", ["a row", "a setting", "nothing"])
def test_other_rows_and_other_settings_are_another_run(tmp_path, change):
    rows, identities = tmp_path / "rows.csv", []
    for answer, rank in (("yes", 4), ("no" if change == "a row" else "yes", 8 if change == "a setting" else 4)):
        rows.write_text("question,answer\n" + "".join(f"What is {n}?,{answer} {n}\n" for n in range(20)))
        config = write(tmp_path, f'dataset_id = "{rows}"\n')
        config.write_text(config.read_text().replace("rank = 4", f"rank = {rank}"))
        identities.append(Training(_job.Job.read(config), machine.detect(), []).identity)
    assert (identities[0] == identities[1]) == (change == "nothing")


def test_all_processes_go_by_the_file_as_it_was_when_the_command_began(tmp_path):
    config, seen = write(tmp_path, "seed = 7\n"), tmp_path / "seen"
    script = "import shutil, sys; shutil.copy(sys.argv[-3], sys.argv[1])"
    job = _job.Job.read(config)
    job.way = SimpleNamespace(command=lambda *words: [sys.executable, "-c", script, str(seen), *words])
    config.write_text("seed = 8\n")
    with open(tmp_path / "log", "w") as log:
        train.start(job, ENV, log)
    assert "seed = 7" in seen.read_text()


# --- what she had before -------------------------------------------------------------------------------------------


def holding(folder: Path) -> dict[str, bytes]:
    """All files in a folder, by name, with what they hold."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train.json", '[{"question": "Who?", "answer": "Her."}]'),
        ("train.json", '{"way": "home"}'),
        ("train.json", ""),
        ("train.log", "She measured this.\n"),
        ("train.log", ""),
        (".training", "her notes on training"),
    ],
)
@pytest.mark.parametrize("words", [[], ["--dry-run"]], ids=["to train", "dry run"])
def test_a_file_that_the_command_would_replace_and_did_not_write_is_refused(
    tmp_path, monkeypatch, name, content, words
):
    config = write(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text(content)
    before = holding(tmp_path)
    monkeypatch.setattr(train, "start", lambda *words: pytest.fail("it was started"))
    arguments = SimpleNamespace(config=str(config), process=None, dry_run=bool(words))
    with pytest.raises(CourseError, match=rf"out/{name} was not written by this command.*name another output_dir"):
        train.main(arguments)
    assert holding(tmp_path) == before


@pytest.mark.parametrize("out", ["", "out", "deep/er"], ids=["the folder itself", "in it", "deep in it"])
def test_an_output_folder_among_the_rows_is_refused(tmp_path, monkeypatch, out):
    rows = tmp_path / "rows"
    rows.mkdir()
    (rows / "a.json").write_text('[{"question": "Who?", "answer": "Her."}]')
    config = write(tmp_path, f'dataset_id = "{rows}"\n')
    config.write_text(config.read_text().replace(str(tmp_path / "out"), str(rows / out)))
    with pytest.raises(CourseError, match="lies in the folder of rows .*: name another output_dir"):
        _job.Job.read(config).look()
    assert list(holding(rows)) == ["a.json"]


def test_rows_may_lie_in_the_output_folder_and_what_a_run_wrote_is_replaced(tmp_path):
    out = tmp_path / "out"
    (out / "adapter").mkdir(parents=True)
    (out / "adapter" / "thesis.txt").write_text("All of it.")
    (out / "rows.json").write_text(json.dumps([{"question": f"What is {n}?", "answer": f"{n}"} for n in range(40)]))
    config = write(tmp_path, f'dataset_id = "{out / "rows.json"}"\nmax_steps = 1\n')
    before = holding(out)
    for _ in range(2):
        done = command(config)
        said = done.communicate(timeout=120)
        assert done.returncode == 0, said[1]
    assert adapter_fault(out / "adapter") is None
    after = holding(out)
    assert after["adapter-1/thesis.txt"] == before["adapter/thesis.txt"]
    assert after["rows.json"] == before["rows.json"]
    assert not (out / "adapter-2").exists()
    _job.Job.read(config).look()  # its own train.json and train.log do not stand in its way


# --- ended from outside --------------------------------------------------------------------------------------------


def begun(tmp_path, name: str, **more) -> subprocess.Popen:
    """A training of two processes that has begun, whose temporary files lie in the folder "tmp"."""
    (tmp_path / "tmp").mkdir()
    config = write(tmp_path, 'way = "ddp"\ngpus = 2\nmax_steps = 6\n')
    words = [sys.executable, "-m", "helpers", "train", str(config)]
    around = ENV | {"TMPDIR": str(tmp_path / "tmp")}
    running = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=around, **more)
    while len(psutil.Process(running.pid).children(recursive=True)) < 3:
        assert running.poll() is None
        time.sleep(0.05)
    os.kill(running.pid, getattr(signal, name))
    return running


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_command_that_is_told_to_end_leaves_no_process_and_no_temporary_folder(tmp_path, name):
    by_default = signal.SIG_DFL  # whatever this test was started under: nohup has hang-ups ignored
    running = begun(tmp_path, name, preexec_fn=lambda: signal.signal(getattr(signal, name), by_default))
    assert running.wait(timeout=60) == 128 + getattr(signal, name)
    left = [place.name for place in (tmp_path / "tmp").iterdir() if not place.name.startswith(("course-rows", "torch"))]
    assert left == []
    mine = [p for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(p.info["cmdline"] or [])]
    assert mine == []


def test_under_nohup_a_hangup_ends_nothing(tmp_path):
    running = begun(tmp_path, "SIGHUP", preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    assert running.wait(timeout=200) == 0
    assert adapter_fault(tmp_path / "out" / "adapter") is None


def test_a_training_whose_words_nobody_reads_ends_well(tmp_path):
    config = write(tmp_path, "max_steps = 1\n")
    read, write_end = os.pipe()
    os.close(read)
    words = [sys.executable, "-m", "helpers", "train", str(config)]
    done = subprocess.run(words, stdout=write_end, stderr=subprocess.PIPE, text=True, env=ENV)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "out" / "train.json").is_file()
