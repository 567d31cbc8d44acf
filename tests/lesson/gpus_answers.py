"""Right and wrong answers to the exercises of lesson 09, for tests/lesson/test_checks.py."""

import math


def mean_of_means(means, tokens):
    known = [mean for mean in means if mean is not None]
    return sum(known) / len(known)


def with_zero(means, tokens):
    return sum((mean or 0) * n for mean, n in zip(means, tokens, strict=True)) / sum(tokens)


def in_a_loop(means, tokens):
    total = count = 0
    for mean, n in zip(means, tokens, strict=True):
        if n:
            total, count = total + mean * n, count + n
    return total / count


def shared_out(settings, gpus, first="gradient_accumulation", second="batch_size"):
    """Exercise 09.2 by halving one after the other."""
    made = dict(settings) | {"gpus": gpus}
    while gpus > 1:
        name = first if made[first] % 2 == 0 else second
        if made[name] % 2:
            return None
        made[name] //= 2
        gpus //= 2
    return made


def by_divisors(settings, gpus):
    """Exercise 09.2 by the largest common divisor."""
    shared = math.gcd(settings["gradient_accumulation"], gpus)
    if settings["batch_size"] % (gpus // shared):
        return None
    return {
        **settings, "gpus": gpus, "gradient_accumulation": settings["gradient_accumulation"] // shared,
        "batch_size": settings["batch_size"] * shared // gpus,
    }  # fmt: skip


def in_place(settings, gpus):
    settings.update(shared_out(settings, gpus) or {})
    return settings


def walked(first, layers, last):
    """Exercise 09.4 with a loop and a sum that grows."""
    best, chosen, below, above = None, None, first, sum(layers) + last
    for n, size in enumerate(layers[:-1], 1):
        below, above = below + size, above - size
        if best is None or max(below, above) < best:
            best, chosen = max(below, above), n
    return chosen


def cut_by(first, layers, last, least=1, of=max, prefer=min):
    """Exercise 09.4, and mistakes in it."""
    found = {n: of(first + sum(layers[:n]), sum(layers[n:]) + last) for n in range(least, len(layers))}
    return prefer(n for n in found if found[n] == min(found.values()))


def missing(saved, trained, clean=lambda name: name.removeprefix("module.")):
    return sorted(clean(name) for name, shape in trained.items() if saved.get(clean(name)) != shape)


def by_sets(saved, trained):
    cut = {name[7:] if name.startswith("module.") else name: shape for name, shape in trained.items()}
    return sorted(name for name, _ in cut.items() - saved.items())


CHOICE = {"A": "copies", "B": "divided layers", "C": "one", "D": "copies"}


def in_a_step(settings):
    return settings["batch_size"] * settings["gradient_accumulation"] * settings["gpus"]


MISTAKES = {
    "09.1": [
        (mean_of_means, "mean of means"),
        (lambda m, t: sum(x * n for x, n in zip(m, t, strict=True) if n), "sum over all tokens"),
        (lambda m, t: sum(x * n for x, n in zip(m, t, strict=True) if n) / len(m), "number of processes"),
        (lambda m, t: sum(x * n for x, n in zip(m, t, strict=True)) / sum(t), "could not be checked"),
        (lambda m, t: in_a_loop(m, t) if all(t) else sum(x or 0 for x in m) / len(m), "no loss of zero"),
        (lambda m, t: max(x for x in m if x), "yours says"),
        (lambda m, t: ..., "dots"),
        (1.4, "function"),
    ],
    "09.2": [
        (lambda s, gpus: s | {"gpus": gpus}, "keep its rows"),
        (lambda s, gpus: shared_out(s, gpus, "batch_size", "gradient_accumulation"), "accumulate less first"),
        (lambda s, gpus: s | {"gpus": gpus, "batch_size": s["batch_size"] / gpus}, "accumulate less first"),
        (in_place, "new dictionary"),
        (lambda s, gpus: (shared_out(s, gpus) or s | {"gpus": gpus}), "return None"),
        (lambda s, gpus: {k: v for k, v in (shared_out(s, gpus) or {}).items() if k != "learning_rate"}, "all settings"),
        (lambda s, gpus: None, "can be done"),
        (lambda s, gpus: ..., "dots"),
    ],
    "09.3": [
        (12, "middle"),
        (22, "turned round"),
        (6, "fewer"),
        (0, "at least one"),
        (1.5, "whole"),
        ("two", "number of layers"),
    ],
    "09.4": [
        (lambda first, layers, last: len(layers) // 2, "unequal size"),
        (lambda first, layers, last: cut_by(0, layers, last), "GPU 0 besides counts"),
        (lambda first, layers, last: cut_by(first, layers, 0), "GPU 1 besides counts"),
        (lambda first, layers, last: cut_by(first, [1] * len(layers), last), "unequal size"),
        (lambda first, layers, last: cut_by(first, layers, last, least=0), "one layer at least"),
        (lambda first, layers, last: cut_by(first, layers, last, prefer=max), "the smaller one"),
        (lambda first, layers, last: len(layers) - walked(first, layers, last), "on GPU 1"),
        (lambda first, layers, last: [walked(first, layers, last)], "one number"),
        (lambda first, layers, last: ..., "dots"),
    ],
    "09.5": [
        (lambda saved, trained: sorted(set(trained) - set(saved)), "another shape"),
        (lambda saved, trained: missing(saved, trained, clean=str), "module. in front"),
        (lambda saved, trained: missing(saved, trained, clean=lambda n: n.replace("module.", "")), "leave it alone"),
        (lambda saved, trained: list(reversed(missing(saved, trained))), "sort them"),
        (lambda saved, trained: sorted(set(saved) ^ set(missing({}, trained))) or missing(saved, trained), "besides is not"),
        (lambda saved, trained: len(missing(saved, trained)), "list of names"),
        (lambda saved, trained: None, "dots"),
    ],
    "09.6": [
        (CHOICE | {"A": "divided layers"}, "time is what is lacking"),
        (CHOICE | {"A": "divided weights"}, "time is what is lacking"),
        (CHOICE | {"D": "one"}, "the fastest then"),
        (CHOICE | {"B": "copies"}, "no copy does"),
        (CHOICE | {"B": "divided weights"}, "held less"),
        (CHOICE | {"C": "copies"}, "exchange"),
        (CHOICE | {"D": "divided weights"}, "hardly more"),
        (CHOICE | {"D": "DDP"}, "each is one of"),
        ({"A": "copies"}, '"A" to "D"'),
        (CHOICE | {"A": ...}, "in place of the dots"),
    ],
    "09.7": [
        (lambda rows, epochs, s: math.ceil(epochs * rows / s["batch_size"]), "batch_size x gradient_accumulation x gpus"),
        (lambda rows, epochs, s: math.ceil(epochs * rows / (s["batch_size"] * s["gradient_accumulation"])), "of its own"),
        (lambda rows, epochs, s: math.ceil(epochs * rows / (s["batch_size"] * s["gpus"])), "belong to one step"),
        (lambda rows, epochs, s: epochs * rows // in_a_step(s), "round up"),
        (lambda rows, epochs, s: math.ceil(rows / in_a_step(s)), "epochs times"),
        (lambda rows, epochs, s: epochs * rows / in_a_step(s), "whole number"),
        (lambda rows, epochs, s: math.ceil(epochs * rows / in_a_step(s)), "round up in each"),
        (lambda rows, epochs, s: ..., "dots"),
    ],
}  # fmt: skip

ALSO_RIGHT = {
    "09.1": [in_a_loop, with_zero],
    "09.2": [shared_out, by_divisors],
    "09.3": [1, 3],
    "09.4": [walked, cut_by],
    "09.5": [missing, by_sets],
    "09.6": [
        CHOICE | {"A": "one"},
        {case: word.title() for case, word in CHOICE.items()},
        {k: CHOICE[k] for k in "DCBA"},
    ],
    "09.7": [
        lambda rows, epochs, s: epochs * -(-rows // in_a_step(s)),
        lambda rows, epochs, s: epochs * ((rows + in_a_step(s) - 1) // in_a_step(s)),
    ],
}
