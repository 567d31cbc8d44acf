"""The side by side of arms in measurements/: which runs there are, and which held-out rows each of them answered right."""

import base64
import functools
import json
import tomllib
from dataclasses import dataclass

from helpers import CourseError
from helpers.records.kept import read_rows
from helpers.records.measured import MEASUREMENTS

NAMES = {
    "full": "full fine-tuning", "lora": "LoRA", "nf4": "QLoRA, NF4", "fp4": "QLoRA, FP4", "int8": "LoRA on 8 bits",
    "rank-4": "LoRA, rank 4", "rank-64": "LoRA, rank 64", "attention": "LoRA, attention alone",
    "rslora-64": "rsLoRA, rank 64", "dora": "DoRA",
}  # fmt: skip


def hits_of(row: dict):
    """Of each scored row whether the answer was right: float64 of shape (rows,), 0 or 1, in the rows' order."""
    import numpy

    bits = f"{int(row['hits'], 16):0{4 * len(row['hits'])}b}"
    return numpy.array([float(bit) for bit in bits[: row["rows"]]])


def nats_of(row: dict):
    """Of each scored row the cross-entropy of its right answer in nats, summed over its tokens: float64 of shape (rows,)."""
    import numpy

    return numpy.frombuffer(base64.b64decode(row["nats"]), dtype="<f2").astype(float)


@dataclass(frozen=True)
class SideBySide:
    """What measure_arms.py measured: its design and its rows; `grouped` says which scored rows belong together."""

    design: dict
    rows: list[dict]
    grouped: dict  # task: {phase: a number for each scored row; rows of one number are about one thing}

    @functools.cached_property
    def runs(self):
        """The runs that are compared, a DataFrame with a row for each task, arm and seed, in the design's order."""
        return self._frame("runs")

    @functools.cached_property
    def tries(self):
        """The runs by which each arm's learning rate was chosen: a DataFrame with a row for each task, arm and rate."""
        return self._frame("search")

    def _frame(self, phase: str):
        import pandas as pd

        tasks, arms = list(self.design["tasks"]), list(self.design["arms"])
        rows = [row for row in self.rows if row["phase"] == phase]
        rows.sort(key=lambda row: (tasks.index(row["task"]), arms.index(row["arm"]), row["learning_rate"], row["seed"]))
        return pd.DataFrame(rows).drop(columns=["hits", "nats"])

    @property
    def tasks(self) -> list[str]:
        """The tasks of the design of which there are runs."""
        return [task for task in self.design["tasks"] if (self.runs.task == task).any()]

    def of(self, task: str) -> list[str]:
        """The arms of a task of which there are runs, in the design's order."""
        measured = set(self.runs[self.runs.task == task].arm)
        return [arm for arm in self.design["tasks"][task]["arms"] if arm in measured]

    def right(self, task: str, arm: str, tried_at: float | None = None) -> tuple:
        """(which rows an arm answered right, which group each row belongs to), for evaluation's `interval_of_mean`.

        float64 of shape (seeds, rows), and int64 of shape (rows,). `tried_at`: of the run that tried this learning rate, which
        scored other rows. CourseError, one line, where there is no such run.
        """
        import numpy

        found = self._found(task, arm, tried_at)
        if not found:
            rate = "" if tried_at is None else f" with the learning rate {tried_at:g}"
            raise CourseError(f"no run of {arm!r} on the task {task!r}{rate} was measured")
        phase = "runs" if tried_at is None else "search"
        return numpy.stack([found[seed] for seed in sorted(found)]), numpy.array(self.grouped[task][phase])

    def apart(self, task: str, arm: str, other: str, tried_at: float | None = None) -> tuple:
        """As `right`, what `arm` has more than `other`: each run beside the run of the same seed, each row beside itself.

        float64 of shape (seeds, rows) with -1, 0 and 1, for the seeds that both have; and the groups.
        """
        import numpy

        one, two = (self._found(task, name, tried_at) for name in (arm, other))
        seeds = sorted(one.keys() & two.keys())
        if not seeds:
            raise CourseError(f"{arm!r} and {other!r} have no run of the same seed on the task {task!r}")
        groups = self.right(task, arm, tried_at)[1]
        return numpy.stack([one[seed] - two[seed] for seed in seeds]), groups

    def _found(self, task: str, arm: str, tried_at: float | None) -> dict:
        """By seed: which rows were answered right."""
        phase = "runs" if tried_at is None else "search"
        rows = [row for row in self.rows if (row["phase"], row["task"], row["arm"]) == (phase, task, arm)]
        return {row["seed"]: hits_of(row) for row in rows if tried_at in (None, row["learning_rate"])}

    def named(self, arm: str) -> str:
        """The arm's name in words."""
        return NAMES.get(arm, arm)

    def kind(self, arm: str) -> str:
        """What an arm is, for a figure: one of four kinds."""
        made = self.design["arms"][arm]
        if made.get("full"):
            return "all weights trained"
        if "bits" in made:
            return "LoRA on a quantized base"
        return "LoRA, not quantized" if arm == "lora" else "LoRA with another rank, place or kind"

    def at_the_edge(self, task: str) -> list[str]:
        """The arms whose chosen learning rate is the smallest or the largest that was tried: a better one may lie beyond."""
        tried = self.tries[self.tries.task == task].groupby("arm").learning_rate
        chosen = self.runs[self.runs.task == task].groupby("arm").learning_rate.first()
        return [arm for arm in chosen.index if chosen[arm] in (tried.min()[arm], tried.max()[arm])]


def measured_arms() -> SideBySide:
    """Full fine-tuning, LoRA and QLoRA side by side, as measured (measurements/quality_rows.jsonl and its design)."""
    design = tomllib.loads((MEASUREMENTS / "quality_design.toml").read_text(encoding="utf-8"))
    grouped = json.loads((MEASUREMENTS / "quality_groups.json").read_text(encoding="utf-8"))
    return SideBySide(design, read_rows(MEASUREMENTS / "quality_rows.jsonl"), grouped)
