"""What lies in measurements/: the measured runs as flat rows, what lessons recorded, and what a GPU said of failures."""

import json
from statistics import median

from helpers import COURSE_ROOT, CourseError
from helpers.records.kept import read_rows

MEASUREMENTS = COURSE_ROOT / "measurements"
FILES = ("h200_memory_rows", "h200_earlier_rows", "h200_speed")
# Rows of real lengths: their batches are of many sizes, and none of these is the size that `spec` says.
OF_LENGTHS = ("lengths_rows", "unsloth_rows")
BYTES = {
    "after_load": "after_load_bytes",
    "load_peak": "load_peak_bytes",
    "before_training": "before_training_bytes",
    "peak_allocated": "peak_bytes",
    "peak_reserved": "reserved_bytes",
}
SECONDS = {
    "gpu_busy_s": "gpu_busy_seconds",
    "ready_s": "ready_seconds",
    "tokens_per_s": "tokens_per_second",
    "first_steps_s": "first_steps_seconds",
}
LENGTHS = {
    "tokens_per_busy_s": "tokens_per_busy_second",
    "tokens_per_clock_s": "tokens_per_clock_second",
    "padding": "padding",
}


def measured_runs(*names: str):
    """The measured runs of the named files of measurements/, or of FILES, as one DataFrame: one flat row a run.

        measured_runs("h200_memory_rows").query("model == 'Mistral-7B-v0.1' and batch_size == 4")["peak_bytes"]

    Columns: file, model, device, date and what else the row says of itself (role, recipe, change, rules, run), each
    setting of training by its name, the versions by their packages, and what was measured with its unit in the name:
    peak_bytes, reserved_bytes, after_load_bytes, before_training_bytes, load_peak_bytes, nvidia_smi_bytes, step_seconds
    (the median; each_step_seconds has all), gpu_busy_seconds, tokens_per_second, losses. `error` is missing where a run
    did not fail. `config` and `spec` are the dictionaries that helpers.memory.predict takes.

    "lengths_rows" and "unsloth_rows" are read by their names alone. They have tokens_per_busy_second and
    tokens_per_clock_second, tokens without padding in a second of GPU time and of the clock, and padding, the share of what
    was computed; recipe says the way, and in the second file whose it is: "ours, real", "Unsloth, one, kept".
    """
    import pandas as pd

    flat = [_flat(file, row) for file, row in _rows(names or FILES)]
    frame = pd.DataFrame(flat, columns=list(dict.fromkeys(name for row in flat for name in row)))
    for name in frame:  # pandas makes floats of whole numbers where one is missing; a rank of 16.0 is none
        present = [row[name] for row in flat if row.get(name) is not None]
        if len(present) < len(flat) and present and all(type(value) is int for value in present):
            frame[name] = frame[name].astype("Int64")
    return frame


def measured_two_gpus():
    """The runs of measurements/two_gpus_rows.jsonl as a DataFrame, one flat row a run, by its name in two_gpus_plan.toml.

    Columns: model, way, gpus, layers (of a split, how many lay on each GPU), role, dtype, rank, batch_size (rows that each
    process computed at once), seq_len, step_seconds (the median), tokens_per_second (of all processes together), peak_bytes
    and reserved_bytes (lists, a number a GPU), fullest_bytes (the larger peak), device, date; `config` and `spec` are the
    dictionaries that helpers.memory.predict takes.
    """
    import pandas as pd

    found = {}
    for row in read_rows(MEASUREMENTS / "two_gpus_rows.jsonl"):
        spec, measured = row["spec"], row["measured"]
        processes = row["gpus"] if row["way"] in ("ddp", "fsdp2") else 1
        about = {name: row[name] for name in ("model", "way", "gpus", "layers", "role", "device", "date")}
        about |= {"dtype": spec["load_dtype"]} | {name: spec[name] for name in ("rank", "batch_size", "seq_len")}
        tokens = processes * spec["batch_size"] * spec["seq_len"]
        found[row["name"]] = about | {
            "step_seconds": measured["step_s"], "tokens_per_second": tokens / measured["step_s"],
            "peak_bytes": measured["peak_allocated"], "reserved_bytes": measured["peak_reserved"],
            "fullest_bytes": max(measured["peak_allocated"]), "config": row["config"], "spec": spec,
        }  # fmt: skip
    return pd.DataFrame.from_dict(found, orient="index")


def measured_lessons() -> list[dict]:
    """What whole lessons recorded on GPUs: every row of measurements/*_lessons.jsonl, the files in order of their names."""
    return [row for file in sorted(MEASUREMENTS.glob("*_lessons.jsonl")) for row in read_rows(file)]


def measured_failures() -> dict[str, dict]:
    """What a GPU said when a failure was provoked on it, by the failure's name (measurements/h200_failures.json)."""
    rows = json.loads((MEASUREMENTS / "h200_failures.json").read_text(encoding="utf-8"))
    return {row["name"]: row for row in rows}


def _rows(names) -> list[tuple[str, dict]]:
    """(file, row) of each line of the named files, as they were written."""
    names = [name.removesuffix(".jsonl") for name in names]
    for name in names:
        if name not in FILES + OF_LENGTHS:
            raise CourseError(f"no measured runs in {name!r}; there are: {', '.join(FILES + OF_LENGTHS)}")
    return [(name, row) for name in names for row in read_rows(MEASUREMENTS / f"{name}.jsonl")]


def _flat(file: str, row: dict) -> dict:
    """One line of a file as a row without nesting, but for `config` and `spec`."""
    measured = row["measured"]
    about = {"file": file} | {name: row.get(name) for name in ("model", "device", "date", "role", "error")}
    about |= {"recipe": row.get("name"), "change": row.get("way", row).get("change")}
    about |= {name: row.get(name) for name in ("rules", "run", "accumulation")}
    found = {new: measured.get(old) for old, new in {**BYTES, **SECONDS}.items()}
    steps = measured.get("step_s")
    found |= {"step_seconds": median(steps) if isinstance(steps, list) else steps, "losses": measured.get("losses")}
    found["each_step_seconds"] = steps if isinstance(steps, list) else None
    smi = measured.get("nvidia_smi")  # "7539 MiB"
    found |= {"nvidia_smi_bytes": smi and int(smi.split()[0]) * 2**20, "left_bytes": row.get("left_allocated")}
    found["memory_cap_gib"] = row["memory_cap_gib"]
    found |= {new: measured[old] for old, new in LENGTHS.items() if old in measured}
    return about | row["spec"] | found | row["versions"] | {"config": row["config"], "spec": row["spec"]}
