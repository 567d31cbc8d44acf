"""Pairs of measured runs that differ in one setting alone: what each cure of a full GPU saved, beside what predict says.

    python measurements/measured_pairs.py

prints, for each setting, the pair that is nearest to Mistral-7B with 4 rows of 512 tokens.
"""

import dataclasses
import functools
import itertools
import math
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from helpers.memory import RunSpec, predict  # noqa: E402
from helpers.records import measured_runs, read_rows  # noqa: E402

FILES = ("h200_memory_rows", "h200_earlier_rows", "h200_speed")


def measured_pairs():
    """Two measured runs of one model that differ in one setting alone, a DataFrame: one row a pair.

    Columns: differs_in, model, `before` and `after` (the setting's values), saved_bytes of the peak, and `costlier` and
    `cheaper`, the rows of the two in measured_runs(). Left out are runs that failed, those recorded as CUDA graphs and
    the "lean" ones, which change more than their settings say.
    """
    import pandas as pd

    runs, pairs = _rows(), []
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
    runs = _rows()

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


@functools.cache
def _rows() -> list[dict]:
    """Each line of the three files, as it was written: in the order of measured_runs()."""
    return [row for name in FILES for row in read_rows(HERE / f"{name}.jsonl")]


@functools.cache
def _pairs() -> list[tuple[str, int, int]]:
    """(the setting that differs, the costlier run, the cheaper run), the runs by their place among all rows."""
    runs = [
        (place, row)
        for place, row in enumerate(_rows())
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


def predicted_peak(run) -> int:
    """What `predict` says of one of measured_runs(), in bytes."""
    spec = {name: value for name, value in run.spec.items() if name in RunSpec.__dataclass_fields__}
    return predict(run.config, spec).peak_allocated


if __name__ == "__main__":
    wanted = RunSpec(batch_size=4, seq_len=512)
    for setting in sorted(measured_pairs().differs_in.unique()):
        if setting in RunSpec.__dataclass_fields__:
            costly, cheap = nearest_pair(setting, wanted, wanted)
            saved = (costly.peak_bytes - cheap.peak_bytes) / 2**30
            said = (predicted_peak(costly) - predicted_peak(cheap)) / 2**30
            values = f"{costly.spec.get(setting)} to {cheap.spec.get(setting)}"
            print(f"{setting:22} {values:32} saved {saved:6.2f} GiB, predicted {said:6.2f} ({costly.model})")
