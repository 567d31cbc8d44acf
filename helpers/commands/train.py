"""Train on one GPU or several, by a file of settings: python -m helpers train CONFIG.toml

The file has lesson 03's parameters, those that shall not be "auto", and how the training lies on its GPUs:

    model_id = "Qwen/Qwen2.5-7B"
    dataset_id = "rows.csv"
    output_dir = "runs/two"   # adapter, checkpoints and train.json go there
    way = "ddp"               # one; ddp: a copy on each GPU; split: layers divided; fsdp2: every weight divided
    gpus = 2
    layers = [13, 15]         # of a split, how many lie on each GPU; where left out, so that both take the same
    gpu_gib = 14.56           # where left out, all that a GPU has
    padding_free = true       # with one and ddp: rows one behind the other, as in lesson 03; where left out, false

Paths in it are relative to where the command is run. batch_size is what each process computes at once. Without a GPU, "ddp"
and "fsdp2" train in processes on the CPU. A run that was killed goes on from its last whole checkpoint; other settings,
another model, other rows or another template are another run. Nothing that this command did not write is replaced. Of rows too
few for all steps each pass has whole steps alone, so that a step has the same rows whatever the way; where there are fewer
than one step takes, one process has them all in a step, and several are refused. Answers that max_length cuts are counted. A
model in a folder is the same as long as its files hold the same, wherever they lie.
"""

import argparse
import json
import os
import re
import subprocess
import tempfile
from pathlib import Path

from helpers import COURSE_ROOT, CourseError
from helpers.commands import _job, _processes
from helpers.machine import ALL_GPUS, gpus_for_processes

# Variables by which launchers tell a process which one it is, of how many, and how it shall train: torch's, accelerate's, MPI's.
LAUNCHERS = (
    r"((LOCAL_|GROUP_|ROLE_|NODE_)?RANK|((LOCAL_|GROUP_|ROLE_)?WORLD_SIZE)|ROLE_NAME|MASTER_(ADDR|PORT)|FORK_LAUNCHED|"
    r"(TORCHELASTIC|PET|ACCELERATE|FSDP|PARALLELISM_CONFIG|MEGATRON_LM|OMPI_COMM_WORLD|PMI|MV2_COMM_WORLD)_\w+)"
)


def add_arguments(parser):
    parser.add_argument("config", help="a file of settings, as above")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and what each GPU would take")
    parser.add_argument(
        "--process", help=argparse.SUPPRESS
    )  # of a process that this command starts: where its words go


def main(arguments) -> int:
    config = Path(arguments.config)
    if arguments.process:
        return in_process(config, Path(arguments.process))
    job = _job.Job.read(config)
    job.look()
    surroundings = around(job)
    if arguments.dry_run:
        os.environ.clear()
        os.environ.update(surroundings)
        print(job.outlook())
        return 0
    with _processes.ending_in_order(), job.alone() as log:
        start(job, surroundings, log)
    return 0


def start(job, surroundings: dict[str, str], log) -> None:
    """Start the processes of a run and wait for them; CourseError, one line, for what stopped them."""
    with tempfile.TemporaryDirectory() as scratch, _processes.leash() as leash:
        words, config = Path(scratch) / "words", Path(scratch) / "config.toml"
        words.mkdir()
        config.write_bytes(job.text)  # as it was when the command began: all processes go by the same one
        command = job.way.command("-m", "helpers", "train", str(config), "--process", str(words))
        code = _processes.wait(subprocess.Popen(command, stderr=log, env=surroundings | leash))
        if code:
            raise CourseError(_processes.what_stopped(code, words, Path(log.name)))


def in_process(config: Path, words: Path) -> int:
    """One of the run's processes. What it says when it stops is kept for the one that started it, which says it once."""
    _processes.end_on_leash()
    if not words.is_dir():
        raise CourseError(f"--process is for processes that this command starts, and {str(words)!r} is no folder of it")

    def work():
        found = _job.Job.read(config).run()
        if found:
            print(json.dumps(found, indent=1))

    return _processes.told(words, work)


def around(job) -> dict[str, str]:
    """The environment of the run's processes: its GPUs in sight, also where a lesson chose one; CourseError for too few.

    What another launcher or `accelerate config` left there would have them wait for processes that nobody starts, or train in
    another way than the file says.
    """
    left = re.compile(LAUNCHERS)
    given = {name: value for name, value in os.environ.items() if name != ALL_GPUS and not left.fullmatch(name)}
    there = gpus_for_processes()
    cores = max(2, os.cpu_count() or 1)
    if there and len(there) < job.way.gpus:
        raise CourseError(f"gpus is {job.way.gpus}, and {len(there)} can be seen here: set gpus = {len(there)}")
    if not there and job.way.processes > cores:
        raise CourseError(
            f"gpus is {job.way.gpus}; no GPU can be seen, and {cores} processes at most can train on this CPU"
        )
    path = os.pathsep.join([str(COURSE_ROOT), *filter(None, [given.get("PYTHONPATH")])])
    quiet = {"TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
    return given | quiet | {"CUDA_VISIBLE_DEVICES": ",".join(there[: job.way.gpus]), "PYTHONPATH": path}
