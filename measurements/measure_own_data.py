"""How many answers a small chat model gets right after training on the workshop's messages, and what decides how many.

    python measurements/measure_own_data.py try FOLDER --steps 60 --learning-rate 1e-3    # one setting, to tune
    python measurements/measure_own_data.py result FOLDER >> measurements/smollm2_own_data.jsonl
    python measurements/measure_own_data.py curve FOLDER --sizes 50 100 >> measurements/smollm2_own_data.jsonl

FOLDER holds SmolLM2-135M-Instruct (Apache-2.0), as `python -m helpers model smollm2` makes it. "try" trains and scores on
training messages of two kinds, which share no sentence, name or town. It never looks at the held-out files: settings, and
which parts were added to the training messages, are chosen by it. "result" trains on all training rows and scores the
held-out files; what it trained is kept in runs/own-data, and is taken from there if scoring was broken off. "curve" trains on
the first 50, 100, 200, ... rows, each with the same steps, and with --first on messages of the parts that the script began
with; both score the same 120 held-out rows. On a GPU all of it computes there, with COURSE_T4_RULES=1 in the precision of a T4.

A line says what was trained and scored, and the processor's seconds of the training: a machine that others use at the same
time stretches the clock's. Set OMP_NUM_THREADS=1 there, or waiting threads count as work.
"""

import argparse
import csv
import datetime
import importlib.metadata
import json
import platform
import random
import resource
import sys
import tempfile
import time
from pathlib import Path

import torch

COURSE = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(COURSE), str(COURSE / "assets")]

from helpers.evaluation import score_fields  # noqa: E402
from helpers.machine import detect  # noqa: E402
from helpers.models import RECIPES  # noqa: E402
from helpers.training import adapters_to_float32, keep_4bit_layout, right_dequantization  # noqa: E402

MESSAGES = COURSE / "assets" / "messages"
FIELDS = ("Name", "Request", "Place", "Day", "Time")
HERE, RECIPE, SIZES = detect(), RECIPES["smollm2-135m"], (50, 100, 200, 400, 960, 3840)
SYSTEM = "Reply in JSON with name, request, place, day, time."


def rows_of(name: str) -> list[dict]:
    with open(MESSAGES / f"{name}.csv", encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def wanted(row: dict) -> dict:
    """What the desk notes down, as the object that the model should write; null where the message does not tell."""
    return {field.lower(): row[field] or None for field in FIELDS}


def to_row(row: dict) -> dict:
    """A row of the file as TRL's conversational prompt and completion."""
    answer = json.dumps(wanted(row), ensure_ascii=False, separators=(",", ":"))
    asked = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": row["Message"]}]
    return {"prompt": asked, "completion": [{"role": "assistant", "content": answer}]}


def validation() -> tuple[list[dict], list[dict]]:
    """(rows to learn, rows to choose settings by): training messages of two kinds, which share no sentence, name or town."""
    import make_messages as mm

    return [message.row for message in mm.messages("learn")], [message.row for message in mm.messages("choose")]


def load(folder: str):
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                                      bnb_4bit_compute_dtype=HERE.torch_dtype)  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=quantization, dtype=HERE.torch_dtype, device_map=HERE.device_map
    )
    right_dequantization()
    # Prompts are padded on the left, so that each answer begins where its prompt ends. TRL pads rows to learn by itself.
    return keep_4bit_layout(model).eval(), AutoTokenizer.from_pretrained(folder, padding_side="left")


def train(model, tokenizer, rows, steps: int, batch: int, learning_rate: float, rank: int, seed: int):
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import PrinterCallback, set_seed
    from trl import SFTConfig, SFTTrainer

    set_seed(seed)
    arguments = SFTConfig(
        output_dir=tempfile.mkdtemp(), max_steps=steps, per_device_train_batch_size=batch, learning_rate=learning_rate,
        lr_scheduler_type="cosine", warmup_steps=0.03, max_grad_norm=0.3, optim="adamw_torch", max_length=256,
        use_cpu=HERE.device == "cpu", fp16=HERE.dtype == "float16", bf16=HERE.dtype == "bfloat16",
        activation_checkpointing=False, gradient_checkpointing=None,
        save_strategy="no", logging_steps=4, report_to="none", disable_tqdm=True, seed=seed,
    )  # fmt: skip
    adapters = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = SFTTrainer(model=model, args=arguments, processing_class=tokenizer, peft_config=adapters,
                         train_dataset=Dataset.from_list([to_row(row) for row in rows]))  # fmt: skip
    adapters_to_float32(trainer).remove_callback(PrinterCallback)
    trainer.train()
    return trainer.model.eval(), [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@torch.no_grad()
def answers(model, tokenizer, rows, max_new_tokens: int = 48, batch: int = 60) -> list[str]:
    """Greedy answers, in the rows' order; rows of like length go through the model together."""
    said = [""] * len(rows)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]["Message"]))
    for begin in range(0, len(rows), batch):
        places = order[begin : begin + batch]
        asked = [to_row(rows[i])["prompt"] for i in places]
        ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True, padding=True,
                                            return_tensors="pt", return_dict=True).to(model.device)  # fmt: skip
        tokens = model.generate(
            **ids, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id
        )
        texts = tokenizer.batch_decode(tokens[:, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        for i, text in zip(places, texts, strict=True):
            said[i] = text.strip()
    return said


def score(model, tokenizer, rows) -> dict:
    said = answers(model, tokenizer, rows)
    scores = score_fields(said, map(wanted, rows))
    print(scores, file=sys.stderr, flush=True)
    low, high = scores.interval
    return {"rows": len(rows), "right": scores.whole, "low": low, "high": high, "valid": scores.valid,
            "fields": scores.fields, "answers": said}  # fmt: skip


def seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def measured(folder: str, learn, rows: int, steps: int, batch: int, learning_rate: float, rank: int, seed: int):
    """(trained model, tokenizer, what is to be said of the training) on `rows` of the shuffled training rows."""
    chosen = random.Random(seed).sample(learn, len(learn))[:rows]
    model, tokenizer = load(folder)
    begun, clock = seconds(), time.perf_counter()
    model, losses = train(model, tokenizer, chosen, steps, batch, learning_rate, rank, seed)
    found = {"learned": len(chosen), "steps": steps, "batch": batch, "learning_rate": learning_rate, "rank": rank,
             "seed": seed, "epochs": steps * batch / len(chosen), "train_losses": losses,
             "train_cpu_seconds": seconds() - begun, "train_clock_seconds": time.perf_counter() - clock}  # fmt: skip
    print(found, file=sys.stderr, flush=True)
    return model, tokenizer, found


def kept(folder: str, rows: int, settings: dict):
    """What `measured` returns for all training rows, from runs/own-data if it was trained before."""
    from peft import PeftModel

    trained = COURSE / "runs" / "own-data" / "-".join(str(value) for value in (rows, *settings.values()))
    if not (trained / "found.json").is_file():
        model, _, found = measured(folder, rows_of("messages"), rows, **settings)
        model.save_pretrained(trained)
        (trained / "found.json").write_text(json.dumps(found), encoding="utf-8")
        del model
    model, tokenizer = load(folder)
    found = json.loads((trained / "found.json").read_text(encoding="utf-8"))
    return PeftModel.from_pretrained(model, str(trained)).eval(), tokenizer, found


def line(what: str, scored: str, found: dict, scores: dict) -> None:
    """Print one row of the file."""
    names = ("torch", "transformers", "trl", "peft", "bitsandbytes")
    about = {"model": "SmolLM2-135M-Instruct", "device": str(HERE), "threads": torch.get_num_threads(),
             "date": datetime.date.today().isoformat(), "python": platform.python_version(),
             "versions": {name: importlib.metadata.version(name) for name in names}}  # fmt: skip
    print(json.dumps({"what": what, "scored": scored} | scores | found | about, ensure_ascii=False), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("try", "result", "curve"))
    parser.add_argument("folder")
    parser.add_argument("--rows", type=int, default=3840)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--first", action="store_true", help="curve: messages of the parts that the script began with")
    parser.add_argument("--steps", type=int, default=RECIPE["max_steps"])
    parser.add_argument("--batch", type=int, default=RECIPE["batch_size"])
    parser.add_argument("--learning-rate", type=float, default=RECIPE["learning_rate"])
    parser.add_argument("--rank", type=int, default=RECIPE["rank"])
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    settings = {
        name: value
        for name, value in vars(asked).items()
        if name in ("steps", "batch", "learning_rate", "rank", "seed")
    }
    if asked.what == "try":
        learn, choose = validation()
        model, tokenizer, found = measured(asked.folder, learn, asked.rows, **settings)
        line("try", "messages of other sentences, names and towns", found, score(model, tokenizer, choose))
    elif asked.what == "result":
        model, tokenizer = load(asked.folder)
        line("result", "held out, before training", {}, score(model, tokenizer, rows_of("heldout")[:60]))
        model, tokenizer, found = kept(asked.folder, asked.rows, settings)
        for name, scored in (("heldout", "held out, after training"), ("by_hand", "by hand, after training")):
            line("result", scored, found, score(model, tokenizer, rows_of(name)))
    else:
        import make_messages as mm

        learn = [message.row for message in mm.messages("first")] if asked.first else rows_of("messages")
        for rows in asked.sizes:
            scored_of("the first 52 sentences" if asked.first else "curve", asked.folder, learn, rows, settings)


def scored_of(what: str, folder: str, learn: list[dict], rows: int, settings: dict) -> None:
    """Train on `rows` of the rows, and print what 120 held-out rows say, without the answers."""
    model, tokenizer, found = measured(folder, learn, rows, **settings)
    scores = score(model, tokenizer, rows_of("heldout")[:120])
    del scores["answers"]
    line(what, "held out, after training", found, scores)


if __name__ == "__main__":
    main()
