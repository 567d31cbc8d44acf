"""The rows that measure_arms.py wrote: are they whole and true to the design, which rate did an arm get, how do arms compare?"""

import hashlib
import math
import tomllib
from collections import Counter
from pathlib import Path

import numpy
import quality_tasks

from helpers.evaluation import interval_of_mean
from helpers.records import hits_of, nats_of

DESIGN = Path(__file__).with_name("quality_design.toml")
BEFORE = ("loss_before", "recall_before", "perplexity_before", "answers_distance_before", "text_distance_before")
AFTER = ("recall_after", "perplexity_after", "answers_distance_after", "text_distance_after", "train_seconds")
MEANS = ("score", "loss", *BEFORE, *AFTER)


def read_design(file: Path = DESIGN) -> dict:
    return tomllib.loads(file.read_text(encoding="utf-8"))


def design_of(file: Path = DESIGN) -> str:
    """The SHA-256 of the design's file, its first 16 digits: each row says by which design it was measured."""
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def rates(design: dict, task: str, arm: str) -> list[float]:
    """The learning rates that are tried for an arm."""
    return design["tasks"][task]["rates"]["full" if design["arms"][arm].get("full") else "adapter"]


def chosen_rate(rows: list[dict], design: dict, task: str, arm: str) -> float | None:
    """The rate with the least loss on the rows to choose by, mean over the search's seeds; None while one is not tried."""
    losses: dict[float, list] = {rate: [] for rate in rates(design, task, arm)}
    for row in rows:
        if (row["phase"], row["task"], row["arm"]) == ("search", task, arm):
            losses[row["learning_rate"]].append(row["loss"])
    if any(len(found) < len(design["tasks"][task]["search_seeds"]) for found in losses.values()):
        return None
    return min(losses, key=lambda rate: sum(losses[rate]) / len(losses[rate]))


def faults(rows: list[dict], design: dict, design_sha256: str) -> list[str]:
    """A sentence for everything in the rows that cannot be as it stands there; [] where there is nothing."""
    found = [f"{_name(row)}: {fault}" for row in rows for fault in _faults_of(row, rows, design, design_sha256)]
    names = Counter(map(_name, rows))
    found += [f"{name}: stands there {count} times" for name, count in names.items() if count > 1]
    for what, of in (("tokens", ("task", "phase")), ("trained_parameters", ("task", "arm"))):
        seen: dict[tuple, set] = {}
        for row in rows:
            seen.setdefault(tuple(row[name] for name in of), set()).add(row[what])
        found += [f"{' '.join(one)}: {what} is {sorted(values)}" for one, values in seen.items() if len(values) > 1]
    return found + _unlike_before(rows, design)


def _name(row: dict) -> str:
    rate = f" {row['learning_rate']:g}" if row["phase"] == "search" else ""
    return f"{row['phase']} {row['task']} {row['arm']}{rate}, seed {row['seed']}"


def _faults_of(row: dict, rows: list[dict], design: dict, design_sha256: str) -> list[str]:
    if row["task"] not in design["tasks"] or row["arm"] not in design["tasks"][row["task"]]["arms"]:
        return ["the design has no such arm"]
    task, hits, nats = design["tasks"][row["task"]], hits_of(row), nats_of(row)
    searched = row["phase"] == "search"
    seeds = task["search_seeds"] if searched else task["seeds"]
    rate = chosen_rate(rows, design, row["task"], row["arm"])
    tried = rates(design, row["task"], row["arm"])
    own = quality_tasks.rows_of_task(row["task"], row["phase"])
    checks = {
        "it was a try of the script": not row.get("smoke"),
        f"it was measured by design {row['design_sha256']}": row["design_sha256"] == design_sha256,
        "it was trained or scored on other rows": row["rows_sha256"] == own.sha256 and row["rows"] == len(own.score),
        f"it has {row['steps']} steps of {row['batch']}": all(row[name] == task[name] for name in ("steps", "batch")),
        "its seed is not in the design": row["seed"] in seeds,
        f"its rate is {row['learning_rate']:g}": row["learning_rate"] in (tried if searched else [rate]),
        "a hit for each row is missing": len(row["hits"]) == math.ceil(row["rows"] / 4) and len(nats) == row["rows"],
        f"its score is {row['score']:.4f}, its hits say {hits.mean():.4f}": abs(row["score"] - hits.mean()) < 1e-9,
        f"its loss is {row['loss']:.4f}, its rows say {nats.sum() / row['tokens']:.4f}": math.isclose(
            row["loss"], nats.sum() / row["tokens"], rel_tol=2e-3, abs_tol=1e-4
        ),
        "a version, the date or the machine is missing": all(
            row.get(name) for name in ("versions", "python", "date", "machine", "compute")
        ),
    }
    return [fault for fault, holds in checks.items() if not holds]


def _unlike_before(rows: list[dict], design: dict) -> list[str]:
    """Runs of one task on one machine begin from the same base, so what was measured before them must be the same."""
    seen: dict[tuple, list] = {}
    for row in rows:
        if row["phase"] == "runs" and row["arm"] in design["arms"]:
            arm = design["arms"][row["arm"]]
            base = "whole" if arm.get("full") else arm.get("bits", "16")
            seen.setdefault((row["task"], base, row["machine"]), []).append(row)
    return [
        f"{' '.join(one)}: {name} is from {min(values):.6g} to {max(values):.6g}"
        for one, alike in seen.items()
        for name in BEFORE
        if (values := [row[name] for row in alike]) and max(values) - min(values) > 1e-3 * (1e-3 + abs(max(values)))
    ]


def of_runs(rows: list[dict], task: str, arm: str, values) -> dict[int, numpy.ndarray]:
    """By seed: what `values` (hits_of or nats_of) gives for the runs of an arm."""
    return {row["seed"]: values(row) for row in rows if (row["phase"], row["task"], row["arm"]) == ("runs", task, arm)}


def difference(rows: list[dict], design: dict, task: str, arm: str, other: str, values=hits_of) -> dict:
    """How much more `arm` has than `other`: mean over the seeds that both have and all rows, with its interval.

    Paired: the same seed has the same batches in both arms, and a row is compared with itself. See `interval_of_mean`.
    """
    first, second = (of_runs(rows, task, one, values) for one in (arm, other))
    seeds = sorted(first.keys() & second.keys())
    if not seeds:
        return {"task": task, "arm": arm, "other": other, "seeds": 0}
    groups = groups_of(task, "runs")
    apart = numpy.stack([first[seed] - second[seed] for seed in seeds])
    mean, low, high = interval_of_mean(apart, groups, design["draws"], design["interval"])
    return {"task": task, "arm": arm, "other": other, "seeds": len(seeds), "rows": len(groups), "groups": len(set(groups)),
            "difference": mean, "low": low, "high": high}  # fmt: skip


def groups_of(task: str, phase: str) -> list[int]:
    """A number for each scored row of a task; rows that are about one thing have the same one."""
    names = [row["group"] for row in quality_tasks.rows_of_task(task, phase).score]
    return numpy.unique(names, return_inverse=True)[1].tolist()


def groups_text(design: dict) -> str:
    """The file quality_groups.json, by which rows can be compared where the tasks cannot be made anew."""
    parts = [
        f' "{task}": {{"search": {groups_of(task, "search")},\n  "runs": {groups_of(task, "runs")}}}'
        for task in design["tasks"]
    ]
    return "{\n" + ",\n".join(parts) + "\n}\n"


def verdict(low: float, high: float, margin: float) -> str:
    """What an interval of a difference allows to say."""
    if -margin < low and high < margin:
        return "equivalent" if low <= 0 <= high else "different, by less than the margin"
    return "cannot tell" if low <= 0 <= high else "different"


def compare(rows: list[dict], design: dict) -> list[dict]:
    """The design's comparisons, for each task that has both arms: score, and loss in nats a row, which has no margin."""
    found = []
    for one in design["comparisons"]:
        for task, of in design["tasks"].items():
            if {one["arm"], one["other"]} <= set(of["arms"]):
                scored = difference(rows, design, task, one["arm"], one["other"])
                if scored["seeds"]:
                    scored["verdict"] = verdict(scored["low"], scored["high"], design["margin"])
                    scored["nats"] = difference(rows, design, task, one["arm"], one["other"], nats_of)
                found.append({"name": one["name"]} | scored)
    return found


def arms_in_lines(rows: list[dict], design: dict) -> list[str]:
    """A line for each arm of each task: its rate, and the means over its seeds."""
    lines = []
    for task, of in design["tasks"].items():
        for arm in of["arms"]:
            runs = [row for row in rows if (row["phase"], row["task"], row["arm"]) == ("runs", task, arm)]
            rate, tried = chosen_rate(rows, design, task, arm), rates(design, task, arm)
            edge = ", the edge of what was tried" if rate in (tried[0], tried[-1]) else ""
            means = {name: sum(row[name] for row in runs) / len(runs) for name in MEANS if runs and name in runs[0]}
            said = ", ".join(f"{name} {value:.3f}" for name, value in means.items())
            lines.append(f"{task} {arm}: rate {rate or 'not chosen yet'}{edge}; {len(runs)} seeds: {said}")
    return lines


def spoken(found: dict) -> str:
    """A comparison in a line."""
    head = f"{found['name']}, {found['task']}: {found['arm']} minus {found['other']}, "
    if not found["seeds"]:
        return head + "no runs of the same seed"
    nats = found["nats"]
    return head + (
        f"{100 * found['difference']:+.2f} points ({100 * found['low']:+.2f} to {100 * found['high']:+.2f}; {found['seeds']} "
        f"seeds, {found['rows']} rows of {found['groups']} groups): {found['verdict']}. Loss {nats['difference']:+.3f} nats a "
        f"row ({nats['low']:+.3f} to {nats['high']:+.3f})"
    )
