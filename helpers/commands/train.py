"""Train on one GPU or several, by a file of settings: python -m helpers train CONFIG.toml

The file has lesson 03's parameters, those that shall not be "auto", and how the training lies on its GPUs:

    model_id = "Qwen/Qwen2.5-7B"
    dataset_id = "rows.csv"
    output_dir = "runs/two"   # adapter, checkpoints and train.json go there
    way = "ddp"               # one; ddp: a copy on each GPU; split: layers divided; fsdp2: every weight divided
    gpus = 2
    layers = [13, 15]         # of a split, how many lie on each GPU; where left out, so that both take the same
    gpu_gib = 14.56           # where left out, all that a GPU has

batch_size is what each process computes at once. A run that was killed goes on from its last whole checkpoint.
"""

import argparse
import json
import os
import subprocess
import tempfile
from pathlib import Path

from helpers import COURSE_ROOT, CourseError
from helpers.commands import _job
from helpers.machine import ALL_GPUS, gpus_of_driver


def add_arguments(parser):
    parser.add_argument("config", help="a file of settings, as above")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and what each GPU would take")
    parser.add_argument(
        "--process", help=argparse.SUPPRESS
    )  # of a process that this command starts: where its words go


def main(arguments) -> int:
    job = _job.Job.read(Path(arguments.config))
    if arguments.process:
        return in_process(job, Path(arguments.process))
    surroundings = around(job)
    if arguments.dry_run:
        os.environ["CUDA_VISIBLE_DEVICES"] = surroundings["CUDA_VISIBLE_DEVICES"]
        print(job.outlook())
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        words = Path(scratch) / "words"
        command = job.way.command("-m", "helpers", "train", arguments.config, "--process", str(words))
        with open(job.folder / "train.log", "w", encoding="utf-8") as log:
            code = _wait(subprocess.Popen(command, stderr=log, env=surroundings))
        if words.is_file():
            raise CourseError(words.read_text(encoding="utf-8"))
        if code:
            last = (job.folder / "train.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise CourseError(
                f"training ended with code {code}; {job.folder / 'train.log'} ends: {' '.join(last[-1:])}"
            )
    return 0


def _wait(child: subprocess.Popen) -> int:
    """A child's exit code; if this process is interrupted, the child is told to end first, and its processes end with it."""
    try:
        return child.wait()
    except BaseException:
        child.terminate()
        child.wait()
        raise


def in_process(job, words: Path) -> int:
    """One of the run's processes. What it says when it stops is kept for the one that started it, which says it once."""
    try:
        found = job.run()
    except CourseError as error:
        words.write_text(str(error), encoding="utf-8")
        return 1
    if found:
        print(json.dumps(found, indent=1))
    return 0


def around(job) -> dict[str, str]:
    """The environment of the run's processes: its GPUs in sight, also where a lesson chose one; CourseError for too few."""
    given = {name: value for name, value in os.environ.items() if name != ALL_GPUS}
    if ALL_GPUS in os.environ:  # a lesson's own choice, before which nobody had chosen
        del given["CUDA_VISIBLE_DEVICES"]
    there = [str(number) for number in range(len(gpus_of_driver()))]
    if "CUDA_VISIBLE_DEVICES" in given:
        there = [gpu for gpu in given["CUDA_VISIBLE_DEVICES"].split(",") if gpu.strip()]
    if there and len(there) < job.way.gpus:
        raise CourseError(f"gpus is {job.way.gpus}, and {len(there)} can be seen here: set gpus = {len(there)}")
    path = os.pathsep.join([str(COURSE_ROOT), *filter(None, [given.get("PYTHONPATH")])])
    quiet = {"TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
    return given | quiet | {"CUDA_VISIBLE_DEVICES": ",".join(there[: job.way.gpus]), "PYTHONPATH": path}
