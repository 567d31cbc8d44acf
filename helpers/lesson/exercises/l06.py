"""Checks of the exercises of lesson 06."""

from helpers.lesson.checks import exercise

SYMPTOMS = {
    "template": "every loss is the healthy run's, so training was good; and yet its answers are empty or wrong",
    "learning rate": "the gradient pulls as strongly as at the start, and the loss hardly follows",
    "padding": "the answers begin right, and hardly one of them comes to an end",
    "adapter not loaded": "the log is the healthy run's, and what answers is as surprised as a model that was never trained",
    "number format": "grad_norm and the held-out loss are nan: something stopped being a number",
}


@exercise("06.1")
def diagnosis(answer):
    from helpers.quick import FAULTS

    given = {str(name).strip().upper(): str(fault).strip().lower() for name, fault in dict(answer).items()}
    if set(given) != set(FAULTS):
        return 'a dictionary with the five letters is asked for, such as {"A": "padding", ...}'
    suspects = {*SYMPTOMS, "too few rows", "training mode"}
    for name, fault in given.items():
        if fault not in suspects:
            return f"{name}: {fault!r} is none of the seven suspects"
    if "too few rows" in given.values():
        return "too few rows: then the answers would have the right form and end, with wrong words in them"
    if "training mode" in given.values():
        return "training mode: it switches dropout on, and these models have none, so nothing would change"
    wrong = [name for name in FAULTS if given[name] != FAULTS[name]]
    if wrong:
        right = 5 - len(wrong)
        return f"{right} of 5 are right. Look at {wrong[0]} again: {SYMPTOMS[FAULTS[wrong[0]]]}"
    return None


@exercise("06.2", takes="a message")
def why_full(answer):
    for asked, has, others, allocated, unallocated, right, why in FULL:
        given = answer(_out_of_memory(asked, has, others, allocated, unallocated))
        if given is ...:
            return "put your answer in place of the dots"
        if str(given).strip().lower() != right:
            free = _free(has, others, allocated, unallocated)
            held = " and ".join(map(_size, others)) or "nothing"
            said = f"{_size(asked)} asked for, {_size(free)} free, {_size(unallocated)} unallocated, others hold {held}"
            return f"{said}: {right!r} is right, for {why}; yours says {given!r:.40}"
    return None


# In GiB: asked for, the GPU has, other processes hold, allocated, reserved but unallocated; what it is, and why.
FULL = [
    (2.0, 14.56, [], 11.06, 1.96, "holes", "1.27 and 1.96 GiB are more than 2"),
    (2.0, 14.56, [], 13.0, 0.9, "full", "399 and 922 MiB are less than 2 GiB"),
    (0.5, 14.56, [], 13.6, 0.45, "holes", "246 and 461 MiB are more than 512"),
    (
        0.88,
        14.56,
        [],
        13.6,
        0.49,
        "full",
        "CUDA itself takes a part of what is not allocated: 205 and 502 MiB are less than 901",
    ),
    (2.0, 14.56, [3.5], 9.0, 0.6, "others", "1.19 GiB and 614 MiB are less than 2 GiB, but another process holds 3.5"),
    (2.4, 14.56, [1.5, 0.6934], 11.5, 0.3, "others", "every other process counts, those in MiB too"),
    (0.21875, 14.56, [2.31], 11.6, 0.1758, "holes", "209 and 180 MiB are more than 224, beside the other process"),
    (3.0, 23.65, [], 19.0, 1.6, "holes", "2.78 and 1.6 GiB are more than 3"),
    (2.2, 14.56, [0.5], 12.2, 0.3, "full", "even with the other's 0.5 GiB it is not enough"),
    (
        2.0,
        14.56,
        [0.9],
        11.5,
        0.9,
        "others",
        "all three count: what is free, what is unallocated, and what another holds",
    ),
]
CONTEXT = 0.27  # GiB that CUDA itself takes


def _size(gib: float) -> str:
    return f"{gib:.2f} GiB" if gib >= 1 else f"{1024 * gib:.2f} MiB"


def _free(has: float, others: list, allocated: float, unallocated: float) -> float:
    return has - sum(others) - allocated - unallocated - CONTEXT


def _out_of_memory(asked: float, has: float, others: list, allocated: float, unallocated: float) -> str:
    """What torch says when a GPU is full; sizes are in GiB, `others` are what other processes hold."""
    own = allocated + unallocated + CONTEXT
    held = "".join(f"Process {440 + number} has {_size(size)} memory in use. " for number, size in enumerate(others))
    free = _size(_free(has, others, allocated, unallocated))
    return (
        f"CUDA out of memory. Tried to allocate {_size(asked)}. GPU 0 has a total capacity of {_size(has)} of which {free} is "
        f"free. {held}Including non-PyTorch memory, this process has {_size(own)} memory in use. Of the allocated memory "
        f"{_size(allocated)} is allocated by PyTorch, and {_size(unallocated)} is reserved by PyTorch but unallocated."
    )


@exercise("06.3", takes="the old settings")
def todays(answer):
    old = {"max_seq_length": 256, "evaluation_strategy": "no", "warmup_ratio": 0.1, "bf16": True, "learning_rate": 2e-4}
    others = old | {"max_seq_length": 512, "warmup_ratio": 0.05, "learning_rate": 1e-4}
    given = answer(dict(old))
    if not isinstance(given, dict):
        return "the function must return the settings, as a dictionary"
    hint = _not_todays(given, old) or _refused(given)
    if hint is None and _not_todays(answer(dict(others)), others):
        return "with other values it is no longer right: take them from the argument"
    return hint


def _not_todays(given: dict, old: dict) -> str | None:
    """What is wrong with settings that should mean the same as `old` under today's names; None where nothing is."""
    names = {"max_seq_length": "max_length", "evaluation_strategy": "eval_strategy", "warmup_ratio": "warmup_steps"}
    for before, today in names.items():
        if before in given:
            return f"{before} is the old name"
        if given.get(today) != old[before]:
            return f"{before} is {today} today, and its value keeps its meaning: {old[before]!r}"
    if given.get("bf16"):
        return "a T4 has no bfloat16 units: its fast format is float16"
    if not given.get("fp16"):
        return "the fast format of a T4 is float16: without fp16=True it trains in float32, or in bfloat16 if bf16 is left out"
    if given.get("learning_rate") != old["learning_rate"]:
        return "learning_rate has kept its name: leave alone what need not change"
    return None


def _refused(settings: dict) -> str | None:
    """What SFTConfig says of settings that it refuses or warns of; None where it takes them."""
    import tempfile
    import warnings

    from trl import SFTConfig

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        try:  # the older name of checkpointing is on by itself, and would warn
            SFTConfig(**{"output_dir": folder, "report_to": "none", "gradient_checkpointing": None} | settings)
        except (TypeError, ValueError, FutureWarning) as error:
            return f"SFTConfig does not take it: {error!s:.150}".replace("\n", " ")
    return None


@exercise("06.4", takes="labels and eos")
def learns_to_stop(answer):
    cases = [
        ([[-100, -100, 5, 6, 2], [-100, 7, 2, -100]], 2, True, "two rows that both keep their end"),
        ([[-100, 5, 6, -100], [-100, 7, -100, -100]], 2, False, "two rows whose end is masked"),
        ([[-100, 5, 2], [-100, 7, -100]], 2, False, "one row keeps its end and the other does not: every row must"),
        ([[-100, 7, -100], [5, 2, 2]], 2, False, "two ends in one row, none in the other: every row must have one"),
        (
            [[5, 2, -100, 7, 2], [-100, 6, 2, 9]],
            2,
            True,
            "a conversation has several ends, and one that is cut has a label after",
        ),
        ([[5, 2, -100]], 3, False, "a 2 among the labels where eos is 3: use the argument"),
    ]
    for labels, eos, right, about in cases:
        given = answer(labels, eos)
        if given is ...:
            return "put your answer in place of the dots"
        if given is None or bool(given) is not right:
            return f"{about}: {right} is right, and yours says {given!r:.40}"
    return None


@exercise("06.5", takes="a log")
def died_at(answer):
    def log(*norms, loss="0.9", every=5):
        return [{"step": every * place, "loss": loss, "grad_norm": norm} for place, norm in enumerate(norms, 1)]

    cases = [
        (log("0.4", "nan", "nan", loss="0"), 10, "dead from step 10 on"),
        (log(0.4, float("nan"), float("nan")), 10, "the same with numbers in place of text"),
        (log("nan", "0.4", "0.3"), None, "one skipped step at the start: the run lives"),
        (log("0.4", "nan", "0.3", "nan", "nan"), 20, "one skipped step, and dead from step 20 on"),
        (log("0.4", "nan"), 10, "the NaN on the last line counts: no number comes after it"),
        (log("nan", "nan", "0.3"), None, "two skipped steps, and then a number: the run lives"),
        (log("0.4", "nan", "nan", every=10), 20, "a log with a line every ten steps: its own steps count"),
        (log("0.4", "0.3", loss="0"), None, "a loss of 0 with a gradient that is a number: not dead"),
        (log("nan", "nan"), 5, "dead from the first line"),
        ([], None, "an empty log"),
    ]
    for entries, right, about in cases:
        given = answer([dict(entry) for entry in entries])
        if given is ...:
            return "put your answer in place of the dots"
        if given != right:
            return f"{about}: {right} is right, and yours says {given!r:.40}"
    return None


@exercise("06.6", takes="rows and accumulation")
def halved(answer):
    cases = [
        ((8, 2), (4, 4), "8 rows, accumulated twice, are 16 in a step"),
        ((1, 16), (1, 16), "a single row cannot be halved"),
        ((2, 3), (1, 6), "two rows become one"),
        ((3, 4), (1, 12), "3 rows, accumulated four times, are 12 in a step; half of 3, rounded down, is 1"),
        ((5, 3), (2, 8), "15 rows in a step, two at once: 8 times, for 7 would see fewer"),
        ((7, 4), (3, 10), "28 rows in a step, three at once: 10 times, for 9 would see fewer"),
    ]
    for asked, right, about in cases:
        given = answer(*asked)
        if given is ...:
            return "put your answer in place of the dots"
        if tuple(given) != right:
            return f"{about}: {right} is right for {asked}, and yours says {given!r:.40}"
    return None


@exercise("06.7")
def a_quarter_of_the_rows(answer):
    import math
    import numbers

    from helpers.memory import RunSpec, predict
    from helpers.models import PRESETS

    if isinstance(answer, bool) or not isinstance(answer, numbers.Real) or not math.isfinite(answer):
        return "a number of GiB is asked for"
    first, quarter = (
        predict(
            PRESETS["mistral-7b"].shape,
            RunSpec(
                rank=64, batch_size=rows, seq_len=2048, optimizer="adamw_torch", double_quant=False,
                upcast_non_quantized=True, attention_kernels="t4",
            ),
            "t4",
        ).held_bytes("t4") / 2**30
        for rows in (8, 2)
    )  # fmt: skip
    if abs(answer / quarter - 1) <= 0.1:
        print(f"predicted: {quarter:.1f} GiB, after {first:.1f}")
        return None
    if abs(answer / (first / 4) - 1) <= 0.1:
        return "that is a quarter of all: weights, adapters and Adam's averages do not shrink with the rows"
    if answer > quarter:
        return "less: what the activations take shrinks to a quarter, and they are most of the first bar"
    return "more: the weights alone take some 4 GiB, and the adapters with Adam's averages come on top"


@exercise("06.8", takes="two texts")
def first_difference(answer):
    cases = [
        ("Response:\n", "Response:\n", None, "the same text twice"),
        (
            "Response:\n",
            "Response:",
            9,
            "one text is the beginning of the other: they differ where the shorter one ends",
        ),
        ("Response:", "Response:\n", 9, "the longer text may be the second one"),
        ("### Input", "### input", 4, "a capital and a small letter"),
        (
            "### Input:",
            "### Output:",
            4,
            "they differ long before the shorter one ends, and the first difference counts",
        ),
        ("", "a", 0, "an empty text"),
    ]
    for trained, used, right, about in cases:
        given = answer(trained, used)
        if given is ...:
            return "put your answer in place of the dots"
        if given != right or (right is not None and isinstance(given, bool)):
            return f"{about}: {right} is right, and yours says {given!r:.40}"
    return None
