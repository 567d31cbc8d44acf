"""Checks of the exercises of lesson 03."""

from helpers.lesson.checks import exercise

MISTRAL = [(4096, 4096), (4096, 1024), (4096, 1024), (4096, 4096)] * 32


@exercise("03.1", takes="layers and rank")
def lora_numbers(answer):
    one, right = answer([(10, 6)], 2), 32
    if one is ...:
        return "put your answer in place of the dots"
    if one == right and answer(list(MISTRAL), 8) == 6_815_744:
        return None
    if one == 2 * 10 * 6 or one == 10 * 6:
        return (
            "that counts the weight matrix; LoRA trains two thin ones, A with rank x inputs and B with outputs x rank"
        )
    if one in (20, 12):
        return "that counts A or B alone; each layer has both"
    if one == right:
        return "one layer is right; add up over all of them"
    if one == 16:
        return "the rank is missing: A has rank rows of that many inputs, B has rank columns"
    return "add up rank * (inputs + outputs) over the layers"


@exercise("03.2", takes="prompt, completion and eos")
def labels(answer):
    if answer([1], [3], 4) is ...:
        return "put your answer in place of the dots"
    given, short = ([int(n) for n in answer(*words)] for words in (([5, 6, 7], [8, 9], 2), ([1], [3], 4)))
    if given == [-100] * 3 + [8, 9, 2] and short == [-100, 3, 4]:
        return None
    if given == [-100] * 3 + [8, 9]:
        return "the eos is missing: a model that never sees the end of an answer never stops"
    if given == [-100] * 3 + [8, 9, -100]:
        return "the eos is masked: a model that never learns the end of an answer never stops"
    if given == [5, 6, 7, 8, 9, 2]:
        return "the prompt is not masked: the model would learn to write the question too"
    if given in ([8, 9, 2], [8, 9]):
        return "the prompt's places are missing: a masked token keeps its place, with the label -100"
    return "a label of -100 for each prompt token, then the completion's ids, then eos"


@exercise("03.3", takes="the settings")
def for_a_t4(answer):
    copied = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": "bfloat16", "bf16": True, "fp16": False,
              "attn_implementation": "flash_attention_2", "max_length": 512}  # fmt: skip
    given = answer(dict(copied))
    if given is ...:
        return "put your answer in place of the dots"
    if not isinstance(given, dict):
        return "the function must return the settings, as a dictionary"
    dtype = str(given.get("bnb_4bit_compute_dtype")).removeprefix("torch.")
    if dtype == "bfloat16" or given.get("bf16"):
        return "a T4 has no bfloat16 units: neither the 4-bit products nor the training may use it"
    if dtype == "float32":
        return "float32 works, but leaves the T4's float16 units idle and doubles the activations"
    if dtype != "float16":
        return 'bnb_4bit_compute_dtype should be "float16"'
    if not given.get("fp16"):
        return "without fp16=True training computes in float32; a T4 is fast in float16"
    if given.get("attn_implementation") not in (None, "sdpa"):
        return "flash attention 2 needs an Ampere GPU; leave the argument out, or say sdpa"
    if given.get("max_length") != 512 or given.get("bnb_4bit_quant_type") != "nf4":
        return "that changes more than a T4 asks for: nf4 and max_length may stay"
    return None


@exercise("03.4", takes="rows")
def heldout_losses(answer, guess=None):
    import math

    first = answer(8)
    if first is ...:
        return "put your answer in place of the dots"
    came = {8: first} | {rows: answer(rows) for rows in (32, 128)}
    for rows, found in came.items():
        if any(isinstance(entry, dict) for entry in found):
            return 'those are whole entries of "history": take entry["eval_loss"] of those that have one'
        came[rows] = [float(loss) for loss in found]
        if len(came[rows]) < 2 or not all(map(math.isfinite, came[rows])):
            return "all held-out losses of the run are asked for, in their order"
    if came[8] == came[32] == came[128]:
        return "these three are the same: give side_run the number of rows"
    if came[8][-1] < 0.1:
        return 'those are training losses: take "eval_loss"'
    rise = {rows: found[-1] / min(found) for rows, found in came.items()}
    if rise[8] < 1.2:
        return "with 8 rows it should rise again: keep section 6's 16 steps, 8 rows in each and its learning rate"
    if rise[128] > rise[8]:
        return "with 128 rows it rises more than with 8: are the losses in their order, and the other settings section 6's?"
    guessed = guess if isinstance(guess, dict) else {}
    for rows, found in came.items():
        rose = rise[rows] >= 1.2
        yours = {rose: " (you guessed right)", not rose: " (you guessed otherwise)"}.get(guessed.get(rows), "")
        end = f"{found[-1]:.2f} at the end: it {'rose' if rose else 'did not rise'} again"
        print(f"{rows:3} rows: {min(found):.2f} at the lowest and {end}{yours}")
    return None


@exercise("03.5")
def peak_of_long_rows(answer):
    import math
    import numbers

    from helpers.memory import RunSpec, predict
    from helpers.models import AUTO_LARGE, PRESETS

    if isinstance(answer, bool) or not isinstance(answer, numbers.Real) or not math.isfinite(answer):
        return "a number between 1 and 4 is asked for"
    spec = {"batch_size": 2, "checkpoint_every": 1, "repeat_kv": True, "lora_dropout": 0.0}  # the 7B recipe's
    shape = PRESETS[AUTO_LARGE].shape
    peaks = [predict(shape, RunSpec(**spec, seq_len=n), "t4").peak_allocated for n in (512, 2048)]
    came = peaks[1] / peaks[0]
    print(
        f"predicted: {peaks[0] / 1e9:.2f} GB, and {peaks[1] / 1e9:.2f} GB with four times the tokens: {came:.2f} times"
    )
    if abs(answer - came) <= 0.02:
        return None
    if answer > 3:
        return "the weights do not grow with the rows: they are most of the smaller peak"
    if abs(answer - 1.31) < 0.02:
        return "less: a dequantized weight, workspaces and the like, 0.17 GB, do not grow with the tokens"
    if answer > came:
        return "less: recomputing keeps the activations of one layer at a time, and the weights do not grow"
    if 1.08 < answer < 1.2:
        return "more: both grow, the inputs that every layer keeps and the 0.28 GB that come and go in one"
    return "more: the inputs that are kept and the activations of one layer do grow with the rows"


@exercise("03.6")
def better_runs(answer):
    given = [answer] if isinstance(answer, str) else list(answer)
    said = {letter for text in given for letter in str(text).upper() if letter.isalpha()}
    if not said or not said <= set("ABCD"):
        return 'give letters of A, B, C and D, as a text such as "AB"'
    if said == set("BD"):
        return None
    if "C" in said:
        return "C: its loss on rows that it was not trained on has risen; a low training loss says nothing of those"
    if "A" in said:
        return "A: its interval reaches beyond zero, so the choice of the held-out rows may explain the change"
    if "D" not in said:
        return "D: its interval is wide, but all of it lies below zero"
    return "B: its change is small, but the whole interval lies below zero"


@exercise("03.7", takes="whole")
def to_resume(answer):
    found = answer({"checkpoint-80": True, "checkpoint-100": True, "checkpoint-120": False})
    if found is ...:
        return "put your answer in place of the dots"
    if found == "checkpoint-120":
        return "checkpoint-120 is not whole: training cannot go on from it"
    if found == "checkpoint-80":
        return 'that compares names as text, and "8" comes after "1": compare the numbers'
    if found != "checkpoint-100":
        return "the newest whole one is asked for, by its name"
    if answer({"checkpoint-20": True, "checkpoint-10": True}) != "checkpoint-20":
        return "that takes the last one in the dictionary; take the highest number"
    if answer({"checkpoint-20": False}) is not None or answer({}) is not None:
        return "if none is whole, the answer is None: training begins anew"
    return None
