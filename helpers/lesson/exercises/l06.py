"""Checks of the exercises of lesson 06."""

from helpers.lesson.checks import exercise


@exercise("06.1")
def argument_for_four_bits(answer):
    hints = {
        "load_in_4bit": "that is the name that is refused",
        "bitsandbytesconfig": "that is what you pass; which argument takes it?",
        "dtype": "dtype is the format of what is not quantized; 4 bits need a config of their own",
        "quantization_config=": None,
        "quantization_config": None,
    }
    return hints.get(str(answer).strip().lower(), "section 3 has the line; the new name ends in _config")


@exercise("06.2")
def settings_of_today(answer):
    from helpers.failures import RENAMED

    if not isinstance(answer, dict) or not answer:
        return "a dictionary is needed, from an argument's name to its value"
    for row in RENAMED:
        if row.where == "SFTConfig" and row.old in answer:
            return f"{row.old} is the old name: {row.new}"
    if answer.get("bf16", True):
        return "a T4 has no bfloat16 units: say so, for SFTConfig asks for bfloat16 by itself"
    if not answer.get("fp16"):
        return "without fp16 it would train in float32: the fast format of a T4 is float16"
    meant = {"max_length": 256, "eval_strategy": "no", "warmup_steps": 0.1}
    for name, value in meant.items():
        if answer.get(name) != value:
            return f"{name} must mean what its old form meant: {value!r}"
    import tempfile
    import warnings

    from trl import SFTConfig

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        SFTConfig(
            output_dir=folder, report_to="none", gradient_checkpointing=None, **answer
        )  # the old name is on by itself
    return None


@exercise("06.3")
def rows_and_accumulation(answer):
    hints = {
        (4, 2): "one step now sees half as many rows: accumulate more",
        (4, 1): "one step now sees a quarter: twice the accumulation, not half",
        (8, 4): "that is as many rows at once as before, and twice as many a step",
        (8, 1): "the rows at once are what fills the memory, not the accumulation",
    }
    pair = tuple(answer) if isinstance(answer, list | tuple) else answer
    return None if pair == (4, 4) else hints.get(pair, "a pair: half of 8, and what makes 16 rows a step of it")


@exercise("06.4")
def learns_to_stop(answer):
    if not callable(answer):
        return "a function of labels and eos is needed"
    cases = [
        ([[-100, -100, 5, 6, 2], [-100, 7, 2, -100]], 2, True, "two rows that both keep their eos"),
        ([[-100, 5, 6, -100], [-100, 7, -100, -100]], 2, False, "two rows whose eos is masked"),
        ([[-100, 5, 2], [-100, 7, -100]], 2, False, "one row keeps its eos and the other does not: every row must"),
        ([[5, 2, -100]], 3, False, "a 2 among the labels where eos is 3: use the argument"),
    ]
    for labels, eos, right, about in cases:
        if answer(labels, eos) is not right:
            return f"{about}: {right} is right, and yours says {answer(labels, eos)!r}"
    return None


@exercise("06.5")
def silent(answer):
    right = {
        "wrong template",
        "eos as padding",
        "adapter on another base of the same shape",
        "4-bit merge of a weak adapter",
    }
    if not isinstance(answer, set | list | tuple):
        return "a set of names is needed"
    given = {str(name) for name in answer}
    if loud := given & {"gated model", "adapter on another shape"}:
        return f"{sorted(loud)[0]} raises: you saw its message"
    if given - right:
        return f"{sorted(given - right)[0]!r} is none of the six"
    return None if given == right else f"{len(right - given)} more give wrong answers in silence"
