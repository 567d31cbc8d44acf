"""Each exercise: the solution printed in the lesson is right, and typical mistakes get a hint that is theirs."""

import csv
import io
import itertools
import json
import math
import re

import numpy
import pytest
import torch

from helpers.lesson import checks
from helpers.lesson.exercises.l02 import estimated
from tests.cells import solutions
from tests.lesson import gpus_answers, quality_answers


def zero(*size):
    return torch.zeros(*size)


def layer(make_a, make_b, frozen=True, trained=True, added=True, scale=lambda r, alpha: alpha / r):
    """A LoRA layer as somebody may write it for exercise 00.3."""

    class Layer(torch.nn.Module):
        def __init__(self, base, r, alpha):
            super().__init__()
            self.base, self.scale = base.requires_grad_(not frozen), scale(r, alpha)
            self.A = torch.nn.Parameter(make_a(r, base.in_features), requires_grad=trained)
            self.B = torch.nn.Parameter(make_b(base.out_features, r), requires_grad=trained)

        def forward(self, x):
            return (self.base(x) if added else 0) + self.scale * (x @ self.A.T @ self.B.T)

    return Layer


def parsed(line: str) -> list[str]:
    return next(csv.reader([line]))


def by_hand(text, prompt_for, cut, header=False, empty=False, strip=True):
    """The rows of a CSV file, as somebody may make them for exercise 00.4."""
    rows = []
    for line in text.splitlines()[0 if header else 1 :]:
        question, answer = cut(line)[:2]
        question, answer = question.strip(), answer.strip() if strip else answer
        if answer or empty:
            rows.append({"prompt": prompt_for(question), "completion": answer})
    return rows


FORM = "### Instruction:\n{}\n\n### Response:\n"


def row_in(form):
    return lambda question, answer: {"prompt": form.format(question), "completion": answer}


def one_row(question, answer):
    return {"prompt": one_form(question), "completion": answer}


def spaced_form(question):
    return one_form(question) + " "


def spaced_row(question, answer):
    return {"prompt": spaced_form(question), "completion": answer}


def one_form(question):
    return f"Q: {question}\nA:\n"


def dropped_before_stripping(text, prompt_for):
    return [row | {"completion": row["completion"].strip()} for row in by_hand(text, prompt_for, parsed, strip=False)]


def from_pandas(text, prompt_for):
    import pandas

    frame = pandas.read_csv(io.StringIO(text), dtype=str, keep_default_na=False).apply(
        lambda column: column.str.strip()
    )
    frame = frame[frame["answer"] != ""]
    frame["prompt"] = frame["question"].map(prompt_for)
    return frame.rename(columns={"answer": "completion"})[["prompt", "completion"]].to_dict("records")


def from_datasets(text, prompt_for):
    from datasets import Dataset

    return Dataset.from_list(by_hand(text, prompt_for, parsed))


def lora_in_numpy(inputs, outputs, r):
    return numpy.prod((r, inputs)) + numpy.prod((outputs, r))


def lora_in_torch(inputs, outputs, r):
    return sum(torch.empty(size, device="meta").numel() for size in ((r, inputs), (outputs, r)))


def estimate_without(*left_out):
    """A prediction for exercise 02.5 that leaves terms out."""

    def estimate(config, tokens, r):
        terms = estimated(config, tokens, r) | dict.fromkeys(left_out, 0)
        staying = sum(terms[name] for name in ("codes", "tables", "adapters", "averages"))
        return staying + max(terms["kept"], terms["gradients"]) + max(terms["at work"], terms["loss"])

    return estimate


def estimate_adding(one, other):
    """A prediction for exercise 02.5 that adds two terms of which only the larger is there at the peak."""

    def estimate(config, tokens, r):
        terms = estimated(config, tokens, r)
        return estimate_without()(config, tokens, r) + min(terms[one], terms[other])

    return estimate


def object_of(cells, text=str.strip, empty=None, dump=None):
    """The answer of exercise 07.1, as somebody may make it from a row's cells."""
    dump = dump or (lambda made: json.dumps(made, ensure_ascii=False))
    return dump({name.lower(): text(cells[name]) or empty for name in ("Topic", "Until")})


def turns(question, answer, asks="user", says="assistant"):
    return {"prompt": [{"role": asks, "content": question}], "completion": [{"role": says, "content": answer}]}


def plain_words(text):
    return " ".join("".join(c for c in text.casefold() if c.isalnum() or c == " ").split())


def same_letters(kept, learned, held):
    """Exercise 07.2, where only the characters `kept` count."""
    plain = ["".join(re.findall(kept, text.lower())) for text in learned]
    return [text for text in held if "".join(re.findall(kept, text.lower())) in plain]


def same_words(learned, held):
    """Exercise 07.2, where the order of words does not count."""
    known = [set(plain_words(text).split()) for text in learned]
    return [text for text in held if set(plain_words(text).split()) in known]


def read_score(answer, wanted, broken=0, share=True, has=True):
    """A score of exercise 07.4."""
    try:
        found = json.loads(answer)
        right = [(name in found or not has) and found.get(name) == value for name, value in wanted.items()]
    except (ValueError, AttributeError, TypeError):
        return broken
    return sum(right) / len(right) if share else all(right)


CHATML = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}END\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def some_rows(count=20, begin=lambda i: f"{i} word", day=lambda i: None if i % 2 else "Monday", **more):
    return [{"message": f"{begin(i)} more {i}", "answer": {"day": day(i), "n": i} | more} for i in range(count)]


def kv_bytes_in(window_keeps):
    """A size of a KV cache for exercise 04.1, with a rule of one's own for the window."""

    def size_of(layers, heads, size, tokens, rows, window=None):
        return 4 * layers * heads * size * rows * (window_keeps(tokens, window) if window else tokens)

    return size_of


def flips_with(far=lambda total, seen: abs(total) >= abs(seen) - 1e-9, share=lambda count, ways: count / ways):
    """The test of exercise 04.3 that flips signs, as it is and with mistakes."""

    def test(differences):
        signs = list(itertools.product((1, -1), repeat=len(differences)))
        sums = [sum(s * d for s, d in zip(way, differences, strict=True)) for way in signs]
        return share(sum(far(total, sum(differences)) for total in sums), len(signs))

    return test


def flips_by_sums(differences):
    """The same test by the distribution of the sums, one row after the other."""
    sums = numpy.zeros(1)
    for one in differences:
        sums = numpy.concatenate([sums + one, sums - one])
    return (numpy.abs(sums) >= abs(sum(differences)) - 1e-9).mean()


def flips_at_random(differences):
    signs = numpy.random.default_rng(0).choice([-1, 1], size=(5000, len(differences)))
    return (numpy.abs(signs @ differences) >= abs(sum(differences)) - 1e-9).mean()


def extracted(merged, base, rank, powers=(0, 1), kept=None):
    """Exercise 05.1: (A, B) from a singular value decomposition, with the singular values to these powers."""
    U, S, V = torch.linalg.svd(merged.float() - base.float(), full_matrices=False)
    kept = kept or slice(rank)
    return S[kept, None] ** powers[0] * V[kept], U[:, kept] * S[kept] ** powers[1]


def by_projection(merged, base, rank):
    """The same without a decomposition into singular values: project on the directions of the largest eigenvalues."""
    added = merged.float() - base.float()
    directions = torch.linalg.eigh(added @ added.T).eigenvectors[:, -rank:]
    return directions.T @ added, directions


SERVED = {"customers": "adapters", "laptop": "merged", "DoRA": "merged", "trial": "adapters"}


def shortened(messages, count, room, drop=0, first="user"):
    """A conversation that fits, for exercise 04.7, without a thought for a system message."""
    left = list(messages)
    while left and (count(left) > room or (drop == 0 and first == "user" and left[0]["role"] != "user")):
        left.pop(drop)
    return left


def in_pairs(messages, count, room):
    """Right for chats in which user and model take turns, and blind to roles."""
    system = [message for message in messages if message["role"] == "system"]
    rest = messages[len(system) :]
    while rest and count(system + rest) > room:
        rest = rest[2:]
    return system + rest


def in_pairs_behind_a_greeting(messages, count, room):
    system = [message for message in messages if message["role"] == "system"]
    rest = messages[len(system) :]
    return in_pairs(system + rest[rest[:1] != [] and rest[0]["role"] == "assistant" :], count, room)


def in_place(messages, count, room):
    while messages and (count(messages) > room or messages[0]["role"] != "user"):
        messages.pop(0)
    return messages


def uncounted_system(messages, count, room):
    system = messages[:1] if messages[0]["role"] == "system" else []
    return system + shortened(messages[len(system) :], count, room)


def from_the_end(messages, count, room):
    """Exercise 04.7 the other way round: take on while there is room."""
    system = [message for message in messages if message["role"] == "system"]
    rest = [message for message in messages if message["role"] != "system"]
    starts = [i for i, message in enumerate(rest) if message["role"] == "user" and count(system + rest[i:]) <= room]
    return system + (rest[min(starts) :] if starts else [])


def first_stop(tokens, stops):
    from itertools import takewhile

    return takewhile(lambda token: token not in stops, tokens)


# For each exercise at least two mistakes that people make, with a word that the hint must hold.
WARD = {"A": "template", "B": "learning rate", "C": "padding", "D": "adapter not loaded", "E": "number format"}
NEW = {
    "max_length": 256,
    "eval_strategy": "no",
    "warmup_steps": 0.1,
    "fp16": True,
    "bf16": False,
    "learning_rate": 2e-4,
}


def reason(message, mebi=1024, others=sum, free=r"of which SIZE is free"):
    """Exercise 06.2: a size in MiB is divided by `mebi`; `others` makes one number of what other processes hold."""

    def of(pattern):
        sizes = re.findall(pattern.replace("SIZE", r"([\d.]+) ([MG])iB"), message)
        return [float(number) / (mebi if unit == "M" else 1) for number, unit in sizes]

    room = of(free)[0] + of("SIZE is reserved")[0] if free else of("capacity of SIZE")[0] - of("SIZE is allocated")[0]
    asked = of("allocate SIZE")[0]
    return "holes" if asked <= room else "others" if asked <= room + others(of(r"Process \d+ has SIZE")) else "full"


def without_holes(message):
    """Exercise 06.2, wrong: what is unallocated is forgotten when the others' memory is counted."""
    size, found = r"([\d.]+) ([MG])iB", reason(message)
    if found != "others":
        return found
    asked, free = (re.search(words + size, message) for words in ("allocate ", "of which "))
    held = re.findall(r"Process \d+ has " + size, message)
    asked, free, *held = (float(n) / (1024 if unit == "M" else 1) for n, unit in [asked.groups(), free.groups(), *held])
    return found if asked <= free + sum(held) else "full"


def by_words(message):
    """Exercise 06.2 without patterns: each size by the words around it."""
    words = message.split()
    asked = room = others = 0.0
    for i, word in enumerate(words):
        if word.rstrip(".") not in ("MiB", "GiB"):
            continue
        size = float(words[i - 1]) / (1 if word.startswith("G") else 2**10)
        asked += size * (words[i - 2] == "allocate")
        room += size * (words[i + 1 : i + 3] in (["is", "free."], ["is", "reserved"]))
        others += size * (words[i - 4] == "Process")
    return "holes" if asked <= room else "others" if asked <= room + others else "full"


def renamed(old):
    """Exercise 06.3, name by name."""
    new = {"max_length": old["max_seq_length"], "eval_strategy": old["evaluation_strategy"]}
    return new | {
        "warmup_steps": old["warmup_ratio"],
        "fp16": True,
        "bf16": False,
        "learning_rate": old["learning_rate"],
    }


def gone(entry):
    return str(entry["grad_norm"]) == "nan"


def died(log):
    """Exercise 06.5, forwards."""
    dead = None
    for entry in log:
        alive = float(entry["grad_norm"]) == float(entry["grad_norm"])
        dead = None if alive else entry["step"] if dead is None else dead
    return dead


def halve(rows, accumulation, up=True):
    """Exercise 06.6, rounded up or down."""
    if rows < 2:
        return rows, accumulation
    times = rows * accumulation / (rows // 2)
    return rows // 2, math.ceil(times) if up else int(times)


def difference(a, b):
    """Exercise 06.8, counted with a loop."""
    place = 0
    while a[place : place + 1] == b[place : place + 1] != "":
        place += 1
    return place if a != b else None


def few_rows(run, name, rows, **settings):
    "What a side run of lesson 03 returns, in short: on eight rows the held-out loss rises again."
    heldout = {8: (8.6, 1.1, 0.96, 2.0, 2.3), 32: (8.6, 2.8, 0.6, 0.9, 0.53), 128: (8.6, 1.5, 0.9, 0.5, 0.4)}[rows]
    entries = zip(heldout, (9.0, 3.3, 0.03, 0.01, 0.001 + rows / 1e4), strict=True)
    return {"history": [entry for held, own in entries for entry in ({"eval_loss": held}, {"loss": own})]}


def losses_of(found, name="eval_loss"):
    return [entry[name] for entry in found["history"] if name in entry]


MISTAKES = {
    "00.1": [
        (7, "function"),
        (lambda inputs, outputs, r: ..., "dots"),
        (lambda inputs, outputs, r: inputs * outputs + r * (inputs + outputs), "frozen"),
        (lambda inputs, outputs, r: inputs * outputs, "full matrix"),
        (lambda inputs, outputs, r: r * inputs, "one of the two"),
        (lambda inputs, outputs, r: 2 * r * inputs, "square layer"),
        (lambda inputs, outputs, r: r**2 * (inputs + outputs), "not squared"),
    ],
    "00.2": [
        (0.25, "ratio"),
        (466_944, "rank 16"),
        (233_472, "quarter of 16"),
        (29_184, "r squared"),
        ("less", "number"),
    ],
    "00.3": [
        (layer(zero, zero), "both are zero"),
        (layer(torch.randn, torch.randn), "before any training"),
        (layer(torch.randn, zero, frozen=False), "W.requires_grad_"),
        (layer(torch.randn, zero, trained=False), "nothing in it can be trained"),
        (layer(torch.randn, zero, added=False), "before any training"),
        (lambda frozen, r, alpha: lambda x: x, "where W gives"),
        (layer(torch.randn, zero, scale=lambda r, alpha: alpha), "counts 8 times"),
        (layer(torch.randn, zero, scale=lambda r, alpha: 1), "counts 1 times"),
    ],
    "00.4": [
        (lambda text, form: ..., "dots"),
        (lambda text, form: by_hand(text, form, lambda line: line.split(",")), "comma between quotation marks"),
        (lambda text, form: by_hand(text, form, parsed, header=True), "names of the columns"),
        (lambda text, form: by_hand(text, form, parsed, empty=True), "without an answer"),
        (dropped_before_stripping, "spaces alone"),
        (lambda text, form: by_hand(text, form, parsed, strip=False), "spaces away"),
        (
            lambda text, form: by_hand(text, "Question: {}\nAnswer:\n".format, parsed),
            "with the prompt_for that was given",
        ),
        (lambda text, form: [{"question": "a", "answer": "b"}], "two columns"),
        (lambda text, form: [{"prompt": "What is 7 plus 2?", "completion": 9}], "are text"),
    ],
    "00.5": [
        ({"T4": "LoRA", "24 GB": "LoRA", "80 GB": "LoRA"}, "right of the T4's line"),
        ({"T4": "QLoRA", "24 GB": "QLoRA", "80 GB": "LoRA"}, "need not round"),
        ({"T4": "QLoRA", "24 GB": "LoRA", "80 GB": "full"}, "every card's line"),
        ({"T4": "DoRA", "24 GB": "LoRA", "80 GB": "LoRA"}, "none of"),
        ("QLoRA", "dictionary"),
    ],
    "00.6": [
        ((row_in(FORM), lambda question: f"### Instruction:\n{question}\n\n### Response: "), "part at character"),
        ((row_in(FORM), lambda question: FORM.format(question).strip()), "part at character"),
        ((row_in(FORM), lambda question: FORM.format(question) + " "), "part at character"),
        ((lambda q, a: {"prompt": FORM.format(q), "completion": f" {a}"}, FORM.format), "answer alone"),
        ((row_in("### Response:\n"), lambda question: "### Response:\n"), "question must stand"),
        (FORM.format, "both functions"),
        ([row_in("{}\n"), lambda question: question + "\n"], "let one call the other"),
        ([row_in("{}\n "), lambda question: question + "\n "], "ends with a space"),
        ((spaced_row, spaced_form), "ends with a space"),
    ],
    "02.1": [
        (lambda n: n / 2, "constant"),
        (lambda n: n * (0.5 + 1 / 16), "without double"),
        (lambda n: n * (0.5 + 1 / 64), "nearly"),
        (lambda n: 8 * n * (1 / 2 + 1 / 64 + 4 / (64 * 256)), "bits"),
    ],
    "02.2": [
        (lambda matrices, layers, r: 12 * layers * r * sum(map(sum, matrices)), "missing"),
        (lambda matrices, layers, r: 4 * layers * r * sum(map(sum, matrices)), "values alone"),
        (lambda matrices, layers, r: 8 * layers * r * sum(map(sum, matrices)), "two of the four"),
        (lambda matrices, layers, r: layers * r * sum(map(sum, matrices)), "how many numbers"),
        (lambda matrices, layers, r: 16 * r * sum(map(sum, matrices)), "one layer"),
        (lambda matrices, layers, r: 16 * layers * r * sum(matrices[0]), "all of them"),
        (lambda matrices, layers, r: 16 * layers * r * sum(i * o for i, o in matrices), "weight matrix"),
    ],
    "02.3": [
        (lambda layers, rows, tokens, hidden: rows * tokens * hidden, "said before"),
        (lambda layers, rows, tokens, hidden: rows * tokens * hidden * 2, "one layer"),
        (lambda layers, rows, tokens, hidden: layers * rows * tokens * hidden, "takes two"),
        (lambda layers, rows, tokens, hidden: layers * rows * tokens * hidden * 4, "float32"),
        (lambda layers, rows, tokens, hidden: layers * tokens * hidden * 2, "one row"),
        (lambda layers, rows, tokens, hidden: layers * rows * tokens * 2, "list of"),
    ],
    "02.4": [
        (lambda tokens, vocabulary: 14 * tokens * vocabulary, "whole table with"),
        (lambda tokens, vocabulary: 2 * tokens * vocabulary, "whole table:"),
        (lambda tokens, vocabulary: 2 * tokens * min(vocabulary, 32_768), "too high"),
        (lambda tokens, vocabulary: 2 * min(tokens, 4096) * vocabulary, "too wide"),
        (lambda tokens, vocabulary: 2 * 4096 * 32_768, "largest one"),
        (lambda tokens, vocabulary: min(tokens, 4096) * min(vocabulary, 32_768), "two bytes"),
    ],
    "02.5": [
        (estimate_without("tables"), "embeddings and the head are missing"),
        (estimate_without("kept", "gradients"), "kept inputs are missing"),
        (estimate_without("at work", "loss"), "layer at work is missing, and the loss"),
        (estimate_without("at work"), "layer at work is missing"),
        (estimate_without("loss"), "the loss is missing; in this narrow model"),
        (
            lambda config, tokens, r: estimate_without()(config | {"tie_word_embeddings": False}, tokens, r),
            "one table for both",
        ),
        (lambda config, tokens, r: estimate_without()(config, tokens, r) / 1e9, "in GB"),
        (lambda config, tokens, r: "5 GB", "number of bytes"),
        (estimate_without("codes"), "weights are missing"),
        (estimate_adding("kept", "gradients"), "inputs and gradients are added"),
        (estimate_adding("at work", "loss"), "work and the loss are added"),
        (lambda config, tokens, r: 1e9, "one by one"),
    ],
    "02.6": [
        ({"most": "rank 64", "least": "averages in float32"}, "all layers"),
        ({"most": "averages in float32", "least": "rank 64"}, "least of all"),
        ({"most": "nothing recomputed", "least": "rank 64"}, "alone"),
        ({"most": "a larger model", "least": "rank 64"}, "none of"),
        ("rank 64", "dictionary"),
        ({"most": ..., "least": ...}, "dots"),
    ],
    "02.7": [
        ({"checkpoint_every": 1}, "tensors alone would fit"),
        ({"optimizer": "paged_adamw_8bit"}, "every layer's"),
        ({"checkpoint_every": 2, "batch_size": 1}, "of the 8"),
        ({"checkpoint_every": 1, "rank": 4}, "rank changes what is learned"),
        ({"checkpoint_every": 1, "seq_len": 512}, "seq_len changes"),
        ({"checkpoint_every": 1, "batch_size": 3}, "four rows"),
        ({"checkpoint_every": 1, "optimizer": "sgd"}, "kind of Adam"),
        ({"checkpoint_every": 1, "batch_size": 2, "gradient_accumulation_steps": 2}, "in the trainer"),
        ({"gradient_checkpointing": True}, "no 'gradient_checkpointing'"),
        ({"optimizer": "adam"}, "allowed"),
        ("checkpoint_every", "dictionary"),
    ],
    "03.1": [
        (lambda layers, rank: sum(i * o for i, o in layers), "weight matrix"),
        (lambda layers, rank: sum(rank * i for i, o in layers), "A or B alone"),
        (lambda layers, rank: rank * sum(layers[0]), "all of them"),
        (lambda layers, rank: sum(i + o for i, o in layers), "rank is missing"),
        (6_815_744, "function"),
    ],
    "03.2": [
        (lambda p, c, e: [-100] * len(p) + c, "missing"),
        (lambda p, c, e: [-100] * len(p) + c + [-100], "masked"),
        (lambda p, c, e: p + c + [e], "question"),
        (lambda p, c, e: c + [e], "place"),
    ],
    "03.3": [
        (lambda s: s, "no bfloat16 units"),
        (lambda s: s | {"bnb_4bit_compute_dtype": "float16", "bf16": False}, "fp16=True"),
        (lambda s: s | {"bnb_4bit_compute_dtype": "float16", "bf16": False, "fp16": True}, "flash attention"),
        (lambda s: s | {"bnb_4bit_compute_dtype": "float32", "bf16": False, "fp16": True}, "idle"),
        (lambda s: {"bnb_4bit_compute_dtype": "float16", "fp16": True}, "more than a T4"),
        (lambda s: ..., "place of the dots"),
        ({"fp16": True, "bf16": False}, "a function of the settings"),
    ],
    "03.4": [
        (lambda rows: ..., "place of the dots"),
        (lambda rows: few_rows(None, "", rows)["history"], "whole entries"),
        (lambda rows: losses_of(few_rows(None, "", 8)), "the number of rows"),
        (lambda rows: losses_of(few_rows(None, "", rows), "loss"), "training losses"),
        (lambda rows: losses_of(few_rows(None, "", rows))[-1:], "all held-out losses"),
        (lambda rows: losses_of(few_rows(None, "", rows))[:3], "keep section 6's"),
        (lambda rows: losses_of(few_rows(None, "", rows))[::-1], "in their order"),
        ([1.0, 2.0], "a function of rows"),
    ],
    "03.5": [
        (4, "do not grow"),
        (2, "less"),
        (1, "more"),
        ("two", "a number"),
        ((5.7 + 4 * (0.2 + 0.45)) / (5.7 + 0.2 + 0.45), "workspaces"),
        ((5.9 + 0.17 + 4 * 0.28) / 6.35, "both grow"),
        ((5.7 + 0.45 + 4 * 0.2) / 6.35, "both grow"),
    ],  # fmt: skip
    "03.6": [("ABD", "beyond zero"), ("BCD", "has risen"), ("B", "wide"), ("D", "small"), ("fewer steps", "letters")],
    "03.7": [
        (lambda whole: max(whole, key=lambda name: int(name.split("-")[1]), default=None), "not whole"),
        (lambda whole: max((n for n, good in whole.items() if good), default=None), "as text"),
        (lambda whole: [n for n, good in whole.items() if good][-1], "last one"),
        (lambda whole: sorted((int(n[11:]), n) for n, good in whole.items() if good)[-1][1], "list index"),
    ],
    "04.1": [
        (
            lambda layers, heads, size, tokens, rows, window=None: layers * heads * size * 2 * tokens * rows * 0.5,
            "keys or",
        ),
        (lambda layers, heads, size, tokens, rows, window=None: 2 * layers * heads * size * tokens * rows, "two bytes"),
        (lambda layers, heads, size, tokens, rows, window=None: 8 * layers * heads * size * tokens * rows, "float32"),
        (lambda layers, heads, size, tokens, rows, window=None: 4 * layers * heads * size * tokens, "each row"),
        (lambda layers, heads, size, tokens, rows, window=None: 4 * layers * heads * size * tokens * rows, "left out"),
        (kv_bytes_in(lambda tokens, window: min(tokens, window)), "one token too many"),
        (kv_bytes_in(lambda tokens, window: window - 1), "smaller number"),
        (131_072, "function"),
    ],
    "04.2": [
        (lambda tokens, stops: [token for token in tokens if token not in stops], "still there"),
        (lambda tokens, stops: tokens[: tokens.index(2) + 1], "no part"),
        (lambda tokens, stops: tokens[: max(i for i, t in enumerate(tokens) if t in stops)], "the last end token"),
        (lambda tokens, stops: tokens[: tokens.index(min(stops))], "whichever comes first"),
        (lambda tokens, stops: tokens[: min(i for i, t in enumerate(tokens) if t in stops)], "no end token"),
        (lambda tokens, stops: [], "before the first one"),
    ],
    "04.3": [
        (flips_with(lambda total, seen: total >= seen - 1e-9), "one side"),
        (flips_with(lambda total, seen: abs(total) > abs(seen) + 1e-9), "at least as far"),
        (flips_with(lambda total, seen: abs(total) >= abs(seen)), "allow for 1e-9"),
        (flips_with(share=lambda count, ways: count), "how many ways"),
        (flips_with(share=lambda count, ways: 1 - count / ways), "nearer to zero"),
        (lambda differences: 1.0, "leaves their sum"),
        (flips_at_random, "drawn at random"),
        (lambda differences: 0.5, "is right for"),
        (lambda differences: flips_by_sums(differences) if sum(differences) > 0 else 0.0, "treated alike"),
    ],
    "04.5": [(4, "small part"), (1, "more"), (2, "less"), (1.2, "more"), ("long", "a number")],
    "04.6": [
        (SERVED | {"customers": "merged"}, "40 merged"),
        (SERVED | {"laptop": "adapters"}, "one single file"),
        (SERVED | {"DoRA": "adapters"}, "refuses"),
        (SERVED | {"trial": "merged"}, "to compare"),
        (SERVED | {"trial": "both"}, "each is"),
        ("adapters", "dictionary"),
    ],
    "04.7": [
        (lambda messages, count, room: shortened(messages, count, room, drop=-1), "newest message is gone"),
        (lambda messages, count, room: shortened(messages, count, room, first="any"), "whose question is gone"),
        (lambda messages, count, room: messages[-1:], "would have fitted"),
        (lambda messages, count, room: shortened(messages, count, room), "system message is gone"),
        (lambda messages, count, room: messages, "there is room for 8"),
        (lambda messages, count, room: in_place(messages, count, room), "changes the list"),
        (uncounted_system, "takes room as well"),
        (lambda messages, count, room: from_the_end(messages, count, room) or messages[-1:], "not even the newest"),
        (in_pairs, "may speak first"),
        (in_pairs_behind_a_greeting, "may write twice"),
    ],
    "05.1": [
        (lambda merged, base, rank: extracted(merged, base, rank)[::-1], "comes first"),
        (lambda merged, base, rank: extracted(merged, base, 8), "rank x inputs"),
        (lambda merged, base, rank: extracted(merged, base, rank)[0], "two tensors"),
        (lambda merged, base, rank: [one.half() for one in extracted(merged, base, rank)], "return float32"),
        (lambda merged, base, rank: extracted(merged, base, rank, powers=(0, 0)), "left out"),
        (lambda merged, base, rank: extracted(merged, base, rank, powers=(1, 1)), "in both"),
        (lambda merged, base, rank: extracted(merged, 0 * base, rank), "merged matrix itself"),
        (lambda merged, base, rank: extracted(base, merged, rank), "the sign"),
        (lambda merged, base, rank: extracted(merged, base, rank, kept=slice(-4, None)), "smallest parts"),
        (lambda merged, base, rank: (torch.ones(rank, 32), torch.ones(48, rank)), "not the nearest"),
    ],
    "05.2": [
        (lambda before, trained, merged: ((merged - trained).norm() / trained.norm()).item(), "divides by the weights"),
        (lambda before, trained, merged: (merged - trained).norm() / before.norm(), "divides by the weights"),
        (lambda before, trained, merged: (merged - before).norm() / (trained - before).norm(), "size of the change"),
        (lambda before, trained, merged: (trained - before).norm() / (merged - trained).norm(), "turn it round"),
        (
            lambda before, trained, merged: ((merged - trained) ** 2).sum() / ((trained - before) ** 2).sum(),
            "square of it",
        ),
        (lambda before, trained, merged: (merged - trained).norm(), "divide it"),
        (lambda before, trained, merged: merged - trained, "a number is asked for"),
    ],
    "05.3": [
        (lambda A, B, scale: (scale * (B @ A)).norm().item(), "rank times rank is enough"),
        (lambda A, B, scale: ((B.T @ B) * (A @ A.T)).sum().sqrt(), "left out"),
        (lambda A, B, scale: scale**2 * ((B.T @ B) * (A @ A.T)).sum(), "take the root"),
        (lambda A, B, scale: (scale * ((B.T @ B) * (A @ A.T)).sum()).sqrt(), "outside of the root"),
        (lambda A, B, scale: scale * A.norm() * B.norm(), "not the product of the norms"),
        (lambda A, B, scale: scale * ((B.T @ B) * (A @ A.T)).sum().sqrt(), "never negative"),
        (lambda A, B, scale: ..., "a number is asked for"),
    ],
    "05.4": [
        (lambda weights, kind: weights * {"f16": 2, "q8_0": 1, "q4_0": 0.5}[kind], "codes alone"),
        (
            lambda weights, kind: weights * 4 if kind == "f16" else weights // 32 * {"q8_0": 34, "q4_0": 18}[kind],
            "two bytes per",
        ),
        (
            lambda weights, kind: weights * 2 if kind == "f16" else weights // 32 * {"q8_0": 36, "q4_0": 20}[kind],
            "a float16",
        ),
        (lambda weights, kind: weights * 2 if kind == "f16" else weights // 32 * 34, "half a byte"),
        (lambda weights, kind: ..., "a number of bytes"),
    ],
    "05.6": [
        ({"A": "original", "B": "dequantized", "C": "original", "D": "original"}, "eight times"),
        ({"A": "keep", "B": "original", "C": "original", "D": "original"}, "rounded ones"),
        ({"A": "keep", "B": "dequantized", "C": "dequantized", "D": "original"}, "falls back"),
        ({"A": "keep", "B": "dequantized", "C": "original", "D": "4-bit"}, "next to nothing"),
        ({"A": "keep", "B": "dequantized", "C": "dequantized", "D": "dequantized"}, "levels of NF4"),
        ({"A": "keep", "B": "dequantized", "C": "original", "D": "keep"}, "add the adapter itself"),
        ({"A": ..., "B": ..., "C": ..., "D": ...}, "each is one of"),
        ("keep", "a dictionary"),
    ],
    "05.7": [
        (lambda names: [n for n in names if n.endswith((".pt", ".bin", ".pkl", ".csv", ".jsonl"))], ".env"),
        (
            lambda names: [
                n for n in names if not (n[0] == "." or n.endswith((".pt", ".bin", ".pkl", ".csv", ".jsonl")))
            ],
            "return the others",
        ),
        (
            lambda names: [
                n for n in names if n[0] == "." or any(e in n for e in (".pt", ".bin", ".pkl", ".csv", ".jsonl"))
            ],
            "is a picture",
        ),
        (
            lambda names: [n for n in names if n[0] == "." or n.endswith((".pt", ".bin", ".pkl", ".csv", ".jsonl"))],
            "capitals",
        ),
        (
            lambda names: sorted(
                n for n in names if n[0] == "." or n.lower().endswith((".pt", ".bin", ".pkl", ".csv", ".jsonl"))
            ),
            "order",
        ),
        (lambda names: [n for n in names if n[0] == "." or n.endswith((".pt", ".pkl"))], "no place"),
    ],
    "06.1": [
        (WARD | {"A": "too few rows"}, "right form"),
        (WARD | {"B": "training mode"}, "training mode: it switches dropout on"),
        (WARD | {"A": "adapter not loaded", "D": "template"}, "3 of 5"),
        (WARD | {"E": "learning rate", "B": "number format"}, "follows"),
        (WARD | {"C": "the tokenizer"}, "none of the seven"),
        ({"A": "template"}, "five letters"),
        ("template", "could not be checked"),
    ],
    "06.2": [
        (lambda message: "holes", "399 and 922 MiB"),
        (lambda message: "full", "more than 2"),
        (lambda message: reason(message, mebi=1), "399 and 922 MiB"),
        (lambda message: reason(message, others=lambda sizes: 0), "another process holds"),
        (lambda message: reason(message, others=lambda sizes: sizes[0] if sizes else 0), "every other process"),
        (lambda message: "others" if "Process " in message else reason(message), "beside the other process"),
        (lambda message: reason(message, free=None), "CUDA itself"),
        (lambda message: reason(message, others=lambda sizes: 99 if sizes else 0), "not enough"),
        (without_holes, "all three count"),
        (lambda message: True, "yours says True"),
    ],
    "06.3": [
        (lambda old: old, "old name"),
        (lambda old: NEW | {"bf16": True, "fp16": True}, "no bfloat16"),
        (lambda old: {k: v for k, v in NEW.items() if k not in ("bf16", "fp16")}, "bfloat16 if bf16 is left out"),
        (lambda old: NEW | {"fp16": False}, "float32"),
        (lambda old: NEW | {"warmup_steps": 10}, "0.1"),
        (lambda old: NEW | {"optimiser": "adamw_torch"}, "does not take it"),
        (lambda old: {k: v for k, v in NEW.items() if k != "learning_rate"}, "kept its name"),
        (lambda old: NEW, "from the argument"),
    ],
    "06.4": [
        (lambda labels, eos: any(eos in row for row in labels), "every row"),
        (lambda labels, eos: all(2 in row for row in labels), "use the argument"),
        (lambda labels, eos: None, "True is right"),
        (lambda labels, eos: all(row[-1] == eos for row in labels), "both keep"),
        (lambda labels, eos: eos in labels[-1], "none in the other"),
        (lambda labels, eos: sum(row.count(eos) for row in labels) >= len(labels), "none in the other"),
        (lambda labels, eos: all(row.count(eos) == 1 for row in labels), "several ends"),
        (
            lambda labels, eos: all([token for token in row if token != -100][-1] == eos for row in labels),
            "several ends",
        ),
    ],
    "06.5": [
        (
            lambda log: next((e["step"] for e in log if str(e["grad_norm"]) == "nan"), None),
            "one skipped step at the start",
        ),
        (lambda log: next((e["step"] for e in log if e["grad_norm"] == float("nan")), None), "10 is right"),
        (lambda log: next((e["step"] for e in log if float(e["loss"]) == 0), None), "10 is right"),
        (lambda log: log[-1]["step"] if str(log[-1]["grad_norm"]) == "nan" else None, "10 is right"),
        (lambda log: died(log) if log else 0, "an empty log"),
        (
            lambda log: next((a["step"] for a, b in itertools.pairwise(log) if gone(a) and gone(b)), None),
            "the NaN on the last line counts",
        ),
        (lambda log: 5 * (1 + [e["step"] for e in log].index(died(log))) if died(log) else None, "every ten steps"),
    ],
    "06.6": [
        (lambda rows, accumulation: (rows // 2, accumulation * 2), "cannot be halved"),
        (lambda rows, accumulation: (rows // 2, accumulation), "16 in a step"),
        (lambda rows, accumulation: (max(1, rows // 2), accumulation * 2), "cannot be halved"),
        (lambda rows, accumulation: halve(rows, accumulation, up=False), "would see fewer"),
        (lambda rows, accumulation: (rows, accumulation) if rows < 3 else halve(rows, accumulation), "two rows"),
        (
            lambda rows, accumulation: (-(-rows // 2), accumulation * 2) if rows > 1 else (1, accumulation),
            "rounded down",
        ),
        (lambda rows, accumulation: (half := max(1, rows // 2), round(rows * accumulation / half)), "three at once"),
    ],
    "06.7": [(9.1, "a quarter of all"), (36, "less:"), (5.0, "more:"), ("some", "number of GiB")],
    "06.8": [
        (
            lambda a, b: next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None),
            "beginning of the other",
        ),
        (lambda a, b: None if a == b else a.find(b), "9 is right"),
        (
            lambda a, b: next(
                (i for i, (x, y) in enumerate(zip(a.lower(), b.lower(), strict=False)) if x != y), min(len(a), len(b))
            ),
            "same text",
        ),
        (lambda a, b: a == b, "None is right"),
        (lambda a, b: difference(a, b) if len(a) == len(b) else min(len(a), len(b)), "the first difference counts"),
        (
            lambda a, b: max((i for i in range(max(len(a), len(b))) if a[i : i + 1] != b[i : i + 1]), default=None),
            "the first difference counts",
        ),
    ],
    "07.1": [
        (lambda row: ..., "dots"),
        (lambda row: {"text": row["Question "]}, "two columns"),
        (lambda row: {"prompt": row["Question "], "completion": object_of(row)}, "lists of messages"),
        (lambda row: turns(row["Question "], object_of(row)), "spaces away"),
        (lambda row: turns(row["Question "].strip(), object_of(row), says="user"), "turn of"),
        (lambda row: turns(row["Question "].strip(), {"topic": row["Topic"]}), "content of a message is text"),
        (lambda row: turns(row["Question "].strip(), object_of(row, dump=str)), "no JSON"),
        (lambda row: turns(row["Question "].strip(), object_of(row, empty="")), "empty cell should be null"),
        (lambda row: turns(row["Question "].strip(), json.dumps({"topic": row["Topic"]})), "the keys"),
        (lambda row: turns(row["Question "].strip(), object_of(row, dump=json.dumps)), "ensure_ascii"),
        (lambda row: turns(row["Question "].strip(), object_of(row, lambda t: t.replace("NA", ""))), "NA is a text"),
        ("to_row", "function"),
    ],
    "07.2": [
        (lambda learned, held: ..., "dots"),
        (lambda learned, held: [text for text in held if text in learned], "letter by letter"),
        (lambda learned, held: [t for t in held if t.casefold() in map(str.casefold, learned)], "letter by letter"),
        (lambda learned, held: [t for t in learned if plain_words(t) in map(plain_words, held)], "training messages"),
        (lambda learned, held: [t for t in held if t.startswith(("cancel", "Move"))], "two spaces"),
        (lambda learned, held: [t for t in held if t[0] in "AM"], "leave out"),
        (lambda learned, held: [t for t in held if "sell" not in t], "another day"),
        (lambda learned, held: same_letters(r"[a-z]", learned, held), "another hour"),
        (lambda learned, held: same_letters(r"[a-z0-9]", learned, held), "are letters"),
        (same_words, "keep the order"),
        (lambda learned, held: len(held), "a list"),
    ],
    "07.3": [
        ({2, 3}, "asks for a free"),
        ({2, 5}, "where somebody lives"),
        ({1, 2, 3, 5}, "the new day"),
        ({3, 5}, "4 o'clock"),
        ({2, 3, 4, 5}, "names no weekday"),
        ({6}, "daughter"),
        ({9}, "from 1 to 6"),
        ("2", "numbers"),
    ],
    "07.4": [
        (lambda answer, wanted: ..., "dots"),
        (lambda answer, wanted: float(answer == json.dumps(wanted)), "compare objects"),
        (lambda answer, wanted: read_score(answer, wanted, share=False), "0.5"),
        (lambda answer, wanted: sum(json.loads(answer)[k] == v for k, v in wanted.items()) / 2, "raises"),
        (lambda answer, wanted: read_score(answer, wanted, broken=None), "scores 0"),
        (lambda answer, wanted: read_score(answer, wanted, has=False), "get()"),
        (1, "function"),
    ],
    "07.5": [
        (CHATML.replace("END", ""), "without its end"),
        (CHATML.replace("END", "<end>"), "another text for each"),
        (CHATML.replace("END\n", "\n{{ eos_token }}"), "wrong place"),
        (CHATML.replace("END", "{{ eos_token }}").replace("<assistant>", "Answer: "), "beginning of what is learned"),
        ("{% for m in messages %}{{ m.role }}{{ eos_token }}{% endfor %}", "is missing"),
        ("{% for m in messages %}", "Jinja"),
        (7, "text"),
    ],
    "07.6": [
        ({"max_length": 4096, "cut": 0.0}, "may be a mistake"),
        ({"max_length": 1024, "cut": 0.001}, "choose less"),
        ({"max_length": 180, "cut": 0.03}, "lose their end"),
        ({"max_length": 256, "cut": 0.1}, "per cent"),
        ({"max_length": 256, "cut": 0.0}, "longer than it"),
        ({"max_length": "256", "cut": 0.0}, "whole number"),
        (256, "dictionary"),
    ],
    "07.7": [
        (some_rows(12), "12 rows"),
        ([{"text": "a"}] * 20, "each row has"),
        (some_rows(19) + some_rows(1), "the same but for"),
        (some_rows(19) + [{"message": "other", "answer": {"day": None}}], "the same fields"),
        (some_rows(day=lambda i: "Monday" if i else "Friday"), "ever None"),
        (some_rows(kind="x"), "'kind'"),
        (some_rows(begin=lambda i: "Please book"), "two words"),
        ("twenty", "a list of rows"),
    ],
}


# Other right ways to write it, besides the solution that the lesson prints.
ALSO_RIGHT = {
    "00.1": [
        lambda inputs, outputs, r: r * (inputs + outputs),
        lora_in_numpy,
        lora_in_torch,
        lambda *numbers: torch.tensor(float(numbers[2] * sum(numbers[:2]))),
    ],
    "00.2": [466_944 / 4, "116,736", numpy.int64(116_736), torch.tensor(116_736), 117_000],
    "00.3": [
        layer(zero, torch.randn),
        layer(torch.rand, zero),
        lambda frozen, r, alpha: layer(torch.randn, zero)(frozen, r, alpha),
    ],
    "00.4": [
        lambda text, form: by_hand(text, form, parsed),
        from_pandas,
        from_datasets,
        lambda text, prompt_for: iter(by_hand(text, prompt_for, parsed)),
    ],
    "00.5": [["QLoRA", "LoRA", "LoRA"], {"80 GB": "lora", "24 GB": " LORA", "T4": "qlora"}],
    "00.6": [
        (row_in(FORM), FORM.format),
        [one_row, one_form],
        (one_row, lambda question: one_row(question, "")["prompt"]),
    ],
    "02.1": [lambda n: n // 2 + n // 64 + 4 * (n // 64 // 256), lambda n: n * 4.126953125 / 8],
    "02.2": [
        lambda matrices, layers, r: 16 * r * layers * sum(map(sum, matrices)),
        lambda matrices, layers, r: sum(4 * 4 * (i * r + r * o) for i, o in list(matrices) * layers),
    ],
    "02.3": [
        lambda layers, rows, tokens, hidden: 2 * hidden * tokens * rows * layers,
        lambda *sizes: __import__("math").prod(sizes, start=2),
    ],
    "02.4": [
        lambda tokens, vocabulary: min(2 * tokens, 8192) * min(vocabulary, 2**15),
        lambda tokens, vocabulary: 2 * sorted((tokens, 4096))[0] * sorted((vocabulary, 32_768))[0],
    ],
    "02.5": [
        estimate_without(),
        lambda *asked: int(1.02 * estimate_without()(*asked)),
        lambda *asked: 0.99 * estimate_without()(*asked),
    ],
    "02.6": [
        {"least": "Averages in float32", "most": " nothing recomputed"},
        {"most": "NOTHING RECOMPUTED", "least": "averages in float32 "},
    ],
    "02.7": [
        {"checkpoint_every": 1, "optimizer": "paged_adamw_8bit"},
        {"checkpoint_every": 1, "checkpoint_offload": True},
        {"checkpoint_every": 1, "batch_size": 1, "optimizer": "adamw_8bit"},
    ],
    "04.1": [
        kv_bytes_in(lambda tokens, window: min(tokens, window - 1)),
        lambda layers, heads, size, tokens, rows, window=None: (
            numpy.prod([2, 2, layers, heads, size, rows]) * len(range(tokens)[-(window or tokens + 2) + 1 :])
        ),
    ],
    "04.2": [
        first_stop,
        lambda tokens, stops: tokens[: next((i for i, t in enumerate(tokens) if t in stops), len(tokens))],
    ],
    "04.3": [
        flips_with(),
        flips_by_sums,
        lambda differences: numpy.float64(flips_with()(numpy.array(differences))),
    ],
    "04.5": [1.33, numpy.float64(6 / 4.5), 1.4],
    "04.6": [SERVED | {"laptop": " Merged"}, dict(reversed(SERVED.items()))],
    "04.7": [
        from_the_end,
        lambda messages, count, room: next(
            (
                messages[:keep] + messages[i:]
                for keep in [messages[0]["role"] == "system"]
                for i in range(keep, len(messages))
                if messages[i]["role"] == "user" and count(messages[:keep] + messages[i:]) <= room
            ),
            messages[: messages[0]["role"] == "system"],
        ),
    ],
    "03.1": [
        lambda layers, rank: rank * sum(sum(pair) for pair in layers),
        lambda layers, rank: sum(i * rank for i, _ in layers) + sum(o * rank for _, o in layers),
    ],
    "03.2": [
        lambda p, c, e: [*(-100 for _ in p), *c, e],
        lambda p, c, e: torch.tensor([-100] * len(p) + list(c) + [e]),
    ],
    "03.3": [
        lambda s: (
            {k: v for k, v in s.items() if k != "attn_implementation"}
            | {"bnb_4bit_compute_dtype": torch.float16, "bf16": False, "fp16": True}
        ),
        lambda s: (
            s | {"bnb_4bit_compute_dtype": "torch.float16", "bf16": None, "fp16": True, "attn_implementation": None}
        ),
    ],
    "03.4": [
        lambda rows: numpy.array(losses_of(few_rows(None, "", rows))),
        lambda rows: tuple(torch.tensor(loss) for loss in losses_of(few_rows(None, "", rows))),
    ],
    "03.5": [1.23, numpy.float32(1.22), 7.85 / 6.39],
    "03.6": [["B", "D"], "d, b", ("D", "B"), {"B", "D"}],
    "05.1": [
        lambda merged, base, rank: extracted(merged, base, rank, powers=(0.5, 0.5)),
        lambda merged, base, rank: list(extracted(merged.double(), base.double(), rank, powers=(1, 0))),
        by_projection,
    ],
    "05.2": [
        lambda before, trained, merged: (merged - trained).norm() / (trained - before).norm(),
        lambda before, trained, merged: (
            (((merged - trained) ** 2).sum() / ((trained - before) ** 2).sum()).sqrt().item()
        ),
        lambda before, trained, merged: numpy.linalg.norm(merged - trained) / numpy.linalg.norm(trained - before),
    ],
    "05.3": [
        lambda A, B, scale: (scale**2 * torch.trace(B.T @ B @ A @ A.T)).sqrt(),
        lambda A, B, scale: abs(scale) * float(((B.T @ B) * (A @ A.T)).sum()) ** 0.5,
        lambda A, B, scale: (scale * torch.linalg.qr(B).R @ torch.linalg.qr(A.T).R.T).norm(),
    ],
    "05.4": [
        lambda weights, kind: weights // 32 * {"f16": 64, "q8_0": 34, "q4_0": 18}[kind],
        lambda weights, kind: weights * {"f16": 16, "q8_0": 8.5, "q4_0": 4.5}[kind] / 8,
    ],
    "05.6": [
        {"A": "Keep", "B": "dequantized ", "C": "original", "D": "original"},
        dict(zip("DCBA", ("original", "original", "dequantized", "keep"), strict=True)),
        dict(zip("DCBA", ("dequantized", "original", "dequantized", "keep"), strict=True)),
    ],
    "05.7": [
        lambda names: [
            n for n in names if n[0] == "." or n.lower().rpartition(".")[2] in ("pt", "bin", "pkl", "csv", "jsonl")
        ],
        lambda names: tuple(
            n
            for n in names
            if n.startswith(".") or any(n.lower().endswith(e) for e in (".pt", ".bin", ".pkl", ".csv", ".jsonl"))
        ),
    ],
    "03.7": [
        lambda whole: next(
            (f"checkpoint-{n}" for n in sorted((int(k[11:]) for k in whole if whole[k]), reverse=True)), None
        ),
        lambda whole: ([None] + sorted((k for k in whole if whole[k]), key=lambda k: (len(k), k)))[-1],
    ],
    "07.1": [
        lambda row: turns(row["Question "].strip(), object_of(row)),
        lambda row: turns(
            str(row["Question "]).strip(), object_of(row, dump=lambda m: json.dumps(m, ensure_ascii=False, indent=1))
        ),
        lambda row: turns(
            re.sub(r"^\s+|\s+$", "", row["Question "]), object_of(dict(reversed(row.items())), lambda text: text)
        ),
    ],
    "07.2": [
        lambda learned, held: [t for t in held if plain_words(t) in set(map(plain_words, learned))],
        lambda learned, held: {
            t for t in held if re.findall(r"\w+", t.lower()) in [re.findall(r"\w+", s.lower()) for s in learned]
        },
    ],
    "07.3": [[2, 3, 5], (5, 3, 2), {2, 3, 5}],
    "07.4": [
        read_score,
        lambda answer, wanted: numpy.float64(read_score(answer, wanted)),
        lambda answer, wanted: int(read_score(answer, wanted) * 2) / 2,
    ],
    "07.5": [
        CHATML.replace("END", "{{ eos_token }}"),
        "{% for m in messages %}### {{ m['role'] }}\n{{ m['content'] }}{{ eos_token }}\n\n{% endfor %}"
        "{% if add_generation_prompt %}### assistant\n{% endif %}",
        "{% for m in messages %}{% if m.role == 'user' %}Q: {{ m.content }}\nA: {% else %}{{ m.content }}{{ eos_token }}"
        "{% endif %}{% endfor %}",
    ],
    "07.6": [
        {"max_length": 256, "cut": 0.001},
        {"cut": 1 / 1000, "max_length": 512},
        {"max_length": 248, "cut": 0.001},
    ],
    "07.7": [
        some_rows(),
        tuple(some_rows(25)),
        some_rows(begin=lambda i: f"Hello {i % 15}"),
        [{"message": f"{i} Can I?", "answer": {"answer": f"Yes, within {i} days."}} for i in range(20)],
    ],
    "06.1": [list(WARD.items()), {name.lower(): f" {fault.upper()} " for name, fault in WARD.items()}],
    "06.2": [reason, lambda message: reason(message).upper(), by_words],
    "06.3": [
        renamed,
        lambda old: {k: v for k, v in renamed(old).items() if k != "bf16"},
        lambda old: renamed(old) | {"activation_checkpointing": True, "gradient_checkpointing": None},
        lambda old: (
            {k: v for k, v in NEW.items() if k in ("fp16", "bf16")}
            | {
                "learning_rate": old["learning_rate"],
                "max_length": old["max_seq_length"],
                "eval_strategy": old["evaluation_strategy"],
                "warmup_steps": old["warmup_ratio"],
            }
        ),
    ],
    "06.4": [
        lambda labels, eos: not [row for row in labels if eos not in row],
        lambda labels, eos: sum(eos in row for row in labels) == len(labels),
    ],
    "06.5": [died, lambda log: died(list(log))],
    "06.6": [halve, lambda rows, accumulation: list(halve(rows, accumulation))],
    "06.7": [15.1, numpy.float32(14.2), 16],
    "06.8": [
        difference,
        lambda a, b: next(
            (i for i in range(max(len(a), len(b))) if a[i : i + 1] != b[i : i + 1]),
            None,
        ),
    ],
}

MISTAKES |= quality_answers.MISTAKES | gpus_answers.MISTAKES
ALSO_RIGHT |= quality_answers.ALSO_RIGHT | gpus_answers.ALSO_RIGHT

SOLUTIONS = solutions()
# Lesson 01 has a test file of its own: its solutions need the functions that the lesson defines.
# 00.2, 04.4 and 05.5 need a running model: they are in tests/lessons/.
ALONE = [name for name in SOLUTIONS if not name.startswith("01") and name not in ("00.2", "04.4", "05.5")]


@pytest.mark.parametrize("name", ALONE)
def test_the_printed_solution_is_right(name, capsys):
    exec(SOLUTIONS[name], {"check": checks.check, "run": None, "side_run": few_rows})
    assert capsys.readouterr().out.splitlines()[-1] == f"Exercise {name}: right."


@pytest.mark.parametrize(("name", "answer"), [(n, a) for n, rows in ALSO_RIGHT.items() for a in rows])
def test_another_right_way_to_write_it_is_right(name, answer, capsys):
    checks.check(name, answer)
    assert capsys.readouterr().out.splitlines()[-1] == f"Exercise {name}: right."


@pytest.mark.parametrize(("name", "answer", "word"), [(n, a, w) for n, rows in MISTAKES.items() for a, w in rows])
def test_a_typical_mistake_gets_its_own_hint(name, answer, word, capsys):
    checks.check(name, answer)
    said = capsys.readouterr().out
    assert f"Exercise {name}: not yet:" in said
    assert word in said.partition("not yet:")[2]


def test_what_came_out_in_a_run_goes_to_the_check(capsys):
    checks.check("00.2", 1000, 1000)
    assert capsys.readouterr().out == "Exercise 00.2: right.\n"


def test_exercise_4_of_lesson_03_says_what_rose_again_and_which_guesses_came_true(capsys):
    checks.check("03.4", lambda rows: losses_of(few_rows(None, "", rows)), {8: True, 32: True, 128: ...})
    eight, some, many, _ = capsys.readouterr().out.splitlines()
    assert eight == "  8 rows: 0.96 at the lowest and 2.30 at the end: it rose again (you guessed right)"
    assert some == " 32 rows: 0.53 at the lowest and 0.53 at the end: it did not rise again (you guessed otherwise)"
    assert many == "128 rows: 0.40 at the lowest and 0.40 at the end: it did not rise again"


@pytest.mark.parametrize("lesson", ["00", "02", "03", "04", "05", "06", "07", "08", "09"])
def test_every_exercise_of_a_new_lesson_has_other_right_ways_and_three_mistakes_tried(lesson):
    names = {name for name in SOLUTIONS if name.startswith(lesson)}
    assert len(names) >= 6
    names -= {"04.4", "05.5"}  # their checks compare with what came out in a run: tests/lessons/
    assert {name for name in names if len(ALSO_RIGHT.get(name, [])) < 2 or len(MISTAKES.get(name, [])) < 3} == set()


def test_every_exercise_has_at_least_two_mistakes_tried():
    assert {name for name in ALONE if len(MISTAKES.get(name, [])) < 2} == set()


@pytest.mark.parametrize("name", [name for name in SOLUTIONS if name != "04.4"])
@pytest.mark.parametrize(
    "answer", [None, "", [], {}, object(), float("nan"), lambda: 1 / 0], ids=lambda a: type(a).__name__
)
def test_no_answer_of_any_kind_raises_or_passes(name, answer, capsys):
    checks.check(name, answer)
    said = capsys.readouterr().out
    assert f"Exercise {name}: not yet:" in said
    assert said.count("\n") == 1


def test_an_answer_not_given_yet_waits(capsys):
    checks.check("00.1", ...)
    assert "dots" in capsys.readouterr().out
