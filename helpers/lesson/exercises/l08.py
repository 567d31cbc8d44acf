"""Checks of the exercises of lesson 08."""

from helpers.lesson.checks import exercise


def _compared(case: str) -> tuple:
    """(first, second, groups) of made-up runs: six seeds, 96 questions in twelve groups of eight.

    The means go by small steps. Where they can be sixths alone, the ends of a right answer may jump by a sixth.
    """
    import numpy

    groups: numpy.ndarray = numpy.repeat(numpy.arange(12), 8)
    if case == "by seed":  # each seed has a share of its own right, the same in every group
        right = numpy.array([8, 7, 5, 3, 2, 0])
        return numpy.tile(numpy.arange(8) < right[:, None], 12).astype(float), numpy.zeros((6, 96)), groups
    if case == "by group":  # each group is right as a whole in so many of the six seeds, or wrong
        right = numpy.array([6, 6, 5, 0, 1, 0, 6, 2, 0, 0, 4, 0])
        whole = (numpy.arange(6)[:, None] + numpy.arange(12)) % 6 < right
        return numpy.repeat(whole, 8, axis=1).astype(float), numpy.zeros((6, 96)), groups
    noise = numpy.random.default_rng(7).random((6, 96)) < 0.5
    return noise.astype(float), noise.astype(float), groups  # "alike": the same answers in both


@exercise("08.1", takes="first, second and groups")
def paired_interval(answer):
    import numpy

    from helpers.evaluation import interval_of_mean

    hints = {
        "alike": "two methods with the same answers differ by nothing: draw their differences, and keep pairs together",
        "by seed": "where only the seeds differ, the interval must be as wide as they say: draw the seeds too",
        "by group": "where groups of questions are right or wrong as a whole, draw whole groups, and not single questions",
    }  # fmt: skip
    for case, hint in hints.items():
        first, second, groups = _compared(case)
        given = answer(first.copy(), second.copy(), groups.copy())
        if given is ... or given is None:
            return "put your answer in place of the dots"
        ends = [float(end) for end in given]
        if len(ends) != 2:
            return f"two numbers are asked for, low and high, and yours gives {len(ends)}"
        right = interval_of_mean(first - second, groups)[1:]
        if ends[0] > ends[1]:
            return "low comes first"
        if numpy.allclose(ends, [-right[1], -right[0]], atol=0.08) and case != "alike":
            return "the sign is turned round: first minus second"
        if not numpy.allclose(ends, right, atol=0.02 if case == "alike" else 0.08):
            return hint
    if ends[1] - ends[0] < 0.9 * (right[1] - right[0]):  # the middle 90% is 0.84 times as wide
        return "that is the middle 90%: 95% leaves 2.5% on each side"
    return None


@exercise("08.2", takes="two dictionaries")
def differences(answer):
    cases = [
        ({0: 0.5, 1: 0.25, 2: 0.75}, {0: 0.25, 1: 0.25, 2: 0.25}, [0.25, 0.0, 0.5], "three seeds in both"),
        ({0: 0.5, 1: 0.25, 2: 0.75}, {0: 0.5, 2: 0.25}, [0.0, 0.5], "seed 1 is missing in b: leave it out of both"),
        ({0: 0.5}, {0: 0.25, 4: 0.75}, [0.25], "seed 4 is missing in a: leave it out of both"),
        ({2: 0.5, 1: 0.25}, {1: 0.5, 2: 0.0}, [-0.25, 0.5], "the seeds stand in another order: go by the seed"),
        ({10: 1.0, 9: 0.5}, {9: 0.25, 10: 0.25}, [0.25, 0.75], "the order is that of the seeds, 9 before 10"),
    ]  # fmt: skip
    for a, b, right, about in cases:
        given = answer(dict(a), dict(b))
        if given is ... or given is None:
            return "put your answer in place of the dots"
        if isinstance(given, int | float):
            return "a list of differences is asked for, one for each seed that both have, and not their mean"
        given = [float(one) for one in given]
        if given == [-one for one in right] != right:
            return "the sign is turned round: a minus b"
        if given != right:
            return f"{about}: {right} is right, and yours says {given}"
    return None


@exercise("08.3")
def what_to_do(answer):
    right = {"A": "qlora", "B": "full", "C": "more seeds", "D": "lora"}
    if not isinstance(answer, dict) or set(answer) != set(right):
        return 'a dictionary with "A" to "D" is asked for'
    if ... in answer.values():
        return "put your answers in place of the dots"
    said = {team: str(word).strip().lower() for team, word in answer.items()}
    if any(word not in right.values() for word in said.values()):
        return 'each is one of "QLoRA", "LoRA", "full" and "more seeds"'
    hints = {
        "A": "A: the whole interval lies within two points, and only 4 bits fit their card",
        "B": "B: even the end of the interval that is nearest to zero is six points, and they can afford it",
        "C": "C: the interval allows a loss of seven points and a gain of three: that tells neither from the other",
        "D": "D: the whole interval lies within two points, so take what a hundred customers can share: one base",
    }  # fmt: skip
    return next((hints[team] for team, word in said.items() if word != right[team]), None)


@exercise("08.4", takes="spread and margin")
def seeds_needed(answer):
    import math

    for spread, margin in ((4.0, 2.0), (1.0, 2.0), (5.0, 1.0), (1.96, 1.96**2), (3.0, 1.96)):
        exact = (1.96 * spread / margin) ** 2
        right = max(2, math.floor(exact + 1e-9) + 1)
        given = answer(spread, margin)
        if given is ... or given is None:
            return "put your answer in place of the dots"
        if given == right:
            if float(given) != int(given):
                return "a whole number is asked for"
            continue
        where = f"spread {spread:g}, margin {margin:g}: "
        if abs(given - exact) < 1e-6 and given != round(given):
            return "a whole number of seeds is asked for, rounded up"
        if given == math.floor(exact):
            return where + f"{given:g} seeds reach to the margin or beyond: one more"
        if given < 2:
            return where + "two seeds are the least, for one run has no spread to see"
        if given in (math.ceil(1.96 * spread / margin), max(2, math.ceil(1.96 * spread / margin))):
            return where + "the root stands below: square what you have"
        if given == max(2, math.floor((spread / margin) ** 2) + 1):
            return where + "1.96 is missing"
        if given == max(2, math.floor((3.92 * spread / margin) ** 2) + 1):
            return where + "the margin lies on both sides of zero, so half of the interval counts, and not all of it"
        return where + f"{right} is right, and yours says {given:g}"
    return None


@exercise("08.5")
def at_one_rate(answer):
    import math
    import numbers

    from helpers.evaluation import interval_of_mean
    from helpers.records import measured_arms

    if isinstance(answer, bool) or not isinstance(answer, numbers.Real) or not math.isfinite(answer):
        return "a number of points is asked for, negative if LoRA is behind"
    came = 100 * interval_of_mean(*measured_arms().apart("messages", "lora", "full", tried_at=3e-4))[0]
    if abs(answer - came) <= 15:
        print(f"measured: {came:+.0f} points")
        return None
    if abs(answer) < 1:
        return "in points out of a hundred, not as a share; and look at the table of section 5"
    if answer > 0:
        return "0.0003 is the best of full fine-tuning's rates on messages, and a tenth of LoRA's: LoRA is behind"
    return (
        "not so far behind: full fine-tuning itself answers little more than half of the messages right" if answer < came
        else "farther behind: section 5 has the points at the rate that each chose, and LoRA chose one ten times as large"
    )  # fmt: skip


@exercise("08.6")
def too_strong(answer):
    given = {letter for letter in str(answer).upper() if letter.isalpha()}
    if not isinstance(answer, str | list | tuple | set) or not given or given - set("ABCDEF"):
        return 'the letters are asked for, as a text such as "AB"'
    fine = {
        "A": "A names the model, the facts and the rate, and the interval begins beyond 20 points: it says what was measured",
        "C": "C: its interval lies within two points as a whole",
        "F": "F says no more than that the interval holds zero and is wide",
    }
    strong = {
        "B": "B: an interval that holds zero is not enough. Is it within the margin as a whole?",
        "D": "D: how many models were there, and how many roundings of it?",
        "E": "E: look at how DoRA's learning rate was chosen (section 7)",
    }
    for letter, hint in fine.items():
        if letter in given:
            return hint
    missing = [hint for letter, hint in strong.items() if letter not in given]
    return f"one more at least. {missing[0]}" if missing else None


@exercise("08.7", takes="a list of tries")
def choose(answer):
    def tries(**losses):
        return [
            {"rate": float(rate.replace("_", ".").lstrip("r")), "seed": seed, "loss": loss, "heldout_score": loss}
            for rate, many in losses.items()
            for seed, loss in enumerate(many)
        ]

    cases = [
        (tries(r0_001=[0.9], r0_003=[0.4], r0_01=[0.8]), (0.003, False), "the least loss lies in the middle"),
        (tries(r0_001=[0.9], r0_003=[0.8], r0_01=[0.4]), (0.01, True), "the least loss lies at the largest rate"),
        (tries(r0_001=[0.3], r0_003=[0.8], r0_01=[0.4]), (0.001, True), "the least loss lies at the smallest rate"),
        (tries(r0_001=[0.5, 0.5], r0_003=[0.1, 1.4], r0_0001=[0.9, 0.9]), (0.001, False),
         "one lucky run is not enough: take the mean over the seeds of a rate"),
        (tries(r0_01=[0.2, 0.2], r0_003=[0.3], r0_001=[0.9]), (0.01, True), "a seed may be missing: the mean, not the sum"),
        (tries(r0_001=[0.5, 0.5, 0.5], r0_003=[0.1, 0.6, 0.6], r0_01=[0.9]), (0.003, False),
         "neither the worst nor the middle seed of a rate decides: take the mean"),
    ]  # fmt: skip
    for given_tries, right, about in cases:
        given = answer([dict(one) for one in given_tries])
        if given is ... or given is None:
            return "put your answer in place of the dots"
        if isinstance(given, int | float):
            return "two things are asked for: (rate, at_the_edge)"
        rate, edge = given
        if rate != right[0]:
            if about.startswith("the least") and rate == max(given_tries, key=lambda one: one["loss"])["rate"]:
                return "that is the largest loss: less is better"
            return f"{about}: the rate {right[0]:g} is right, and yours says {rate:g}"
        if bool(edge) is not right[1]:
            return f"{about}: at_the_edge is {right[1]}, and yours says {edge}"
    return None


@exercise("08.8", takes="p and q")
def distance(answer):
    import numpy

    p = numpy.array([[0.5, 0.25, 0.25], [0.8, 0.1, 0.1], [1.0, 0.0, 0.0], [0.2, 0.3, 0.5]])
    q = numpy.array([[0.25, 0.5, 0.25], [0.6, 0.3, 0.1], [0.7, 0.2, 0.1], [0.2, 0.3, 0.5]])
    some = p > 0
    terms = numpy.where(some, p * numpy.log(numpy.where(some, p, 1) / q), 0)
    right = terms.sum(1).mean()
    given = answer(p.copy(), q.copy())
    if given is ... or given is None:
        return "put your answer in place of the dots"
    given = float(given)
    if given != given:
        return "it is not a number: where p is zero, the term is zero"
    if abs(given - right) < 1e-6:
        return None
    back = q * numpy.log(q / numpy.where(some, p, 1e-12))
    hints = {
        terms.mean(): "that is the mean over the vocabulary as well: sum over it, and take the mean over the tokens",
        terms.sum(): "that is the sum over the tokens: take their mean",
        right / numpy.log(2): "that is in bits: take the natural logarithm",
        -right: "the sign is turned round: ln(p / q), not ln(q / p)",
        back.sum(1).mean(): "p and q are turned round: what counts is how often p says a token",
        numpy.abs(terms).sum(1).mean(): "a term may be negative: leave the signs",
        numpy.abs(p - q).sum(1).mean(): "that is the sum of the differences: the logarithm of the ratio is asked for",
    }
    close = next((hint for value, hint in hints.items() if abs(given - value) < 1e-3 * abs(value)), None)
    return close or "for each token the sum of p ln(p / q), and then the mean over the tokens"
