"""Rows of a learner's own: what was reported from files that people have, each with its right value; and generated files."""

import base64
import csv
import datetime
import decimal
import gzip
import io
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from helpers import COURSE_ROOT
from helpers.data import DataError, Reading, load_instructions, load_rows, look_at, splits
from helpers.data.instructions import BUNDLED_INSTRUCTIONS

SAID = [("user", "q"), ("assistant", "a")]
ROWS = [{"instruction": f"say {n}", "input": "", "output": f"word {n}"} for n in range(12)]


FORMS = ("jsonl", "json", "csv", "tsv", "parquet")
PACKED_TOO = (*FORMS, *(f"{form}.gz" for form in FORMS))


def as_table(rows, delimiter) -> str:
    out = io.StringIO(newline="")
    csv.writer(out, delimiter=delimiter).writerows(rows)
    return out.getvalue()


def as_bytes(form: str, rows: list[tuple], encoding: str = "utf-8") -> bytes:
    """The same pairs in a format, such as "csv" or "json.gz"."""
    if form.endswith(".gz"):
        return gzip.compress(as_bytes(form.removesuffix(".gz"), rows, encoding))
    objects = [{"question": q, "answer": a} for q, a in rows]
    if form == "parquet":
        return as_parquet(objects)
    if form in ("csv", "tsv"):
        return as_table([("question", "answer"), *rows], "\t" if form == "tsv" else ",").encode(encoding)
    lines = [json.dumps(row, ensure_ascii=False) for row in objects]
    return (f"[{', '.join(lines)}]" if form == "json" else "\n".join(lines)).encode(encoding)


def as_parquet(rows: list[dict]) -> bytes:
    import pyarrow
    from pyarrow import parquet

    out = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), out)
    return out.getvalue()


def written(tmp_path, rows, name="mine.jsonl", encoding="utf-8", **how):
    """A file of JSON lines, as bytes of this encoding."""
    text = "".join(json.dumps(row, **how) + "\n" for row in rows)
    (tmp_path / name).write_bytes(text.encode(encoding))
    return str(tmp_path / name)


def read(named, **how):
    """(rows, what was understood)."""
    reading = Reading(str(named), **how)
    return list(reading), reading.understood


def plain(row: dict) -> dict:
    """A row without its turns."""
    return {role: text for role, text in row.items() if role != "messages"}


def told(named, **how) -> str:
    """The one line of a refusal."""
    with pytest.raises(DataError) as error:
        read(named, **how)
    assert str(error.value).isprintable()
    return str(error.value)


def said(understood) -> str:
    return str(understood)


# --- the course's own rows --------------------------------------------------------------------------------------


def test_the_bundled_rows_and_their_split_are_those_of_the_files_in_their_order():
    rows, name, _ = load_instructions("bundled")
    assert name == "the bundled instructions, 1600 to learn and 256 held out"
    for split in ("train", "heldout"):
        lines = (BUNDLED_INSTRUCTIONS / f"{split}.jsonl").read_bytes().split(b"\n")
        assert rows[split].to_list() == [json.loads(line) for line in lines if line]
        assert rows[split].column_names == ["instruction", "input", "output", "subject", "entity"]


# --- what was reported ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", PACKED_TOO)
@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\x1c"])
def test_a_line_separator_inside_a_text_is_part_of_the_text(tmp_path, mark, form):
    """As the mark itself and not as an escape; the row after it stands in the next line."""
    rows = [*((f"say {n}", f"word {n}") for n in range(11)), (f"a{mark}b", f"x{mark}y"), ("", "z")]
    (tmp_path / f"mine.{form}").write_bytes(as_bytes(form, rows))
    found, understood = read(tmp_path / f"mine.{form}")
    assert found[11] == {"instruction": f"a{mark}b", "input": "", "output": f"x{mark}y"}
    assert len(found) == 12
    place = {"json": "line 1", "jsonl": "line 13", "parquet": "row 13"}.get(form.removesuffix(".gz"), "line 14")
    assert f"1 without a question ({place})" in said(understood)


@pytest.mark.parametrize("form", [form for form in PACKED_TOO if not form.startswith("parquet")])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_says_the_encoding(tmp_path, encoding, form):
    (tmp_path / f"mine.{form}").write_bytes(as_bytes(form, [("Grüße?", "日本")], encoding))
    found, understood = read(tmp_path / f"mine.{form}")
    assert found == [{"instruction": "Grüße?", "input": "", "output": "日本"}]
    assert {"utf-8-sig": "UTF-8 with a byte order mark"}.get(encoding, encoding) in understood.format
    assert ("packed with gzip" in understood.format) == form.endswith(".gz")


def test_cells_between_semicolons_after_a_byte_order_mark_are_told_apart(tmp_path):
    (tmp_path / "mine.csv").write_bytes("question;answer\nGrüße, Anna?;日本\n".encode("utf-8-sig"))
    found, understood = read(tmp_path / "mine.csv")
    assert found == [{"instruction": "Grüße, Anna?", "input": "", "output": "日本"}]
    assert "cells between ';'" in understood.format


@pytest.mark.parametrize("asked", ["utf-8", "utf-16-le", "cp1252"])
def test_a_byte_order_mark_decides_whatever_is_asked(tmp_path, asked):
    for encoding in ("utf-8-sig", "utf-16"):
        (tmp_path / "mine.csv").write_bytes(as_bytes("csv", [("Grüße?", "ja")], encoding))
        assert read(tmp_path / "mine.csv", encoding=asked)[0][0]["instruction"] == "Grüße?"


def test_another_encoding_is_asked_for_and_never_guessed(tmp_path):
    (tmp_path / "mine.csv").write_bytes("question,answer\nhow,so\nCaf\xe9?,ja\n".encode("cp1252"))
    line = told(tmp_path / "mine.csv")
    assert "mine.csv, line 3: the byte 0xE9 is no UTF-8" in line
    assert 'encoding="cp1252"' in line
    assert read(tmp_path / "mine.csv", encoding="cp1252")[0][1]["instruction"] == "Café?"
    assert "'klingon' is not known" in told(tmp_path / "mine.csv", encoding="klingon")
    file = written(tmp_path, ROWS, encoding="utf-16-le")
    assert 'encoding="utf-16-le"' in told(file)
    assert len(read(file, encoding="utf-16-le")[0]) == 12


def test_line_ends_of_windows_are_no_part_of_a_text(tmp_path):
    (tmp_path / "mine.csv").write_bytes(b'question,answer\r\n"two\r\nlines",x\r\nb,y\r\n')
    assert [row["output"] for row in read(tmp_path / "mine.csv")[0]] == ["x", "y"]
    (tmp_path / "mine.jsonl").write_bytes(b"\r\n".join(json.dumps(row).encode() for row in ROWS))
    assert read(tmp_path / "mine.jsonl")[0] == ROWS


@pytest.mark.parametrize("form", ["jsonl", "json", "jsonl.gz", "json.gz"])  # what JSON alone can write, as \\ud83d
def test_half_of_an_emoji_is_replaced_and_counted_and_a_look_lets_it_pass(tmp_path, form):
    rows = [{"instruction": "hi \ud83d", "output": "x"}, {"instruction": "a", "output": "b \ude00"}]
    text = (
        json.dumps(rows) if form.startswith("json.") or form == "json" else "\n".join(map(json.dumps, rows))
    ).encode()
    (tmp_path / f"mine.{form}").write_bytes(gzip.compress(text) if form.endswith("gz") else text)
    look_at(str(tmp_path / f"mine.{form}"))
    loaded = load_rows(str(tmp_path / f"mine.{form}"))
    assert [(row["instruction"], row["output"]) for row in loaded.rows] == [("hi \ufffd", "x"), ("a", "b \ufffd")]
    assert "2 with half of a character (a lone surrogate), which becomes \ufffd (line" in str(loaded)


def test_numbers_become_text_and_empty_answers_are_left_out_and_both_are_counted(tmp_path):
    cells = [(1, 2.5), ("a", True), ("b", None), ("c", ""), (None, "d"), ("e", " \n"), ("f", 0)]
    rows = [{"question": q, "answer": a} for q, a in cells]
    found, understood = read(written(tmp_path, rows))
    assert [(row["instruction"], row["output"]) for row in found] == [("1", "2.5"), ("a", "true"), ("f", "0")]
    assert (understood.read, understood.used) == (7, 3)
    assert "3 with an empty answer (lines 3, 4, 6)" in said(understood)
    assert "1 without a question (line 5)" in said(understood)
    assert "3 with a number in place of a text, which is written as text (lines 1, 2, 7)" in said(understood)


def test_empty_answers_alone_are_no_rows_and_equal_answers_are_called_out(tmp_path):
    line = told(written(tmp_path, [row | {"output": ""} for row in ROWS]))
    assert line == "mine.jsonl: none of its 12 rows can be used: 12 with an empty answer (lines 1, 2, 3, ...)"
    _, understood = read(written(tmp_path, [row | {"output": "yes"} for row in ROWS]))
    assert "all are 'yes': a model can only learn to say that" in said(understood)


@pytest.mark.parametrize(
    ("row", "layout"),
    [
        ({"instruction": "q", "input": "", "output": "a"}, "instruction, input, output"),
        ({"Instruction": "q", "Output": "a"}, "instruction and output (instruction from 'Instruction', output from 'Output')"),
        ({"prompt": "q", "completion": "a"}, "prompt and completion"),
        ({"question": "q", "answer": "a", "id": [1, {"x": None}]}, "question and answer"),
        ({"instruction": "q", "context": "", "response": "a", "category": "open_qa"}, "output from 'response'"),
        ({"messages": [{"role": role, "content": text} for role, text in SAID]}, "messages"),
        ({"messages": [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in SAID]}, "messages"),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, "messages from 'conversations'"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("form", ["mine.jsonl", "mine.json", "mine.parquet", "mine.jsonl.gz"])
def test_the_layouts_that_people_have_are_known_by_their_names(tmp_path, row, layout, form):
    file = tmp_path / form
    if form == "mine.json":
        file.write_text(json.dumps([row], indent=1))
    elif form == "mine.parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist([{k: v for k, v in row.items() if k != "id"}]), file)
    else:
        text = (json.dumps(row) + "\n").encode()
        file.write_bytes(gzip.compress(text) if form.endswith("gz") else text)
    found, understood = read(file)
    assert [plain(row) for row in found] == [{"instruction": "q", "input": "", "output": "a"}]
    assert layout in said(understood) or layout.startswith("instruction, input")
    assert ("columns not used: id" in said(understood)) == ("id" in row and form != "mine.parquet")


def test_a_plain_text_is_all_answer(tmp_path):
    from helpers.data import to_prompt_completion

    found, _ = read(written(tmp_path, [{"text": "It rained."}, {"text": ""}]))
    assert [to_prompt_completion(row) for row in found] == [{"prompt": "", "completion": "It rained."}]


def test_other_columns_are_named_and_a_group_is_kept(tmp_path):
    (tmp_path / "mine.csv").write_text("Frage,Antwort,Kunde\na,b,7\n")
    assert "has the columns 'Frage', 'Antwort', 'Kunde'" in told(tmp_path / "mine.csv")
    found, _ = read(tmp_path / "mine.csv", columns="prompt=Frage,completion=antwort,group=Kunde")
    assert found == [{"instruction": "a", "input": "", "output": "b", "group": "7"}]
    assert "no column 'Fragen'; did you mean 'Frage'?" in told(
        tmp_path / "mine.csv", columns="prompt=Fragen,completion=Antwort"
    )
    for columns in ("prompt", "prompt=a", "cat=a,completion=b", "prompt=a,question=b,completion=c"):
        assert f"columns = {columns!r}" in told(tmp_path / "mine.csv", columns=columns)
    assert "chosen" in told(written(tmp_path, [{"prompt": "q", "chosen": "a", "rejected": "b"}]))


def test_a_table_without_a_heading_and_one_of_many_columns_are_told_in_little(tmp_path):
    (tmp_path / "mine.csv").write_text(f"{'word ' * 300},{'more ' * 300}\na,b\n")
    for columns in ("auto", "prompt=a,completion=b"):
        line = told(tmp_path / "mine.csv", columns=columns)
        assert len(line) < 250
        assert "'word word word word" in line
    heading = ",".join(["question", "answer", *(f"column {n}" for n in range(500))])
    (tmp_path / "mine.csv").write_text(f"{heading}\n{'x,' * 501}x\n")
    (line,) = [line for line in said(read(tmp_path / "mine.csv")[1]).splitlines() if "not used" in line]
    assert line.startswith("columns not used: column 0, column 1, ")
    assert len(line) < 250


def test_words_that_pandas_takes_for_nothing_are_words(tmp_path):
    (tmp_path / "mine.csv").write_text("question,answer\nNA,None\nnull,nan\nnumber,007\n")
    found = [(row["instruction"], row["output"]) for row in read(tmp_path / "mine.csv")[0]]
    assert found == [("NA", "None"), ("null", "nan"), ("number", "007")]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("question,answer\na,b\nc\n", "line 3: 1 cells, and the heading has 2 columns"),
        ("question,answer\n\na,b,c\n", "line 3: 3 cells"),
        ('question,answer\n"x\ny",b\n"c,d\ne,f\n', "line 4: unexpected end of data"),
        ("question,question\na,b\n", "two columns are called 'question'"),
        ("question,answer\n", "holds no rows"),
        ("\n\n", "is empty"),
    ],
)
def test_a_broken_table_is_one_line_with_its_true_line(tmp_path, text, line):
    (tmp_path / "mine.csv").write_text(text)
    assert line in told(tmp_path / "mine.csv")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('[{"question": "a", "answer": "b"},\n\n{"question": 1 "answer"}]', "line 3: no JSON"),
        ('[{"question": "a", "answer": "b"}\n', "line 2: the JSON array breaks off"),
        ('[\n7]', "line 2: a number, where an object"),
        ("[]", "holds no rows"),
        ('[{"question": "a", "answer": "b"}] x', "line 1: the JSON array ends here"),
        ('{"a": {"0": "x"}, "b": {"0": "y"}}', "holds columns, not rows"),
        ('{"question": "a",\n"answer"}', "line 2: no JSON"),
    ],
)  # fmt: skip
def test_a_broken_array_is_one_line_with_its_true_line(tmp_path, text, line):
    (tmp_path / "mine.json").write_text(text)
    assert line in told(tmp_path / "mine.json")


def test_conversations_of_several_turns_give_their_last_answer_and_say_so(tmp_path):
    def talk(*turns):
        return {"messages": [{"role": role, "content": text} for role, text in turns]}

    q, a = ("user", "q"), ("assistant", "a")
    long = talk(("system", "be brief"), q, a, ("user", "q2"), ("assistant", "a2"), ("user", "q3"))
    rows = [long, talk(q), talk(a), talk(), talk(q, ("tool", "x"), a)]
    found, understood = read(written(tmp_path, rows))
    assert plain(found[0]) == {"instruction": "be brief\n\nq2", "input": "User: q\nAssistant: a", "output": "a2"}
    turns = [("user", "be brief\n\nq"), ("assistant", "a"), ("user", "q2"), ("assistant", "a2")]
    assert json.loads(found[0]["messages"]) == [{"role": role, "content": text} for role, text in turns]
    twice, _ = read(written(tmp_path, [talk(q, q, a), talk(a, q, a)], "twice.jsonl"))
    assert [row["messages"] for row in twice] == ["", ""], "what templates refuse is told in words"
    for words in (
        "2 without an answer to a question (lines 2, 3)",
        "1 without a message (line 4)",
        "with the role 'tool'",
    ):
        assert words in said(understood)
    assert "1 of several turns" in said(understood)
    assert "1 that end with a question, which is not used" in said(understood)
    (tmp_path / "mine.csv").write_text(
        'messages\n"[{""role"":""user"",""content"":""q""},{""role"":""assistant"",""content"":""a""}]"\n'
    )
    assert plain(read(tmp_path / "mine.csv")[0][0]) == {"instruction": "q", "input": "", "output": "a"}


@pytest.mark.parametrize("speaker", ["gpt", "GPT", "assistant", "chatgpt", "model", "bot"])
@pytest.mark.parametrize("asker", ["human", "user", "User"])
def test_who_speaks_has_many_names(tmp_path, asker, speaker):
    talk = {"conversations": [{"from": asker, "value": "q"}, {"from": speaker, "value": "a"}]}
    assert [plain(row) for row in read(written(tmp_path, [talk]))[0]] == [
        {"instruction": "q", "input": "", "output": "a"}
    ]


def test_calls_of_tools_are_left_out_and_parts_of_a_text_are_one_text(tmp_path):
    asked = {"role": "user", "content": [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]}
    called = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f"}}]}
    rows = [{"messages": [asked, {"role": "assistant", "content": "a"}]}, {"messages": [asked, called]}]
    found, understood = read(written(tmp_path, rows))
    assert [plain(row) for row in found] == [{"instruction": "one two", "input": "", "output": "a"}]
    assert "1 with tools, which lessons do not teach (line 2)" in said(understood)


def test_dates_and_decimal_numbers_become_text_and_what_is_not_a_number_is_empty(tmp_path):
    days = [datetime.date(2026, 1, 2), datetime.datetime(2026, 1, 2, 3, 4), decimal.Decimal("1.50"), float("nan")]
    texts = ["2026-01-02", "2026-01-02 03:04:00", "1.50"]
    for n, (day, text) in enumerate(zip(days, [*texts, None], strict=True)):
        (tmp_path / f"{n}.parquet").write_bytes(as_parquet([{"question": "when", "answer": day}]))
        if text is None:
            assert "1 with an empty answer (row 1)" in told(tmp_path / f"{n}.parquet")
            continue
        found, understood = read(tmp_path / f"{n}.parquet")
        assert found[0]["output"] == text
        assert "1 with a date or a decimal number, which is written as text (row 1)" in said(understood)


def test_a_group_may_be_named_alone_and_of_two_spellings_the_first_counts(tmp_path):
    (tmp_path / "mine.csv").write_text("Question,question,answer,Kunde\na,b,c,7\n")
    found, _ = read(tmp_path / "mine.csv", columns="group=Kunde")
    assert found == [{"instruction": "a", "input": "", "output": "c", "group": "7"}]


def test_answers_that_differ_in_white_space_alone_are_all_the_same(tmp_path):
    rows = [row | {"output": "yes" + " " * n} for n, row in enumerate(ROWS)]
    assert "all are 'yes': a model can only learn to say that" in said(read(written(tmp_path, rows))[1])


def test_a_folder_is_its_files_and_those_for_tests_are_left_out_and_named(tmp_path):
    (tmp_path / "data").mkdir()
    for part, rows in (("train-1", ROWS[:5]), ("train-2", ROWS[5:]), ("test", ROWS[:1])):
        written(tmp_path / "data", rows, f"{part}.jsonl")
    found, understood = read(tmp_path)
    assert found == ROWS
    assert understood.files_left_out == ["test.jsonl"]
    assert "files left out:   test.jsonl" in said(understood)
    written(tmp_path, ROWS, "more.csv")
    assert "several formats" in told(tmp_path)


def test_hidden_files_of_a_folder_are_no_rows(tmp_path):
    """As notebooks and operating systems leave them: .ipynb_checkpoints/, ._mine.jsonl."""
    (tmp_path / ".ipynb_checkpoints").mkdir()
    written(tmp_path, ROWS)
    for hidden in (".ipynb_checkpoints/mine-checkpoint.jsonl", "._mine.jsonl"):
        written(tmp_path, ROWS, hidden)
    found, understood = read(tmp_path)
    assert found == ROWS
    assert understood.files_left_out == []


def test_files_of_a_folder_have_the_same_columns(tmp_path):
    written(tmp_path, ROWS, "a.jsonl")
    written(tmp_path, [{"text": "It rained."}], "b.jsonl")
    assert "b.jsonl has other columns than the file before it: 'text'" in told(tmp_path)


def test_a_file_called_json_may_hold_lines_or_one_object_with_the_rows(tmp_path):
    (tmp_path / "mine.json").write_text("\n".join(map(json.dumps, ROWS)))
    assert read(tmp_path / "mine.json")[0] == ROWS
    (tmp_path / "mine.json").write_text(json.dumps({"version": 2, "data": ROWS}, indent=1))
    assert read(tmp_path / "mine.json")[0] == ROWS
    talk = {"id": 1, "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}
    (tmp_path / "mine.json").write_text(json.dumps(talk, indent=1))
    assert [plain(row) for row in read(tmp_path / "mine.json")[0]] == [{"instruction": "q", "input": "", "output": "a"}]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_what_stands_between_cells_is_what_parts_all_rows_alike(tmp_path, delimiter):
    rows = [("question", "answer"), ("a, b; c | d", "x"), ("e", "f;g,h,i")]
    (tmp_path / "mine.csv").write_text(as_table(rows, delimiter))
    assert [(row["instruction"], row["output"]) for row in read(tmp_path / "mine.csv")[0]] == rows[1:]


def test_a_line_without_an_end_is_given_up_in_one_line(tmp_path):
    (tmp_path / "mine.jsonl").write_bytes(b'{"question": "' + b"a" * 64_000_000)
    assert told(tmp_path / "mine.jsonl") == "mine.jsonl, line 1: it has more than 64,000,000 characters"


def test_what_is_no_file_of_rows_is_told_what_is_taken(tmp_path):
    (tmp_path / "mine.xlsx").write_bytes(b"PK\x03\x04" + b"x" * 50)
    assert "save it as CSV" in told(tmp_path / "mine.xlsx")
    (tmp_path / "mine.txt").write_text("some words")
    for named in (tmp_path / "mine.txt", tmp_path / "nowhere.csv", "/dev/zero"):
        assert "give a file of JSON lines, a JSON array, CSV, TSV or Parquet" in told(named)
    (tmp_path / "mine.jsonl.gz").write_bytes(gzip.compress(b'{"question": "a", "answer": "b"}\n' * 9)[:-12])
    assert "it is cut off, damaged or locked" in told(tmp_path / "mine.jsonl.gz")
    assert "are for data sets on the hub" in told(written(tmp_path, ROWS), split="test")


def test_a_long_cell_is_read_and_half_a_character_at_the_end_is_one_line(tmp_path):
    (tmp_path / "mine.csv").write_text("question,answer\na," + "b" * 300_000 + "\n")
    assert len(read(tmp_path / "mine.csv")[0][0]["output"]) == 300_000
    for name in ("half.csv", "half.jsonl", "half.json"):
        (tmp_path / name).write_bytes('{"question": "a", "answer": "b"}'.encode("utf-16")[:-1])
        assert f"{name} is not written in utf-16" in told(tmp_path / name)


def test_a_large_json_array_is_told_to_become_json_lines(tmp_path, monkeypatch):
    from helpers.data import readers

    monkeypatch.setattr(readers, "LARGEST_ARRAY", 100)
    (tmp_path / "mine.json").write_text(json.dumps(ROWS))
    (tmp_path / "mine.json.gz").write_bytes(gzip.compress(json.dumps(ROWS).encode()))
    for name in ("mine.json", "mine.json.gz"):
        assert "make it JSON lines" in told(tmp_path / name)


@pytest.mark.parametrize("count", [12, 2])
def test_few_rows_are_split_and_one_row_is_told_why_not(tmp_path, count):
    rows, *_ = load_instructions(written(tmp_path, ROWS[:count]))
    assert len(rows["train"]) + len(rows["heldout"]) == count
    with pytest.raises(DataError, match="1 row to use: at least 2 are needed"):
        load_instructions(written(tmp_path, ROWS[:1]))


def test_hub_names_are_looked_for_on_the_hub_alone(tmp_path):
    for name in ("owner/nothing", "owner/--bad--", "a/b/c"):
        with pytest.raises(DataError) as error:
            look_at(name)
        assert ("on the hub it cannot be had (HF_HUB_OFFLINE is set)" in str(error.value)) == (name == "owner/nothing")


KILLED = """
import os, sys
from helpers.data import load_rows
print(load_rows(sys.argv[1]).rows.cache_files[0]["filename"], flush=True)
os.kill(os.getpid(), 9)
"""


def test_what_was_written_on_the_way_is_for_ones_own_eyes_and_goes_even_after_a_kill(tmp_path):
    command = [sys.executable, "-c", KILLED, written(tmp_path, ROWS)]
    killed = subprocess.run(command, capture_output=True, text=True, cwd=COURSE_ROOT).stdout.strip()
    assert Path(killed).is_file()
    assert Path(killed).parent.stat().st_mode & 0o077 == 0
    mine = Path(load_rows(written(tmp_path, ROWS)).rows.cache_files[0]["filename"])
    assert not Path(killed).parent.exists()
    load_rows(written(tmp_path, ROWS))
    assert mine.is_file(), "those of a process that lives stay"


def test_a_folder_named_by_a_point_has_its_own_name(tmp_path, monkeypatch):
    written(tmp_path, ROWS)
    monkeypatch.chdir(tmp_path)
    assert read(".")[1].name == tmp_path.name


# --- memory -----------------------------------------------------------------------------------------------------

PEAK = """
import re, sys, threading, time
from helpers.data import load_rows
import datasets, pyarrow.parquet

def held():  # what the process holds itself; pages of a file can be dropped at any moment
    return 1024 * int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1])

def watch():
    while True:
        peaks.append(held())
        time.sleep(0.02)

before, peaks = held(), []
threading.Thread(target=watch, daemon=True).start()
loaded = load_rows(sys.argv[1])
parts, name = loaded.split()
print(len(loaded.rows), max(peaks) - before)
"""


def peak_of(code: str, file: Path) -> tuple[int, int]:
    """(rows, bytes that a process with this code held at its peak beyond what its libraries take)."""
    done = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True, cwd=COURSE_ROOT)
    assert done.returncode == 0, done.stderr
    count, peak = map(int, done.stdout.split())
    return count, peak


CHANCE = random.Random(0)


def noise(size: int) -> str:
    """Letters that no packing makes smaller than three quarters."""
    return base64.b64encode(CHANCE.randbytes(size * 3 // 4)).decode()


def write_many(file: Path, many) -> None:
    """The rows as a file; Parquet in a single row group, as pandas and pyarrow write up to a million rows."""
    if file.suffix == ".jsonl":
        with open(file, "w") as out:
            out.writelines(json.dumps(row) + "\n" for row in many)
    elif file.suffix == ".csv":
        with open(file, "w", newline="") as out:
            table = csv.DictWriter(out, ["question", "answer"])
            table.writeheader()
            table.writerows(many)
    else:
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(list(many)), file)
        assert parquet.ParquetFile(file).num_row_groups == 1


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_memory_does_not_grow_with_the_file(tmp_path, form):
    """Three thousand rows more, 36 MB, take less than 20 MB more: what allocators keep, and not the rows.

    A row begins with what is quick to compare, and goes on, where it is not compared, with what cannot be packed.
    """
    peaks = []
    for rows in (2_000, 5_000):
        file = tmp_path / f"{rows}.{form}"
        answers = ("a " * (splits.LETTERS // 2) + noise(8_000) for n in range(rows))
        write_many(file, ({"question": f"{n} of {rows}?", "answer": answer} for n, answer in enumerate(answers)))
        assert file.stat().st_size > 6_000 * rows
        count, peak = peak_of(PEAK, file)
        assert count == rows
        peaks.append(peak)
    assert peaks[1] < peaks[0] + 20_000_000, peaks


READ = PEAK.replace(
    "loaded = load_rows(sys.argv[1])\nparts, name = loaded.split()\n", "rows = list(map(len, Reading(sys.argv[1])))\n"
)
READ = READ.replace("load_rows\n", "Reading\n").replace("loaded.rows", "rows")


def test_a_parquet_file_of_several_hundred_mb_in_one_row_group_is_read_in_little_memory(tmp_path):
    peaks = []
    for rows in (1_000, 20_000):
        file = tmp_path / f"{rows}.parquet"
        write_many(file, ({"question": f"{n}?", "answer": noise(16_000)} for n in range(rows)))
        count, peak = peak_of(READ, file)
        assert count == rows
        peaks.append(peak)
    assert file.stat().st_size > 240_000_000
    assert peaks[1] < peaks[0] + 40_000_000, peaks


def test_a_packed_parquet_file_is_read_whole_only_up_to_a_size(tmp_path, monkeypatch):
    from helpers.data import readers

    content = as_bytes("parquet", [("a", "b")])
    (tmp_path / "mine.parquet.gz").write_bytes(gzip.compress(content))
    assert read(tmp_path / "mine.parquet.gz")[0] == [{"instruction": "a", "input": "", "output": "b"}]
    monkeypatch.setattr(readers, "LARGEST_ARRAY", len(content) - 1)
    assert "which would be read whole: unpack it (gunzip)" in told(tmp_path / "mine.parquet.gz")


# --- generated files --------------------------------------------------------------------------------------------

quietly = settings(
    max_examples=150, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(str.strip)
pairs = st.lists(st.tuples(words, words), min_size=1, max_size=6)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.just("\ud83d"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)
columns_of = st.sampled_from(["question", "answer", "messages", "text", "role", "x"])
odd_rows = st.lists(st.dictionaries(columns_of, anything, max_size=4) | anything, max_size=5)
# A column of a Parquet file is of one kind, and any of its values may be missing.
whole_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
turns = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool"]), "content": st.none() | whole_text}
)
of_one_kind = st.sampled_from(
    [
        whole_text,
        st.integers(-(2**63), 2**63 - 1),
        st.floats(),
        st.booleans(),
        st.binary(max_size=6),
        st.dates(),
        st.datetimes(),
        st.times(),
        st.decimals(allow_nan=False, allow_infinity=False, places=2, min_value=-1000, max_value=1000),
        st.lists(whole_text, max_size=3),
        st.lists(turns, max_size=4),
        st.fixed_dictionaries({"x": whole_text}),
        st.none(),
    ]
)
columns_of_one_kind = st.dictionaries(columns_of, of_one_kind, min_size=1, max_size=4).flatmap(
    lambda kinds: st.lists(
        st.fixed_dictionaries({name: st.none() | values for name, values in kinds.items()}), min_size=1, max_size=5
    )
)


@pytest.mark.parametrize("form", PACKED_TOO)
def test_generated_texts_come_back_as_they_were(tmp_path, form):
    @quietly
    @given(pairs)
    def check(rows):
        file = tmp_path / f"mine.{form}"
        file.write_bytes(as_bytes(form, rows))
        found, understood = read(file)
        assert [(row["instruction"], row["output"]) for row in found] == rows
        assert understood.read == understood.used == len(rows)

    check()


@pytest.mark.parametrize("form", PACKED_TOO)
def test_generated_damage_ends_well_or_in_one_line(tmp_path, form):
    """Bytes are changed in the file as it is, so in a packed one mostly its packing breaks; or in what is packed."""

    @quietly
    @given(
        pairs,
        st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=4),
        st.integers(0, 10**6),
        st.booleans(),
    )
    def check(rows, changes, end, inside):
        inner = inside and form.endswith(".gz")
        content = bytearray(as_bytes(form.removesuffix(".gz") if inner else form, rows))
        for place, byte in changes:
            content[place % len(content)] = byte
        content = bytes(content[: 1 + end % len(content)] if end % 2 else content)
        ends_well(tmp_path / f"mine.{form}", gzip.compress(content) if inner else content)
        tried.append(rows)

    tried: list = []
    check()
    assert len(tried) >= 150


@pytest.mark.parametrize("form", PACKED_TOO)
def test_generated_values_of_any_kind_end_well_or_in_one_line(tmp_path, form):
    kind = form.removesuffix(".gz")

    @quietly
    @given(columns_of_one_kind if kind == "parquet" else odd_rows)
    def check(rows):
        if kind == "parquet":
            try:
                content = as_parquet(rows)
            except (pyarrow.ArrowException, OverflowError):
                assume(False)  # what no Parquet file can hold
        elif kind in ("csv", "tsv"):
            cells = [row if isinstance(row, list) else [row] for row in rows]
            table = as_table([("question", "answer"), *cells], "\t" if kind == "tsv" else ",")
            content = table.encode("utf-8", "replace")
        else:
            content = (json.dumps(rows) if kind == "json" else "\n".join(map(json.dumps, rows))).encode()
        ends_well(tmp_path / f"mine.{form}", gzip.compress(content) if form.endswith(".gz") else content)
        tried.append(rows)

    import pyarrow

    tried: list = []
    check()
    assert len(tried) >= 150


def ends_well(file, content: bytes) -> None:
    """Read, and every row is accounted for; or one line, the file's name in it."""
    file.write_bytes(content)
    line = ""
    try:
        found, understood = read(file)
    except DataError as error:
        line = str(error)
    if line:
        assert line.isprintable()
        assert file.name in line
        return
    assert understood.used == len(found)
    assert understood.read == understood.used + sum(notes.total for notes in understood.left_out)
    for row in found:
        assert row["output"].strip()
        "".join(row.values()).encode()  # no half of a character is left


def test_rows_that_stand_in_one_line_are_counted_one_by_one(tmp_path):
    file = tmp_path / "mine.json"
    file.write_text(json.dumps([{"question": "", "answer": "a"}] * 3 + [{"question": "q", "answer": "a"}] * 2))
    reading = Reading(str(file))
    assert len(list(reading)) == 2
    (left_out,) = reading.understood.left_out
    assert left_out.lines() == ["3 without a question (line 1)"]
