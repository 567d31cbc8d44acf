"""Full fine-tuning, LoRA and QLoRA side by side: trains the arms of quality_design.toml, and says how they compare.

    python measurements/measure_arms.py run --out runs/arms --jobs 10 --seconds 530 --chat FOLDER
    python measurements/measure_arms.py run --out runs/arms --jobs 10 --seconds 530 --chat FOLDER    # goes on from there
    python measurements/measure_arms.py check runs/arms/quality_rows.jsonl
    python measurements/measure_arms.py compare runs/arms/quality_rows.jsonl

FOLDER holds SmolLM2-135M-Instruct, as `python -m helpers model smollm2` makes it, or the model that a design of your own
names; without --chat its runs are left out. `--design quality_design_7b.toml`, before "run", is such a design. "run" first
tries every arm's learning rates on rows of their own, and trains an arm once its rate is chosen by them. A row is appended
when its run is over, whole; a run whose row is there is not done again. --jobs N trains N runs at once, each in a process
that does many. After --seconds S it stops: what is not finished then is done by the next call. --smoke 2 tries every run
with two steps and another seed; its rows say so, and "check" refuses them.
"""

import argparse
import json
import multiprocessing
import os
import sys
import threading
import time
from multiprocessing.connection import wait
from pathlib import Path

COURSE = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(COURSE), str(COURSE / "measurements")]

from quality_rows import (  # noqa: E402
    DESIGN,
    arms_in_lines,
    chosen_rate,
    compare,
    design_of,
    faults,
    groups_text,
    rates,
    read_design,
    spoken,
)

from helpers.records import read_rows  # noqa: E402

ROWS, ADAPTERS, SMOKE_SEED = "quality_rows.jsonl", "adapters", 900


def all_jobs(design: dict, with_chat: bool) -> list[dict]:
    """Every run that the design asks for, in the order in which it is begun: first the searches, then seed by seed.

    `like` is the seed of the LoRA run that a run is compared with: its own seed, and for LoRA itself the first one.
    """
    tasks = {name: task for name, task in design["tasks"].items() if with_chat or task["model"] == "bundled"}
    tasks = dict(sorted(tasks.items(), key=lambda item: item[1]["model"] == "bundled"))  # the long runs first
    arms = {name: sorted(task["arms"], key=lambda arm: arm != "lora") for name, task in tasks.items()}
    searches = [
        {"phase": "search", "task": task, "arm": arm, "seed": seed, "learning_rate": rate}
        for task, of in tasks.items()
        for seed in of["search_seeds"]
        for arm in arms[task]
        for rate in rates(design, task, arm)
    ]
    return searches + [
        {"phase": "runs", "task": task, "arm": arm, "seed": seed, "like": of["seeds"][0] if arm == "lora" else seed}
        for place in range(max(len(of["seeds"]) for of in tasks.values()))
        for task, of in tasks.items()
        for seed in of["seeds"][place : place + 1]
        for arm in arms[task]
    ]


def to_try(design: dict, steps: int) -> dict:
    """The design with a seed of its own, one learning rate, few steps, and few rows to score."""
    small = {
        "seeds": [SMOKE_SEED],
        "search_seeds": [SMOKE_SEED],
        "steps": steps,
        "few": 12,
        "windows": [2, 128],
        "compared_rows": 4,
    }
    tasks = {
        name: task | small | {"rates": {kind: some[:1] for kind, some in task["rates"].items()}}
        for name, task in design["tasks"].items()
    }
    return design | {"tasks": tasks}


def key(row: dict) -> tuple:
    rate = row["learning_rate"] if row["phase"] == "search" else None
    return (row["phase"], row["task"], row["arm"], row["seed"], rate)


def ready(job: dict, rows: list[dict], design: dict, adapters: Path, busy: list[dict]) -> dict | None:
    """The job with its learning rate, if what it needs is there; a job that makes it anew, if only that was lost; or None."""
    if job["phase"] == "search":
        return job
    rate = chosen_rate(rows, design, job["task"], job["arm"])
    if rate is None:
        return None
    job, like = job | {"learning_rate": rate}, job["like"]
    if (adapters / f"{job['task']}-{like}").is_dir() or (job["arm"], job["seed"]) == ("lora", like):
        return job
    lost = job | {"arm": "lora", "seed": like, "learning_rate": chosen_rate(rows, design, job["task"], "lora")}
    done = any(key(row) == key(lost) for row in rows)
    making = any(key(other) == key(lost) for other in busy)
    return lost | {"reference": True} if done and not making else None


def worker(pipe, design: dict, chat: str | None, adapters: Path, threads: int) -> None:
    """Do the runs that come through the pipe, until it ends, or the process ends that began this one."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    import logging
    import warnings

    warnings.filterwarnings("ignore")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it would say of each product that it rounds to float16
    import datasets
    import quality_run
    import torch
    import transformers

    datasets.disable_progress_bars()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(threads)
    while True:
        try:
            job = pipe.recv()
        except EOFError:
            return
        begun = time.perf_counter()
        row = quality_run.run(design, quality_run.Job(**job), chat, adapters)
        pipe.send(row | {"run_seconds": time.perf_counter() - begun})


def end_with_parent() -> None:
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


class Pool:
    """Processes that do one job at a time each; a job whose process dies is given up, and another process takes its place."""

    def __init__(self, jobs: int, *arguments):
        self.context, self.arguments = multiprocessing.get_context("spawn"), arguments
        self.idle = [self.started() for _ in range(jobs)]
        self.busy: dict = {}  # pipe: (process, job)

    def started(self):
        pipe, other = self.context.Pipe()
        process = self.context.Process(target=worker, args=(other, *self.arguments), daemon=True)
        process.start()
        other.close()
        return process, pipe

    def begin(self, job: dict) -> None:
        process, pipe = self.idle.pop()
        pipe.send(job)
        self.busy[pipe] = (process, job)

    def finished(self, seconds: float):
        """Yield (job, row) of what is over within so many seconds; the row is None where the process died."""
        for pipe in wait(list(self.busy), timeout=max(0.0, seconds)):
            process, job = self.busy.pop(pipe)
            try:
                row = pipe.recv()
                self.idle.append((process, pipe))
            except EOFError:  # it has said why
                row = None
                self.idle.append(self.started())
            yield job, row

    def end(self) -> None:
        for process, _ in [*self.idle, *self.busy.values()]:
            process.terminate()
        for process, _ in [*self.idle, *self.busy.values()]:
            process.join()


def whole_rows(file: Path) -> list[dict]:
    """The rows of a file. What stands behind its last line end was being written at a kill: it is cut off."""
    if not file.exists():
        return []
    text = file.read_bytes()
    if not text.endswith(b"\n"):
        os.truncate(file, text.rfind(b"\n") + 1)
    return read_rows(file)


def append(file: Path, row: dict) -> None:
    with open(file, "a", encoding="utf-8") as lines:
        lines.write(json.dumps(row, ensure_ascii=False) + "\n")
        lines.flush()
        os.fsync(lines.fileno())


def run(asked) -> int:
    """Do what is not done yet; returns 1 if a run failed, else 0."""
    begun, design = time.monotonic(), read_design(asked.design)
    design = to_try(design, asked.smoke) if asked.smoke else design
    asked.out.mkdir(parents=True, exist_ok=True)
    file, adapters = asked.out / ROWS, asked.out / ADAPTERS
    rows = whole_rows(file)
    done = {key(row) for row in rows}
    left = [job for job in all_jobs(design, asked.chat is not None) if key(job) not in done]
    note = {"design_sha256": design_of(asked.design), "jobs": asked.jobs} | ({"smoke": True} if asked.smoke else {})
    threads = max(1, (os.cpu_count() or 1) // asked.jobs)
    print(f"{len(rows)} rows are there, {len(left)} runs are left", flush=True)
    pool = Pool(min(asked.jobs, max(1, len(left))), design, asked.chat, adapters, threads)
    failed = 0
    while (rest := begun + asked.seconds - time.monotonic()) > 0:
        while pool.idle and (job := next_job(left, rows, design, adapters, pool)) is not None:
            pool.begin(job)
        if not pool.busy:
            break
        for job, row in pool.finished(rest):
            failed += row is None
            if row is not None and not job.get("reference"):
                rows.append(row | note)
                append(file, rows[-1])
            print(f"{time.monotonic() - begun:6.0f} s  {line(job, row)}", flush=True)
    unfinished = len(left) + sum(not job.get("reference") for _, job in pool.busy.values())
    pool.end()
    print(f"{len(rows)} rows, {unfinished} runs are left, {failed} failed")
    return int(failed > 0)


def line(job: dict, row: dict | None) -> str:
    """What there is to say of a run that is over."""
    name = " ".join(str(value) for value in job.values())
    if row is None:
        return f"{name}  FAILED"
    scored = f"  score {row['score']:.3f}, loss {row['loss']:.3f}" if "score" in row else ""
    return f"{name}{scored}, {row['run_seconds']:.1f} s, of which {row['train_seconds']:.1f} of training"


def next_job(left: list[dict], rows: list[dict], design: dict, adapters: Path, pool: Pool) -> dict | None:
    """The first job that can begin, taken out of `left`; a job that only makes an adapter anew takes out nothing."""
    busy = [job for _, job in pool.busy.values()]
    for place, job in enumerate(left):
        found = ready(job, rows, design, adapters, busy)
        if found is not None:
            if not found.get("reference"):
                del left[place]
            return found
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--design", type=Path, default=DESIGN)
    what = parser.add_subparsers(dest="what", required=True)
    running = what.add_parser("run")
    running.add_argument("--out", type=Path, required=True)
    running.add_argument("--chat", help="the folder or hub id of the model that is not bundled")
    running.add_argument("--jobs", type=int, default=1)
    running.add_argument("--seconds", type=float, default=7 * 24 * 3600)
    running.add_argument("--smoke", type=int, default=0, help="so many steps, to try the script")
    for name in ("check", "compare"):
        what.add_parser(name).add_argument("rows", type=Path)
    what.add_parser("groups", help="write which scored rows belong together to quality_groups.json")
    asked = parser.parse_args()
    if asked.what == "run":
        return run(asked)
    if asked.what == "groups":
        DESIGN.with_name("quality_groups.json").write_text(groups_text(read_design(asked.design)), encoding="utf-8")
        return 0
    design, rows = read_design(asked.design), whole_rows(asked.rows)
    wrong = faults(rows, design, design_of(asked.design))
    print("\n".join(wrong) if wrong else f"{len(rows)} rows agree with the design and with themselves")
    if asked.what == "compare" and not wrong:
        print("\n".join([*arms_in_lines(rows, design), *map(spoken, compare(rows, design))]))
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
