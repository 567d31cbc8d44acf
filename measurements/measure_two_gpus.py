"""Measure training on two GPUs in its ways: each GPU's peaks, seconds a step and losses, one JSON row a setting.

    python measurements/measure_two_gpus.py --out DIR                   every row of two_gpus_plan.toml (two GPUs, some 9 minutes)
    python measurements/measure_two_gpus.py --out DIR --only 32b        rows whose name contains this
    python measurements/measure_two_gpus.py --out DIR --done FILE       what FILE, rows of an earlier run, does not have
    python measurements/measure_two_gpus.py --out DIR --cpu             a dry run of the same lines on a toy shape

Models are random, as in measure_memory.py, and are made in memory: all layers are given the same random weights, and
from_pretrained takes them as it takes a file's (`state_dict`), so that loading quantizes and places them as ever. Each row has
processes of its own and is written as soon as it is measured. Loading overlaps between rows; training does not, but for rows
of one GPU each, so `step_s` is a step's own time, give or take what loading takes from GPU and host meanwhile.

Memory is counted from the first step on. What came before is `prepare_peak`: loading, adapters, and what an FSDP2 model takes
until it is divided.
"""

import argparse
import contextlib
import datetime
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.append(str(Path(__file__).parent))  # where tests load this file from elsewhere
sys.path.append(str(Path(__file__).parent.parent))
import measure_memory

from helpers.training.several import Way

PLAN = Path(__file__).with_name("two_gpus_plan.toml")
GPUS = 2


def spec_of(row, toy=False):
    """The row's setting in RunSpec's fields; for the dry run a few tokens are enough."""
    batch, length = (1, 32) if toy else (row["batch"], row["length"])
    spec = dict(measure_memory.BASE, batch_size=batch, seq_len=length, rank=row["rank"], lora_dropout=0.0)
    spec["target_modules"] = measure_memory.QKVO if row["targets"] == "qkvo" else measure_memory.ALL
    # bitsandbytes' optimizers cannot take FSDP2's divided tensors.
    spec["optimizer"] = "adamw_torch" if row["way"] == "fsdp2" else "paged_adamw_8bit"
    spec |= measure_memory.BF16 if row.get("dtype") == "bfloat16" else measure_memory.T4
    return spec


def config_of(row, toy=False):
    """The model's configuration, with the row's number of layers."""
    config = dict(measure_memory.TOY if toy else measure_memory.MODELS[row["model"]])
    return config | ({"num_hidden_layers": row["model_layers"]} if "model_layers" in row and not toy else {})


def way_of(row, toy=False):
    layers = tuple(row.get("layers", ()))
    if toy and layers:
        layers = (2, measure_memory.TOY["num_hidden_layers"] - 2)
    return Way(row["way"], 1 if row["way"] == "one" else GPUS, layers)


def random_weights(config, dtype, device):
    """A state dict of this configuration; every layer has the same weights, in the computer's memory."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=dtype)
    torch.manual_seed(0)
    made, found = {}, {}
    for name, like in empty.state_dict().items():
        if config["tie_word_embeddings"] and name == "lm_head.weight":
            continue
        key = re.sub(r"\d+", "0", name)
        if key not in made:
            value = torch.empty(like.shape, dtype=dtype, device=device)
            value = value.normal_(0, 0.02) if like.dim() > 1 else value.fill_(float("norm" in name))
            made[key] = value.cpu().pin_memory() if device != "cpu" else value
        found[name] = made[key]
    return found


def loaded(row, spec, config, way, rank, device):
    """The model in 4 bits where this way wants it, and its config."""
    import torch
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    dtype = getattr(torch, spec["load_dtype"])
    weights = random_weights(config, dtype, device if device == "cpu" else f"cuda:{rank}")
    if device != "cpu":
        torch.cuda.empty_cache()
    where = way.device_map(config["num_hidden_layers"], config["tie_word_embeddings"], rank, device)
    settings = AutoConfig.for_model(**config)
    kind = MODEL_FOR_CAUSAL_LM_MAPPING[type(settings)]
    model = measure_memory.load(
        None, spec, device, way.quantization(dtype), kind, device_map=where, config=settings, state_dict=weights
    )
    if way.name == "fsdp2" and row.get("loaded", "cpu") == "cpu" and device != "cpu":
        model.to("cpu")  # quantized on the GPU, which is faster, and then as if loaded on the CPU
        torch.cuda.empty_cache()
    return model


def counted(gpus, name):
    """A count of torch's allocator for each of these GPUs."""
    import torch

    return [getattr(torch.cuda, name)(gpu) for gpu in gpus]


def worker(job):
    """One process of a row: measure, and write to the process's own file whatever happens."""
    import torch
    from transformers import TrainerCallback

    row, spec, config, device = job["row"], job["spec"], job["config"], job["device"]
    way, rank = way_of(row, device == "cpu"), int(os.environ.get("LOCAL_RANK", 0))
    own = [] if device == "cpu" else [rank] if way.processes > 1 else list(range(torch.cuda.device_count()))
    found = {"error": None}

    class FromTheFirstStep(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 0 and "prepare_peak" not in found:
                found["prepare_peak"], found["at_first_step"] = (
                    counted(own, "max_memory_allocated"),
                    counted(own, "memory_allocated"),
                )
                for gpu in own:
                    torch.cuda.reset_peak_memory_stats(gpu)

    try:
        if own:
            torch.cuda.set_device(own[0])
        model = loaded(row, spec, config, way, rank, device)
        found["after_load"], found["load_peak"] = counted(own, "memory_allocated"), counted(own, "max_memory_allocated")
        for gpu in own:  # from here on, for an FSDP2 model that is as if loaded on the CPU
            total = torch.cuda.get_device_properties(gpu).total_memory
            torch.cuda.set_per_process_memory_fraction(measure_memory.T4_GIB * 2**30 / total, gpu)
            torch.cuda.reset_peak_memory_stats(gpu)
        scratch = Path(job["scratch"]) / row["name"]
        trainer, seconds = measure_memory.make_trainer(
            model, job["folder"], spec, scratch, device, bool(job["trace"]) and rank == 0,
            copies=way.processes, more=way.arguments(model),
        )  # fmt: skip
        way.after_building(trainer)
        trainer.add_callback(FromTheFirstStep())
        found["before_training"] = counted(own, "memory_allocated")
        with alone(job, rank):
            trainer.train()
            for gpu in own:
                torch.cuda.synchronize(gpu)
        found["step_s"] = sorted(seconds[1:-1])[len(seconds[1:-1]) // 2]
        found["losses"] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        if job["trace"] and rank == 0:
            for gpu in own:
                measure_memory.write_trace(f"{job['trace']}_gpu{gpu}.gz", trainer.allocated_at_record[gpu], gpu)
    except Exception as error:  # an out-of-memory row is a result, too
        found["error"] = f"{type(error).__name__}: {error}"[:400]
    found |= {f"peak_{what}": counted(own, f"max_memory_{what}") for what in ("allocated", "reserved")}
    Path(f"{job['result']}.{rank}").write_text(json.dumps(found))
    if found["error"]:
        os._exit(1)  # the others may wait for this process in vain


@contextlib.contextmanager
def alone(job, rank):
    """A context in which a row has its GPUs for itself; of its processes the first waits for them, and the others for it."""
    go = Path(f"{job['result']}.go")
    with contextlib.ExitStack() as locks:
        for gpu in job["gpus"] if rank == 0 else ():
            lock = locks.enter_context(open(Path(job["scratch"]) / f"gpu{gpu}.lock", "w"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        if rank == 0:
            go.touch()
        while not go.exists():
            time.sleep(0.05)
        yield


def measure(job, limit):
    """A row from processes of its own; what they say ends up in it if they fail."""
    import bitsandbytes
    import peft
    import torch
    import transformers
    import trl

    row, way = job["row"], way_of(job["row"], job["device"] == "cpu")
    around = os.environ | {"CUDA_VISIBLE_DEVICES": ",".join(map(str, job["gpus"]))}
    command = way.command(__file__, "--worker", json.dumps(job))
    begun = time.monotonic()
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=around, start_new_session=True
    )
    try:
        said = child.communicate(timeout=limit)[0]
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        said = child.communicate()[0] + f"\nstopped after {limit} s"
    parts = [Path(f"{job['result']}.{rank}") for rank in range(way.processes)]
    parts = [json.loads(part.read_text()) for part in parts if part.is_file()]
    measured = {}
    for name in dict.fromkeys(name for part in parts for name in part):
        values = [part[name] for part in parts if name in part]
        several = isinstance(values[0], list) and name != "losses"
        measured[name] = [x for value in values for x in value] if several else values[0]
    errors = [part["error"] for part in parts if part["error"]]
    measured.pop("error", None)
    failed = errors[0] if errors else None if len(parts) == way.processes else "no result: " + said[-600:]
    packages = (torch, transformers, trl, peft, bitsandbytes)
    about = {name: row.get(name) for name in ("name", "role", "model")}
    about |= {"way": way.name, "gpus": way.gpus, "layers": list(way.layers), "loaded": row.get("loaded")}
    about |= {"config": job["config"], "spec": job["spec"], "memory_cap_gib": measure_memory.T4_GIB}
    about |= {
        "rules": "t4" if job["spec"]["attention_kernels"] == "t4" else "all",
        "measured": measured,
        "error": failed,
    }
    about |= {"device": "cpu" if job["device"] == "cpu" else torch.cuda.get_device_name(0)}
    about |= {"date": datetime.date.today().isoformat(), "row_s": round(time.monotonic() - begun, 1)}
    return about | {"versions": {package.__name__: package.__version__ for package in packages}}


def jobs_of(args):
    """The rows that are to be measured, in the plan's order; those of one GPU take the two by turns."""
    plan = tomllib.loads(PLAN.read_text(encoding="utf-8"))["row"]
    done = [json.loads(line) for line in args.done.read_text().splitlines()] if args.done else []
    done = {row["name"] for row in done}
    singles = 0
    for row in plan:
        if (args.only or "") not in row["name"] or row["name"] in done or args.role not in (None, row["role"]):
            continue
        gpus = list(range(GPUS))
        if row["way"] == "one":
            gpus, singles = [singles % GPUS], singles + 1
        yield {
            "row": row, "spec": spec_of(row, args.cpu), "config": config_of(row, args.cpu), "gpus": gpus,
            "device": "cpu" if args.cpu else "cuda", "folder": str(args.scratch / "tokenizer"), "scratch": str(args.scratch),
            "result": str(args.scratch / row["name"]) + ".json",
            "trace": str(args.out / row["name"]) if row.get("trace") and args.traces and not args.cpu else None,
        }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/two_gpus"), help="where rows and traces are written")
    parser.add_argument(
        "--scratch", type=Path, default=Path("/tmp/measure_two_gpus"), help="locks and results in parts"
    )
    parser.add_argument("--role", help="only the rows of this role")
    parser.add_argument("--only", help="only rows whose name contains this")
    parser.add_argument("--done", type=Path, help="a rows file: names that it has are not measured again")
    parser.add_argument("--jobs", type=int, default=4, help="rows at once")
    parser.add_argument("--seconds", type=float, default=540, help="start no new row after this many seconds")
    parser.add_argument("--row-seconds", type=float, default=180, help="end a row after this many seconds")
    parser.add_argument(
        "--traces", action="store_true", help="list what is allocated at the peak, where the plan says so"
    )
    parser.add_argument("--cpu", action="store_true", help="dry run on the CPU with a toy shape")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return worker(json.loads(args.worker))
    start, writing = time.monotonic(), threading.Lock()
    for folder in (args.out, args.scratch):
        folder.mkdir(parents=True, exist_ok=True)
    measure_memory.make_tokenizer(str(args.scratch / "tokenizer"))
    for stale in args.scratch.glob("*.json*"):
        stale.unlink()

    def one(job):
        if time.monotonic() - start > args.seconds:
            return
        row = measure(job, args.row_seconds)
        with writing, open(args.out / "two_gpus_rows.jsonl", "a") as out:
            out.write(json.dumps(row) + "\n")
        print(f"{time.monotonic() - start:6.1f} s  {row['name']} {row['measured']} {row['error']}", flush=True)

    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(one, jobs_of(args)))
    return None


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main())
