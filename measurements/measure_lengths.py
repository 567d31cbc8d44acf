"""How fast rows of real lengths are trained on Mistral-7B's shape, one way of batching them at a time, one JSON row a way.

    python measurements/measure_lengths.py speed --out DIR             under T4 rules (one GPU, 8 minutes)
    python measurements/measure_lengths.py speed --out DIR             goes on after the last row that was written
    python measurements/measure_lengths.py speed --out DIR --only padded "padding-free"
    python measurements/measure_lengths.py speed --out DIR --cpu       a dry run of the same lines on a toy shape
    python measurements/measure_lengths.py quality --out DIR           the held-out loss of each way, bundled model, five seeds
    python measurements/measure_lengths.py quality --out DIR --chat FOLDER    the same for SmolLM2-135M-Instruct

All ways train the same rows: lengths of a log-normal distribution (median 95 tokens, none below 40 or above 510), random
tokens, a third of each row is the prompt. Sixteen rows make an optimizer step, and everything else is `measure_speed.py`'s
recipe "fewer walks", inside 14.56 GiB. The rows are gone through twice. The first time each step is timed, the second time
each step's GPU kernels are summed by the profiler (`busy_s`). In `steps` stand the tokens of each step without padding
(`tokens`), with it (`computed`), and whether a CUDA graph was recorded in it. `measured` leaves out such steps, and the first
two of the clock's. Then the longest batch that can come goes through once (`longest`): its peak is what a plan has to know.

A way has a process of its own, which imports what it needs while the one before it still measures, and is given up after
--timeout seconds. `checked` says that each pass went over every token of every row.
"""

import argparse
import contextlib
import datetime
import json
import math
import os
import random
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest.mock import patch

COURSE = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(COURSE), str(COURSE / "measurements")]

import measure_memory  # noqa: E402
from measure_memory import MODELS, T4_GIB, TOY, child  # noqa: E402
from measure_speed import MODEL, SEGMENTS, START  # noqa: E402

ROWS, PER_STEP, MEDIAN, SPREAD, SHORTEST, LONGEST, MAX_LENGTH = 256, 16, 95, 0.5, 40, 510, 512
PACK, MULTIPLE = 2048, 64
RECIPE = START | {
    "upcast_non_quantized": False, "lora_dropout": 0.0, "optimizer": "adamw_torch_fused", "layer_kernels": "liger",
    "fused_lora": True, "fewer_walks": True, "checkpoint_every": 0, "batch_size": 4,
}  # fmt: skip


@dataclass(frozen=True)
class Way:
    """How rows become batches. `batch` rows at once, `accumulation` times a step; the rest are SFTConfig's words and ours."""

    change: str
    batch: int = 4
    accumulation: int = 4
    sampling: str = "random"
    packing: bool = False
    padding_free: bool = False
    recorded: bool = False
    checkpoint_every: int = 0
    nested: bool = False  # attention within each row through torch's nested tensors

    def config(self) -> dict:
        """What SFTConfig is told."""
        length = PACK if self.packing else None if self.padding_free else MAX_LENGTH
        return {
            "per_device_train_batch_size": self.batch, "gradient_accumulation_steps": self.accumulation,
            "train_sampling_strategy": self.sampling, "packing": self.packing, "padding_free": self.padding_free,
            "max_length": length, "pad_to_multiple_of": MULTIPLE if self.recorded else None,
        }  # fmt: skip

    def longest(self) -> tuple[int, int]:
        """(rows, tokens) of the longest batch that can come, as `collated` makes it."""
        return (1, PACK) if self.packing else (self.batch, MAX_LENGTH)


WAYS = {
    "padded": Way("four rows at once, filled up to the longest of them"),
    "padding-free": Way("sixteen rows without padding, attention within each row", 16, 1, padding_free=True),
    "padding-free, nested": Way("the same, through torch's nested tensors", 16, 1, padding_free=True, nested=True),
    "rebalanced": Way("the step's rows by length, in four batches of like cost", sampling="batch_rebalance"),
    "sorted": Way("rows of like length in one step", sampling="group_by_length"),
    "packed": Way("TRL's packs of 2,048 tokens, a mask over all of them", 1, 1, packing=True),
    "rebalanced in two": Way("in two batches of like cost, one layer in three recomputed", 8, 2, "batch_rebalance",
                             checkpoint_every=3),
    "padded, recorded": Way("padded, as CUDA graphs", recorded=True),
    "sorted, recorded": Way("sorted, as CUDA graphs", sampling="group_by_length", recorded=True),
    "rebalanced, recorded": Way("rebalanced, as CUDA graphs", sampling="batch_rebalance", recorded=True),
}  # fmt: skip


def lengths(count: int = ROWS) -> list[int]:
    """The rows' lengths in tokens: evenly spaced quantiles of the distribution, shuffled, the same in every process."""
    normal = statistics.NormalDist(math.log(MEDIAN), SPREAD)
    drawn = [math.exp(normal.inv_cdf((place + 0.5) / count)) for place in range(count)]
    found = [round(min(max(length, SHORTEST), LONGEST)) for length in drawn]
    random.Random(0).shuffle(found)
    return found


def row_of_length(length: int, vocabulary: int, draw) -> dict:
    """Random tokens; the loss sees all but the first third."""
    import torch

    ids = torch.randint(3, vocabulary, (length,), generator=draw).tolist()
    return {"input_ids": ids, "labels": [-100] * (length // 3) + ids[length // 3 :]}


def dataset(vocabulary: int, count: int = ROWS, one_length: bool = False):
    """The rows that every way trains; with `one_length` all of them have MAX_LENGTH tokens."""
    import torch
    from datasets import Dataset

    draw, drawn = torch.Generator().manual_seed(1), [MAX_LENGTH] * count if one_length else lengths(count)
    return Dataset.from_list([row_of_length(length, vocabulary, draw) for length in drawn])


class Collator:
    """A data collator that writes down what it made, in the order in which batches are trained."""

    def __init__(self, collate):
        self.collate, self.made = collate, []

    def __call__(self, rows):
        batch = self.collate(rows)
        tokens = sum(len(row["input_ids"]) for row in rows)
        count = sum(len(row.get("seq_lengths") or [tokens]) for row in rows)
        shape = list(batch["input_ids"].shape)
        self.made.append({"rows": count, "tokens": tokens, "computed": shape[0] * shape[1], "shape": shape})
        return batch


def watching(shapes: list):
    """A TrainerCallback that times the first half of all steps, and profiles the second: `steps`, a dictionary each."""
    import torch
    from transformers import TrainerCallback

    gpu = torch.cuda.is_available()

    class Watch(TrainerCallback):
        def __init__(self):
            self.steps, self.profiler = [], None

        def on_step_begin(self, args, state, control, **kwargs):
            if gpu:
                torch.cuda.synchronize()
            self.steps.append({"epoch": 1 + (2 * state.global_step >= state.max_steps), "shapes": len(shapes)})
            if gpu and self.steps[-1]["epoch"] == 2:
                self.profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
                self.profiler.start()
            self.begun = time.perf_counter()

        def on_step_end(self, args, state, control, **kwargs):
            if gpu:
                torch.cuda.synchronize()
            step = self.steps[-1]
            step["step_s"] = round(time.perf_counter() - self.begun, 4)
            step["shapes"] = len(shapes) - step["shapes"]  # how many were recorded in this step
            if self.profiler:
                self.profiler.stop()
                kernels = [e for e in self.profiler.events() if e.device_type == torch.autograd.DeviceType.CUDA]
                step["busy_s"] = round(sum(kernel.time_range.elapsed_us() for kernel in kernels) / 1e6, 4)
                step["kernels"], self.profiler = len(kernels), None

    return Watch()


def build(model, folder, way: Way, rows, scratch: str, device):
    """TRL's SFTTrainer for two passes over the rows, adapters in float32."""
    from peft import LoraConfig
    from transformers import AutoTokenizer, PrinterCallback
    from trl import SFTConfig, SFTTrainer

    from helpers.training import adapters_to_float32

    every = way.checkpoint_every
    arguments = SFTConfig(
        output_dir=f"{scratch}/trainer", num_train_epochs=2, fp16=device != "cpu", bf16=False, use_cpu=device == "cpu",
        optim=RECIPE["optimizer"], learning_rate=2e-4, max_grad_norm=0.3, logging_steps=1, save_strategy="no", seed=0,
        activation_checkpointing=every > 0, gradient_checkpointing=None, report_to=[], disable_tqdm=True,
        activation_checkpointing_kwargs={"every_n_layers": every} if every else None, **way.config(),
    )  # fmt: skip
    lora = LoraConfig(
        r=RECIPE["rank"],
        lora_alpha=16,
        target_modules=RECIPE["target_modules"],
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    trainer = SFTTrainer(model, arguments, train_dataset=rows, processing_class=tokenizer, peft_config=lora)
    trainer.remove_callback(PrinterCallback)
    trainer.data_collator = Collator(trainer.data_collator)
    return adapters_to_float32(trainer)


def most_tokens(config, spec: dict, device) -> int:
    """How many tokens may go through the model at once: the most that fit, by `helpers.memory`, in steps of 128."""
    from helpers.memory import fits, predict

    if device == "cpu":
        return 300  # so that the dry run cuts batches into pieces
    gpu, budget = "h200", int(T4_GIB * 2**30)
    counts = [n for n in range(512, 8193, 128) if fits(predicted(config, spec, 1, n, predict), gpu, budget)]
    return max(counts)


def predicted(config, spec: dict, rows: int, tokens: int, predict):
    from helpers.memory import RunSpec

    known = {name: value for name, value in spec.items() if name in RunSpec.__dataclass_fields__}
    return predict(config, RunSpec(**known | {"batch_size": rows, "seq_len": tokens}), "h200")


def measure(job: dict) -> dict:
    """Train one way over all rows twice; returns steps, what they come to, and the peaks."""
    import torch

    from helpers.memory import predict
    from helpers.training import fuse_lora, recorded
    from helpers.training.without_padding import padding_free
    from helpers.training.workarounds import fewer_walks

    way, spec, device = Way(**job["way"]), job["spec"], job["device"]
    gpu = device != "cpu"
    if gpu:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(T4_GIB * 2**30 / total)
    begun = time.perf_counter()
    model = measure_memory.load(job["folder"], spec, device)
    rows = dataset(model.config.vocab_size, job["rows"], job.get("one_length", False))
    trainer = build(model, job["folder"], way, rows, job["scratch"], device)
    if spec["fused_lora"]:
        fuse_lora(trainer.model)
    found = {"ready_s": round(time.perf_counter() - begun, 1)}
    limit = most_tokens(job["config"], spec, device) if way.padding_free else None
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    with contextlib.ExitStack() as around:
        around.enter_context(fewer_walks(trainer))
        shapes = around.enter_context(recorded(trainer)) if way.recorded and gpu else []
        if limit:
            around.enter_context(padding_free(trainer, limit))
        if way.nested:
            around.enter_context(patch("helpers.training.without_padding._together", nested_tensors))
        watch = watching(shapes)
        trainer.add_callback(watch)
        trainer.train()
        found["peak_allocated"] = torch.cuda.max_memory_allocated() if gpu else None
        found["peak_reserved"] = torch.cuda.max_memory_reserved() if gpu else None
        found |= {"losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry], "shapes": shapes}
        with_tokens(watch.steps, trainer.data_collator.made, way.accumulation)
        found |= {"max_tokens": limit, "steps": watch.steps} | summary(watch.steps)
        found["checked"] = went_over_all(watch.steps, rows)
        found["longest"] = longest_batch(trainer, way, device)
        if limit:
            found["rows_apart"] = rows_apart(trainer, rows)
    rows_at_once, tokens = (1, limit) if limit else way.longest()
    found["longest"]["predicted"] = predicted(job["config"], spec, rows_at_once, tokens, predict).peak_allocated
    return found


def nested_tensors(states, bounds, longest, dropout, scaling):
    """What `helpers.training.without_padding._together` does, by torch's public way to the same kernel: more work for Python."""
    import torch

    flat = [x[0].transpose(0, 1).contiguous() for x in states]
    rows = [torch.nested.nested_tensor_from_jagged(x, bounds, min_seqlen=1, max_seqlen=longest) for x in flat]
    rows = [x.transpose(1, 2) for x in rows]
    output = torch.nn.functional.scaled_dot_product_attention(*rows, dropout_p=dropout, is_causal=True, scale=scaling)
    return output.transpose(1, 2).values()[None]


def rows_apart(trainer, rows, count: int = 4) -> dict:
    """How far the logits of rows in one batch are from those of each row alone; and if all were taken for one text."""
    import torch

    model, some = trainer.model.eval(), [dict(rows[place]) for place in range(count)]
    batch = trainer.data_collator.collate(some)
    batch = {name: value.to(model.device) if hasattr(value, "to") else value for name, value in batch.items()}
    del batch["labels"]
    ends = batch["cu_seq_lens_q"][[0, -1]]
    one_text = batch | {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": int(ends[-1])}
    with torch.no_grad():
        ids = [torch.tensor([row["input_ids"]], device=model.device) for row in some]
        alone = torch.cat([model(one, use_cache=False).logits[0].float() for one in ids])
        differences = [model(**one, use_cache=False).logits[0].float() - alone for one in (batch, one_text)]
    together, leaking = (round((difference.norm() / alone.norm()).item(), 7) for difference in differences)
    return {"together": together, "as_one_text": leaking}


def with_tokens(steps: list[dict], made: list[dict], accumulation: int) -> None:
    """Add to each step what its batches held."""
    for number, step in enumerate(steps):
        batches = made[number * accumulation : (number + 1) * accumulation]
        step |= {name: sum(batch[name] for batch in batches) for name in ("rows", "tokens", "computed")}
        step["batches"] = [batch["shape"] for batch in batches]


def went_over_all(steps: list[dict], rows) -> bool:
    """Whether each of the two passes went over every token of every row. Raises where it did not."""
    expected = (len(rows), sum(map(len, rows["input_ids"])))
    for epoch in (1, 2):
        those = [step for step in steps if step["epoch"] == epoch]
        found = (sum(step["rows"] for step in those), sum(step["tokens"] for step in those))
        if found != expected:
            raise AssertionError(f"pass {epoch} went over {found} rows and tokens, not over {expected}")
    return True


def summary(steps: list[dict]) -> dict:
    """Tokens without padding, a second of busy GPU time and of clock time (the median step's); padding; rows in a step."""
    clock = [step for step in steps if step["epoch"] == 1 and not step["shapes"]][2:]
    busy = [step for step in steps if step["epoch"] == 2 and not step["shapes"] and step.get("busy_s")]
    rates, spent = [step["tokens"] / step["step_s"] for step in clock], sum(step["busy_s"] for step in busy)
    tokens, computed = (sum(step[name] for step in steps) for name in ("tokens", "computed"))
    return {
        "tokens_per_clock_s": round(statistics.median(rates), 1) if rates else None,
        "tokens_per_busy_s": round(sum(step["tokens"] for step in busy) / spent, 1) if spent else None,
        "clock_steps": len(clock), "busy_steps": len(busy), "padding": round(1 - tokens / computed, 4),
        "rows_per_step": round(sum(step["rows"] for step in steps) / len(steps), 2),
    }  # fmt: skip


def longest_batch(trainer, way: Way, device) -> dict:
    """{shape, peak_allocated} of the longest batch that can come: rows of MAX_LENGTH tokens, one training step."""
    import torch

    draw, gpu = torch.Generator().manual_seed(2), device != "cpu"
    vocabulary = trainer.model.config.vocab_size
    row = row_of_length(MAX_LENGTH, vocabulary, draw)
    if way.packing:
        many = PACK // MAX_LENGTH
        row = {name: values * many for name, values in row.items()} | {"seq_lengths": [MAX_LENGTH] * many}
    batch = trainer.data_collator.collate([row] * way.batch)
    found = {"shape": list(batch["input_ids"].shape)}
    batch = {name: value.to(trainer.args.device) if hasattr(value, "to") else value for name, value in batch.items()}
    try:
        if gpu:
            torch.cuda.reset_peak_memory_stats()
        trainer.training_step(trainer.model, batch, (batch["labels"] != -100).sum())
        found["peak_allocated"] = torch.cuda.max_memory_allocated() if gpu else None
    except Exception as error:  # running out of memory is a result too
        found["error"] = f"{type(error).__name__}: {error}"[:300]
    return found


def worker(job: dict) -> None:
    """Import, wait for the word, measure one way, write its row."""
    import bitsandbytes
    import peft
    import torch
    import transformers
    import trl

    gpu = job["device"] != "cpu"
    packages = (torch, transformers, trl, peft, bitsandbytes)
    row = {name: job[name] for name in ("name", "rules", "model", "config", "spec", "way")}
    row |= {"rows": job["rows"], "memory_cap_gib": T4_GIB, "measured": {}, "error": None}
    row |= {"device": torch.cuda.get_device_name() if gpu else "cpu", "date": str(datetime.date.today())}
    row["versions"] = {package.__name__: package.__version__ for package in packages}
    sys.stdin.readline()
    try:
        row["measured"] = measure(job)
    except Exception as error:
        row["error"] = f"{type(error).__name__}: {error}"[:600]
    Path(job["result"]).write_text(json.dumps(row))


def in_turn(jobs: list[dict], command, out: Path, timeout: float, seconds: float, environment=lambda job: {}) -> None:
    """Do the jobs one after the other, each in a process that was started while the one before it still measured.

    `command(job)` is a process that waits for a line before it measures, and writes its row to job["result"]. Rows are
    appended to the file `out`, for a process that failed or took too long a row that says so. None is begun after `seconds`.
    """
    begun, waiting = time.monotonic(), None

    def start(job):
        Path(job["result"]).unlink(missing_ok=True)
        surroundings = os.environ | SEGMENTS | environment(job)
        with open(job["result"] + ".log", "w") as log:
            return subprocess.Popen(
                command(job), stdin=subprocess.PIPE, stdout=log, stderr=log, text=True, env=surroundings
            )

    for place, job in enumerate(jobs):
        process, waiting = waiting or start(job), None
        if time.monotonic() - begun > seconds:
            process.kill()
            break
        said = ""
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write("go\n")
            process.stdin.close()
        if place + 1 < len(jobs):
            waiting = start(jobs[place + 1])
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            said = f"given up after {timeout:.0f} seconds. "
        if Path(job["result"]).is_file():
            row = json.loads(Path(job["result"]).read_text())
        else:
            log = Path(job["result"] + ".log").read_text()
            row = {name: job[name] for name in ("name", "rules")} | {"measured": {}}
            row["error"] = f"{said}the process ended with {process.returncode}: {log[-1500:]}"
        with open(out, "a") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{time.monotonic() - begun:6.1f} s  {one_line(row)}", flush=True)
    if waiting:
        waiting.kill()


def one_line(row: dict) -> str:
    m, name = row["measured"], f"{row['rules']:4} {row['name']:24}"
    if not m:
        return f"{name} {' '.join(row['error'].split())[-300:]}"
    size = (m["peak_allocated"] or 0) / 1e9
    return (
        f"{name} {m['tokens_per_busy_s'] or 0:>8,.0f} tokens/s busy, {m['tokens_per_clock_s'] or 0:>8,.0f} by the clock, "
        f"{m['padding']:.0%} padding, {size:.2f} GB; longest batch {m['longest']}"
    )


def have(out: Path) -> set:
    """(rules, name) of the rows that are there without an error."""
    rows = [json.loads(line) for line in out.read_text().splitlines()] if out.is_file() else []
    return {(row["rules"], row["name"]) for row in rows if not row["error"]}


def made_model(scratch: Path, cpu: bool) -> Path:
    """The folder of Mistral-7B's shape with random weights, or of the toy."""
    scratch.mkdir(parents=True, exist_ok=True)
    folder = scratch / MODEL
    if not (folder / "config.json").is_file():
        status, said = child(measure_memory.__file__, "--make", MODEL, "--scratch", str(scratch), *["--cpu"] * cpu)
        if status:
            sys.exit(said)
    return folder


def spec_of(way: Way, rules: str) -> dict:
    """How a way trains, under these rules: RunSpec's fields, and what else a row says of it."""
    spec = RECIPE | {"checkpoint_every": way.checkpoint_every, "batch_size": way.batch, "recorded": way.recorded}
    return spec | {"attention_kernels": rules, "repeat_kv": rules == "t4", "padding_free": way.padding_free}


def job_of(name: str, rules: str, args, folder: Path) -> dict:
    way = WAYS[name]
    spec = spec_of(way, rules)
    if args.cpu:
        spec |= {"layer_kernels": None}
    return {
        "name": name, "rules": rules, "model": MODEL, "config": TOY if args.cpu else MODELS[MODEL], "spec": spec,
        "way": asdict(way), "rows": args.rows or ROWS, "device": "cpu" if args.cpu else 0, "folder": str(folder),
        "scratch": str(args.scratch), "result": str(args.scratch / f"{rules}-{name.replace(' ', '_')}.json"),
    }  # fmt: skip


def speed(args) -> None:
    out = args.out / "lengths_rows.jsonl"
    folder, done = made_model(args.scratch, args.cpu), have(out)
    names = [name for name in args.only or WAYS if (args.rules, name) not in done]
    jobs = [job_of(name, args.rules, args, folder) for name in names]
    in_turn(
        jobs,
        lambda job: [sys.executable, __file__, "worker", "--job", json.dumps(job)],
        out,
        args.timeout,
        args.seconds,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("speed", "quality", "worker"))
    parser.add_argument("--out", type=Path, default=Path("runs/lengths"), help="where rows are written")
    parser.add_argument("--scratch", type=Path, default=Path("/tmp/measure_lengths"), help="where the model is made")
    parser.add_argument("--rules", choices=("t4", "all"), default="t4", help="the attention kernels that may be used")
    parser.add_argument("--only", nargs="*", help="only ways of these names")
    parser.add_argument(
        "--rows", type=int, help="rows of a pass, a multiple of 16, in place of as many as are measured"
    )
    parser.add_argument("--timeout", type=float, default=150, help="seconds after which a way is given up")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no way after this many seconds")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2, 3, 4], help="quality: one run for each")
    parser.add_argument("--chat", help="quality: the folder of the chat model, in place of the bundled model")
    parser.add_argument("--cpu", action="store_true", help="dry run on the CPU with a toy shape")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.what == "worker":
        return worker(json.loads(args.job))
    args.out.mkdir(parents=True, exist_ok=True)
    if args.what == "speed":
        return speed(args)
    import lengths_quality

    count = args.rows or lengths_quality.ROWS
    return lengths_quality.quality(args.out / "lengths_quality.jsonl", args.chat, args.seeds, args.only, count)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.exit(main())
