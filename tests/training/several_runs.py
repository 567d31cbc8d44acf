"""Trainings of the bundled model in processes of their own, for the tests of several GPUs and for those of two processes."""

import json
import subprocess
import time
from pathlib import Path

import psutil
import torch

from helpers import COURSE_ROOT
from helpers.commands import _job, _processes, train
from helpers.saving import checkpoint_fault

SCRIPT = COURSE_ROOT / "tests" / "training" / "several_job.py"


class SeveralRun:
    """One training: its config file, its folder, and what came of it."""

    def __init__(self, folder: Path, way: str, fault: str = "", rules: str = "1", model: str = "bundled", **settings):
        self.folder, self.fault, self.rules = folder, fault, rules
        folder.mkdir(parents=True, exist_ok=True)
        processes = 2 if way in ("ddp", "fsdp2") else 1
        given = {"model_id": model, "output_dir": str(folder), "way": way, "gpus": 1 if way == "one" else 2}
        given |= {"batch_size": settings.pop("rows_per_step", 16) // processes, "eval_rows": 32, **settings}
        self.config = folder / "config.toml"
        lines = [f"{name} = {json.dumps(value)}" for name, value in given.items()]
        self.config.write_text("\n".join(lines) + "\n")
        self.job = _job.Job.read(self.config)

    @property
    def word(self) -> str:
        """What several_job.py is told of it."""
        return f"{self.config}={self.fault}" if self.fault else str(self.config)

    def start(self, words=None) -> subprocess.Popen:
        """Start it, or several runs of the same way of starting, by their words."""
        words = [str(SCRIPT), *(words or [self.word])]
        self.leash = _processes.leash()
        env = train.around(self.job) | {"COURSE_T4_RULES": self.rules, "HF_HUB_OFFLINE": "1"} | self.leash.__enter__()
        self.log = open(self.folder / "log", "w")  # noqa: SIM115 (the child writes it)
        return subprocess.Popen(self.job.way.command(*words), stdout=self.log, stderr=self.log, env=env)

    def said(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def run(self) -> dict:
        """To the end; what several_job.py kept."""
        code = self.start().wait(timeout=400)
        assert code == 0, self.said()[-4000:]
        return self.kept()

    def kept(self, name: str = "kept") -> dict:
        return torch.load(self.folder / f"{name}.pt", weights_only=True)

    def run_until_killed(self, step: int) -> None:
        """kill -9 what was started as soon as the checkpoint of this step is whole; its processes have to end with it."""
        child, begun = self.start(), time.monotonic()
        while child.poll() is None and time.monotonic() - begun < 300:
            found = list(self.folder.glob(f"checkpoints-*/checkpoint-{step}"))
            if found and checkpoint_fault(found[0], self.job.way.processes) is None:
                break
            time.sleep(0.01)
        assert child.poll() is None, self.said()[-4000:]
        children = psutil.Process(child.pid).children(recursive=True)
        child.kill()
        child.wait()
        self.leash.__exit__(None, None, None)  # as the command does when what it started has ended
        _, alive = psutil.wait_procs(children, timeout=20)
        assert alive == []

    def tensors(self) -> dict:
        """Names and shapes of the adapter that it saved."""
        from helpers.files import safetensors_shapes

        return safetensors_shapes(self.folder / "adapter" / "adapter_model.safetensors")


def apart(one: dict, other: dict) -> float:
    """How far two sets of tensors by name are apart, as a share of the first's length."""
    assert one.keys() == other.keys()
    a, b = (torch.cat([tensors[name].flatten() for name in one]) for tensors in (one, other))
    return ((a - b).norm() / a.norm()).item()


def first_finite(*runs: dict) -> int:
    """The first step whose gradients are finite in all of these runs: in float16 the scaler begins too high, and skips some."""
    steps = range(min(len(run["gradients"]) for run in runs))
    finite = [all(t.isfinite().all() for run in runs for t in run["gradients"][step].values()) for step in steps]
    return finite.index(True)


def gradients_apart(one: dict, other: dict) -> float:
    step = first_finite(one, other)
    return apart(one["gradients"][step], other["gradients"][step])


def first_difference(one: dict, other: dict) -> str:
    """The first of the losses, gradients and adapters that differs between two runs, in the order in which they are made."""
    for step, pair in enumerate(zip(one["found"]["losses"], other["found"]["losses"], strict=True)):
        if pair[0] != pair[1]:
            return f"the loss of step {step + 1}: {pair[0]!r} and {pair[1]!r}"
        for kind in ("raw", "gradients", "adapters"):
            a, b = one[kind][step], other[kind][step]
            for name in reversed(a):  # gradients arrive from the last layer on
                if not torch.allclose(a[name], b[name], rtol=0, atol=0, equal_nan=True):
                    return f"{kind} of step {step + 1}, {name}: {apart({name: a[name]}, {name: b[name]}):.2e} apart"
    return ""
