"""How far a mean over several runs and many scored rows could be off."""


def interval_of_mean(values, groups, draws: int = 10_000, confidence: float = 0.95) -> tuple[float, float, float]:
    """(mean, low, high) of what several runs scored on the same rows, or of the difference of two such scores.

    `values`: array of shape (seeds, rows). `groups`: of shape (rows,), equal where rows are about one thing and so are not
    independent of each other. Drawn anew, with replacement, are seeds and groups, both at once, `draws` times; the interval
    holds the middle of the means of these draws (the pigeonhole bootstrap: Owen 2007, Annals of Applied Statistics 1,
    386-411). It is too narrow for fewer than some ten seeds: where the seeds make up all of the spread, it held the true
    mean in 85% of made-up experiments with five, and in 89% with eight. It is too wide where chance in single answers makes
    up most of the spread, for it takes in nearly three times the variance of that. Give the differences of two runs of one
    seed, row by row, and it is paired. It says how far other seeds and other rows of this kind could move the mean, and
    nothing of another task, model or setting.
    ValueError if the shapes do not fit, or nothing is there.
    """
    import numpy

    values, groups = numpy.asarray(values, dtype=float), numpy.asarray(groups)
    if values.ndim != 2 or groups.shape != values.shape[1:] or not values.size:
        raise ValueError(f"values of shape (seeds, rows) and a group for each row are asked for, not {values.shape}")
    place = numpy.unique(groups, return_inverse=True)[1]
    sizes = numpy.bincount(place)
    sums = numpy.stack([numpy.bincount(place, weights=of_seed) for of_seed in values])
    seeds, chance, tail = len(values), numpy.random.default_rng(0), (1 - confidence) / 2
    drawn_seeds = chance.multinomial(seeds, [1 / seeds] * seeds, draws)
    drawn_groups = chance.multinomial(len(sizes), [1 / len(sizes)] * len(sizes), draws)
    means = ((drawn_seeds @ sums) * drawn_groups).sum(1) / (seeds * (drawn_groups @ sizes))
    low, high = numpy.quantile(means, (tail, 1 - tail))
    return float(values.mean()), float(low), float(high)
