"""Rows of one's own: no value is lost without a word, JSON that is JSON is read, and no encoding stops with a traceback."""

import gzip
import json

import pyarrow
import pytest
from pyarrow import parquet

from helpers.data import DataError, Reading, load_rows


def read(file, **how) -> list[tuple]:
    return [(row["instruction"], row["output"]) for row in Reading(str(file), **how)]


def refused(file, **how) -> str:
    with pytest.raises(DataError) as error:
        read(file, **how)
    said = str(error.value)
    assert said.startswith(file.name)
    assert said.isprintable()
    return said


# --- a name that stands twice ---------------------------------------------------------------------------------------

ONCE = '{"question": "a", "answer": "b"}'
TWICE = '{"question": "a", "answer": "b", "answer": "c"}'
TURN = '{"role": "user", "role": "assistant", "content": "q"}, {"role": "assistant", "content": "a"}'
TEXTS = {
    "mine.jsonl": (f"{ONCE}\n\n{TWICE}\n", "line 3: 'answer' stands twice in one object"),
    "one.jsonl": (TWICE, "line 1: 'answer' stands twice in one object"),
    "turns.jsonl": (f'{{"messages": [{TURN}]}}', "line 1: 'role' stands twice in one object"),
    "mine.json": (f"[{ONCE},\n {TWICE}]", "line 2: 'answer' stands twice in one object"),
    "lines.json": (f"{TWICE}\n{ONCE}\n", "line 1: 'answer' stands twice in one object"),
    "within.json": (f'{{"rows": [{ONCE}, {TWICE}]}}', "'answer' stands twice in one object"),
    "whole.json": (f'{{"rows":\n [{ONCE}],\n "rows": [{ONCE}]}}', "'rows' stands twice in one object"),
    "mine.csv": ("question,answer,answer\na,b,c\n", "line 1: two columns are called 'answer'"),
    "mine.tsv": ("question\tanswer\tanswer\na\tb\tc\n", "line 1: two columns are called 'answer'"),
    "turns.csv": ('messages\n"[' + TURN.replace('"', '""') + ']"\n', "line 2: of the messages, 'role' stands twice"),
}  # fmt: skip


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("packed", [False, True], ids=["", "packed"])
def test_a_name_that_stands_twice_is_refused_in_every_format(tmp_path, name, packed):
    text, wanted = TEXTS[name]
    file = tmp_path / (f"{name}.gz" if packed else name)
    file.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    assert wanted in refused(file)


def twice_in_a_turn():
    fields = [pyarrow.field("role", pyarrow.string()), pyarrow.field("role", pyarrow.string())]
    turn = pyarrow.StructArray.from_arrays([pyarrow.array(["user"]), pyarrow.array(["assistant"])], fields=fields)
    return pyarrow.ListArray.from_arrays(pyarrow.array([0, 1]), turn)


@pytest.mark.parametrize(
    ("columns", "names", "wanted"),
    [
        ([["a"], ["b"], ["c"]], ["question", "answer", "answer"], "called 'answer'"),
        ([["a"], ["b"], [1], [2]], ["question", "answer", "id", "id"], "called 'id'"),
        ([["a"], ["b"], twice_in_a_turn()], ["question", "answer", "turns"], "called 'role'"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("packed", [False, True], ids=["", "packed"])
def test_a_column_that_a_parquet_file_has_twice_is_refused(tmp_path, columns, names, wanted, packed):
    file = tmp_path / "mine.parquet"
    parquet.write_table(pyarrow.table([pyarrow.array(column) for column in columns], names=names), file)
    if packed:
        file.write_bytes(gzip.compress(file.read_bytes()))
    said = refused(file)
    assert wanted in said
    assert "damaged" not in said


@pytest.mark.parametrize("form", ["jsonl", "json"])
def test_names_that_differ_or_stand_in_two_objects_are_none(tmp_path, form):
    row = {
        "question": "a",
        "answer": "b",
        "Answers": 1,
        "about": {"question": 2, "answer": [{"answer": 3}, {"answer": 4}]},
    }
    file = tmp_path / f"mine.{form}"
    file.write_text(json.dumps(row) if form == "jsonl" else json.dumps([row, row][:1]))
    assert read(file) == [("a", "b")]


# --- numbers of many digits ----------------------------------------------------------------------------------------

DIGITS = "9" * 5000


@pytest.mark.parametrize("number", [DIGITS, f"-{DIGITS}", "9" * 4300, "12"], ids=len)
@pytest.mark.parametrize("form", ["a line", "an array", "an object"])
def test_a_number_of_many_digits_is_json_and_becomes_the_text_that_it_is(tmp_path, number, form):
    row = f'{{"question": "b", "answer": {number}, "id": {number}}}'
    file = tmp_path / ("mine.jsonl" if form == "a line" else "mine.json")
    file.write_text({"a line": row, "an array": f"[{row}]", "an object": f'{{"rows": [{row}, {row}]}}'}[form])
    assert set(read(file)) == {("b", number)}
    assert set(load_rows(str(file)).rows["output"]) == {number}


# --- encodings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mine.csv", "mine.tsv", "mine.jsonl", "mine.json"])
@pytest.mark.parametrize("encoding", ["idna", "undefined", "IDNA", "punycode", "utf-16", "utf-32", "ascii", "utf-7"])
def test_an_encoding_that_does_not_fit_is_one_line(tmp_path, name, encoding):
    file = tmp_path / name
    line = '{"question": "Größe→", "answer": "b"}'
    file.write_text({"csv": "question,answer\nGröße→,b\n", "tsv": "question\tanswer\nGröße→\tb\n"}.get(name[5:], line))
    with pytest.raises(DataError) as error:
        read(file, encoding=encoding)
    assert str(error.value).isprintable()
    if encoding.lower() in ("idna", "undefined"):
        assert f"encoding = {encoding!r} is not known as that of a file: say " in str(error.value)
