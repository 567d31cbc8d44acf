"""A training by a file of settings: what the file says, and what each of its processes does."""

import ctypes
import os
import signal
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

from helpers import CourseError, machine
from helpers.files import output_folder
from helpers.lesson import RULES, validate
from helpers.machine import GIB
from helpers.training import Way

PARAMETERS = {
    "model_id": "auto", "dataset_id": "auto", "columns": "auto", "encoding": "auto", "split": "auto", "revision": "auto",
    "template": "auto", "seed": 0, "rank": "auto", "lora_alpha": "auto", "lora_dropout": "auto", "target_modules": "auto",
    "quant_type": "nf4", "double_quant": True, "max_steps": "auto", "batch_size": "auto", "gradient_accumulation": "auto",
    "max_length": "auto", "learning_rate": "auto", "optimizer": "auto", "checkpointing": "auto", "save_steps": "auto",
    "eval_rows": 64,
}  # fmt: skip
OWN = {"way": "one", "gpus": 1, "layers": None, "gpu_gib": None, "output_dir": None}

LARGEST = 1_000_000  # bytes of a file of settings; what never ends, such as /dev/zero, is told from one


class ConfigError(CourseError):
    """A file of settings that no training can go by: one line."""


@dataclass
class Job:
    """One training. `settings` are the parameters of lesson 03; those that are "auto" are chosen when it begins."""

    parameters: dict
    way: Way
    folder: Path
    gpu_bytes: int | None

    @classmethod
    def read(cls, file: Path) -> "Job":
        """From a TOML file; ConfigError, one line, for what is unknown, missing or impossible in it."""
        try:
            with open(file, "rb") as opened:
                text = opened.read(LARGEST + 1)
            if len(text) > LARGEST:
                raise ConfigError(f"{file} is larger than a file of settings can be")
            given = tomllib.loads(text.decode())
        except OSError as error:
            raise ConfigError(f"{file}: {error.strerror or error}") from error
        except ValueError as error:  # no TOML, or no UTF-8
            raise ConfigError(f"{file} is no TOML: {error}") from error
        own = {name: given.pop(name, default) for name, default in OWN.items()}
        try:
            validate(given, set(PARAMETERS))
            if own["output_dir"] is None or not RULES["output_dir"].holds(own["output_dir"]):
                raise ConfigError(f"output_dir is {own['output_dir']!r}; name a folder that can be written")
            way = Way(own["way"], own["gpus"], _layers(own["layers"]))
            return cls(PARAMETERS | given, way, output_folder(own["output_dir"]), _bytes(own["gpu_gib"]))
        except CourseError as error:
            raise ConfigError(f"{file}: {error}") from error

    def outlook(self) -> str:
        """What the run will do, and what each GPU will take, predicted; nothing is loaded."""
        from helpers.commands._training import Training

        return Training(self, machine.detect(), machine.own_gpus()).outlook()

    def run(self, callbacks=()) -> dict | None:
        """Train, in this process and in those beside it; what was found, in the first process, else None."""
        import torch

        from helpers.commands._training import Training

        end_with_parent()
        own = machine.own_gpus()
        if own:
            torch.cuda.set_device(own[0])
        here = machine.detect()
        if self.gpu_bytes is not None:
            machine.limit_memory(own, self.gpu_bytes)
        return Training(self, here, own).run(callbacks)


def end_with_parent() -> None:
    """On Linux, have this process killed when the one that started it ends.

    torch's launcher starts its processes in sessions of their own. If it is killed, they would train on, unseen, on GPUs
    that the next run wants.
    """
    if sys.platform == "linux" and "RANK" in os.environ:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _layers(value) -> tuple[int, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(n, int) and not isinstance(n, bool) for n in value):
        raise ConfigError(f"layers is {value!r}; give a list of whole numbers, one for each GPU")
    return tuple(value)


def _bytes(gib) -> int | None:
    if gib is None:
        return None
    if isinstance(gib, bool) or not isinstance(gib, int | float) or not 0 < gib < 10_000:
        raise ConfigError(f"gpu_gib is {gib!r}; give the GiB that each GPU may take, such as 14.56")
    return int(gib * GIB)
