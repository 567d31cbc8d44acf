"""Each exercise: the solution printed in the lesson is right, and typical mistakes get a hint that is theirs."""

import pytest

from helpers.lesson import checks
from tests.cells import solutions

# For each exercise at least two mistakes that people make, with a word that the hint must hold.
MISTAKES = {
    "00.1": [(14, "bytes"), (28e9, "float32"), (7e9 * 16, "bits")],
    "00.2": [(3.5, "bytes"), (28e9, "bits"), (7e9, "two 4-bit codes")],
    "00.3": [(True, "function"), (lambda c: c >= (7, 0), "T4"), (lambda c: c == (8, 0), "later")],
    "00.4": [
        (True, "function"),
        (lambda free, needed: free >= needed, "capitals"),
        (lambda free, needed: "OK" if free > needed else "FAIL", "nothing to spare"),
        (lambda free, needed: "WARN" if free < 1.1 * needed else "OK", "too little"),
    ],  # fmt: skip
    "02.1": [
        (lambda n: n / 2, "constant"),
        (lambda n: n * (0.5 + 1 / 16), "without double"),
        (lambda n: n * (0.5 + 1 / 64), "nearly"),
        (lambda n: 8 * n * (1 / 2 + 1 / 64 + 4 / (64 * 256)), "bits"),
    ],
    "02.2": [
        (lambda layers, rank: 12 * rank * sum(map(sum, layers)), "missing"),
        (lambda layers, rank: 4 * rank * sum(map(sum, layers)), "values alone"),
        (lambda layers, rank: 16 * rank * sum(layers[0]), "all of them"),
        (lambda layers, rank: 16 * rank * sum(i * o for i, o in layers), "weight matrix"),
    ],
    "02.3": [
        (lambda layers, rows, tokens, hidden: rows * tokens * hidden * 2, "one layer"),
        (lambda layers, rows, tokens, hidden: layers * rows * tokens * hidden, "takes two"),
        (lambda layers, rows, tokens, hidden: layers * tokens * hidden * 2, "one row"),
    ],
    "02.4": [(128_256 * 4096 * 2, "one of the two"), (2 * 128_256 * 4096 * 4, "how much is it more")],
    "02.5": [("rank", "fraction"), ("optimizer", "small"), ("luck", "one of")],
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
    ],
    "03.4": [
        (lambda steps, batch, accumulation, rows: steps * batch * accumulation // rows, "//"),
        (lambda steps, batch, accumulation, rows: steps * batch / rows, "left out"),
        (lambda steps, batch, accumulation, rows: rows / (steps * batch * accumulation), "turn it round"),
    ],
    "03.5": [(4, "do not grow"), (2, "less"), (1, "more"), ("two", "a number")],
    "03.6": [("more steps", "worse"), ("a higher rank", "room"), ("a higher learning rate", "sooner"), (20, "one of")],
    "03.7": [
        (lambda whole: max(whole, key=lambda name: int(name.split("-")[1]), default=None), "not whole"),
        (lambda whole: max((n for n, good in whole.items() if good), default=None), "as text"),
        (lambda whole: [n for n, good in whole.items() if good][-1], "last one"),
        (lambda whole: sorted((int(n[11:]), n) for n, good in whole.items() if good)[-1][1], "list index"),
    ],
    "04.1": [(65536, "two"), (524288, "8 key-value"), (4096, "one layer")],
    "04.2": [(0, "right"), (5, "how many"), (12, "padded")],
    "04.3": [("pad", "masked"), ("bos", "begins"), ("a comma", "over")],
    "04.5": [(4.54, "prefill"), (0.5, "first token"), (4.0, "prefill out"), (44.04, "not one token")],
    "04.6": [("yes", "overlap"), ("no", "a claim as well"), ("maybe", "one of")],
    "05.1": [
        (lambda W, A, B, rank, alpha: (W.float() + B @ A).to(W.dtype), "not scaled"),
        (lambda W, A, B, rank, alpha: (W.float() + (B @ A) * (rank / alpha)).to(W.dtype), "other way"),
        (lambda W, A, B, rank, alpha: W + ((B @ A) * (alpha / rank)).to(W.dtype), "round on the way"),
        (lambda W, A, B, rank, alpha: W + (B @ A) * (alpha / rank), "round at the end"),
        (lambda W, A, B, rank, alpha: A @ B.T if len(A) == len(B) else A, "not A @ B"),
    ],
    "05.2": [
        (lambda change, update: change.norm() / update.norm(), "ratio of the norms"),
        (lambda change, update: (change * update).sum() / (change * change).sum(), "<C, C>"),
        (lambda change, update: (change * update).sum() / (change.norm() * update.norm()), "cosine"),
    ],
    "05.3": [(7_241_732_096, "two"), (4 * 7_241_732_096, "float32"), (3_620_866_048, "16 bits")],
    "05.4": [("4-bit", "rounded away"), ("original", "rounded version"), ("none", "one of")],
    "05.5": [("4-bit", "at once"), ("dequantized", "fall back"), ("none", "one of")],
    "06.1": [("load_in_4bit", "refused"), ("BitsAndBytesConfig", "which argument"), ("torch_dtype", "section 3")],
    "06.2": [
        ({"max_seq_length": 256}, "old name"),
        ({"max_length": 256, "eval_strategy": "no", "warmup_steps": 0.1, "fp16": True}, "by itself"),
        ({"max_length": 256, "eval_strategy": "no", "warmup_steps": 0.1, "bf16": False}, "float16"),
        ({"max_length": 512, "eval_strategy": "no", "warmup_steps": 0.1, "fp16": True, "bf16": False}, "256"),
    ],
    "06.3": [((4, 2), "half as many"), ((8, 4), "as many rows at once"), ((8, 1), "fills the memory")],
    "06.4": [
        (lambda labels, eos: any(eos in row for row in labels), "every row"),
        (lambda labels, eos: all(2 in row for row in labels), "use the argument"),
        (lambda labels, eos: None, "True is right"),
    ],
    "06.5": [({"gated model"}, "message"), ({"wrong template"}, "3 more"), ({"wrong base"}, "none of the six")],
}


# Other right ways to write it, besides the solution that the lesson prints.
ALSO_RIGHT = {
    "02.1": [lambda n: n // 2 + n // 64 + 4 * (n // 64 // 256), lambda n: n * 4.126953125 / 8],
    "02.2": [
        lambda layers, rank: 16 * rank * sum(map(sum, layers)),
        lambda layers, rank: sum(4 * 4 * (i * rank + rank * o) for i, o in layers),
    ],
    "02.3": [
        lambda layers, rows, tokens, hidden: 2 * hidden * tokens * rows * layers,
        lambda *sizes: __import__("math").prod(sizes, start=2),
    ],
    "03.1": [
        lambda layers, rank: rank * sum(sum(pair) for pair in layers),
        lambda layers, rank: sum(i * rank for i, _ in layers) + sum(o * rank for _, o in layers),
    ],
    "03.2": [
        lambda p, c, e: [*(-100 for _ in p), *c, e],
        lambda p, c, e: __import__("torch").tensor([-100] * len(p) + list(c) + [e]),
    ],
    "03.3": [
        lambda s: (
            {k: v for k, v in s.items() if k != "attn_implementation"}
            | {"bnb_4bit_compute_dtype": __import__("torch").float16, "bf16": False, "fp16": True}
        ),
        lambda s: (
            s | {"bnb_4bit_compute_dtype": "torch.float16", "bf16": None, "fp16": True, "attn_implementation": None}
        ),
    ],
    "03.4": [
        lambda steps, batch_size, gradient_accumulation, rows: batch_size * gradient_accumulation * steps / rows,
        lambda *n: __import__("fractions").Fraction(n[0] * n[1] * n[2], n[3]),
    ],
    "03.5": [1.2, __import__("numpy").float32(1.35)],
    "03.6": ["Fewer steps", " fewer steps"],
    "03.7": [
        lambda whole: next(
            (f"checkpoint-{n}" for n in sorted((int(k[11:]) for k in whole if whole[k]), reverse=True)), None
        ),
        lambda whole: ([None] + sorted((k for k in whole if whole[k]), key=lambda k: (len(k), k)))[-1],
    ],
}


SOLUTIONS = solutions()
# Lesson 01 has a test file of its own: its solutions need the functions that the lesson defines.
# 04.4 needs a running model: it is in tests/lessons/test_lesson04.py.
ALONE = [name for name in SOLUTIONS if not name.startswith("01") and name != "04.4"]


@pytest.mark.parametrize("name", ALONE)
def test_the_printed_solution_is_right(name, capsys):
    exec(SOLUTIONS[name], {"check": checks.check})
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


def test_every_exercise_has_at_least_two_mistakes_tried():
    assert {name for name in ALONE if len(MISTAKES.get(name, [])) < 2} == set()


@pytest.mark.parametrize("name", ALONE)
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
