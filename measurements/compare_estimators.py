"""Ask two public estimators for the memory of every measured run that they can express; write estimators.json.

Needs neither torch nor a network, only the two packages:

    pip install fitcheck-llm==0.3.1 canifinetune==0.4.1
    python measurements/compare_estimators.py

Each is told all it has a word for: the shape with the exact number of parameters, rank, layers, batch, length, dtype,
optimizer, attention, checkpointing. Two words are translated. Math attention (T4 rules, keys and values not repeated)
holds its scores as eager attention does, and is called eager. 32-bit Adam of bitsandbytes holds two averages and no
scratch: fitcheck's "adamw", canifinetune's "adamw_torch_fused".
A run for which a word is missing (checkpointing of every n-th layer, offloading, ...) gets the reason, not a guess.
Both assume float32 copies of whatever is not quantized, full logits and float32 adapters. None of it can be told.

`tensors` is the sum of an estimator's terms for tensors, without what it adds for the CUDA context and fragmentation
and without its safety margin: this is what torch's peak of allocated bytes measures. Optimizer states that lie in
pages are taken off both, for torch does not count them. `total` adds the former, for a
T4: both packages were fitted on GPUs of 16 GB, and they add a share of the GPU's memory.
"""

import argparse
import datetime
import json
import sys
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from helpers.machine import GIB  # noqa: E402
from helpers.memory import GPUS, RunSpec, gpu_of, predict, shape_of  # noqa: E402
from helpers.memory.runs import ALL_LINEAR, spec_of  # noqa: E402
from helpers.memory.sizes import MIB, state_bytes  # noqa: E402
from helpers.records import read_rows  # noqa: E402

ROWS = "h200_memory_rows.jsonl"
PACKAGES = ("fitcheck-llm", "canifinetune")
SHORT = {"float16": "fp16", "bfloat16": "bf16"}


class CannotSay(ValueError):
    """A setting that an estimator has no word for."""


def paged_bytes(shape, spec) -> int:
    """Bytes of optimizer states in pages: on the GPU while there is room, but never in torch's count."""
    if spec.rank is None or not spec.optimizer.startswith("paged"):
        return 0
    wanted = {
        *spec.target_modules,
        *(("qkv_proj", "gate_up_proj") if set(spec.target_modules) == set(ALL_LINEAR) else ()),
    }
    sizes = tuple(spec.rank * width for x in shape.linears if x.name in wanted for width in (x.inputs, x.outputs))
    resident = "adamw_8bit" if "8bit" in spec.optimizer else "adamw_torch"
    return shape.layers * (state_bytes(sizes, resident, 4) - state_bytes(sizes, spec.optimizer, 4))


def told(row) -> dict:
    """What both are told, in common words; CannotSay for what neither has a word for."""
    shape, spec = shape_of(row["config"]), spec_of(row["spec"])
    if spec.checkpoint_every > 1:
        raise CannotSay(f"checkpointing of every {spec.checkpoint_every}. layer")
    if spec.checkpoint_offload:
        raise CannotSay("checkpoints offloaded to host memory")
    if spec.attention_kernels != "all" and not spec.repeat_kv and shape.heads != shape.kv_heads:
        attention = "eager"  # the math kernel
    else:
        attention = spec.attention
    return {
        "shape": shape, "spec": spec, "attention": attention, "eight_bit": "8bit" in spec.optimizer,
        "checkpointing": spec.checkpoint_every == 1, "precision": SHORT[spec.compute_dtype],
        "paged": paged_bytes(shape, spec),
    }  # fmt: skip


def counted(total: float, overhead: float, paged: int) -> dict:
    """What of an estimator's total torch would count."""
    return {"tensors": round(total - overhead - paged), "total": round(total - paged)}


def fitcheck(row) -> dict:
    """What fitcheck-llm says, in bytes."""
    from fitcheck import ModelConfig, TrainingConfig, estimate, get_gpu

    asked = told(row)
    shape, spec = asked["shape"], asked["spec"]
    if spec.quant_type == "fp4" or spec.layer_kernels:
        raise CannotSay("FP4 weights" if spec.quant_type == "fp4" else "Liger's layers")
    model = ModelConfig(
        name=row["model"], num_params=shape.parameters, hidden_size=shape.hidden, num_layers=shape.layers,
        num_attention_heads=shape.heads, num_kv_heads=shape.kv_heads, intermediate_size=shape.inner,
        vocab_size=shape.vocab, head_dim=shape.head_dim, tie_word_embeddings=shape.tied,
    )  # fmt: skip
    training = TrainingConfig(
        precision=asked["precision"], quantization=spec.quant_type or "none",
        double_quant=spec.double_quant and spec.quant_type == "nf4",
        optimizer="adam8bit" if asked["eight_bit"] else "adamw", batch_size=spec.batch_size, seq_len=spec.seq_len,
        lora_rank=spec.rank, lora_targets=list(spec.target_modules or RunSpec.QKVO), grad_checkpoint=asked["checkpointing"],
        flash_attn=asked["attention"] == "sdpa",
    )  # fmt: skip
    try:
        said = estimate(model, training, get_gpu("t4"))
    except ValueError as error:
        raise CannotSay(str(error)) from error
    return counted(said.total_mib * MIB, said.overhead_mib * MIB, asked["paged"])


def canifinetune(row) -> dict:
    """What canifinetune says, in bytes."""
    from canifinetune.estimator import EstimateRequest, estimate

    asked = told(row)
    shape, spec = asked["shape"], asked["spec"]
    names = {x.name for x in shape.linears}
    fused = {frozenset(names): "all_linear", frozenset(names & {"qkv_proj", "o_proj"}): "attention"}
    plain = {frozenset(ALL_LINEAR): "all_linear", frozenset(RunSpec.QKVO): "attention"}
    scope = {**plain, **(fused if shape.fused else {})}.get(frozenset(spec.target_modules or RunSpec.QKVO))
    if scope is None:
        raise CannotSay(f"adapters on {', '.join(spec.target_modules)} alone")
    quantization = {None: "none", "nf4": "nf4_double_quant" if spec.double_quant else "nf4"}
    model = {
        "family": shape.model_type, "hidden_size": shape.hidden, "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads, "num_key_value_heads": shape.kv_heads,
        "intermediate_size": shape.inner, "vocab_size": shape.vocab, "tie_word_embeddings": shape.tied,
        "total_params": shape.parameters,
    }  # fmt: skip
    settings = {
        "method": "full" if spec.rank is None else "qlora" if spec.quant_type else "lora",
        "quantization": quantization.get(spec.quant_type, spec.quant_type), "base_dtype": asked["precision"],
        "lora_rank": spec.rank or 1, "lora_target_scope": scope, "lora_dropout": spec.lora_dropout,
        "optimizer": "adamw_8bit" if asked["eight_bit"] else
                     "adamw_torch" if spec.optimizer == "adamw_torch" else "adamw_torch_fused",
        "gradient_checkpointing": asked["checkpointing"], "attention_implementation": asked["attention"],
        "use_liger_kernel": spec.layer_kernels == "liger",
    }  # fmt: skip
    try:
        said = estimate(
            EstimateRequest(
                model_id=row["model"], override=model, use_network=False, gpu_vram_gb=GPUS["t4"].total_bytes / GIB,
                seq_len=spec.seq_len, micro_batch_size=spec.batch_size, **settings,
            )
        ).memory  # fmt: skip
    except ValueError as error:
        raise CannotSay(str(error).splitlines()[0]) from error
    total = said.total_estimated_gb - said.safety_margin_gb  # it calls GiB GB
    return counted(total * GIB, said.cuda_overhead_gb * GIB, asked["paged"])


def compare(rows) -> list[dict]:
    """One entry for each row without an error: what was measured, what we predict, what each estimator says."""
    found = []
    for number, row in enumerate(rows):
        if row["error"]:
            continue
        ours = predict(row["config"], row["spec"], gpu_of(row["device"]))
        entry = {
            "row": number, "model": row["model"], "role": row["role"],
            "measured": {key: row["measured"][key] for key in ("peak_allocated", "peak_reserved")},
            "ours": {"tensors": ours.peak_allocated, "total": ours.peak_reserved, "notes": list(ours.notes)},
        }  # fmt: skip
        for name, ask in zip(PACKAGES, (fitcheck, canifinetune), strict=True):
            try:
                entry[name] = ask(row)
            except CannotSay as reason:
                entry[name] = {"cannot": str(reason)}
        found.append(entry)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE / "estimators.json")
    out = parser.parse_args().out
    entries = compare(read_rows(HERE / ROWS))
    about = {
        "measured": ROWS, "date": datetime.date.today().isoformat(),
        "versions": {name: version(name) for name in PACKAGES}, "number": len(entries),
        "answered": {name: sum("cannot" not in entry[name] for entry in entries) for name in PACKAGES},
    }  # fmt: skip
    lines = ",\n".join("  " + json.dumps(entry) for entry in entries)
    out.write_text(f'{json.dumps(about)[:-1]},\n "rows": [\n{lines}\n]}}\n')
    for name in ("ours", *PACKAGES):
        answered = [e for e in entries if "cannot" not in e[name] and not e["ours"]["notes"]]
        errors = [e[name]["tensors"] / e["measured"]["peak_allocated"] - 1 for e in answered]
        mean = sum(map(abs, errors)) / len(errors)
        print(f"{name}: {len(errors)} rows, mean error {mean:.1%}, from {min(errors):+.1%} to {max(errors):+.1%}")


if __name__ == "__main__":
    main()
