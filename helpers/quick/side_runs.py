"""Small trainings of the bundled model beside a lesson's own run: on few rows, or in a process that is killed."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

from helpers import COURSE_ROOT
from helpers.data import load_instructions
from helpers.models import bundled
from helpers.quick.short_training import train_adapter
from helpers.saving import checkpoint_fault

IN_A_CHILD = """
from types import SimpleNamespace
from pathlib import Path
from helpers.machine import detect
from helpers.quick import side_run
side_run(SimpleNamespace(machine=detect(), folder=Path({folder!r})), {name!r}, **{settings!r})
"""


def side_run(run, name: str, rows: int, heldout: int = 0, **settings) -> dict:
    """Train the bundled model on its first `rows` instructions; what `train_adapter` returns, and where: "folder".

    The adapter goes to <run.folder>/side-runs/<name>. `heldout` rows are scored on the way. `settings` are train_adapter's.
    """
    data = load_instructions("bundled")[0]
    folder = _folder(run, name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    scored = data["heldout"].select(range(heldout)) if heldout else None
    found = train_adapter(bundled(), run.machine, data["train"].select(range(rows)), folder, heldout=scored, **settings)
    return found | {"folder": folder}


def killed_side_run(run, name: str, kill_at: int, **settings) -> int:
    """Begin a `side_run` in a process of its own and kill it once checkpoint-`kill_at` is whole; the exit code.

    On Linux that is -9: SIGKILL, which no process can catch, as when a machine is taken away. A process that ends by
    itself before that gives the code it ended with.
    """
    folder = _folder(run, name)
    trail = folder.with_name(f"{folder.name}-checkpoints")
    for old in (folder, trail):
        shutil.rmtree(old, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    program = IN_A_CHILD.format(folder=str(run.folder.resolve()), name=name, settings=settings)
    with open(folder.with_name(f"{name}.log"), "w", encoding="utf-8") as log:
        child = subprocess.Popen([sys.executable, "-c", program], cwd=COURSE_ROOT, stdout=log, stderr=log)
        while checkpoint_fault(trail / f"checkpoint-{kill_at}") is not None and child.poll() is None:
            time.sleep(0.005)
        child.kill()
        return child.wait()


def forget_side_runs(run) -> None:
    """Delete what side runs left."""
    shutil.rmtree(run.folder / "side-runs", ignore_errors=True)


def _folder(run, name: str) -> Path:
    return run.folder / "side-runs" / name
