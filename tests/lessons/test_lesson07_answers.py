"""Lesson 07: answers in sentences go through it to the end, and the numbers that its text states are those of its files."""

import csv
import json
import math

import pandas
import pytest

from helpers.course import disk as course
from helpers.evaluation import fields_right
from helpers.lesson.exercises.l07 import LENGTHS
from tests.cells import tagged
from tests.lessons.test_lesson07 import MESSAGES, NOTEBOOK, frame, measured, read_table, run_lesson

TEXT = course.find_lesson("07").read_text(encoding="utf-8").replace("\n# ", " ")


# --- answers in sentences ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def help_desk(tmp_path_factory):
    """A file of forty questions whose answers are sentences, three of them with the same beginning."""
    file = tmp_path_factory.mktemp("own") / "help desk.csv"
    things = ("lamp", "saddle", "helmet", "pump", "lock", "pannier", "chain", "tyre", "bell", "basket")
    asked = {
        "Can I return the {}?": "You can return it within 30 days. Bring the {} and the receipt.",
        "How long does it take to repair a {}?": "Most repairs take a day. A part for the {} may take a week.",
        "My {} arrived damaged, what now?": "We are sorry. Send us a picture of the {}, and you get another one.",
        "Do you send a {} to the islands?": "Yes, twice a week. Order your {} before Tuesday noon.",
    }
    rows = [[one.format(thing) for one in pair] for pair in asked.items() for thing in things]
    with file.open("w", encoding="utf-8-sig", newline="") as out:
        csv.writer(out).writerows([["Question", "Answer"], *rows])
    return file


def test_answers_in_sentences_go_to_the_end_and_leave_a_sheet_to_mark(help_desk, tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_STRICT", "1")
    lines = ['ASKED = "Question"', 'FIELDS = {"answer": "Answer"}', 'TASK = "Answer as our help desk does."']
    told, record = run_lesson(tmp_path, lines, data_file=str(help_desk), max_new_tokens=24)
    assert "20 of 16 rows" in told, "few rows: two epochs would be four steps"
    assert "the same word for word" in told
    assert (record["rows_learned"], record["rows_scored"]) == (27, 13)
    assert record["heldout_loss_after"] < record["heldout_loss_before"]

    sheet, key = (read_table(tmp_path / "run" / f"{name}.csv") for name in ("sheet", "key"))
    assert list(sheet) == ["row", "asked", "answer", "facts right?", "tone right?", "would I send it?"]
    assert sheet.asked.value_counts().tolist() == [2] * 13
    assert sheet.asked.tolist()[::2] == sheet.asked.tolist()[1::2], "both answers to a question stand together"
    assert 0 < (key.by[::2] == "you").sum() < 13, "now one stands first, now the other"
    own = dict(read_table(help_desk).itertuples(index=False))
    assert all(own[row.asked] == row.answer for row, by in zip(sheet.itertuples(), key.by, strict=True) if by == "you")


def test_a_file_of_one_word_answers_gets_no_sheet():
    source = tagged(NOTEBOOK, "choose-rows").source
    line = next(line for line in source.splitlines() if line.startswith("SENTENCES"))
    for answer, expected in (("Yes, it is open today.", True), ("billing", False), ("second hand bikes", False)):
        names: dict = {"pandas": pandas, "form": (0, {"answer": 0}), "write": lambda note: note}
        names["train_rows"] = [{"note": answer}] * 3
        exec(line, names)
        assert names["SENTENCES"] == expected


def test_of_400_rows_60_are_held_out_as_the_text_says():
    source = tagged(NOTEBOOK, "split").source
    line = next(line.strip() for line in source.splitlines() if line.strip().startswith("HELD ="))
    names: dict = {"usable": range(400)}
    exec(line, names)
    assert names["HELD"] == 60
    assert "of 400 rows, 60 are held out and 340 are left to learn" in TEXT


# --- numbers in the text ---------------------------------------------------------------------------------------------


def test_the_wrong_places_by_hand_are_as_the_lesson_counts_them():
    (row,) = measured("result", "by hand")
    by_hand = frame("by_hand")
    said = [json.loads(answer).get("place") for answer in row["answers"]]
    wrong = [i for i, found in enumerate(said) if (found or "") != by_hand.Place[i]]
    assert (len(wrong), sum(said[i] is None for i in wrong)) == (25, 21)
    assert "messages by hand 25 have a wrong place. In 21 of these the model wrote `null`" in TEXT
    assert all(said[i].casefold() in by_hand.Message[i].casefold() for i in wrong if said[i]), "it never invents one"


def test_what_counts_for_a_town_is_the_form_and_not_whether_it_was_learned():
    names: dict = {
        "read_table": read_table,
        "ours": MESSAGES,
        "fields_right": fields_right,
        "table": lambda *a, **b: a[0],
    }
    names["result"] = pandas.DataFrame(measured("result"))
    exec(tagged(NOTEBOOK, "towns").source, names)
    right = {name: (int(heap.sum()), int(names["towns"].right[heap].sum())) for name, heap in names["heaps"].items()}
    assert right == {
        "stands in training": (17, 8), "new": (25, 10), "follows a word": (25, 17), "by itself": (17, 1)
    }  # fmt: skip
    assert "of the towns by themselves the model finds one in seventeen" in TEXT
    assert names["in_training"].led.all()
    held = names["with_town"]("heldout")
    assert held.led.all()
    assert not held.Place.isin(names["in_training"].Place).any()
    (row,) = measured("result", "held out, after")
    assert row["fields"]["place"] == 0.95
    assert "95% of the places are right" in TEXT


def test_the_curve_clearly_climbs_up_to_960_rows_and_not_clearly_beyond():
    at = {row["learned"]: row for row in measured("curve")}

    def errors(few, many):
        one, two = at[few]["right"], at[many]["right"]
        return (two - one) / math.sqrt((one * (1 - one) + two * (1 - two)) / at[few]["rows"])

    assert errors(200, 400) > 2
    assert errors(400, 960) > 2
    assert errors(960, 3840) < 1
    seen = {learned: row["steps"] * row["batch"] / learned for learned, row in at.items()}
    assert (round(seen[50]), seen[3840]) == (77, 1)
    assert "77 times with 50 rows, once with all" in TEXT


def test_sixty_steps_of_the_recipe_for_large_models_are_a_quarter_of_a_pass():
    from helpers.models import RECIPES

    recipe = RECIPES["other"]
    rows = recipe["max_steps"] * recipe["batch_size"] * recipe["gradient_accumulation"]
    assert rows / len(frame("messages")) == 0.25
    assert "60 steps of 16 rows, which is a quarter of one pass over the messages" in TEXT


def test_of_exercise_6_every_length_from_220_to_512_passes():
    shares = {limit: sum(n > limit for n in LENGTHS) / len(LENGTHS) for limit in (219, 220, 256, 512)}
    assert shares[219] > 0.01 >= shares[220]
    assert shares[256] == shares[512] == 0.001
    assert "Any length from 220 to 512 passes" in TEXT
