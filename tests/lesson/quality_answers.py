"""Right and wrong answers to the exercises of lesson 08, for tests/lesson/test_checks.py."""

import math
import statistics

import numpy


def drawn(first, second, groups, draws=2000, seeds=True, rows="groups", pairs=True, ends=(0.025, 0.975), begun=3):
    """Exercise 08.1, as it is and with mistakes."""
    chance, means = numpy.random.default_rng(begun), []
    places = [numpy.flatnonzero(groups == one) for one in numpy.unique(groups)]

    def one_mean(values):
        some = chance.integers(len(values), size=len(values)) if seeds else slice(None)
        if rows == "groups":
            at = numpy.concatenate([places[i] for i in chance.integers(len(places), size=len(places))])
        else:
            at = chance.integers(len(groups), size=len(groups)) if rows == "single" else numpy.arange(len(groups))
        return values[some][:, at].mean()

    for _ in range(draws):
        means.append(one_mean(first - second) if pairs else one_mean(first) - one_mean(second))
    return tuple(numpy.quantile(means, ends))


def with_sums(first, second, groups, draws=2000):
    """Exercise 08.1 with weights in place of loops."""
    from helpers.evaluation import interval_of_mean

    return list(interval_of_mean(first - second, groups, draws)[1:])


def by_position(a, b):
    return [x - y for x, y in zip(a.values(), b.values(), strict=False)]


def missing_as_zero(a, b):
    return [a.get(seed, 0) - b.get(seed, 0) for seed in sorted({*a, *b})]


def squared(spread, margin, z=1.96, sides=1):
    return (sides * z * spread / margin) ** 2


def counted_up(spread, margin):
    """Exercise 08.4 with a loop."""
    seeds = 2
    while 1.96 * spread / seeds**0.5 >= margin - 1e-12:
        seeds += 1
    return seeds


def chosen(tries, of=lambda losses: sum(losses) / len(losses), best=min):
    """Exercise 08.7, by a rule of one's own."""
    losses = {}
    for one in tries:
        losses[one["rate"]] = [*losses.get(one["rate"], []), one["loss"]]
    rate = best(losses, key=lambda one: of(losses[one]))
    return rate, rate in (min(losses), max(losses))


def with_pandas(tries):
    import pandas

    means = pandas.DataFrame(tries).groupby("rate").loss.mean()
    return [means.idxmin(), means.idxmin() in (means.index[0], means.index[-1])]


def terms(p, q, log=numpy.log):
    with numpy.errstate(divide="ignore", invalid="ignore"):
        return numpy.nan_to_num(p * log(p / q))


def from_torch(p, q):
    import torch

    return torch.nn.functional.kl_div(torch.tensor(q).log(), torch.tensor(p), reduction="batchmean")


RIGHT_ROWS = {"A": "QLoRA", "B": "full", "C": "more seeds", "D": "LoRA"}

MISTAKES = {
    "08.1": [
        (lambda f, s, g: ..., "dots"),
        (lambda f, s, g: drawn(f, s, g, pairs=False), "keep pairs together"),
        (lambda f, s, g: drawn(f, s, g, seeds=False), "draw the seeds too"),
        (lambda f, s, g: drawn(f, s, g, rows="single"), "draw whole groups"),
        (lambda f, s, g: drawn(f, s, g, rows="none"), "draw whole groups"),
        (lambda f, s, g: drawn(s, f, g), "turned round"),
        (lambda f, s, g: drawn(f, s, g)[::-1], "low comes first"),
        (lambda f, s, g: drawn(f, s, g, ends=(0.05, 0.95)), "95% leaves"),
        (lambda f, s, g: ((f - s).mean(), *drawn(f, s, g)), "two numbers"),
        (0.5, "function"),
    ],
    "08.2": [
        (lambda a, b: sum(a.values()) / len(a) - sum(b.values()) / len(b), "not their mean"),
        (by_position, "leave it out"),
        (missing_as_zero, "leave it out"),
        (lambda a, b: [b[seed] - a[seed] for seed in sorted(a.keys() & b.keys())], "a minus b"),
        (lambda a, b: [a[seed] - b[seed] for seed in a if seed in b], "right"),
    ],
    "08.3": [
        (RIGHT_ROWS | {"A": "LoRA"}, "only 4 bits"),
        (RIGHT_ROWS | {"B": "LoRA"}, "six points"),
        (RIGHT_ROWS | {"C": "LoRA"}, "loss of seven"),
        (RIGHT_ROWS | {"D": "full"}, "hundred customers"),
        (RIGHT_ROWS | {"D": "DoRA"}, "one of"),
        ("QLoRA", "dictionary"),
    ],
    "08.4": [
        (lambda spread, margin: squared(spread, margin), "rounded up"),
        (lambda spread, margin: math.floor(squared(spread, margin)), "one more"),
        (lambda spread, margin: math.floor(squared(spread, margin) + 1e-9) + 1, "two seeds are the least"),
        (lambda spread, margin: max(2, math.ceil(1.96 * spread / margin)), "root"),
        (lambda spread, margin: max(2, math.floor(squared(spread, margin, z=1)) + 1), "1.96"),
        (lambda spread, margin: max(2, math.floor(squared(spread, margin, sides=2)) + 1), "both sides"),
    ],
    "08.5": [(16, "LoRA is behind"), (-90, "not so far"), (-14, "farther"), (-0.48, "not as a share"), ("less", "number")],
    "08.6": [
        ("ABDE", "A names"),
        ("BCDE", "C: its"),
        ("BDEF", "F says"),
        ("DE", "one more at least. B"),
        ("BE", "one more at least. D"),
        ("BD", "one more at least. E"),
        ("BDG", "letters"),
    ],
    "08.7": [
        (lambda tries: min(tries, key=lambda one: one["loss"])["rate"], "two things"),
        (lambda tries: chosen(tries, best=max), "less is better"),
        (lambda tries: chosen(tries, of=min), "one lucky run"),
        (lambda tries: chosen(tries, of=max), "neither the worst"),
        (lambda tries: chosen(tries, of=statistics.median), "neither the worst"),
        (lambda tries: chosen(tries, of=sum), "not the sum"),
        (lambda tries: (chosen(tries)[0], False), "at_the_edge is True"),
        (lambda tries: (chosen(tries)[0], chosen(tries)[0] == max(one["rate"] for one in tries)), "smallest rate"),
    ],
    "08.8": [
        (lambda p, q: terms(p, q).mean(), "mean over the vocabulary"),
        (lambda p, q: terms(p, q).sum(), "sum over the tokens"),
        (lambda p, q: terms(p, q, numpy.log2).sum(1).mean(), "bits"),
        (lambda p, q: terms(q, numpy.maximum(p, 1e-12)).sum(1).mean(), "p and q are turned"),
        (lambda p, q: -terms(p, q).sum(1).mean(), "the sign"),
        (lambda p, q: abs(terms(p, q)).sum(1).mean(), "leave the signs"),
        (lambda p, q: abs(p - q).sum(1).mean(), "sum of the differences"),
        (lambda p, q: numpy.array(float("nan")), "not a number"),
    ],
}  # fmt: skip

ALSO_RIGHT = {
    "08.1": [
        with_sums,
        lambda f, s, g: with_sums(f, s, g, draws=1000),
        *(lambda f, s, g, begun=begun: drawn(f, s, g, begun=begun) for begun in range(8)),
    ],
    "08.2": [
        lambda a, b: numpy.array([a[seed] - b[seed] for seed in sorted(set(a) & set(b))]),
        lambda a, b: [value - b[seed] for seed, value in sorted(a.items()) if seed in b],
    ],
    "08.3": [dict(reversed(RIGHT_ROWS.items())), {team: f" {word.upper()} " for team, word in RIGHT_ROWS.items()}],
    "08.4": [counted_up, lambda spread, margin: numpy.int64(counted_up(spread, margin))],
    "08.5": [-40, numpy.float64(-60.0)],
    "08.6": ["b, d, e", ["E", "D", "B"]],
    "08.7": [chosen, with_pandas],
    "08.8": [lambda p, q: terms(p, q).sum(axis=1).mean(), from_torch],
}
