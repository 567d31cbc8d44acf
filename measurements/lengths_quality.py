"""The held-out loss after equal rows, one way of batching them beside the other: what measure_lengths.py quality runs.

Each run trains adapters on the same rows as the others of its seed, each row once, sixteen in an optimizer step, and then
asks for the loss on rows that were held out. The bundled model learns the course's instructions. The chat model learns two
tasks at once, short instructions and longer messages into JSON: sorted by length, steps hold one of them alone, which is the
harm that sorting can do. A row of the file is one run; `heldout_loss` has a number for each task, in nats a token.
"""

import datetime
import importlib.metadata
import json
import math
import statistics
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

from measure_lengths import PER_STEP, Way

WAYS = {
    "padded": Way("four rows at once", 4, 4),
    "padding-free": Way("sixteen rows without padding", 16, 1, padding_free=True),
    "rebalanced": Way("by length within a step", 4, 4, sampling="batch_rebalance"),
    "sorted": Way("rows of like length in one step", 4, 4, sampling="group_by_length"),
    "packed": Way("packs of as many tokens as sixteen rows have", 1, 1, packing=True),
}
MOST, ROWS, HELDOUT, MAX_TOKENS = 512, 960, 240, 1024
RATES = {"bundled": 3e-3, "chat": 1e-3}
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # Student's t for a two-sided interval, by the number of seeds


def tasks(chat: bool) -> dict[str, tuple[list[dict], list[dict]]]:
    """{task: (rows to learn, rows held out)}, as `helpers.data.to_chat` takes them."""
    from helpers.data import load_instructions

    found = load_instructions("bundled")[0]
    of = {"instructions": (list(found["train"]), list(found["heldout"])[:HELDOUT])}
    if chat:
        import measure_own_data as own

        def talk(row):
            pair = own.to_row(row)
            return {"messages": json.dumps(pair["prompt"] + pair["completion"])}

        learn, held = own.rows_of("messages"), own.rows_of("heldout")
        of["messages"] = ([talk(row) for row in learn], [talk(row) for row in held[:HELDOUT]])
    return of


def tokens(tokenizer, row: dict) -> dict[str, list[int]]:
    """A row as TRL makes it of prompt and completion: the loss sees the answer and what ends it."""
    from helpers.data import to_chat

    pair = to_chat(row)
    asked = tokenizer.apply_chat_template(pair["prompt"], add_generation_prompt=True)["input_ids"]
    whole = tokenizer.apply_chat_template(pair["prompt"] + pair["completion"])["input_ids"]
    return {"input_ids": whole[:MOST], "labels": ([-100] * len(asked) + whole[len(asked) :])[:MOST]}


def chosen(of: dict, seed: int) -> list[dict]:
    """The rows that all ways of a seed learn: ROWS of them, as many of each task."""
    import random

    chance = random.Random(seed)
    rows = [row for learn, _ in of.values() for row in chance.sample(learn, ROWS // len(of))]
    chance.shuffle(rows)
    return rows


def trained(folder: str, kind: str, way: Way, rows: list[dict], tokenizer, model, seed: int, count: int):
    """A trainer that has gone through the rows once; `count` of them are learned."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import PrinterCallback, set_seed
    from trl import SFTConfig, SFTTrainer

    from helpers.machine import detect
    from helpers.training import adapters_to_float32
    from helpers.training.without_padding import padding_free

    set_seed(seed)
    here, data = detect(), Dataset.from_list([tokens(tokenizer, row) for row in rows[:count]])
    mean = sum(map(len, data["input_ids"])) / len(data)
    told = way.config() | ({"max_length": round(PER_STEP * mean)} if way.packing else {})
    arguments = SFTConfig(
        output_dir=tempfile.mkdtemp(), num_train_epochs=1, learning_rate=RATES[kind], lr_scheduler_type="cosine",
        warmup_steps=0.03, max_grad_norm=0.3, optim="adamw_torch", use_cpu=here.device == "cpu",
        fp16=here.dtype == "float16", bf16=here.dtype == "bfloat16", activation_checkpointing=False,
        gradient_checkpointing=None, save_strategy="no", logging_steps=10, report_to="none", disable_tqdm=True, seed=seed,
        **told,
    )  # fmt: skip
    adapters = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = SFTTrainer(model, arguments, train_dataset=data, processing_class=tokenizer, peft_config=adapters)
    adapters_to_float32(trainer).remove_callback(PrinterCallback)
    with padding_free(trainer, MAX_TOKENS) if way.padding_free else nullcontext():
        trainer.train()
    return trainer


def packs(folder: str, seed: int) -> list[dict[str, int]]:
    """{task: rows} of each pack that TRL makes of what "packed" learns with the chat model of this folder."""
    from collections import Counter

    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import pack_dataset

    from helpers.data import with_template

    tokenizer = with_template(AutoTokenizer.from_pretrained(folder))
    rows = chosen(tasks(chat=True), seed)
    ids = [tokens(tokenizer, row)["input_ids"] for row in rows]
    task = ["messages" if "messages" in row else "instructions" for row in rows]
    numbered = [[number] * len(row) for number, row in enumerate(ids)]
    budget = round(PER_STEP * sum(map(len, ids)) / len(ids))
    found = pack_dataset(Dataset.from_dict({"input_ids": ids, "number": numbered}), budget, "bfd")
    return [dict(Counter(task[number] for number in set(pack))) for pack in found["number"]]


def run(folder: str, kind: str, name: str, seed: int, count: int) -> dict:
    """One way with one seed; returns the row."""
    from datasets import Dataset

    from helpers.data import with_template
    from helpers.evaluation import completion_loss
    from helpers.machine import detect
    from helpers.models import Model, bundled
    from helpers.quick import load_4bit

    here, of = detect(), tasks(kind == "chat")
    asked = bundled() if kind == "bundled" else Model(folder, "SmolLM2-135M-Instruct", "Apache-2.0", 0)
    model, tokenizer = load_4bit(asked, here)
    tokenizer = with_template(tokenizer)
    held = {task: Dataset.from_list(rows) for task, (_, rows) in of.items()}
    before = {task: completion_loss(model, tokenizer, rows) for task, rows in held.items()}
    begun = time.perf_counter()
    trainer = trained(asked.path, kind, WAYS[name], chosen(of, seed), tokenizer, model, seed, count)
    seconds = time.perf_counter() - begun
    after = {task: completion_loss(trainer.model.eval(), tokenizer, rows) for task, rows in held.items()}
    packages = ("torch", "transformers", "trl", "peft", "bitsandbytes")
    return {
        "what": "quality", "model": kind, "way": name, "seed": seed, "rows": count, "steps": trainer.state.global_step,
        "heldout_loss_before": before, "heldout_loss": after, "train_seconds": round(seconds, 1),
        "learning_rate": RATES[kind], "losses": [e["loss"] for e in trainer.state.log_history if "loss" in e],
        "device": str(here), "date": str(datetime.date.today()),
        "versions": {package: importlib.metadata.version(package) for package in packages},
    }  # fmt: skip


def quality(out: Path, folder: str | None, seeds: list[int], only: list[str] | None, count: int = ROWS) -> None:
    """Every way with every seed, seed by seed; rows that are there are not measured again. Then `compare`."""
    import warnings

    warnings.filterwarnings("ignore")
    kind = "chat" if folder else "bundled"
    rows = [json.loads(line) for line in out.read_text().splitlines()] if out.is_file() else []
    done = {(row["model"], row["way"], row["seed"]) for row in rows}
    for seed in seeds:
        for name in only or WAYS:
            if (kind, name, seed) not in done:
                rows.append(run(folder, kind, name, seed, count))
                with open(out, "a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
                print(
                    {key: rows[-1][key] for key in ("way", "seed", "steps", "heldout_loss", "train_seconds")},
                    flush=True,
                )
    print("\n".join(compare([row for row in rows if row["model"] == kind])))


def compare(rows: list[dict]) -> list[str]:
    """For each way and task: its mean held-out loss, and how far it is from the padded runs of the same seeds (95%, t)."""
    found = []
    for task in rows[0]["heldout_loss"]:
        by = {(row["way"], row["seed"]): row["heldout_loss"][task] for row in rows}
        for way in dict.fromkeys(row["way"] for row in rows):
            seeds = [seed for name, seed in by if name == way and ("padded", seed) in by]
            mean = statistics.fmean(by[way, seed] for seed in seeds)
            apart = [by[way, seed] - by["padded", seed] for seed in seeds]
            words = f"{task:13}{way:14}{mean:.4f} nats a token, {statistics.fmean(apart):+.4f} beside padded"
            if len(seeds) in T_95 and way != "padded":
                half = T_95[len(seeds)] * statistics.stdev(apart) / math.sqrt(len(seeds))
                words += f" (95%: {statistics.fmean(apart) - half:+.4f} to {statistics.fmean(apart) + half:+.4f})"
            found.append(words)
    return found
