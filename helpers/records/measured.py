"""The measured runs of measurements/, memory and speed of training: flat rows, and pairs that differ in one setting."""

import dataclasses
import functools
import itertools
import math
from statistics import median

from helpers import COURSE_ROOT, CourseError
from helpers.records.kept import read_rows

MEASUREMENTS = COURSE_ROOT / "measurements"
FILES = ("h200_memory_rows", "h200_earlier_rows", "h200_speed")
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


def measured_runs(*names: str):
    """The measured runs of the named files of measurements/, or of all three, as one DataFrame: one flat row a run.

        measured_runs("h200_memory_rows").query("model == 'Mistral-7B-v0.1' and batch_size == 4")["peak_bytes"]

    Columns: file, model, device, date and what else the row says of itself (role, recipe, change, rules, run), each
    setting of training by its name, the versions by their packages, and what was measured with its unit in the name:
    peak_bytes, reserved_bytes, after_load_bytes, before_training_bytes, load_peak_bytes, nvidia_smi_bytes, step_seconds
    (the median; each_step_seconds has all), gpu_busy_seconds, tokens_per_second, losses. `error` is missing where a run
    did not fail. `config` and `spec` are the dictionaries that helpers.memory.predict takes.
    """
    import pandas as pd

    flat = [_flat(file, row) for file, row in _rows(names or FILES)]
    frame = pd.DataFrame(flat, columns=list(dict.fromkeys(name for row in flat for name in row)))
    for name in frame:  # pandas makes floats of whole numbers where one is missing; a rank of 16.0 is none
        present = [row[name] for row in flat if row.get(name) is not None]
        if len(present) < len(flat) and present and all(type(value) is int for value in present):
            frame[name] = frame[name].astype("Int64")
    return frame


def measured_lessons() -> list[dict]:
    """What whole lessons recorded on GPUs: every row of measurements/*_lessons.jsonl, the files in order of their names."""
    return [row for file in sorted(MEASUREMENTS.glob("*_lessons.jsonl")) for row in read_rows(file)]


def measured_pairs():
    """Two measured runs of one model that differ in one setting alone, a DataFrame: one row a pair.

    Columns: differs_in, model, `before` and `after` (the setting's values), saved_bytes of the peak, and `costlier` and
    `cheaper`, the rows of the two in measured_runs(). Left out are runs that failed, those recorded as CUDA graphs and
    the "lean" ones, which change more than their settings say.
    """
    import pandas as pd

    runs, pairs = [row for _, row in _rows(FILES)], []
    for key, first, second in _pairs():
        a, b = runs[first], runs[second]
        saved = a["measured"]["peak_allocated"] - b["measured"]["peak_allocated"]
        pairs.append((key, a["model"], a["spec"].get(key), b["spec"].get(key), saved, first, second))
    return pd.DataFrame(
        pairs, columns=["differs_in", "model", "before", "after", "saved_bytes", "costlier", "cheaper"]
    ).astype({"before": object, "after": object})


def nearest_pair(differs_in: str, before, after, model: str = "Mistral-7B"):
    """The measured pair that differs in one setting alone and is nearest to `before` and `after`; None if there is none.

    `before` and `after` are what helpers.memory.RunSpec holds, and the two runs are rows of measured_runs(). How far a
    run is from a setting: one for each field that differs, batch_size and seq_len by their doublings, one for another
    model. Where the setting is a size, a pair that halves it comes before all that do not.
    """
    runs = [row for _, row in _rows(FILES)]

    def distance(pair):
        a, b = (runs[place] for place in pair[1:])
        size = differs_in in ("batch_size", "seq_len", "rank")
        halves = size and a["spec"][differs_in] == 2 * b["spec"][differs_in]
        return size and not halves, _apart(a, before, model) + _apart(b, after, model)

    pair = min((pair for pair in _pairs() if pair[0] == differs_in), key=distance, default=None)
    if pair is None:
        return None
    flat = measured_runs()
    return flat.loc[pair[1]], flat.loc[pair[2]]


def _rows(names) -> list[tuple[str, dict]]:
    """(file, row) of each line of the named files, as they were written."""
    names = [name.removesuffix(".jsonl") for name in names]
    for name in names:
        if name not in FILES:
            raise CourseError(f"no measured runs in {name!r}; there are: {', '.join(FILES)}")
    return [(name, row) for name in names for row in read_rows(MEASUREMENTS / f"{name}.jsonl")]


def _flat(file: str, row: dict) -> dict:
    """One line of a file as a row without nesting, but for `config` and `spec`."""
    measured = row["measured"]
    about = {"file": file} | {name: row.get(name) for name in ("model", "device", "date", "role", "error")}
    about |= {"recipe": row.get("name")} | {name: row.get(name) for name in ("change", "rules", "run", "accumulation")}
    found = {new: measured.get(old) for old, new in {**BYTES, **SECONDS}.items()}
    steps = measured.get("step_s")
    found |= {"step_seconds": median(steps) if isinstance(steps, list) else steps, "losses": measured.get("losses")}
    found["each_step_seconds"] = steps if isinstance(steps, list) else None
    smi = measured.get("nvidia_smi")  # "7539 MiB"
    found |= {"nvidia_smi_bytes": smi and int(smi.split()[0]) * 2**20, "left_bytes": row.get("left_allocated")}
    found["memory_cap_gib"] = row["memory_cap_gib"]
    return about | row["spec"] | found | row["versions"] | {"config": row["config"], "spec": row["spec"]}


@functools.cache
def _pairs() -> list[tuple[str, int, int]]:
    """(the setting that differs, the costlier run, the cheaper run), the runs by their place among all rows."""
    runs = [
        (place, row)
        for place, (_, row) in enumerate(_rows(FILES))
        if not row["error"] and row.get("rules") != "lean" and not row["spec"].get("recorded")
    ]
    found = []
    for (i, a), (j, b) in itertools.permutations(runs, 2):
        if (a["model"], a["memory_cap_gib"]) != (b["model"], b["memory_cap_gib"]):
            continue
        other = [key for key in a["spec"].keys() | b["spec"].keys() if a["spec"].get(key) != b["spec"].get(key)]
        other = [key for key in other if key != "recorded"]  # rows from before there was such a setting do not name it
        if len(other) == 1 and a["measured"]["peak_allocated"] > b["measured"]["peak_allocated"]:
            found.append((other[0], i, j))
    return found


def _apart(row: dict, wanted, model: str) -> float:
    """How far a measured run's settings are from those of a RunSpec."""
    wanted = {name: list(v) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(wanted).items()}
    sizes = [abs(math.log2(row["spec"][name] / wanted.pop(name))) for name in ("batch_size", "seq_len")]
    others = [row["spec"].get(name, v) != v for name, v in wanted.items()]
    return sum(sizes) + sum(others) + (model not in row["model"])
