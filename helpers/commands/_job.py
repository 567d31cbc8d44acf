"""A training by a file of settings: what the file says, and what each of its processes does."""

import contextlib
import json
import os
import re
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout  # it comes with huggingface-hub

from helpers import CourseError, data, machine, models
from helpers.commands._processes import LOG_HEAD
from helpers.files import output_folder, read_object
from helpers.lesson import RULES, Rule, validate
from helpers.machine import GIB, MOST_GPUS
from helpers.memory import CannotPredict, shape_of
from helpers.training import Way

PARAMETERS = {
    "model_id": "auto", "dataset_id": "auto", "columns": "auto", "encoding": "auto", "split": "auto", "revision": "auto",
    "template": "auto", "seed": 0, "rank": "auto", "lora_alpha": "auto", "lora_dropout": "auto", "target_modules": "auto",
    "quant_type": "nf4", "double_quant": True, "max_steps": "auto", "batch_size": "auto", "gradient_accumulation": "auto",
    "max_length": "auto", "learning_rate": "auto", "optimizer": "auto", "checkpointing": "auto", "save_steps": "auto",
    "eval_rows": 64, "padding_free": False,
}  # fmt: skip
OWN: dict[str, Any] = {"way": "one", "gpus": 1, "layers": None, "gpu_gib": None, "output_dir": None}
LOCK = ".training"  # in the output folder, while a training writes to it


def _whole(value, most: float) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


def _gib(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0.1 <= value < 10_000


OWN_RULES = {
    "way": Rule(
        "one of " + ", ".join(f'"{name}"' for name in Way.NAMES),
        lambda value: isinstance(value, str) and value in Way.NAMES,
    ),
    "gpus": Rule(f"a whole number from 1 to {MOST_GPUS}", lambda value: _whole(value, MOST_GPUS)),
    "layers": Rule(
        "a list of whole numbers from 1, one for each GPU",
        lambda value: isinstance(value, list) and bool(value) and all(_whole(n, 1_000) for n in value),
    ),
    "gpu_gib": Rule("the GiB that each GPU may take, a number from 0.1 such as 14.56", _gib),
    "output_dir": RULES["output_dir"],
    "padding_free": RULES["double_quant"],  # true or false
}
FILE_RULES = {
    name: replace(rule, allowed=rule.allowed.replace("True", "true").replace("False", "false"))  # as TOML writes them
    for name, rule in ({name: RULES[name] for name in PARAMETERS if name in RULES} | OWN_RULES).items()
}

LARGEST = 1_000_000  # bytes of a file of settings; what never ends, such as /dev/zero, is told from one


def _begins_as_a_log(file: Path) -> bool:
    with contextlib.suppress(OSError), open(file, "rb") as opened:
        return opened.read(len(LOG_HEAD)) == LOG_HEAD.encode()
    return False


def _has_the_keys_of_a_result(file: Path) -> bool:
    with contextlib.suppress(ValueError):
        return {"way", "gpus", "heldout_loss_before", "parameters"} <= read_object(file).keys()
    return False


def _is_empty(file: Path) -> bool:
    return file.is_file() and not file.stat().st_size


def _in_toml(value) -> str:
    """A value as TOML writes it, cut where it is long."""
    text = _written(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _written(value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        shown = json.dumps(value, ensure_ascii=False)
        return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in shown)
    if isinstance(value, list):
        return f"[{', '.join(map(_written, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{name} = {_written(one)}' for name, one in value.items())}}}"
    try:
        return str(value)  # a number, a date or a time
    except ValueError:  # Python does not write out a number of thousands of digits
        return hex(value)


def _of_python(text: bytes, fault: str) -> str:
    """A hint where the line of a TOML file that is at fault has a word of Python; else nothing."""
    place = re.search(r"at line (\d+)", fault)
    line = text.splitlines()[int(place[1]) - 1 :][:1] if place else []
    word = re.search(rb"[=\[,]\s*(True|False|TRUE|FALSE|None)\b", line[0]) if line else None
    if not word:
        return ""
    if word[1] == b"None":
        return "; TOML has no None: leave the line out"
    return f"; in TOML it is {word[1].decode().lower()}, in small letters"


class ConfigError(CourseError):
    """A file of settings that no training can go by: one line."""


@dataclass
class Job:
    """One training. `settings` are the parameters of lesson 03; those that are "auto" are chosen when it begins."""

    parameters: dict
    way: Way
    folder: Path
    gpu_bytes: int | None
    text: bytes  # of the file

    @classmethod
    def read(cls, file: Path) -> "Job":
        """From a TOML file; ConfigError, one line, for what is unknown, missing or impossible in it."""
        try:
            with open(file, "rb") as opened:
                text = opened.read(LARGEST + 1)
            if len(text) > LARGEST:
                raise ConfigError(f"{file} is larger than a file of settings can be")
            given = tomllib.loads(text.decode("utf-8-sig"))  # Windows' editors put a byte order mark at its head
        except OSError as error:
            raise ConfigError(f"{file}: {error.strerror or error}") from error
        except (ValueError, RecursionError) as error:  # no TOML, no UTF-8, or brackets in brackets in brackets
            raise ConfigError(f"{file} is no TOML: {str(error)[:200]}{_of_python(text, str(error))}") from error
        try:
            validate(given, rules=FILE_RULES, shown=_in_toml)
            own = {name: given.pop(name, default) for name, default in OWN.items()}
            if own["output_dir"] is None:
                raise ConfigError("output_dir is missing: name a folder that can be written")
            way, asked = Way(own["way"], own["gpus"], tuple(own["layers"] or ())), given.get("optimizer", "auto")
            way.optimizer(asked, asked)
            if given.get("padding_free") and way.name not in ("one", "ddp"):
                raise ConfigError(f"padding_free is true with way {way.name!r}; it goes with one and with ddp")
            gpu_bytes = None if own["gpu_gib"] is None else int(own["gpu_gib"] * GIB)
            return cls(PARAMETERS | given, way, output_folder(own["output_dir"], keep=False), gpu_bytes, text)
        except CourseError as error:
            raise ConfigError(f"{file}: {error}") from error

    def look(self) -> None:
        """Raise CourseError, one line, for a model, rows or a template that are not there, or files of others that would be lost.

        Imports nothing heavy.
        """
        told: Any = self.parameters
        self.spare_others()
        named = told["model_id"] != "auto"
        model = models.resolve_model(told["model_id"], None) if named else None
        data.look_at(told["dataset_id"], **self.how_to_read, template=told["template"], output=self.folder)
        if self.way.name == "split" and model is not None and Path(model.path).is_dir():
            with contextlib.suppress(CannotPredict):  # what no formula describes may still be trained
                shape = shape_of(model.path)
                self.way.require_layers(shape.layers)

    def spare_others(self) -> None:
        """Raise CourseError, one line, where a file lies in the folder that this command would replace and did not write."""
        own = {"train.json": _has_the_keys_of_a_result, "train.log": _begins_as_a_log, LOCK: _is_empty}
        for name, is_own in own.items():
            file = self.folder / name
            if os.path.lexists(file) and not is_own(file):
                raise CourseError(
                    f"{file} was not written by this command, which would replace it: name another output_dir"
                )

    @property
    def how_to_read(self) -> dict:
        """What the file says of how rows of one's own are to be read."""
        return {name: self.parameters[name] for name in ("columns", "encoding", "split", "revision")}

    @contextlib.contextmanager
    def alone(self):
        """Make the folder, hold it against other trainings, and yield its open train.log; CourseError where that cannot be."""
        lock = FileLock(self.folder / LOCK, blocking=False)
        try:
            with contextlib.ExitStack() as held:
                self.folder.mkdir(parents=True, exist_ok=True)
                with contextlib.suppress(NotImplementedError):  # a file system without locks
                    held.enter_context(lock)
                log = held.enter_context(open(self.folder / "train.log", "w", encoding="utf-8"))
                log.write(LOG_HEAD)
                log.flush()
                yield log
        except Timeout as error:
            raise CourseError(
                f"another training writes to {self.folder}: wait for it, or name another output_dir"
            ) from error
        except OSError as error:
            if isinstance(error, CourseError):
                raise
            raise CourseError(f"{error.filename or self.folder} cannot be written: {error.strerror}") from error

    def outlook(self) -> str:
        """What the run will do, and what each GPU will take, predicted; nothing is loaded."""
        from helpers.commands._training import Training

        return Training(self, machine.detect(), machine.own_gpus()).outlook()

    def run(self, callbacks=()) -> dict | None:
        """Train, in this process and in those beside it; what was found, in the first process, else None."""
        import torch

        from helpers.commands._training import Training

        own = machine.own_gpus()
        if own:
            torch.cuda.set_device(own[0])
        here = machine.detect()
        if self.gpu_bytes is not None:
            machine.limit_memory(own, self.gpu_bytes)
        return Training(self, here, own).run(callbacks)
