"""Splits without leakage: rows that ask the same, nearly the same, or belong to one group stay on one side.

Near copies are found by MinHash (Broder 1997, On the resemblance and containment of documents): the share of equal
minima of two rows estimates the Jaccard similarity of their 5-grams of characters. Candidates come from bands of the
minima (Leskovec et al., Mining of Massive Datasets, section 3.4). What many rows share, such as the words of a form,
is left out of the comparison: else all rows of one form would be near copies of each other.
"""

import hashlib
import unicodedata
from dataclasses import dataclass
from typing import Any

from helpers.data.readers import DataError

NEAR = 0.7  # Jaccard similarity of near copies
MINIMA, BANDS = 64, 16
COMPARED = 200_000  # rows whose minima are kept: 51 MB. Of rows beyond them, exact copies alone are found
LETTERS = 4000  # of a row that are compared
SAMPLE, COMMON = 2000, 10  # a 5-gram in more than COMMON, and in more than 1%, of the sampled rows is form
FEWEST = 5  # 5-grams that a row needs beyond the form to be compared


def normalised(text: str) -> str:
    """A text without what does not make it another one: case, width of characters, white space."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


@dataclass
class Families:
    """Which family each row belongs to, and why: rows of one family stay on one side."""

    of_row: Any  # an array of family numbers
    copies: int  # rows that ask what an earlier row asks
    near: int  # rows that are near copies of a row that asks something else
    note: str = ""


def families_of(rows, by_group: bool = False) -> Families:
    """The families of rows with instruction, input and output; `by_group`: their column "group" says them as well.

    Kept in memory are 24 bytes a row, and the minima of the first 200,000 rows.
    """
    import numpy

    keys: Any = numpy.zeros(len(rows), "u8")
    groups: Any = numpy.zeros(len(rows) if by_group else 0, "u8")
    for i, row in enumerate(_each(rows)):
        keys[i] = _number(normalised(row["instruction"] + "\n" + row["input"]) or normalised(row["output"]))
        if by_group:
            groups[i] = _number(row["group"])
    parents = numpy.arange(len(rows))
    _join_equal(parents, keys)
    copies = len(rows) - len(numpy.unique(keys))
    exact = parents.copy()
    copied: Any = numpy.zeros(len(rows), bool)
    note = ""
    for earlier, later in _near_pairs(rows, exact):
        _join(parents, earlier, later)
        copied[later] = True
    near = int(copied.sum())
    if near and len(_parts(_roots(parents), numpy.random.default_rng(0))[1]) < 0.05 * len(rows):
        parents, near = exact, 0
        note = "most rows are near copies of one another, as of one form: only exact copies are kept together"
    if len(rows) > COMPARED:
        note = f"near copies were looked for among the first {COMPARED:,} rows" + (f"; {note}" if note else "")
    if by_group:
        _join_equal(parents, groups)
    return Families(_roots(parents), copies, near, note)


def split_rows(rows, seed: int = 0, by_group: bool = False, held_out: int | None = None):
    """(rows to learn, rows held out, in words how they were parted); no family on both sides.

    `held_out` is how many rows are held out at the most, None one in ten; at least one family is. Raises DataError, one
    line, where all rows belong together.
    """
    import numpy

    if len(rows) < 2:
        raise DataError("1 row to use: at least 2 are needed, one to learn and one held out")
    families = families_of(rows, by_group)
    learn, held = _parts(families.of_row, numpy.random.default_rng(seed), held_out)
    if not len(held):
        alike = "belong to one group" if by_group else "ask the same"
        raise DataError(f"all {len(rows):,} rows {alike}: none can be held out that was not learned")
    told = [f"{families.copies:,} copies and {families.near:,} near copies of other rows stay on their side"]
    told = told if families.copies or families.near else []
    if by_group:
        told.append(f"{len(numpy.unique(families.of_row)):,} groups, each on one side")
    return rows.select(learn), rows.select(held), "; ".join([*told, *filter(None, [families.note])])


def _parts(of_row, chance, most: int | None = None):
    """(places to learn, places held out), shuffled: whole families are held out, as many as make `most`, or one in ten."""
    import numpy

    _, family, sizes = numpy.unique(of_row, return_inverse=True, return_counts=True)
    wanted, taken = most or -(-len(of_row) // 10), 0
    held: Any = numpy.zeros(len(sizes), bool)
    for chosen in chance.permutation(len(sizes)):
        if taken + sizes[chosen] <= wanted:
            held[chosen], taken = True, taken + sizes[chosen]
        if taken == wanted:
            break
    if not taken and len(sizes) > 1:
        held[numpy.argmin(sizes)] = True
    order = chance.permutation(len(of_row))
    return order[~held[family[order]]], order[held[family[order]]]


def _each(rows):
    for start in range(0, len(rows), 1000):
        batch = rows[start : start + 1000]
        for values in zip(*batch.values(), strict=True):
            yield dict(zip(batch, values, strict=True))


def _number(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "little")


def _root(parents, i: int) -> int:
    while parents[i] != i:
        parents[i] = i = parents[parents[i]]
    return i


def _join(parents, a: int, b: int) -> None:
    a, b = _root(parents, a), _root(parents, b)
    parents[max(a, b)] = min(a, b)


def _join_equal(parents, keys) -> None:
    """Join the rows whose keys are equal."""
    import numpy

    order = numpy.argsort(keys, kind="stable")
    for at in numpy.flatnonzero(keys[order][1:] == keys[order][:-1]):
        _join(parents, int(order[at]), int(order[at + 1]))


def _roots(parents):
    import numpy

    return numpy.fromiter((_root(parents, i) for i in range(len(parents))), "i8", len(parents))


def _grams(row: dict):
    """The different 5-grams of a row's characters, as numbers."""
    import numpy

    text = normalised("\n".join((row["instruction"], row["input"], row["output"])))[:LETTERS]
    letters = numpy.frombuffer(text.encode("utf-32-le", "replace"), "u4").astype("u8")
    if len(letters) < 5:
        return numpy.zeros(0, "u8")
    mixed: Any = numpy.zeros(len(letters) - 4, "u8")
    for k in range(5):
        mixed = mixed * numpy.uint64(0x9E3779B97F4A7C15) + letters[k : len(letters) - 4 + k]
    mixed = (mixed ^ (mixed >> numpy.uint64(31))) * numpy.uint64(0xBF58476D1CE4E5B9)
    return numpy.unique(mixed ^ (mixed >> numpy.uint64(29)))


def _form(rows, exact):
    """The 5-grams that many rows have, in a sample of the rows that are no copies."""
    import numpy

    firsts = numpy.flatnonzero(exact[:COMPARED] == numpy.arange(min(len(exact), COMPARED)))
    sample = numpy.random.default_rng(0).permutation(firsts)[:SAMPLE]
    grams = [_grams(row) for row in _each(rows.select(numpy.sort(sample)))]
    found, counts = numpy.unique(numpy.concatenate(grams), return_counts=True)
    return found[counts > max(COMMON, 0.01 * len(sample))]


def _near_pairs(rows, exact):
    """(row, later row) of near copies, among rows that are no exact copies."""
    import numpy

    count, form = min(len(rows), COMPARED), _form(rows, exact)
    chance = numpy.random.default_rng(1)
    factors = chance.integers(2**63, size=(MINIMA, 1), dtype="u8") * numpy.uint64(2) + numpy.uint64(1)
    minima, used = numpy.zeros((count, MINIMA), "u4"), numpy.zeros(count, bool)
    for i, row in enumerate(_each(rows.select(range(count)))):
        if exact[i] == i:
            grams = _grams(row)
            if len(form):
                grams = grams[form[numpy.minimum(numpy.searchsorted(form, grams), len(form) - 1)] != grams]
            used[i] = len(grams) >= FEWEST
            if used[i]:
                minima[i] = ((factors * grams) >> numpy.uint64(32)).min(1)
    places = numpy.flatnonzero(used)
    for band in numpy.split(minima[places], BANDS, axis=1):
        numbers = (band.astype("u8") * chance.integers(2**63, size=MINIMA // BANDS, dtype="u8")).sum(1)
        order = numpy.argsort(numbers, kind="stable")  # equal numbers keep the order of the rows
        first, before = 0, -1
        for at in numpy.flatnonzero(numbers[order][1:] == numbers[order][:-1]):
            first, before = (first if at == before + 1 else at), at
            for other in {first, at}:  # the first with this number, and the one before
                a, b = places[order[other]], places[order[at + 1]]
                if (minima[a] == minima[b]).mean() >= NEAR:
                    yield int(a), int(b)
