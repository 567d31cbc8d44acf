"""Predict a run's peak memory, or score predictions against measured rows.

    python -m helpers memory predict mistralai/Mistral-7B-v0.1 --gpu t4 --rank 8 --batch-size 4
    python -m helpers memory predict MODEL --plan              what fits that GPU, and fastest
    python -m helpers memory score measurements/h200_memory_rows.jsonl

MODEL is a preset such as mistral-7b, a folder with a config.json, or a hub id.
"""

import dataclasses
import os
from pathlib import Path

from helpers import CourseError, memory, models
from helpers.files import read_object
from helpers.machine import GIB
from helpers.records import read_rows

SPEC_FIELDS = {field.name: field.default for field in dataclasses.fields(memory.RunSpec)}


def add_arguments(parser):
    parser.add_argument("action", choices=("predict", "score"))
    parser.add_argument("what", metavar="MODEL_OR_ROWS", help="a model to predict, or a file of rows to score")
    parser.add_argument(
        "--gpu", default="t4", choices=sorted(memory.GPUS), help="whose memory it must fit (default: t4)"
    )
    parser.add_argument("--plan", action="store_true", help="choose batch, checkpointing and optimizer for the GPU")
    parser.add_argument("--gpus", type=int, default=1, help="how many there are (default: 1)")
    parser.add_argument("--way", choices=("ddp", "split", "fsdp2"), help="how a run lies on several (default: ddp)")
    parser.add_argument("--role", help="score only rows of this role, such as holdout")
    for name, default in SPEC_FIELDS.items():
        shown = ",".join(default) if isinstance(default, tuple) else default
        parser.add_argument(f"--{name.replace('_', '-')}", metavar="VALUE", help=f"default: {shown}")


def main(arguments) -> int | None:
    if arguments.action == "score":
        score(arguments.what, arguments.role)
        return None
    given = {name: read(name, getattr(arguments, name)) for name in SPEC_FIELDS if getattr(arguments, name) is not None}
    if memory.GPUS[arguments.gpu].kernels == "t4":  # what the course does there; see helpers/training/workarounds.py
        given = {"attention_kernels": "t4", "repeat_kv": True, **given}
    if arguments.way == "fsdp2":  # bitsandbytes' optimizers cannot take divided tensors
        given = {"optimizer": "adamw_torch", **given}
    spec, shape = memory.RunSpec(**given), memory.shape_of(config_of(arguments.what))
    several = {"gpus": arguments.gpus, "way": arguments.way or ("one" if arguments.gpus == 1 else "ddp")}
    if arguments.plan:
        found = memory.plan(shape, memory.GPUS[arguments.gpu].total_bytes, spec, gpu=arguments.gpu, **several)
        prediction = found.prediction
        print(f"{found.considered} settings, {found.fitting} fit. The fastest:")
        for name, reason in found.reasons.items():
            print(f"  {name:<22} {reason}")
    else:
        prediction = memory.predict(shape, spec, arguments.gpu, **several)
    show(prediction, shape, arguments.gpu)
    return None


def config_of(what: str):
    """A folder's config.json as a dictionary, else `what` if it names a model; CourseError before anything heavy is loaded."""
    if what == "auto":
        raise CourseError('"auto" is a word of the lessons: name a model, such as mistral-7b')
    file = Path(models.BUNDLED_MODEL if what == "bundled" else os.path.expanduser(what)) / "config.json"
    if os.path.isfile(file):
        try:
            return read_object(file)
        except ValueError as error:
            raise CourseError(f"{what}: {error}") from error
    if what not in models.PRESETS and what not in {preset.hub_id for preset in models.PRESETS.values()}:
        models.resolve_model(what, None)
    return what


def read(name: str, text: str):
    """A value of RunSpec from the command line: none, true, numbers, names, or names joined by commas."""
    if text.lower() == "none":
        return None
    default = SPEC_FIELDS[name]
    if isinstance(default, bool):
        if text.lower() not in ("true", "false"):
            raise CourseError(f"--{name.replace('_', '-')} is {text!r}; say true or false")
        return text.lower() == "true"
    if name == "target_modules":
        return text if text == "all-linear" else tuple(text.split(","))
    try:
        return type(default)(text) if isinstance(default, (int, float)) else text
    except ValueError as error:
        raise CourseError(f"--{name.replace('_', '-')} is {text!r}; give a number") from error


def show(prediction, shape, gpu: str) -> None:
    """The terms of a prediction as a table, and whether it fits."""
    total = memory.GPUS[gpu].total_bytes
    for number, one in enumerate(prediction.each):
        layers = f", {prediction.layers[number]} layers" if prediction.layers else ""
        print(f"GPU {number}{layers}: {one.peak_allocated / 1e9:.3f} GB at the peak; below is the fullest GPU")
    for name, size in prediction.parts.items():
        print(f"{name:<42} {size / 1e9:8.3f} GB")
    print(f"{'peak allocated, in the ' + prediction.moment:<42.42} {prediction.peak_allocated / 1e9:8.3f} GB")
    print(f"{'peak reserved':<42} {prediction.peak_reserved / 1e9:8.3f} GB")
    verdict = "fits" if memory.fits(prediction, gpu) else "does not fit"
    held = prediction.held_bytes(gpu) / GIB
    print(
        f"{verdict} {gpu}: {held:.2f} of {total / GIB:.2f} GiB, the CUDA context's "
        f"{memory.GPUS[gpu].context_bytes / GIB:.2f} included{assumed(shape)}"
    )
    if why := prediction.why_not_loaded(gpu, total):
        print(f"why: {why}")
    for note in prediction.notes:
        print(f"note: {note}")


def assumed(shape) -> str:
    """What a verdict on an architecture that is not described rests on."""
    return "" if shape.described else f", if {shape.model_type}, which is not described here, is built like a Llama"


def score(path: str, role: str | None) -> None:
    """A line a row: predicted and measured GB, and the error; then mean and largest error."""
    if not os.path.isfile(path):
        raise CourseError(f"{path!r} is no file of rows, one JSON object a line")
    try:
        rows = read_rows(path)
    except (OSError, ValueError) as error:
        raise CourseError(f"{path}: not a readable file of rows, one JSON object a line") from error
    table = memory.score([row for row in rows if role in (None, row.get("role"))])
    if not table:
        raise CourseError(f"{path}: no row without an error" + (f" has role {role!r}" if role else ""))
    keys = ("after_load", "peak_allocated", "peak_reserved")
    print(f"{'model':<18}{'run':<34}" + "".join(f"{key + ': GB predicted, measured':>40}" for key in keys))
    for row in table:
        spec = row["spec"]
        run = f"{spec['batch_size']}x{spec['seq_len']} r={spec['rank']} {spec['quant_type'] or '16-bit'}"
        run += f" {row['role'] or ''}"
        cells = "".join(f"{row[key][0] / 1e9:>21.3f} {row[key][1] / 1e9:>8.3f} {row[key][2]:>+8.2%} " for key in keys)
        print(f"{row['model']:<18}{run:<34}{cells}")
    whole = [row for row in table if not row["notes"]]
    for note in sorted({note for row in table for note in row["notes"]}):
        print(f"not in the means, {sum(note in row['notes'] for row in table)} rows: {note}")
    for key in keys if whole else ():
        errors = [abs(row[key][2]) for row in whole]
        print(f"{key}: mean error {sum(errors) / len(errors):.3%}, largest {max(errors):.3%}, {len(errors)} rows")
