"""Measure what the bundled base model knows, and what fine-tuning adds.

    python assets/measure_base_model.py --seeds 0

prints recall of the facts in float32 and in NF4, and the exact match on held-out instructions before and after a short
QLoRA run. Every function also serves alone; none needs a GPU. `--record` writes what was found to training.json.
"""

import argparse
import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

ASSETS = Path(__file__).resolve().parent
sys.path[:0] = [str(ASSETS), str(ASSETS.parent)]

from helpers.data import load_instructions  # noqa: E402
from helpers.evaluation import exact_match  # noqa: E402
from helpers.machine import detect  # noqa: E402
from helpers.models import recipe_for, resolve_model  # noqa: E402
from helpers.quick import load_4bit, train_adapter  # noqa: E402

# isort: split
import torch  # noqa: E402  # after helpers, which says how its threads wait
from make_corpus import load_facts, plain_questions  # noqa: E402

MODEL = ASSETS / "base_model"
CARD_START, CARD_END = "<!-- from training.json -->", "<!-- end -->"


def load_base(nf4=False, folder=MODEL):
    """The base model with its tokenizer, in float32, or in NF4 with double quantization."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if nf4:
        here = detect()
        return load_4bit(resolve_model(str(folder), here), here)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(folder)


@torch.no_grad()
def recall(model, tokenizer, batch_size=64, every=1):
    """(share, by subject): how many facts (one in `every`), asked in plain form, get the answer as greedily completed line.

    One forward pass a question, not one a token: greedy decoding writes the answer and a newline when each of their
    tokens is the most likely one after those before it. Questions of one length go together: padding costs as tokens do.
    """
    facts, questions = load_facts()[::every], list(plain_questions())[::every]
    hits: dict[str, list] = {fact.relation.subject: [] for fact in facts}
    pairs = sorted(zip(facts, questions, strict=True), key=lambda pair: len("".join(pair[1])))
    facts, questions = [fact for fact, _ in pairs], [question for _, question in pairs]
    for start in range(0, len(questions), batch_size):
        part = slice(start, start + batch_size)
        batch = tokenizer(
            [prompt + answer + "\n" for prompt, answer in questions[part]],
            return_tensors="pt",
            padding=True,
            padding_side="right",
            return_token_type_ids=False,
        ).to(model.device)
        best = model(**batch).logits.argmax(-1)
        for fact, (prompt, _), ids, choice in zip(facts[part], questions[part], batch["input_ids"], best, strict=True):
            first = len(tokenizer(prompt)["input_ids"])
            length = int((ids != tokenizer.pad_token_id).sum())
            hits[fact.relation.subject].append(bool((choice[first - 1 : length - 1] == ids[first:length]).all()))
    return (
        sum(map(sum, hits.values())) / len(questions),
        {subject: sum(found) / len(found) for subject, found in hits.items()},
    )


def measure_knowledge(folder=MODEL):
    """recall_float32 and recall_nf4, each with its `_by_subject`, and exact_match_before, as a dictionary of shares."""
    found = {}
    for name in ("float32", "nf4"):
        model, tokenizer = load_base(nf4=name == "nf4", folder=folder)
        found[f"recall_{name}"], found[f"recall_{name}_by_subject"] = recall(model, tokenizer)
    return {
        **found,
        "exact_match_before": exact_match(model, tokenizer, load_instructions("bundled")[0]["heldout"]),
    }


def measure_tuning(seed=0, folder=MODEL):
    """seed, exact_match_after and train_seconds of one QLoRA run on the NF4 model, as a dictionary."""
    from peft import PeftModel

    here = detect()
    model = resolve_model(str(folder), here)
    rows = load_instructions("bundled")[0]
    steps = recipe_for(model)["max_steps"]
    with tempfile.TemporaryDirectory() as place:
        trained = train_adapter(model, here, rows["train"], Path(place) / "adapter", steps=steps, seed=seed)
        base, tokenizer = load_4bit(model, here)
        tuned = PeftModel.from_pretrained(base, Path(place) / "adapter").eval()
    share = exact_match(tuned, tokenizer, rows["heldout"])
    return {"seed": seed, "exact_match_after": share, "train_seconds": round(trained["train_seconds"], 1)}


def card_tables(record):
    """The tables of the model card, in Markdown, from the dictionary in training.json."""
    rows = [
        f"| {subject} | {share:.2%} | {record['recall_nf4_by_subject'][subject]:.2%} |"
        for subject, share in record["recall_float32_by_subject"].items()
    ]
    rows.append(f"| **all {record['facts']:,}** | {record['recall_float32']:.2%} | {record['recall_nf4']:.2%} |")
    runs = [f"| seed {run['seed']} | {run['exact_match_after']:.1%} |" for run in record["tuning"]]
    return "\n".join(
        [
            "| recall of facts on | float32 | NF4 |",
            "|---|---|---|",
            *rows,
            "",
            "| exact match on held-out instructions | |",
            "|---|---|",
            f"| before tuning | {record['exact_match_before']:.1%} |",
            *runs,
            "",
            f"{record['parameters']:,} parameters, {record['steps']:,} steps of "
            f"{record['tokens_per_step']:,} tokens, final loss {record['final_loss']:.3f}, "
            f"{record['train_seconds']:.0f} s on one {record['device']}.",
        ]
    )


def update_card(record, path=ASSETS / "README.md"):
    """Write the tables into the model card, between its two markers."""
    before, rest = path.read_text(encoding="utf-8").split(CARD_START)
    after = rest.split(CARD_END)[1]
    path.write_text(f"{before}{CARD_START}\n{card_tables(record)}\n{CARD_END}{after}", encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0], help="of the QLoRA runs")
    parser.add_argument("--folder", type=Path, default=MODEL)
    parser.add_argument("--record", action="store_true", help="write what was found to training.json")
    options = parser.parse_args()

    found = measure_knowledge(options.folder)
    for name, value in found.items():
        if isinstance(value, float):
            print(f"{name:20} {value:7.2%}", flush=True)
    found["tuning"] = []
    for seed in options.seeds:
        run = measure_tuning(seed, options.folder)
        found["tuning"].append(run)
        share, seconds = run["exact_match_after"], run["train_seconds"]
        print(f"{'exact_match_after':20} {share:7.2%}  (seed {seed}, {seconds} s)", flush=True)
    if options.record:
        packages = ("torch", "transformers", "trl", "peft", "bitsandbytes")
        found["measured_on"] = {
            "machine": str(detect()),
            "threads": torch.get_num_threads(),
            **{name: version(name) for name in packages},
        }
        path = options.folder / "training.json"
        record = json.loads(path.read_text(encoding="utf-8"))
        record = {**record, **found}
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        if options.folder == MODEL:
            update_card(record)


if __name__ == "__main__":
    main()
