"""Trainings by a file of settings, started from a notebook as a terminal would start them: `python -m helpers train`."""

import contextlib
import json
import os
import subprocess
import sys
import time
import tomllib
from pathlib import Path

from helpers import COURSE_ROOT, CourseError
from helpers.machine import ALL_GPUS, gpus_for_processes
from helpers.saving import checkpoint_fault


def two_gpus_here() -> bool:
    """Whether two GPUs are there for the processes that `train_by_file` starts; it leaves the CPU to them otherwise."""
    return len(gpus_for_processes()) > 1


def train_by_file(config: Path, dry_run: bool = False) -> dict:
    """`python -m helpers train CONFIG`, and what it recorded in its folder (train.json): losses, heldout_loss_after, ...

    With `dry_run` nothing is trained, and the dictionary has what was said: "words". CourseError where the command fails.
    Where fewer than two GPUs are, all processes compute on the CPU, so that one and two of them can be compared.
    """
    with _started(config, *(["--dry-run"] if dry_run else [])) as child:
        said, complaint = child.communicate()
    if child.returncode:
        raise CourseError((complaint.strip().splitlines() or ["the training said nothing"])[-1])
    if dry_run:
        return {"words": said.strip()}
    return json.loads((_folder(config) / "train.json").read_text(encoding="utf-8"))


def killed_by_file(config: Path, kill_at: int, processes: int) -> str:
    """Begin the training of a file, and kill all of its processes once checkpoint-`kill_at` is whole; that one's name.

    They get SIGKILL, which none can catch, as when a machine is taken away. CourseError if the training ends before that.
    """
    with _started(config, heard=False) as child:
        while not (found := _whole(_folder(config), kill_at, processes)):
            if child.poll() is not None:
                raise CourseError(
                    f"the training ended with code {child.returncode} before checkpoint-{kill_at} was whole"
                )
            time.sleep(0.01)
    return found.name


@contextlib.contextmanager
def _started(config: Path, *words: str, heard: bool = True):
    """The command in a process of its own; whatever of it is still there at the end is killed, with all that it started."""
    import psutil

    command = [sys.executable, "-m", "helpers", "train", str(config), *words]
    pipe = subprocess.PIPE if heard else subprocess.DEVNULL
    child = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=_surroundings())
    try:
        yield child
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            started = psutil.Process(child.pid).children(recursive=True)
            child.kill()
            for process in started:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(started, timeout=20)  # none still writes when the next training begins
        child.wait()


def _whole(folder: Path, step: int, processes: int) -> Path | None:
    found = list(folder.glob(f"checkpoints-*/checkpoint-{step}"))
    return found[0] if found and checkpoint_fault(found[0], processes) is None else None


def _folder(config: Path) -> Path:
    return Path(tomllib.loads(Path(config).read_text(encoding="utf-8"))["output_dir"])


def _surroundings() -> dict[str, str]:
    """The environment of a training: the course in reach, and no GPU in sight where there are not two."""
    around = dict(os.environ)
    around["PYTHONPATH"] = os.pathsep.join([str(COURSE_ROOT), *filter(None, [around.get("PYTHONPATH")])])
    if not two_gpus_here():
        around.pop(ALL_GPUS, None)
        around["CUDA_VISIBLE_DEVICES"] = ""
    return around
