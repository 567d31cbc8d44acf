"""The course's training beside Unsloth's, on one GPU: rows of one length and of real lengths, each side in its best settings.

    python measurements/compare_unsloth.py --theirs FOLDER --out DIR                T4 rules, then every kernel
    python measurements/compare_unsloth.py --theirs FOLDER --out DIR --rules t4     one half; a second call goes on
    python measurements/compare_unsloth.py --out DIR --show                         what the rows say, both ways round

Both train Mistral-7B's shape in 4 bits: rank 8 on q, k, v and o, no dropout, float16, fused Adam, random weights and tokens,
in 14.56 GiB. "one": 8 rows of 512 tokens a step. "real": the rows of measure_lengths.py, 16 a step. Rules "t4": no flash and
no cuDNN attention, neither in torch nor in xformers, since a T4 has none; "all": whatever each side chooses. Several settings
of Unsloth are tried, since nobody here can know its best, and the lesson compares with the fastest of them. Times are taken
as in measure_lengths.py: steps by the clock, then the GPU kernels of each step.

Unsloth asks for other versions than the course (transformers up to 5.17, trl up to 1.15, datasets below 5). So it is no
requirement of the course, and has a folder of its own, which only its processes see, in place of PYTHONPATH:

    pip install --no-deps --target FOLDER unsloth==2026.10.9 unsloth_zoo==2026.10.9 trl==1.15.0 transformers==5.17.0 \\
        tokenizers==0.23.2 huggingface_hub==1.33.0 datasets==4.8.5 dill==0.4.1 multiprocess==0.70.19 peft==0.21.2 \\
        cut_cross_entropy==25.1.1 torchao==0.18.0 xformers==0.0.35 bitsandbytes==0.50.2

xformers 0.0.35 was built with CUDA 12, so beside torch with CUDA 13 it needs `nvidia-cuda-runtime-cu12` in FOLDER as well. A
row's `attention` says what Unsloth has found. What one side cannot do stands in its row as `error`, and the rest goes on.
"""

import argparse
import datetime
import functools
import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path

COURSE = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(COURSE / "measurements")]

import measure_lengths  # noqa: E402
from measure_lengths import MODEL, PACK, RECIPE, WAYS, Way  # noqa: E402
from measure_memory import T4_GIB  # noqa: E402

ONE = {"one_length": True, "rows": 64}  # eight steps of eight rows
REAL = {"one_length": False, "rows": measure_lengths.ROWS}
# (name, rows, way, tokens at once for Unsloth's token budget or None). Unsloth leaves out padding by itself.
OURS = {
    "ours, one": (ONE, Way("as CUDA graphs, four rows at a time", 4, 2, recorded=True)),
    "ours, real": (REAL, WAYS["padding-free"]),
}
THEIRS = {
    "Unsloth, one": (ONE, Way("eight rows at once, its own checkpointing", 8, 1, checkpoint_every=1), None),
    "Unsloth, one, kept": (ONE, Way("four rows at a time, nothing recomputed", 4, 2), None),
    "Unsloth, real": (
        REAL,
        Way("sixteen rows without padding, its own checkpointing", 16, 1, checkpoint_every=1),
        None,
    ),
    "Unsloth, real, kept": (REAL, Way("sixteen rows without padding, cut at its token budget", 16, 1), PACK),
    "Unsloth, real, packed": (REAL, Way("its packs of 2,048 tokens, nothing recomputed", 1, 1, packing=True), None),
}


def job_of(name: str, rules: str, args, folder: Path) -> dict:
    """What one process is told; `side` says whose worker it is."""
    rows, way, *budget = (OURS | THEIRS)[name]
    spec = measure_lengths.spec_of(way, rules)
    return rows | {
        "name": name, "rules": rules, "model": MODEL, "config": measure_lengths.MODELS[MODEL], "spec": spec, "device": 0,
        "way": asdict(way), "budget": budget[0] if budget else None, "side": "ours" if name in OURS else "Unsloth",
        "folder": str(folder), "scratch": str(args.scratch),
        "result": str(args.scratch / f"{rules}-{name.replace(' ', '_').replace(',', '')}.json"),
    }  # fmt: skip


def command(job: dict) -> list[str]:
    script = measure_lengths.__file__ if job["side"] == "ours" else __file__
    return [sys.executable, script, *(["worker"] if job["side"] == "ours" else []), "--job", json.dumps(job)]


def environment(job: dict, theirs: str) -> dict[str, str]:
    """Unsloth's processes see its folder in place of the course's packages, no hub, and send no statistics."""
    if job["side"] == "ours":
        return {"HF_HUB_OFFLINE": "1"}
    libraries = [str(Path(theirs) / "nvidia" / "cuda_runtime" / "lib"), os.environ.get("LD_LIBRARY_PATH", "")]
    known = {
        "HF_HUB_OFFLINE": "1",
        "UNSLOTH_DISABLE_STATISTICS": "1",
        "UNSLOTH_COMPILE_LOCATION": job["scratch"] + "/unsloth",
    }
    known |= {"PYTHONPATH": theirs, "LD_LIBRARY_PATH": ":".join(filter(None, libraries))}
    return known | ({"UNSLOTH_TOKEN_BUDGET": str(job["budget"])} if job["budget"] else {})


def only_a_t4s_attention() -> None:
    """Switch off flash and cuDNN attention in torch; Unsloth looks at these when it chooses."""
    import torch

    torch.backends.cuda.enable_flash_sdp(False)
    torch.backends.cuda.enable_cudnn_sdp(False)


def no_flash_in_xformers() -> None:
    """Leave xformers its memory-efficient kernel, the only one of its kernels for a T4; it asks torch for no permission."""
    try:
        from xformers.ops.fmha import flash, flash3
    except ImportError:
        return
    for operation in (flash.FwOp, flash.BwOp, flash3.FwOp, flash3.BwOp):
        operation.not_supported_reasons = classmethod(lambda cls, inputs: ["under T4 rules there is no such kernel"])


def worker(job: dict) -> None:
    """Import, wait for the word, measure one of Unsloth's settings, write its row."""
    row = {name: job[name] for name in ("name", "rules", "model", "config", "spec", "way", "rows", "budget", "side")}
    row |= {"memory_cap_gib": T4_GIB, "measured": {}, "error": None, "date": str(datetime.date.today())}
    try:
        if job["rules"] == "t4":
            only_a_t4s_attention()
        import unsloth  # noqa: F401, before the libraries that it changes

        if job["rules"] == "t4":
            no_flash_in_xformers()
        import bitsandbytes
        import peft
        import torch
        import transformers
        import trl
        import unsloth_zoo
        from unsloth.utils import attention_dispatch as attention

        packages = (torch, transformers, trl, peft, bitsandbytes, unsloth, unsloth_zoo)
        row["versions"] = {package.__name__: package.__version__ for package in packages}
        row["device"] = torch.cuda.get_device_name()
        row["attention"] = {"xformers": attention.HAS_XFORMERS, "flash": attention.HAS_FLASH_ATTENTION}
        row["attention"] |= {"chosen": attention.select_attention_backend(use_varlen=not job["one_length"])}
        sys.stdin.readline()
        row["measured"] = measure(job)
    except BaseException as error:  # whatever stops one side, the other goes on
        row["error"] = f"{type(error).__name__}: {error}"[:1500]
    Path(job["result"]).write_text(json.dumps(row))


def measure(job: dict) -> dict:
    """Train in Unsloth's way over all rows twice."""
    import torch

    way = Way(**job["way"])
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(T4_GIB * 2**30 / total)
    begun = time.perf_counter()
    model, tokenizer = load(job, way)
    rows = measure_lengths.dataset(model.config.vocab_size, job["rows"], job["one_length"])
    trainer = build(job, way, model, tokenizer, rows)
    found = {"ready_s": round(time.perf_counter() - begun, 1)}
    watch = measure_lengths.watching([])
    trainer.add_callback(watch)
    torch.cuda.reset_peak_memory_stats()
    trainer.train()
    found["peak_allocated"], found["peak_reserved"] = (
        torch.cuda.max_memory_allocated(),
        torch.cuda.max_memory_reserved(),
    )
    found["losses"] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    measure_lengths.with_tokens(watch.steps, trainer.data_collator.made, way.accumulation)
    found |= {"steps": watch.steps, "longest": None} | measure_lengths.summary(watch.steps)
    found["splits"] = getattr(trainer, "_unsloth_token_budget_splits", None)  # batches that its budget has cut
    found["checked"] = measure_lengths.went_over_all(watch.steps, rows)
    return found


def load(job: dict, way: Way):
    """(model with adapters, tokenizer) by Unsloth's own loader."""
    import torch
    from unsloth import FastLanguageModel

    checkpointing = "unsloth" if way.checkpoint_every else False
    model, tokenizer = FastLanguageModel.from_pretrained(
        model_name=job["folder"], max_seq_length=PACK, dtype=torch.float16, load_in_4bit=True,
        use_gradient_checkpointing=checkpointing, use_exact_model_name=True,
    )  # fmt: skip
    model = FastLanguageModel.get_peft_model(
        model, r=RECIPE["rank"], target_modules=RECIPE["target_modules"], lora_alpha=16, lora_dropout=0.0, bias="none",
        use_gradient_checkpointing=checkpointing, random_state=0, max_seq_length=PACK,
    )  # fmt: skip
    return model, tokenizer


def build(job: dict, way: Way, model, tokenizer, rows):
    """TRL's SFTTrainer as Unsloth has changed it; `padding_free` is left to it."""
    from transformers import PrinterCallback
    from trl import SFTConfig, SFTTrainer

    arguments = SFTConfig(
        output_dir=f"{job['scratch']}/theirs", num_train_epochs=2, fp16=True, bf16=False, optim=RECIPE["optimizer"],
        learning_rate=2e-4, max_grad_norm=0.3, logging_steps=1, save_strategy="no", seed=0, report_to="none",
        disable_tqdm=True, per_device_train_batch_size=way.batch, gradient_accumulation_steps=way.accumulation,
        packing=way.packing, max_length=PACK,
    )  # fmt: skip
    trainer = SFTTrainer(model=model, args=arguments, train_dataset=rows, processing_class=tokenizer)
    trainer.remove_callback(PrinterCallback)
    trainer.data_collator = measure_lengths.Collator(trainer.data_collator)
    return trainer


def show(out: Path) -> None:
    """For each rules and each kind of rows: both sides' best, and how many times as fast each is as the other."""
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    for rules in ("t4", "all"):
        for kind in ("one", "real"):
            those = [row for row in rows if row["rules"] == rules and f", {kind}" in row["name"] and not row["error"]]
            for measure, words in (("tokens_per_busy_s", "busy GPU time"), ("tokens_per_clock_s", "whole steps")):
                best = {}
                for row in those:
                    side, rate = row["name"].split(",")[0], row["measured"][measure]
                    best[side] = max(best.get(side, (0, "")), (rate, row["name"]))
                if len(best) == 2:
                    ours, unsloth = best["ours"], best["Unsloth"]
                    ratio = ours[0] / unsloth[0]
                    print(
                        f"{rules:4}{kind:5} {words:14} ours {ours[0]:,.0f} tokens/s, {unsloth[1]} {unsloth[0]:,.0f}: "
                        f"ours is {ratio:.2f} times as fast, Unsloth {1 / ratio:.2f} times"
                    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--theirs", help="the folder that Unsloth was installed into")
    parser.add_argument("--out", type=Path, default=Path("runs/unsloth"), help="where rows are written")
    parser.add_argument("--scratch", type=Path, default=Path("/tmp/measure_lengths"), help="where the model is made")
    parser.add_argument("--rules", choices=("t4", "all"), nargs="*", default=["t4", "all"])
    parser.add_argument("--only", nargs="*", help="only rows of these names")
    parser.add_argument("--timeout", type=float, default=180, help="seconds after which a row is given up")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no row after this many seconds")
    parser.add_argument("--show", action="store_true", help="say what the rows say")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    args = parser.parse_args()
    out = args.out / "unsloth_rows.jsonl"
    if args.job:
        return worker(json.loads(args.job))
    if args.show:
        return show(out)
    if not args.theirs:
        parser.error("--theirs: the folder that Unsloth was installed into, see --help")
    args.out.mkdir(parents=True, exist_ok=True)
    folder, done = measure_lengths.made_model(args.scratch, cpu=False), measure_lengths.have(out)
    order = [
        "ours, real",
        *[name for name in THEIRS if "real" in name],
        "ours, one",
        *[n for n in THEIRS if "one" in n],
    ]
    wanted = [(name, rules) for rules in args.rules for name in args.only or order if (rules, name) not in done]
    jobs = [job_of(name, rules, args, folder) for name, rules in wanted]
    around = functools.partial(environment, theirs=args.theirs)
    return measure_lengths.in_turn(jobs, command, out, args.timeout, args.seconds, around)


if __name__ == "__main__":
    sys.exit(main())
