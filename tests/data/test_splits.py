"""Splits without leakage: no copy, no near copy and no group on both sides; seeded, counted, and said where it cannot be."""

import random

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.data import DataError, split_rows, splits
from helpers.data.splits import _grams, families_of, normalised

LETTERS = random.Random("letters")
WORDS = ["".join(LETTERS.choices("abcdefghijklmnoprstuvw", k=LETTERS.randint(3, 8))) for _ in range(600)]


def sentence(chance, words=14):
    return " ".join(chance.choice(WORDS) for _ in range(words))


def dataset(asked, answers=None, groups=None):
    rows = {"instruction": list(asked), "input": [""] * len(asked), "output": list(answers or asked)}
    return Dataset.from_dict(rows | ({"group": list(groups)} if groups else {}))


def both_sides(learn, held, of=normalised):
    return {of(text) for text in learn["instruction"]} & {of(text) for text in held["instruction"]}


def test_rows_that_ask_the_same_stay_on_one_side_whatever_their_case_and_spaces():
    chance = random.Random(0)
    asked = [sentence(chance) for _ in range(60)]
    asked += [text.upper().replace(" ", "  ") for text in asked[:40]]
    for seed in range(5):
        learn, held, told = split_rows(dataset(asked, [str(n) for n in range(100)]), seed)
        assert both_sides(learn, held) == set()
        assert (len(learn), len(held)) == (90, 10)
        assert told.startswith("40 copies and 0 near copies")


def test_width_and_composition_of_characters_make_no_other_question():
    wide = "".join(chr(ord(letter) + 0xFEE0) for letter in "whatisa?")  # as East Asian keyboards write Latin letters
    alike = ["whatisa?", wide, "Grüße", "Gru\u0308ße", "Grüsse", "ﬁnd it", "find it"]
    families = families_of(dataset([*alike, "another one"]))
    assert families.copies == 4
    first = families.of_row.tolist()
    assert (first[0] == first[1], first[2] == first[3] == first[4], first[5] == first[6]) == (True, True, True)


def test_plain_texts_are_copies_by_what_they_say():
    chance = random.Random(6)
    texts = [sentence(chance) for _ in range(40)]
    learn, held, told = split_rows(dataset([""] * 50, [*texts, *texts[:10]]))
    assert told.startswith("10 copies and 0 near copies")
    assert {normalised(text) for text in learn["output"]} & {normalised(text) for text in held["output"]} == set()
    assert 1 <= len(held) <= 5


def test_near_copies_of_an_input_stay_on_one_side_too():
    chance = random.Random(7)
    inputs = [sentence(chance, 30) for _ in range(40)]
    inputs += [text + " again" for text in inputs[:10]]
    rows = Dataset.from_dict({"instruction": ["Sum up."] * 50, "input": inputs, "output": [str(n) for n in range(50)]})
    families = families_of(rows)
    assert families.near >= 9
    assert families.note == ""


def test_rows_that_have_half_of_their_words_in_common_are_no_near_copies():
    chance = random.Random(10)
    begun = [sentence(chance, 10) for _ in range(40)]
    asked = [f"{text} {sentence(chance, 4)}" for text in begun for _ in range(2)]
    one, other = (set(_grams({"instruction": text, "input": "", "output": ""}).tolist()) for text in asked[:2])
    assert 0.45 < len(one & other) / len(one | other) < 0.65
    assert families_of(dataset(asked, [str(n) for n in range(80)])).near <= 2  # an estimate from 64 minima


def test_a_long_form_is_left_out_of_the_comparison_and_what_is_beside_it_is_compared():
    """The form is most of each row: with it in, all rows would be near copies, and with it out those of one message are."""
    chance = random.Random(8)
    form = "Read the following message of a customer and name the department. " + sentence(random.Random(9), 120)
    messages = [sentence(chance, 12) for _ in range(60)]
    messages += [text + " soon" for text in messages[:10]]
    families = families_of(dataset([f"{form} {message}" for message in messages], ["sales"] * 70))
    assert families.note == ""
    assert 8 <= families.near <= 10
    assert len(set(families.of_row.tolist())) == 70 - families.near


def test_twenty_rows_of_which_two_differ_are_held_out_whole():
    learn, held, _ = split_rows(dataset(["what is a?", "what is b?"] * 10, ["x", "y"] * 10))
    assert (len(learn), len(held)) == (10, 10)
    assert both_sides(learn, held) == set()


def test_near_copies_stay_on_one_side():
    chance = random.Random(1)
    asked = [sentence(chance) for _ in range(80)]
    asked += [text.replace(text.split()[3], "other", 1) for text in asked[:20]]
    rows = dataset(asked)
    families = families_of(rows)
    assert families.near >= 19  # an estimate from 64 minima may miss one
    for seed in range(5):
        learn, held, told = split_rows(rows, seed)
        family = dict(zip(asked, families.of_row.tolist(), strict=True))
        assert both_sides(learn, held, family.get) == set()
        assert f"{families.near} near copies" in told


def test_rows_of_one_form_are_no_near_copies_of_each_other():
    chance = random.Random(2)
    form = "Read the following message of a customer and answer with the name of the department that is to see to it: "
    families = families_of(dataset([form + sentence(chance, 8) for _ in range(100)], ["sales"] * 100))
    assert (families.copies, families.near, len(set(families.of_row.tolist()))) == (0, 0, 100)


def test_few_rows_of_one_form_are_still_split_and_it_is_said():
    form = "Read the following message of a customer and answer with the name of the department that is to see to it: "
    learn, held, told = split_rows(dataset([form + str(n) for n in range(8)], ["sales"] * 8))
    assert (len(learn), len(held)) == (7, 1)
    assert "only exact copies are kept together" in told


def test_the_minima_estimate_the_similarity_of_two_texts():
    one, other = ({"instruction": text, "input": "", "output": ""} for text in ("abcdefghij klm", "abcdefghij kln"))
    a, b = set(_grams(one).tolist()), set(_grams(other).tolist())
    assert (len(a), len(b), len(a & b)) == (10, 10, 9)


def test_one_instruction_with_many_inputs_asks_many_things():
    chance = random.Random(5)
    inputs = [sentence(chance) for _ in range(50)]
    rows = {"instruction": ["Translate."] * 50, "input": inputs, "output": [text.upper() for text in inputs]}
    learn, held, told = split_rows(Dataset.from_dict(rows))
    assert (len(learn), len(held), told) == (45, 5, "")


def test_a_group_stays_on_one_side():
    chance = random.Random(3)
    groups = [f"customer {n % 10}" for n in range(100)]
    learn, held, told = split_rows(dataset([sentence(chance) for _ in groups], groups=groups), by_group=True)
    assert set(learn["group"]) & set(held["group"]) == set()
    assert len(held) == 10
    assert "10 groups, each on one side" in told


@pytest.mark.parametrize(("asked", "words"), [(["a"], "at least 2"), (["a", "A "], "all 2 rows ask the same")])
def test_rows_that_cannot_be_parted_are_one_line(asked, words):
    with pytest.raises(DataError, match=words):
        split_rows(dataset(asked))
    with pytest.raises(DataError, match="belong to one group"):
        split_rows(dataset(["a", "b"], groups=["x", "x"]), by_group=True)


def test_the_seed_decides_and_nothing_else_does():
    rows = dataset([f"say {n}" for n in range(50)])
    first, again, other = (split_rows(rows, seed)[1]["instruction"] for seed in (7, 7, 8))
    assert list(first) == list(again)
    assert list(first) != list(other)


def test_beyond_a_number_of_rows_exact_copies_alone_are_found_and_it_is_said(monkeypatch):
    monkeypatch.setattr(splits, "COMPARED", 50)
    chance = random.Random(4)
    asked = [sentence(chance) for _ in range(60)]
    asked += [asked[55], asked[56] + "x"]
    learn, held, told = split_rows(dataset(asked))
    assert told.startswith("1 copies and 0 near copies")
    assert "near copies were looked for among the first 50 rows" in told
    assert both_sides(learn, held) == set()


@settings(max_examples=150, deadline=None, database=None, derandomize=True)
@given(st.lists(st.sampled_from("abcdef") | st.text(max_size=8), min_size=1, max_size=30), st.integers(0, 3))
def test_no_rows_are_lost_and_no_question_is_on_both_sides(asked, seed):
    rows = dataset(asked, [f"{n}" for n in range(len(asked))])
    try:
        learn, held, _ = split_rows(rows, seed)
    except DataError as error:
        learn, held, line = rows, rows.select([]), str(error)
        assert line  # noqa: PT017
    assert sorted([*learn["output"], *held["output"]]) == sorted(rows["output"])
    if len({normalised(text) or n for n, text in zip(rows["output"], asked, strict=True)}) > 1:
        assert len(held) >= 1
    assert both_sides(learn, held, lambda text: normalised(text) or None) <= {None}


@pytest.mark.parametrize("wanted", [1, 7, 30, 60])
def test_as_many_rows_are_held_out_as_are_asked_for_and_families_stay_whole(wanted):
    chance = random.Random(0)
    rows = dataset([sentence(chance) for _ in range(100)], groups=[str(n // 3) for n in range(100)])
    alone = split_rows(rows, held_out=wanted)
    assert (len(alone[0]), len(alone[1])) == (100 - wanted, wanted)
    learn, held, _ = split_rows(rows, by_group=True, held_out=wanted)
    assert max(1, wanted - 2) <= len(held) <= max(3, wanted)
    assert not set(learn["group"]) & set(held["group"])
