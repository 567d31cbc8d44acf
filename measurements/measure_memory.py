"""Measure the peak memory of real training steps on real shapes with random weights, one JSON row per setting.

    python measurements/measure_memory.py --out DIR                 every row (needs one GPU and about 12 minutes)
    python measurements/measure_memory.py --out DIR --role tuning   one half
    python measurements/measure_memory.py --out DIR --done measurements/h200_memory_rows.jsonl    what is not measured yet
    python measurements/measure_memory.py --out DIR --cpu           a dry run of the same code on a toy shape

Memory depends on a model's shape, not on what its weights say. So models are made from their published configuration
with random weights, saved to a scratch folder, loaded through the ordinary `from_pretrained`, and trained for five
steps on random tokens. Every row has a process of its own. Loading overlaps between processes; training does not (a
lock), so that `step_s` is a step's own time, give or take what loading takes from the same GPU.

Roles are part of the table below, written before anything was measured: `tuning` rows may be looked at while the
formulas of `helpers/memory/` are derived, `holdout` rows only score them.
"""

import argparse
import collections
import fcntl
import gzip
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

T4_GIB = 14.56  # what a Colab T4 reports as its total
STEPS = 5  # the first may be skipped by the gradient scaler; optimizer states must stand before the last

QKVO = ["q_proj", "k_proj", "v_proj", "o_proj"]
ALL = [*QKVO, "gate_proj", "up_proj", "down_proj"]
PHI_ALL = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]


def shape(
    model_type, vocab, hidden, inner, layers, heads, kv_heads, head_dim=None, tied=False, positions=32768, **more
):
    """A model's configuration with the keys that every row carries."""
    return {
        "model_type": model_type, "vocab_size": vocab, "hidden_size": hidden, "intermediate_size": inner,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "head_dim": head_dim or hidden // heads, "tie_word_embeddings": tied, "max_position_embeddings": positions,
        **more,
    }  # fmt: skip


# Published configurations (config.json of each model on the hub).
MODELS = {
    "Mistral-7B-v0.1": shape("mistral", 32000, 4096, 14336, 32, 32, 8, sliding_window=4096),
    "Llama-3.1-8B": shape("llama", 128256, 4096, 14336, 32, 32, 8, positions=8192),
    "Qwen2.5-7B": shape("qwen2", 152064, 3584, 18944, 28, 28, 4),
    "Llama-3.2-3B": shape("llama", 128256, 3072, 8192, 28, 24, 8, tied=True, positions=8192),
    "Qwen2.5-1.5B": shape("qwen2", 151936, 1536, 8960, 28, 12, 2, tied=True),
    "Qwen3-1.7B": shape("qwen3", 151936, 2048, 6144, 28, 16, 8, head_dim=128, tied=True, positions=40960),
    "Phi-3-mini": shape("phi3", 32064, 3072, 8192, 32, 32, 32, positions=4096, pad_token_id=0),
    "Gemma-2-2b": shape("gemma2", 256000, 2304, 9216, 26, 8, 4, head_dim=256, tied=True, positions=8192),
    "Qwen2.5-14B": shape("qwen2", 152064, 5120, 13824, 48, 40, 8),
    "Qwen2.5-32B": shape("qwen2", 152064, 5120, 27648, 64, 40, 8),
    "Qwen2.5-0.5B": shape("qwen2", 151936, 896, 4864, 24, 14, 2, tied=True),
    "Mistral-Small-24B": shape("mistral", 131072, 5120, 32768, 40, 32, 8, head_dim=128),
}
TOY = shape("llama", 512, 64, 128, 3, 4, 2, positions=512)

BASE = {
    "quant_type": "nf4", "double_quant": True, "load_dtype": "float16", "compute_dtype": "float16",
    "adapter_dtype": "float32", "rank": 8, "target_modules": QKVO, "lora_dropout": 0.05, "batch_size": 1,
    "seq_len": 512, "optimizer": "paged_adamw_32bit", "upcast_non_quantized": False, "checkpoint_every": 1,
    "checkpoint_offload": False, "attention": "sdpa", "attention_kernels": "all", "repeat_kv": False,
    "layer_kernels": None,
}  # fmt: skip
BF16 = {"load_dtype": "bfloat16", "compute_dtype": "bfloat16", "adapter_dtype": "bfloat16"}
WIDE = {"target_modules": ALL, "rank": 16}
T4 = {"attention_kernels": "t4", "repeat_kv": True}
FULL = {**BF16, "quant_type": None, "rank": None, "target_modules": None, "adapter_dtype": "bfloat16"}
PLAIN = {**BF16, "quant_type": None, "adapter_dtype": "float32"}  # LoRA on 16-bit weights


def table():
    """Every setting, as (role, model, spec, trace): the plan, fixed before the first measurement.

    `trace` asks for the list of allocations alive at the peak, and is only ever set on tuning rows.
    """
    rows = []

    def add(role, model, batch, length, *changes, trace=False, **more):
        spec = dict(BASE, batch_size=batch, seq_len=length)
        for change in changes:
            spec.update(change)
        rows.append((role, model, dict(spec, **more), trace))

    tuning, holdout = "tuning", "holdout"
    m = "Mistral-7B-v0.1"
    add(tuning, m, 4, 512, WIDE, upcast_non_quantized=True, trace=True)
    add(tuning, m, 4, 512, WIDE, trace=True)
    add(tuning, m, 1, 2048, attention_kernels="t4", trace=True)
    add(tuning, m, 1, 2048, T4, trace=True)
    add(tuning, m, 2, 1024, WIDE, attention="eager", trace=True)
    add(tuning, m, 4, 512, WIDE, layer_kernels="liger", trace=True)
    add(tuning, m, 1, 512, upcast_non_quantized=True, checkpoint_every=0, trace=True)
    add(tuning, m, 2, 512, WIDE, checkpoint_every=3, optimizer="adamw_8bit")
    add(tuning, m, 4, 1024, checkpoint_offload=True, trace=True)
    add(tuning, m, 1, 512, double_quant=False, optimizer="adamw_torch")
    add(tuning, m, 4, 2048, BF16, WIDE, upcast_non_quantized=True)
    add(tuning, m, 1, 8192, BF16, trace=True)
    add(tuning, m, 2, 512, WIDE, rank=64, optimizer="paged_adamw_8bit", lora_dropout=0.0)
    add(tuning, m, 2, 512, WIDE, quant_type="int8", trace=True)
    add(tuning, m, 2, 512, BF16, WIDE, quant_type=None, adapter_dtype="float32", trace=True)
    add(holdout, m, 1, 512)
    add(holdout, m, 2, 1024, WIDE, upcast_non_quantized=True, optimizer="adamw_8bit")
    add(holdout, m, 4, 512, T4, WIDE)
    add(holdout, m, 2, 2048, attention_kernels="t4")
    add(holdout, m, 1, 1024, attention="eager", upcast_non_quantized=True)
    add(holdout, m, 2, 2048, layer_kernels="liger")
    add(holdout, m, 2, 512, checkpoint_every=0)
    add(holdout, m, 4, 512, checkpoint_every=3, layer_kernels="liger", lora_dropout=0.0, optimizer="paged_adamw_8bit")
    add(holdout, m, 1, 2048, WIDE, checkpoint_offload=True, upcast_non_quantized=True)
    add(holdout, m, 4, 1024, BF16, rank=64, double_quant=False, optimizer="adamw_torch")
    add(holdout, m, 4, 2048, T4)
    add(tuning, m, 1, 8192, T4, layer_kernels="liger")  # held out until it taught something: see README.md
    add(holdout, m, 1, 1024, quant_type="int8")
    add(holdout, m, 1, 1024, BF16, quant_type=None, adapter_dtype="float32", optimizer="adamw_torch")

    m = "Llama-3.1-8B"
    add(tuning, m, 1, 8192, BF16, WIDE)
    add(tuning, m, 2, 1024, T4, WIDE, upcast_non_quantized=True)
    add(tuning, m, 1, 512, checkpoint_every=2, rank=64)
    add(holdout, m, 4, 2048, BF16)
    add(tuning, m, 1, 512, WIDE, upcast_non_quantized=True, optimizer="paged_adamw_8bit")  # held out at first
    add(holdout, m, 1, 4096, T4, WIDE, layer_kernels="liger")
    add(holdout, m, 2, 512, WIDE, rank=64, checkpoint_every=4, double_quant=False)

    m = "Qwen2.5-7B"
    add(tuning, m, 4, 512, BF16, WIDE, trace=True)
    add(tuning, m, 1, 2048, T4, upcast_non_quantized=True)
    add(tuning, m, 1, 512, checkpoint_every=0)
    add(holdout, m, 2, 1024, T4, WIDE)
    add(tuning, m, 1, 512, attention="eager", upcast_non_quantized=True, rank=64)  # held out at first
    add(holdout, m, 4, 2048, BF16, WIDE, layer_kernels="liger", optimizer="adamw_torch")

    m = "Qwen2.5-14B"
    add(tuning, m, 1, 512, T4)
    add(tuning, m, 2, 1024, BF16, WIDE, upcast_non_quantized=True)
    add(holdout, m, 1, 1024, T4, WIDE, optimizer="paged_adamw_8bit")
    add(holdout, m, 4, 512, BF16, rank=64, layer_kernels="liger")

    m = "Llama-3.2-3B"
    add(tuning, m, 4, 512, WIDE, upcast_non_quantized=True)
    add(tuning, m, 1, 2048, attention_kernels="t4", checkpoint_every=2)
    add(holdout, m, 4, 2048, BF16, WIDE)
    add(holdout, m, 1, 8192, T4, rank=64, checkpoint_offload=True)
    add(holdout, m, 1, 512, WIDE, upcast_non_quantized=True, optimizer="adamw_torch")
    add(holdout, m, 1, 8192, layer_kernels="liger")

    m = "Qwen2.5-1.5B"
    add(tuning, m, 2, 512, BF16, quant_type=None, rank=None, target_modules=None, optimizer="adamw_torch", trace=True)
    add(tuning, m, 8, 512, WIDE, checkpoint_every=0, layer_kernels="liger")
    add(holdout, m, 4, 1024, BF16, quant_type=None, rank=None, target_modules=None, optimizer="paged_adamw_8bit")
    add(holdout, m, 4, 512, T4, WIDE, rank=64, checkpoint_every=0)
    add(holdout, m, 1, 1024, attention="eager", upcast_non_quantized=True, double_quant=False)

    add(tuning, "Qwen3-1.7B", 4, 512, WIDE, trace=True)
    add(holdout, "Qwen3-1.7B", 2, 2048, T4, upcast_non_quantized=True)
    add(tuning, "Phi-3-mini", 4, 512, WIDE, target_modules=PHI_ALL, trace=True)
    add(holdout, "Phi-3-mini", 1, 2048, T4, target_modules=["qkv_proj", "o_proj"], upcast_non_quantized=True)
    add(tuning, "Gemma-2-2b", 2, 512, WIDE, attention="eager", trace=True)
    add(holdout, "Gemma-2-2b", 1, 1024, attention="eager", upcast_non_quantized=True)

    # More of full fine-tuning (8-bit states, tables that are not tied, more than 3,072 tokens in the embedding's backward
    # pass) and of LoRA in 16 bits.
    add(holdout, "Qwen2.5-1.5B", 1, 512, FULL, optimizer="adamw_8bit")
    add(tuning, "Qwen2.5-1.5B", 1, 2048, FULL, optimizer="paged_adamw_32bit", checkpoint_every=2, trace=True)
    add(holdout, "Qwen2.5-1.5B", 4, 1024, PLAIN, WIDE, rank=64, optimizer="adamw_8bit")
    add(holdout, "Qwen3-1.7B", 2, 2048, FULL, optimizer="adamw_torch_fused")
    add(holdout, "Qwen3-1.7B", 1, 1024, PLAIN, checkpoint_every=0)
    add(holdout, "Phi-3-mini", 1, 512, FULL, optimizer="adamw_8bit")
    add(holdout, "Phi-3-mini", 2, 2048, FULL, optimizer="paged_adamw_8bit")

    # The doctor's own step, and the largest shape that a T4 may train, in its leanest settings.
    add(holdout, "Qwen2.5-0.5B", 4, 512, T4, WIDE, optimizer="paged_adamw_8bit", lora_dropout=0.0)
    lean = {"layer_kernels": "liger", "checkpoint_offload": True, "optimizer": "paged_adamw_8bit", "lora_dropout": 0.0}
    add(holdout, "Mistral-Small-24B", 1, 512, T4, lean)
    add(holdout, "Mistral-Small-24B", 1, 512, T4, WIDE, lean, rank=8)
    add(holdout, "Mistral-Small-24B", 1, 1024, T4, WIDE, lean, rank=8)

    # Partners of the row "Mistral-7B, 4 x 512, T4, WIDE", each one cure of lesson 06's ladder away.
    m = "Mistral-7B-v0.1"
    add(holdout, m, 4, 256, T4, WIDE)
    add(holdout, m, 4, 512, T4, rank=16)
    add(holdout, m, 4, 512, T4, WIDE, double_quant=False)
    add(holdout, m, 4, 512, T4, WIDE, rank=8)
    add(holdout, m, 1, 512, T4, WIDE)
    add(holdout, m, 1, 512, T4, WIDE, checkpoint_every=0)
    return rows


def make_model(config, folder, device):
    """Random 16-bit weights of this shape, and a word-level tokenizer, in `folder`."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=torch.float16)
    model.save_pretrained(folder, max_shard_size="5GB")
    make_tokenizer(folder)


def make_tokenizer(folder):
    """A word-level tokenizer in `folder`, which the trainer asks for; the rows are tokens already."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i + 3 for i in range(400)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<unk>"
    ).save_pretrained(folder)


def load(folder, spec, device, storage=None, kind=None, **more):
    """The model as a learner loads it: quantized on the way in, everything else in `load_dtype`.

    `storage`: what BitsAndBytesConfig is told besides; `more`: what from_pretrained is. `kind`: the model's class, where
    there is no folder that says it.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

    if spec["layer_kernels"] == "liger":
        # Patches the architecture's classes, so it comes before the model is built. TRL has its own fused head.
        from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

        apply = MODEL_TYPE_TO_APPLY_LIGER_FN[AutoConfig.from_pretrained(folder).model_type]
        apply(fused_linear_cross_entropy=False)
    if spec["repeat_kv"]:
        import transformers.integrations.sdpa_attention as sdpa

        sdpa.use_gqa_in_sdpa = lambda *args, **kwargs: False
    if spec["attention_kernels"] == "t4":  # Turing has neither of these two
        torch.backends.cuda.enable_flash_sdp(False)
        torch.backends.cuda.enable_cudnn_sdp(False)
    quantization = None
    if spec["quant_type"] == "int8":
        quantization = BitsAndBytesConfig(load_in_8bit=True)
    elif spec["quant_type"]:
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=spec["quant_type"],
            bnb_4bit_use_double_quant=spec["double_quant"],
            bnb_4bit_compute_dtype=getattr(torch, spec["compute_dtype"]),
            **(storage or {}),
        )
    model = (kind or AutoModelForCausalLM).from_pretrained(
        folder,
        quantization_config=quantization,
        dtype=getattr(torch, spec["load_dtype"]),
        attn_implementation=spec["attention"],
        **({"device_map": {"": device}} | more),
    )
    model.config.use_cache = False
    return model


def upcast(model, spec):
    """Embeddings, head, norms and biases to float32, as PEFT's preparation does."""
    from peft import prepare_model_for_kbit_training

    return prepare_model_for_kbit_training(model, use_gradient_checkpointing=spec["checkpoint_every"] > 0)


def make_trainer(model, folder, spec, scratch, device, record=False, steps=STEPS, accumulation=1, copies=1, more=None):
    """TRL's SFTTrainer on random tokens, adapters in `adapter_dtype`; checks before the last step that states exist.

    `copies`: how many processes train on rows of their own. `more`: what SFTConfig is told besides.
    """
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    seconds = []

    class Watch(TrainerCallback):
        def on_step_begin(self, args, state, control, optimizer=None, **kwargs):
            if state.global_step == steps - 1 and not optimizer.state:
                raise RuntimeError("no optimizer state before the last step: every step so far was skipped")
            if state.global_step == steps - 1 and record:
                torch.cuda.memory._record_memory_history(max_entries=400_000, stacks="python")
                trainer.allocated_at_record = [torch.cuda.memory_allocated(i) for i in range(torch.cuda.device_count())]
            if device != "cpu":
                torch.cuda.synchronize()
            seconds.append(-time.perf_counter())

        def on_step_end(self, args, state, control, **kwargs):
            if device != "cpu":
                torch.cuda.synchronize()
            seconds[-1] += time.perf_counter()

    random = torch.Generator().manual_seed(0)
    count = spec["batch_size"] * accumulation * steps * copies
    tokens = torch.randint(3, model.config.vocab_size, (count, spec["seq_len"]), generator=random).tolist()
    checkpointing = {"every_n_layers": spec["checkpoint_every"], "offload": spec["checkpoint_offload"]}
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(scratch / "trainer"),
            max_length=spec["seq_len"],
            per_device_train_batch_size=spec["batch_size"],
            gradient_accumulation_steps=accumulation,
            max_steps=steps,
            fp16=spec["compute_dtype"] == "float16" and device != "cpu",
            bf16=spec["compute_dtype"] == "bfloat16" and device != "cpu",
            use_cpu=device == "cpu",
            optim=spec["optimizer"],
            activation_checkpointing=spec["checkpoint_every"] > 0,
            gradient_checkpointing=None,
            activation_checkpointing_kwargs=checkpointing if spec["checkpoint_every"] else None,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            max_grad_norm=0.3,
            disable_tqdm=True,
            **(more or {}),
        ),
        train_dataset=Dataset.from_dict({"input_ids": tokens}),
        processing_class=AutoTokenizer.from_pretrained(folder),
        callbacks=[Watch()],
        peft_config=None
        if spec["rank"] is None
        else LoraConfig(
            r=spec["rank"],
            lora_alpha=2 * spec["rank"],
            target_modules=spec["target_modules"],
            lora_dropout=spec["lora_dropout"],
            task_type="CAUSAL_LM",
        ),
    )
    if spec["rank"] is not None:  # TRL leaves adapters of a quantized model in bfloat16, which the scaler cannot take
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(getattr(torch, spec["adapter_dtype"]))
    return trainer, seconds


def frames_of(event):
    """The two innermost Python frames that say which operation allocated, without torch's own wrappers."""
    skip = ("torch/nn/modules/", "torch/autograd/graph", "torch/utils/_contextlib", "torch/nn/functional")
    names = []
    for frame in event.get("frames", []):
        file = frame["filename"]
        if file.startswith("/") and not any(part in file for part in skip):
            names.append(f"{'/'.join(Path(file).parts[-2:])}:{frame['line']}:{frame['name']}")
        if len(names) == 3:
            break
    return " < ".join(names) or "(backward)"


def write_trace(path, before_step, gpu=0):
    """What is alive at the peak, grouped by size and frame, and every event of 64 KiB and more around the last peak."""
    import torch

    events = [
        e for e in torch.cuda.memory._snapshot()["device_traces"][gpu] if e["action"] in ("alloc", "free_completed")
    ]
    live, total, peak, at = {}, 0, 0, 0
    for index, event in enumerate(events):
        if event["action"] == "alloc":
            live[event["addr"]] = event
            total += event["size"]
            if total >= peak:
                peak, at, alive = total, index, list(live.values())
        elif event["addr"] in live:
            total -= live.pop(event["addr"])["size"]
    groups = collections.Counter()
    for event in alive:
        groups[event["size"], frames_of(event)] += 1
    with gzip.open(path, "wt") as out:
        out.write(f"before the step {before_step}, above it at the peak {peak}\n")
        for (size, frames), count in sorted(groups.items(), key=lambda item: -item[0][0] * item[1]):
            out.write(f"{size * count:>12} = {count:>4} x {size:>10}  {frames}\n")
        out.write("\nevents (bytes, + allocated - freed, running total)\n")
        live, total = {}, 0
        for index, event in enumerate(events):
            sign = "+" if event["action"] == "alloc" else "-"
            total += event["size"] if sign == "+" else -event["size"]
            if event["size"] >= 65536 and at - 2500 < index < at + 700:
                mark = " PEAK" if index == at else ""
                out.write(f"{sign}{event['size']} {total} {frames_of(event) if sign == '+' else ''}{mark}\n")


def worker(job):
    """Measure one setting in this process; the row goes to the job's own file whatever happens."""
    import bitsandbytes
    import peft
    import torch
    import transformers
    import trl

    device = job["device"]
    spec, folder, scratch = job["spec"], job["folder"], Path(job["scratch"])
    packages = (torch, transformers, trl, peft, bitsandbytes)
    row = {
        "role": job["role"], "model": job["model"], "config": job["config"], "spec": spec,
        "memory_cap_gib": T4_GIB if spec["attention_kernels"] == "t4" else None, "measured": {}, "error": None,
        "device": torch.cuda.get_device_name() if device != "cpu" else "cpu",
        "versions": {package.__name__: package.__version__ for package in packages},
    }  # fmt: skip
    measured, gpu = row["measured"], torch.cuda
    if device == "cpu":  # the dry run goes through the same lines; it measures nothing
        gpu = type("NoGpu", (), {"__getattr__": lambda self, name: lambda *args: 0})()
    keys = ["after_load", "load_peak", "before_training", "peak_allocated", "peak_reserved", "step_s", "nvidia_smi"]
    measured.update(dict.fromkeys(keys))
    try:
        if row["memory_cap_gib"] and device != "cpu":
            total = gpu.get_device_properties(0).total_memory
            gpu.set_per_process_memory_fraction(row["memory_cap_gib"] * 2**30 / total)
        model = load(folder, spec, device)
        measured["after_load"], measured["load_peak"] = gpu.memory_allocated(), gpu.max_memory_allocated()
        if spec["upcast_non_quantized"]:
            model = upcast(model, spec)
        trainer, seconds = make_trainer(model, folder, spec, scratch, device, job["trace"] and device != "cpu")
        gpu.synchronize()
        measured["before_training"] = gpu.memory_allocated()
        with open(scratch / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            gpu.reset_peak_memory_stats()
            trainer.train()
            gpu.synchronize()
        measured["step_s"] = round(sorted(seconds[2:])[1], 4)
        measured["nvidia_smi"] = nvidia_smi() if job["alone"] and device != "cpu" else None
        if job["trace"] and device != "cpu":
            write_trace(job["trace"], trainer.allocated_at_record[0])
            measured["step_s"] = None  # recording slows a step down
    except Exception as error:  # an out-of-memory row is a result too
        row["error"] = f"{type(error).__name__}: {error}"[:400]
    measured["peak_allocated"], measured["peak_reserved"] = gpu.max_memory_allocated(), gpu.max_memory_reserved()
    Path(job["result"]).write_text(json.dumps(row))


def nvidia_smi():
    """What the driver says is in use on the GPU; only meaningful when this process is alone on it."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or None


def child(script, *arguments):
    """Run a script in a fresh process; returns its exit status and the end of what it said."""
    done = subprocess.run(
        [sys.executable, script, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    return done.returncode, done.stdout[-600:]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/memory"), help="where rows and traces are written")
    parser.add_argument("--scratch", type=Path, default=Path("/tmp/measure_memory"), help="where the models are made")
    parser.add_argument("--role", choices=("tuning", "holdout"), help="only the rows of this role")
    parser.add_argument("--only", help="only models whose name contains this")
    parser.add_argument("--done", type=Path, help="a rows file: settings that it has are not measured again")
    parser.add_argument("--jobs", type=int, default=5, help="processes at once; 1 records nvidia_smi too")
    parser.add_argument("--seconds", type=float, default=1e9, help="start no new row after this many seconds")
    parser.add_argument("--no-traces", action="store_true", help="record no allocations")
    parser.add_argument("--cpu", action="store_true", help="dry run on the CPU with a toy shape")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--make", help=argparse.SUPPRESS)
    args = parser.parse_args()
    device = "cpu" if args.cpu else 0
    if args.worker:
        return worker(json.loads(args.worker))
    if args.make:
        return make_model(
            TOY if args.cpu else MODELS[args.make], args.scratch / args.make, "cpu" if args.cpu else "cuda"
        )

    start = time.monotonic()
    args.out.mkdir(parents=True, exist_ok=True)
    args.scratch.mkdir(parents=True, exist_ok=True)
    jobs = collections.defaultdict(list)
    done = [json.loads(line) for line in args.done.read_text().splitlines()] if args.done else []
    done = [(row["model"], row["spec"]) for row in done]
    for index, (role, model, spec, trace) in enumerate(table()):
        if args.role in (None, role) and (args.only or "") in model and (model, spec) not in done:
            trace = str(args.out / f"trace_{index:02}.gz") if trace and not args.no_traces else None
            jobs[model].append(
                {
                    "role": role, "model": model, "config": TOY if args.cpu else MODELS[model], "spec": spec,
                    "trace": trace, "device": device, "folder": str(args.scratch / model), "alone": args.jobs == 1,
                    "scratch": str(args.scratch), "result": str(args.scratch / f"row_{index}.json"),
                }
            )  # fmt: skip

    # One model is made ahead of the one being measured, and each is deleted after its rows: the disk holds two.
    ready, room = {name: threading.Event() for name in jobs}, threading.Semaphore(2)
    writing = threading.Lock()

    def make_all():
        for name in jobs:
            room.acquire()
            status, said = child(
                __file__, "--make", name, "--scratch", str(args.scratch), *(["--cpu"] if args.cpu else [])
            )
            print(
                f"{time.monotonic() - start:6.1f} s  made {name}" + (f" FAILED\n{said}" if status else ""), flush=True
            )
            ready[name].set()

    def measure(job):
        if time.monotonic() - start > args.seconds:
            return None
        status, said = child(__file__, "--worker", json.dumps(job))
        if status:
            return print(f"{job['model']}: the process failed\n{said}", flush=True)
        row = json.loads(Path(job["result"]).read_text())
        with writing, open(args.out / "rows.jsonl", "a") as out:
            out.write(json.dumps(row) + "\n")
        changed = {key: value for key, value in row["spec"].items() if BASE[key] != value}
        print(
            f"{time.monotonic() - start:6.1f} s  {row['role']} {row['model']} {changed} "
            f"{row['measured']} {row['error']}",
            flush=True,
        )
        return None

    threading.Thread(target=make_all, daemon=True).start()
    with ThreadPoolExecutor(args.jobs) as pool:
        for name in jobs:
            ready[name].wait()
            running = [pool.submit(measure, job) for job in jobs[name]]
            for one in running:
                one.result()
            shutil.rmtree(args.scratch / name, ignore_errors=True)
            room.release()
    return None


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.exit(main())
