"""How fast one optimizer step of 8 x 512 tokens is on Mistral-7B's shape, one change at a time, one JSON row a recipe.

    python measurements/measure_speed.py --out DIR                 both sets of kernels (one GPU, about 9 minutes)
    python measurements/measure_speed.py --out DIR --rules t4      only what a T4's attention kernels allow
    python measurements/measure_speed.py --out DIR --profile NAME  where a recipe's GPU time goes, by kernel
    python measurements/measure_speed.py --out DIR --cpu           a dry run of the same lines on a toy shape

The first recipe is the one that today's tutorials share (float32 upcast, dropout, paged 32-bit Adam, every layer
recomputed), made to run by putting the adapters back to float32. Each recipe after it changes one thing and keeps what
came before. All do the same work: rank 8 on q, k, v, o, float16, 8 rows of 512 random tokens a step, in 14.56 GiB. They
run one after the other, alone on the GPU; `step_s` lists ten steps after the third, and
`gpu_busy_s` is what the kernels of one more took together: the part that a slow host does not touch.
"""

import argparse
import contextlib
import datetime
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import measure_memory
from measure_memory import MODELS, QKVO, T4_GIB, TOY, child

MODEL = "Mistral-7B-v0.1"
# "all": every attention kernel. "t4": what a T4 has. "lean": the smallest peak, with the workspace that cuBLAS takes by
# itself on GPUs other than Hopper (https://docs.nvidia.com/cuda/cublas/#cublassetworkspace).
SEGMENTS = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
RULES = {"all": SEGMENTS, "t4": SEGMENTS, "lean": SEGMENTS | {"CUBLAS_WORKSPACE_CONFIG": ":4096:2:16:8"}}
ROWS, LENGTH, WARM, TIMED = 8, 512, 3, 10

START = {
    "quant_type": "nf4", "double_quant": True, "load_dtype": "float16", "compute_dtype": "float16",
    "adapter_dtype": "float32", "rank": 8, "target_modules": QKVO, "lora_dropout": 0.05, "batch_size": ROWS,
    "seq_len": LENGTH, "optimizer": "paged_adamw_32bit", "upcast_non_quantized": True, "checkpoint_every": 1,
    "checkpoint_offload": False, "attention": "sdpa", "attention_kernels": "all", "repeat_kv": False,
    "layer_kernels": None, "compile": None, "fused_lora": False, "fewer_walks": False, "recorded": False,
}  # fmt: skip


def recipes(rules):
    """(name, what changed, the recipe) in order; `batch_size` below ROWS is made up by accumulation."""
    found = []

    def add(name, change, **changes):
        before = found[-1][2] if found else dict(START, attention_kernels="t4" if rules == "t4" else "all")
        found.append((name, change, dict(before, **changes)))

    add("source", "the tutorials' recipe")
    add("source in halves", "4 rows at a time, twice", batch_size=4)
    add("no upcast", "no float32 upcast", batch_size=ROWS, upcast_non_quantized=False)
    add("no dropout", "no dropout in the adapters", lora_dropout=0.0)
    if rules == "t4":
        add("repeated heads", "key and value heads repeated: a fused attention kernel", repeat_kv=True)
    add("fused Adam", "torch's fused Adam", optimizer="adamw_torch_fused")
    add("compiled", "each layer compiled by torch.compile", compile="default")
    add("Liger", "Liger's kernels for norm, rotary embedding and SwiGLU", compile=None, layer_kernels="liger")
    add("one operation", "4-bit layers of one input, and their adapters, as one operation", fused_lora=True)
    add("fewer walks", "the trainer no longer walks through all modules", fewer_walks=True)
    add("every third layer", "one layer in three recomputed", checkpoint_every=3)
    if rules != "t4":
        add("every fourth layer", "one layer in four recomputed", checkpoint_every=4)
        add("every sixth layer", "one layer in six recomputed", checkpoint_every=6)
    add("nothing recomputed", "4 rows at a time, twice, nothing recomputed", batch_size=4, checkpoint_every=0)
    add("recorded", "the same, the layers' passes replayed as CUDA graphs", recorded=True)
    lean = {"batch_size": ROWS, "checkpoint_every": 1, "checkpoint_offload": True, "optimizer": "paged_adamw_8bit"}
    change = "every layer recomputed from an input kept on the host, 8-bit Adam, small cuBLAS workspace"
    add("lean", change, recorded=False, **lean)
    return found[-1:] if rules == "lean" else found[:-1]


def row_of(job):
    """Measure one recipe; returns its row, whatever happens. The model goes before the next one comes."""
    import bitsandbytes
    import peft
    import torch
    import transformers
    import trl

    gpu = job["device"] != "cpu"
    packages = (torch, transformers, trl, peft, bitsandbytes)
    row = {key: job[key] for key in ("name", "change", "rules", "model", "config", "spec")}
    row |= {"accumulation": ROWS // job["spec"]["batch_size"], "memory_cap_gib": T4_GIB, "measured": {}, "error": None}
    row |= {"device": torch.cuda.get_device_name() if gpu else "cpu", "date": str(datetime.date.today())}
    row["versions"] = {package.__name__: package.__version__ for package in packages}
    try:
        row["measured"] = measure(job["spec"], row["accumulation"], job)
    except Exception as error:  # running out of memory is a result too
        row["error"] = f"{type(error).__name__}: {error}"[:400]
    torch._dynamo.reset()
    gc.collect()
    if gpu:
        torch.cuda.empty_cache()
        row["left_allocated"] = torch.cuda.memory_allocated()  # cuBLAS workspaces, which each run needs anyway
    return row


def measure(spec, accumulation, job):
    import torch
    from transformers import PrinterCallback

    from helpers.training import recorded
    from helpers.training.workarounds import fewer_walks

    device = job["device"]
    if device != "cpu":
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(T4_GIB * 2**30 / total)
    begun = time.perf_counter()
    model = measure_memory.load(job["folder"], spec, device)
    if spec["upcast_non_quantized"]:
        model = measure_memory.upcast(model, spec)
    trainer, seconds = measure_memory.make_trainer(
        model, job["folder"], spec, Path(job["scratch"]), device, steps=WARM + TIMED + 1, accumulation=accumulation
    )
    trainer.remove_callback(PrinterCallback)
    if spec["fused_lora"]:
        from helpers.training import fuse_lora

        assert fuse_lora(trainer.model) == 4 * job["config"]["num_hidden_layers"]
    if spec["compile"]:
        for layer in trainer.model.get_base_model().model.layers:
            layer.compile(mode=spec["compile"])
    ready = time.perf_counter()
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    watch = profile_of(job["profile"])
    if device != "cpu":
        trainer.add_callback(watch)
    with contextlib.ExitStack() as around:
        for name, cure in (("fewer_walks", fewer_walks), ("recorded", recorded)):
            if spec[name]:
                around.enter_context(cure(trainer))
        trainer.train()
    timed = seconds[WARM : WARM + TIMED]
    found = {"step_s": [round(s, 4) for s in timed], "first_steps_s": [round(s, 3) for s in seconds[:WARM]]}
    found["tokens_per_s"] = round(ROWS * LENGTH / statistics.median(timed))
    found["losses"] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    found["ready_s"] = round(ready - begun, 2)
    if device != "cpu":
        found["peak_allocated"] = torch.cuda.max_memory_allocated()
        found["peak_reserved"] = torch.cuda.max_memory_reserved()
        found["gpu_busy_s"] = watch.busy_s
    return found


def profile_of(file):
    """A TrainerCallback that profiles the step after the timed ones: `busy_s`, what its GPU kernels took together.

    With `file`, the table of kernels and of operations on the CPU is written there.
    """
    import torch
    from transformers import TrainerCallback

    activities = None if file else [torch.profiler.ProfilerActivity.CUDA]

    class Profile(TrainerCallback):
        busy_s = None

        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == WARM + TIMED:
                self.profiler = torch.profiler.profile(activities=activities)
                self.profiler.start()

        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == WARM + TIMED + 1:
                torch.cuda.synchronize()
                self.profiler.stop()
                kernels = [e for e in self.profiler.events() if e.device_type == torch.autograd.DeviceType.CUDA]
                self.busy_s = round(sum(kernel.time_range.elapsed_us() for kernel in kernels) / 1e6, 4)
                if file:
                    averages = self.profiler.key_averages()
                    by = ["self_cuda_time_total", "self_cpu_time_total"]
                    tables = [averages.table(sort_by=b, row_limit=45, max_name_column_width=70) for b in by]
                    Path(file).write_text("\n".join(tables))

    return Profile()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/speed"), help="where rows are written")
    parser.add_argument("--scratch", type=Path, default=Path("/tmp/measure_speed"), help="where the model is made")
    parser.add_argument("--rules", choices=RULES, help="only these recipes")
    parser.add_argument("--only", nargs="*", help="only recipes of these names")
    parser.add_argument("--profile", help="the recipe whose kernels are listed")
    parser.add_argument("--cpu", action="store_true", help="dry run on the CPU with a toy shape")
    args = parser.parse_args()

    args.out.mkdir(parents=True, exist_ok=True)
    args.scratch.mkdir(parents=True, exist_ok=True)
    folder, config = args.scratch / MODEL, TOY if args.cpu else MODELS[MODEL]
    if not (folder / "config.json").is_file():
        make = ["--make", MODEL, "--scratch", str(args.scratch), *(["--cpu"] if args.cpu else [])]
        status, said = child(measure_memory.__file__, *make)
        if status:
            sys.exit(said)
    if not args.rules:  # a process each: kernels that were switched off or replaced stay so
        for rules, surroundings in RULES.items():
            subprocess.run([sys.executable, *sys.argv, "--rules", rules], check=True, env=os.environ | surroundings)
        return
    for name, change, spec in recipes(args.rules):
        if args.only and name not in args.only:
            continue
        if args.cpu:  # neither Triton nor pinned memory nor graphs without a GPU
            spec |= {"layer_kernels": None, "compile": None, "checkpoint_offload": False, "recorded": False}
        job = {
            "name": name, "change": change, "rules": args.rules, "model": MODEL, "config": config, "spec": spec,
            "device": "cpu" if args.cpu else 0, "folder": str(folder), "scratch": str(args.scratch),
            "profile": args.out / f"profile_{args.rules}_{name.replace(' ', '_')}.txt" if args.profile == name else None,
        }  # fmt: skip
        row = row_of(job)
        with open(args.out / "speed_rows.jsonl", "a") as out:
            out.write(json.dumps(row) + "\n")
        print(one_line(row), flush=True)


def one_line(row):
    m, name = row["measured"], f"{row['rules']:4} {row['name']:24}"
    if not m:
        return f"{name} {row['error']}"
    size, busy = m.get("peak_allocated", 0) / 1e9, m.get("gpu_busy_s")
    steps = f"{min(m['step_s']):.3f} to {max(m['step_s']):.3f} s a step, GPU busy {busy}"
    return f"{name} {m['tokens_per_s']:>7,} tokens/s {size:6.2f} GB  {steps}"


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.exit(main())
