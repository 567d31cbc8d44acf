"""Runs to predict: those that were measured, and some that nobody measured."""

import dataclasses
import json
import random
import sys
from pathlib import Path

from helpers import COURSE_ROOT
from helpers.memory import CannotPredict, RunSpec, shape_of
from helpers.memory.rows import score
from helpers.memory.runs import OPTIMIZERS
from helpers.records import read_rows

MEASUREMENTS = COURSE_ROOT / "measurements"
ROWS = read_rows(MEASUREMENTS / "h200_memory_rows.jsonl")
EARLIER = read_rows(MEASUREMENTS / "h200_earlier_rows.jsonl")
SPEED = read_rows(MEASUREMENTS / "h200_speed.jsonl")
HELD_OUT = [row for row in ROWS if row["role"] == "holdout"]
STORED = json.loads((Path(__file__).parent / "figures.json").read_text())
FIGURES = ("after_load", "before_training", "peak_allocated", "peak_reserved")
MISTRAL = ROWS[0]["config"]
LEAN = RunSpec(rank=8, batch_size=4, seq_len=512)


def spec_in(row) -> RunSpec:
    """The settings of a measured run that RunSpec knows; rows measured for speed have more."""
    fields = {field.name for field in dataclasses.fields(RunSpec)}
    return RunSpec(**{name: value for name, value in row["spec"].items() if name in fields})


def errors(rows, key) -> list[float]:
    """Absolute relative errors of rows whose prediction leaves nothing out (see Prediction.notes)."""
    rows = [row for row in rows if row["spec"]["quant_type"] != "int8"]
    return [abs(scored[key][2]) for scored in score(rows)]


def settings_nobody_measured(number: int):
    """Random settings of the measured models, the same each time: (Shape, RunSpec)."""
    chance = random.Random(0)
    configs = list({row["model"]: row["config"] for row in ROWS}.values())
    while number:
        shape = shape_of(chance.choice(configs))
        names = [linear.name for linear in shape.linears]
        spec = {
            "quant_type": chance.choice(["nf4", "nf4", "nf4", None]),
            "rank": chance.choice([8, 16, 64, None]),
            "target_modules": chance.choice([names, names[:2], names[-1:]]),
            "lora_dropout": chance.choice([0, 0.05]),
            "batch_size": chance.choice([1, 2, 4, 8]),
            "seq_len": chance.choice([64, 512, 2048, 8192]),
            "optimizer": chance.choice(OPTIMIZERS),
            "upcast_non_quantized": chance.random() < 0.3,
            "checkpoint_every": chance.choice([0, 1, 1, 2, 5]),
            "checkpoint_offload": chance.random() < 0.2,
            "attention": "eager" if shape.gemma else chance.choice(["sdpa", "sdpa", "eager"]),
            "attention_kernels": chance.choice(["all", "t4"]),
            "layer_kernels": chance.choice([None, "liger"]),
            "load_dtype": "bfloat16",
            "compute_dtype": "bfloat16",
            "adapter_dtype": chance.choice(["bfloat16", "float32"]),
        }
        try:
            yield shape, RunSpec(**spec)
            number -= 1
        except CannotPredict:
            continue


def forget() -> None:
    """Empty every cache of the package, as at the start of a process."""
    for name, module in list(sys.modules.items()):
        if name.startswith("helpers.memory"):
            for found in vars(module).values():
                if hasattr(found, "cache_clear"):
                    found.cache_clear()
