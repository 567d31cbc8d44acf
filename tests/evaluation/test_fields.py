"""The scorer of JSON answers: what it counts as right, what it forgives, and what it does not."""

import json

import pytest

from helpers.evaluation import fields_right, score_fields, wilson_interval
from helpers.evaluation.fields import json_object

WANTED = {"name": "Ana Costa", "request": "move", "place": "Cape Town", "day": "Friday", "time": "09:00"}


def said(**changed):
    return json.dumps(WANTED | changed)


def test_the_expected_object_is_right_in_every_field_however_it_is_spaced():
    for text in (
        said(),
        json.dumps(WANTED, separators=(",", ":")),
        json.dumps(dict(reversed(WANTED.items())), indent=1),
    ):
        assert fields_right(text, WANTED) == dict.fromkeys(WANTED, True)


@pytest.mark.parametrize(
    "changed", [{"name": "ana  costa"}, {"place": "CAPE TOWN"}, {"name": " Ana Costa"}]
)  # fmt: skip
def test_capitals_and_white_space_of_names_and_places_are_forgiven(changed):
    assert all(fields_right(said(**changed), WANTED).values())
    assert not all(fields_right(said(**changed), WANTED, lenient=()).values())


@pytest.mark.parametrize(
    "changed",
    [
        {"name": "Ana"}, {"place": "Capetown"}, {"day": "friday"}, {"time": "9:00"}, {"time": 9}, {"request": "Move"},
        {"day": None}, {"name": ""}, {"name": ["Ana Costa"]}, {"place": "Cape Town."},
    ],
)  # fmt: skip
def test_nothing_else_is(changed):
    (field,) = changed
    marks = fields_right(said(**changed), WANTED)
    assert [name for name, right in marks.items() if not right] == [field]
    assert score_fields([said(**changed)], [WANTED]).whole == 0


def test_null_is_null_alone():
    wanted = WANTED | {"time": None}
    assert fields_right(json.dumps(wanted), wanted)["time"]
    for other in ("", "null", "None", 0, False):
        assert not fields_right(json.dumps(wanted | {"time": other}), wanted)["time"]
    assert not fields_right(json.dumps({k: v for k, v in wanted.items() if k != "time"}), wanted)["time"]


@pytest.mark.parametrize("answer", ["", "yes", "[1]", '"x"', "null", said()[:-1], "Here: " + said(), said() + said()])
def test_what_is_no_json_object_as_a_whole_has_no_field_right(answer):
    assert json_object(answer) is None
    assert not any(fields_right(answer, WANTED).values())
    assert score_fields([answer], [WANTED]).valid == 0


def test_a_further_field_is_not_right_as_a_whole():
    scores = score_fields([said(note="x")], [WANTED])
    assert (scores.valid, scores.whole) == (1, 0)
    assert set(scores.fields.values()) == {1}


def test_shares_are_over_all_rows_and_an_invalid_answer_counts_as_wrong_in_each_field():
    answers = [said(), said(day="Monday"), "no", said(day="Monday", time="10:00")]
    scores = score_fields(answers, [WANTED] * 4)
    assert scores.valid == 0.75
    assert scores.fields == {"name": 0.75, "request": 0.75, "place": 0.75, "day": 0.25, "time": 0.5}
    assert scores.right == (True, False, False, False)
    assert scores.interval == wilson_interval(1, 4)
    assert str(scores).startswith("25% right in every field")


def test_a_missing_answer_is_an_error_and_not_a_score():
    with pytest.raises(ValueError, match="1 answers for 2 rows"):
        score_fields([said()], [WANTED] * 2)
