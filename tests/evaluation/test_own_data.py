"""What measures the messages: settings are chosen without the held-out files, and rows say what their answers score."""

import json

import pytest

from helpers import COURSE_ROOT
from helpers.evaluation import score_fields
from helpers.records import read_rows
from tests.scripts import measuring_script

ROWS = COURSE_ROOT / "measurements" / "smollm2_own_data.jsonl"
TRIES = ROWS.with_name("smollm2_own_data_tries.jsonl")


@pytest.fixture(scope="module")
def script():
    return measuring_script("measure_own_data")


def test_an_expected_answer_scores_as_right_and_has_null_for_an_empty_cell(script):
    for name, rows in (("messages", 3840), ("heldout", 240), ("by_hand", 60)):
        answers = [script.to_row(row)["completion"][0]["content"] for row in script.rows_of(name)]
        scores = score_fields(answers, map(script.wanted, script.rows_of(name)))
        assert (len(answers), scores.whole, scores.valid) == (rows, 1, 1)
        assert any('"time":null' in answer for answer in answers)
        assert not any("\\u" in answer for answer in answers)


def test_settings_are_chosen_by_training_rows_whose_sentences_are_not_learned(script):
    learn, choose = script.validation()
    assert (len(learn), len(choose)) == (3840, 240)
    held_out = {row["Message"] for name in ("heldout", "by_hand") for row in script.rows_of(name)}
    assert not held_out & {row["Message"] for row in learn + choose}

    def masked(row):
        text = row["Message"].casefold()
        for field in ("Name", "Place", "Day"):
            text = text.replace(row[field].casefold(), "#") if row[field] else text
        return text

    assert not {masked(row) for row in learn} & {masked(row) for row in choose}


def test_scoring_takes_answers_in_the_order_of_the_rows(script, monkeypatch):
    rows = script.rows_of("heldout")[:7]
    right = [json.dumps(script.wanted(row)) for row in rows]
    monkeypatch.setattr(script, "answers", lambda model, tokenizer, asked: [*right[:5], "no", "{}"])
    found = script.score(None, None, rows)
    assert (found["rows"], found["right"], found["valid"]) == (7, 5 / 7, 6 / 7)
    assert found["low"] < found["right"] < found["high"]


@pytest.fixture
def printed(script, monkeypatch, capsys):
    """A function from arguments of the script to the rows that it prints, with nothing trained or asked."""
    scores = {"rows": 1, "right": 0, "answers": ["{}"]}
    for name in ("measured", "kept"):
        monkeypatch.setattr(script, name, lambda *given, **settings: (None, None, {"learned": given[2]}))
    monkeypatch.setattr(script, "load", lambda folder: (None, None))
    monkeypatch.setattr(script, "score", lambda model, tokenizer, rows: dict(scores))

    def run(*words):
        monkeypatch.setattr("sys.argv", ["measure_own_data.py", words[0], "FOLDER", *words[1:]])
        script.main()
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return run


@pytest.mark.parametrize(
    ("words", "file", "lines"),
    [
        (("try",), TRIES, 1),
        (("result",), ROWS, 3),
        (("curve",), ROWS, 6),
        (("curve", "--first", "--sizes", "960"), ROWS, 1),
    ],
)
def test_a_row_is_called_as_the_recorded_rows_of_its_kind_are(printed, words, file, lines):
    rows, recorded = printed(*words), {(row["what"], row["scored"]) for row in read_rows(file)}
    assert len(rows) == lines
    assert {(row["what"], row["scored"]) for row in rows} <= recorded


def test_the_last_try_is_called_as_the_script_calls_it(printed):
    """Earlier tries were scored on other messages, as their rows say."""
    (row,) = printed("try")
    last = read_rows(TRIES)[-1]
    assert (row["what"], row["scored"]) == (last["what"], last["scored"])


def test_the_messages_that_the_script_began_with_are_of_52_sentences(monkeypatch):
    monkeypatch.syspath_prepend(str(COURSE_ROOT / "assets"))
    import make_messages

    assert sum(map(len, make_messages.WANTED["first"].values())) == 52


def test_the_recorded_shares_are_those_of_the_recorded_answers(script):
    files = {
        "held out, before training": "heldout",
        "held out, after training": "heldout",
        "by hand, after training": "by_hand",
    }
    rows = read_rows(ROWS)
    with_answers = [row for row in rows if "answers" in row]
    assert [row["what"] for row in with_answers] == ["result"] * 3
    assert {row["what"] for row in rows} == {
        "result",
        "first result",
        "curve",
        "the first 52 sentences",
        "all sentences",
    }
    for row in with_answers:
        asked = script.rows_of(files[row["scored"]])[: row["rows"]]
        scores = score_fields(row["answers"], map(script.wanted, asked))
        assert (scores.whole, scores.valid, scores.fields) == (row["right"], row["valid"], row["fields"])
        assert (row["rows"], row["low"], row["high"]) == (len(row["answers"]), *scores.interval)
    assert sorted(row["learned"] for row in rows if row["what"] == "curve") == list(script.SIZES)
