"""How large the update of a real adapter is, and what each way to merge it leaves of the training of a real chat model.

    python -m helpers model smollm2
    python measurements/measure_updates.py >> measurements/smollm2_updates.jsonl
    python measurements/measure_updates.py --steps 30 --rows-per-step 8 --learning-rate 2e-3 >> measurements/smollm2_updates.jsonl

It needs no GPU, and some minutes on two CPU cores. The model is SmolLM2-135M-Instruct, whose weights went through another kind
of 4 bits once already. It is trained as lesson 03 trains: NF4 with double quantization, rank 16 on all linear layers, the
bundled instructions in the model's own chat template. The steps, rows and learning rate of the first line are those that
"auto" means in lesson 03 for models from the hub; the second line's are nearer to the recipe of this small model.

A line of JSON comes out. `layers` says for each linear layer how large the update is (`relative_size`: the norm of s B A over
the norm of the 4-bit weights), which share of it a merge into 4 bits keeps (`kept_in_4_bits`: the part of the change that lies
along the update), and how large the quantization error is beside the update (`quantization_error_per_update`: both as norms).
`scores` are on held-out rows: the loss in nats per completion token, and exact match, for the base in 4 bits, the adapter beside
it, and the three merges of lesson 05. `change` is the change of the loss against the adapter beside the base with its 95%
interval, each row compared with itself (helpers.evaluation.Evaluation.change_from).
"""

import argparse
import datetime
import hashlib
import importlib.metadata
import json
import platform
import sys
import tempfile
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from helpers.data import load_instructions  # noqa: E402 (the folder above has to be known first)
from helpers.evaluation import evaluate  # noqa: E402
from helpers.machine import detect  # noqa: E402
from helpers.merging import lora_layers  # noqa: E402
from helpers.models import Model  # noqa: E402
from helpers.packages.chat_model import NAME, PACKAGE, VERSION, fetch_smollm2  # noqa: E402
from helpers.quick import load_4bit, train_adapter  # noqa: E402

RANK, HELD_OUT, BESIDE = 16, 64, "adapter beside the base"


def of_layers(model, base, adapter: Path) -> list[dict]:
    """Size of each update, what a merge into 4 bits keeps of it, and the quantization error beside it."""
    import bitsandbytes.functional as F

    found = []
    for name, layer in lora_layers(adapter).items():
        packed, update = base.get_submodule(name).weight, layer.update
        before = F.dequantize_4bit(packed.data, packed.quant_state).float()
        codes, state = F.quantize_4bit(before + update, quant_type="nf4", compress_statistics=True)
        change = F.dequantize_4bit(codes, state) - before
        error = before - layer.stored_weight(model.path).float()
        found.append({
            "layer": name, "relative_size": (update.norm() / before.norm()).item(),
            "kept_in_4_bits": ((change * update).sum() / update.square().sum()).item(),
            "quantization_error_per_update": (error.norm() / update.norm()).item(),
        })  # fmt: skip
    return found


def scores(model, machine, adapter: Path, rows) -> dict:
    """Loss and exact match of the base, of the adapter beside it, and of what three merges make of it."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    def four_bits():
        return load_4bit(model, machine)[0]

    def original():
        return AutoModelForCausalLM.from_pretrained(
            model.path, dtype=machine.torch_dtype, device_map=machine.device_map
        )

    bases = {"into the 4-bit base": four_bits, "into the original base": original,
             "dequantize, then merge": lambda: four_bits().dequantize(machine.torch_dtype)}  # fmt: skip
    base, tokenizer = load_4bit(model, machine)
    found = {"base": evaluate(base, tokenizer, rows)}
    found[BESIDE] = evaluate(PeftModel.from_pretrained(base, adapter).eval(), tokenizer, rows)
    for name, make in bases.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT says of the first that rounding may change answers
            merged = PeftModel.from_pretrained(make(), adapter).merge_and_unload().eval()
        found[name] = evaluate(merged, tokenizer, rows)
        print(name, found[name], file=sys.stderr, flush=True)
    return {name: score.numbers() | {"change": score.change_from(found[BESIDE])} for name, score in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rows-per-step", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    asked = parser.parse_args()
    machine, rows, folder = detect(), load_instructions("bundled")[0], fetch_smollm2()
    with open(folder / "model.safetensors", "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    model = Model(str(folder), NAME, "Apache-2.0", 0)
    with tempfile.TemporaryDirectory() as made:
        adapter = Path(made) / "adapter"
        trained = train_adapter(
            model, machine, rows["train"].shuffle(seed=0), adapter, asked.steps, RANK,
            batch_size=asked.rows_per_step, learning_rate=asked.learning_rate,
        )  # fmt: skip
        layers = of_layers(model, load_4bit(model, machine)[0], adapter)
        found = scores(model, machine, adapter, rows["heldout"].select(range(HELD_OUT)))
    versions = {
        name: importlib.metadata.version(name) for name in ("torch", "transformers", "trl", "peft", "bitsandbytes")
    }
    print(json.dumps({
        "model": model.name, "licence": model.licence, "sha256": digest, "data": "bundled instructions",
        "steps": asked.steps, "rows_per_step": asked.rows_per_step, "learning_rate": asked.learning_rate, "rank": RANK,
        "lora_alpha": 2 * RANK, "target_modules": "all-linear", "quant_type": "nf4", "double_quant": True, "seed": 0,
        "train_loss": trained["train_loss"], "train_seconds": round(trained["train_seconds"]),
        "mean_relative_size": sum(row["relative_size"] for row in layers) / len(layers),
        "mean_kept_in_4_bits": sum(row["kept_in_4_bits"] for row in layers) / len(layers),
        "scores": found, "heldout_rows": HELD_OUT, "layers": layers, "date": datetime.date.today().isoformat(),
        "device": machine.device.upper(), "python": platform.python_version(), "versions": versions | {PACKAGE: VERSION},
    }))  # fmt: skip


if __name__ == "__main__":
    main()
