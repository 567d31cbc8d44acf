"""Checks of the exercises of lesson 09."""

from helpers.lesson.checks import exercise

DOTS = "put your answer in place of the dots"


@exercise("09.1", takes="the means and the numbers of tokens")
def logged(answer):
    cases = [
        ([2.0, 1.0], [10, 10], 1.5),
        ([1.0, 3.0], [16, 4], 1.4),
        ([1.0, 2.0, 4.0, 1.0], [5, 10, 4, 1], 2.1),
        ([3.0, None], [8, 0], 3.0),
    ]
    for means, tokens, right in cases:
        given = answer(list(means), list(tokens))
        if given is ... or given is None:
            return DOTS
        if abs(given - right) < 1e-9:
            continue
        known = [mean for mean in means if mean is not None]
        where = f"means {means}, tokens {tokens}: {right:g} is right, and yours says {given:g}"
        if abs(given - sum(known) / len(known)) < 1e-9:
            return "that is a mean of means: four tokens count as much as sixteen there"
        if abs(given - sum(known) / len(means)) < 1e-9:
            return "a process without tokens has no say: it is no loss of zero"
        if abs(given - right * sum(tokens)) < 1e-9:
            return "that is the sum over all tokens: divide it by their number"
        if abs(given - right * sum(tokens) / len(means)) < 1e-9:
            return "divide by the number of tokens of all processes, and not by the number of processes"
        return where
    return None


@exercise("09.2", takes="the settings and the number of GPUs")
def for_gpus(answer):
    cases = [
        ((8, 4), 2, (8, 2), "accumulate less first: a step of 8 x 2 x 2 rows is shorter than one of 4 x 4 x 2"),
        ((8, 1), 2, (4, 1), "nothing is accumulated there, so halve batch_size"),
        ((6, 2), 4, (3, 1), "for four GPUs halve both: accumulation first, then batch_size"),
        ((4, 3), 2, (2, 3), "three accumulated batches cannot be halved, so halve batch_size"),
        ((5, 2), 1, (5, 2), "on one GPU nothing changes"),
        ((4, 8), 4, (4, 2), "accumulating a quarter is enough for four GPUs"),
        ((3, 3), 2, None, "nine rows cannot be shared out to two GPUs: return None"),
        ((1, 2), 4, None, "two rows cannot be shared out to four GPUs: return None"),
    ]
    for (rows, accumulation), gpus, right, hint in cases:
        settings = {"batch_size": rows, "gradient_accumulation": accumulation, "learning_rate": 2e-4, "gpus": 1}
        before, given = dict(settings), answer(settings, gpus)
        if given is ...:
            return DOTS
        if settings != before:
            return "a new dictionary is asked for, and yours changes the one that it was given"
        if given is None and right is None:
            continue
        if given is None or right is None:
            return hint if right is None else f"{rows} x {accumulation} on {gpus} GPUs can be done. {hint}"
        if given.get("gpus") != gpus or given.get("learning_rate") != 2e-4:
            return "the new dictionary has all settings of the old one, and gpus"
        made = (given["batch_size"], given["gradient_accumulation"])
        if any(number != int(number) or number < 1 for number in made):
            return "whole numbers of at least one are asked for"
        if made[0] * made[1] * gpus != rows * accumulation:
            return f"{rows} x {accumulation} rows became {made[0]} x {made[1]} x {gpus}: a step should keep its rows"
        if made != right:
            return hint
    return None


@exercise("09.3")
def tied_cut(answer):
    import numbers

    from helpers.memory import RunSpec, predict
    from helpers.models import PRESETS

    if isinstance(answer, bool) or not isinstance(answer, numbers.Real) or answer != answer:
        return "a number of layers is asked for"
    if not 1 <= answer <= 23:
        return "each of the two GPUs gets at least one of the 24 layers"
    if answer != int(answer):
        return "a layer is not cut in two: give a whole number"
    spec = RunSpec(rank=8, seq_len=2048, repeat_kv=True, lora_dropout=0.0)
    found = predict(PRESETS["qwen2.5-0.5b"].shape, spec, "t4", 2, "split")
    if abs(answer - found.layers[0]) <= 1:
        print(f"predicted: {found.layers[0]} and {found.layers[1]} layers")
        return None
    if answer == 12:
        return "the middle would be right if both GPUs held equally much besides: what lies on GPU 0 besides?"
    if answer > 12:
        return "that is turned round: embedding, head and loss lie on GPU 0, so it has less room for layers"
    return "fewer: compare the table of the vocabulary, 151,936 x 896 numbers in 16 bits, with a layer of 15 million in 4 bits"


@exercise("09.4", takes="first, layers and last")
def cut(answer):
    cases = [
        (0, [1, 1, 1, 1], 0, "four equal layers and nothing besides"),
        (0, [10, 2, 2, 2, 2, 2], 0, "layers of unequal size: add up their bytes, and do not count them"),
        (8, [2] * 8, 0, "what lies on GPU 0 besides counts, too"),
        (0, [2] * 8, 8, "what lies on GPU 1 besides counts, too"),
        (100, [1, 1, 1], 0, "GPU 0 gets one layer at least"),
        (0, [1, 1, 1], 100, "GPU 1 gets one layer at least"),
        (0, [4, 2, 2, 1, 1], 0, "two cuts are equally good: the smaller one is asked for"),
        (3, [2, 7, 1, 8, 2, 8], 4, "look at all cuts, and compare the fuller GPU of each"),
    ]
    for first, layers, last, about in cases:
        fuller = {n: max(first + sum(layers[:n]), sum(layers[n:]) + last) for n in range(1, len(layers))}
        right = min(fuller, key=lambda n: fuller[n])
        given = answer(first, list(layers), last)
        if given is ... or given is None:
            return DOTS
        if isinstance(given, list | tuple):
            return "one number is asked for: how many layers GPU 0 gets"
        if given == right:
            continue
        if given == min(fuller.values()):
            return "that is what the fuller GPU takes: the number of layers on GPU 0 is asked for"
        if given == len(layers) - right:
            return "that is the number of layers on GPU 1"
        return f"{about}; cut({first}, {layers}, {last}) is {right}, and yours says {given}"
    return None


@exercise("09.5", takes="what was saved and what was trained")
def what_is_missing(answer):
    a, b = "layers.0.q_proj.lora_A.weight", "layers.0.q_proj.lora_B.weight"
    trained = {b: (64, 8), a: (8, 64)}
    wrapped = {f"module.{name}": shape for name, shape in trained.items()}
    cases = [
        (trained, trained, [], "all of it was saved: the list is empty"),
        ({}, trained, [a, b], "an empty file lacks everything"),
        ({a: (8, 64)}, trained, [b], "one of two tensors is missing"),
        (
            {a: (4, 64), b: (64, 8)},
            trained,
            [a],
            "a tensor of another shape is not what was trained: FSDP may save a part",
        ),
        (trained, wrapped, [], "DDP puts module. in front of the model's names; the file's have none"),
        ({b: (64, 8)}, wrapped, [a], "say the names as the file should have them, without module."),
        (trained | {"embed.weight": (9, 9)}, trained, [], "what was saved besides is not missing"),
        (
            {},
            {"base.module.x": (1, 1)},
            ["base.module.x"],
            "module. stands in front only: leave it alone within a name",
        ),
    ]
    for saved, of_model, right, about in cases:
        given = answer(dict(saved), dict(of_model))
        if given is ... or given is None:
            return DOTS
        if isinstance(given, str | bool) or not hasattr(given, "__iter__"):
            return "a list of names is asked for"
        if list(given) == right:
            continue
        return "the names are asked for in order: sort them" if sorted(given) == right else about
    return None


@exercise("09.6")
def which_way(answer):
    right = {"A": ("copies", "one"), "B": ("divided layers",), "C": ("one",), "D": ("copies",)}
    # A: lesson 03 on one GPU is about as fast as this lesson's copies, and nobody has timed the two on T4s.
    if not isinstance(answer, dict) or set(answer) != set(right):
        return 'a dictionary with "A" to "D" is asked for'
    if ... in answer.values():
        return "put your answers in place of the dots"
    said = {case: str(word).strip().lower() for case, word in answer.items()}
    if any(word not in ("one", "copies", "divided layers", "divided weights") for word in said.values()):
        return 'each is one of "one", "copies", "divided layers" and "divided weights"'
    hints = {
        "A": "A: the model fits one GPU, and time is what is lacking. Which way computed the most tokens a second?",
        "B": "B: 19 GB do not fit one GPU, so no copy does. And which of the others held less than a T4 has?",
        "C": "C: four trainings that need nothing of each other. What would two GPUs have to exchange?",
        "D": "D: a copy takes hardly more than one GPU does, so it fits a T4's 15.6 GB. Which way is the fastest then?",
    }
    return next((hints[case] for case, word in said.items() if word not in right[case]), None)


@exercise("09.7", takes="rows, epochs and settings")
def steps_needed(answer):
    import math

    for rows, epochs, b, accumulation, gpus in (
        (960, 1, 8, 1, 1),
        (960, 2, 8, 2, 4),
        (1000, 1, 8, 2, 2),
        (1000, 3, 4, 4, 4),
    ):
        settings = {"batch_size": b, "gradient_accumulation": accumulation, "gpus": gpus}
        each = rows / (b * accumulation * gpus)  # steps of an epoch
        right, given = epochs * math.ceil(each), answer(rows, epochs, dict(settings))
        if given is ... or given is None:
            return DOTS
        if given == right:
            if not isinstance(given, int):
                return "a whole number is asked for"
            continue
        hints = {epochs * each: "a whole number of steps is asked for, rounded up"}
        for factor, hint in (
            (gpus, "each GPU has rows of its own: a step sees gpus times as many"),
            (accumulation, "accumulated batches belong to one step: gradient_accumulation is missing"),
            (accumulation * gpus, "a step has batch_size x gradient_accumulation x gpus rows"),
        ):
            several = (
                epochs * math.ceil(each * factor),
                math.ceil(epochs * each * factor),
                math.floor(epochs * each * factor),
            )
            hints |= dict.fromkeys(several, hint) if factor > 1 else {}
        hints |= {
            math.floor(epochs * each): "the last step is not full, and counts: round up",
            epochs * math.floor(each): "the last step is not full, and counts: round up",
            math.ceil(epochs * each): "each epoch ends with a step of its own, full or not: round up in each",
            math.ceil(each): "each row is seen epochs times",
        }
        known = next((hint for number, hint in hints.items() if given == number), None)
        return known or f"{rows} rows, {epochs} epochs, {settings}: {right} is right, and yours says {given}"
    return None
