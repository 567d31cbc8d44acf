"""Rows of a learner's own: what was reported from files that people have, each with its right value; and generated files."""

import csv
import gzip
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers import COURSE_ROOT
from helpers.data import DataError, Reading, load_instructions, load_rows, look_at
from helpers.data.instructions import BUNDLED_INSTRUCTIONS

SAID = [("user", "q"), ("assistant", "a")]
ROWS = [{"instruction": f"say {n}", "input": "", "output": f"word {n}"} for n in range(12)]


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
    rows, name = load_instructions("bundled")
    assert name == "the bundled instructions, 1600 to learn and 256 held out"
    for split in ("train", "heldout"):
        lines = (BUNDLED_INSTRUCTIONS / f"{split}.jsonl").read_bytes().split(b"\n")
        assert rows[split].to_list() == [json.loads(line) for line in lines if line]
        assert rows[split].column_names == ["instruction", "input", "output", "subject", "entity"]


# --- what was reported ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\x1c"])
def test_a_line_separator_inside_a_text_is_part_of_the_text(tmp_path, mark):
    rows = [*ROWS[:11], {"instruction": f"a{mark}b", "output": "x"}]
    found, _ = read(written(tmp_path, rows, ensure_ascii=False))
    assert found[11]["instruction"] == f"a{mark}b"
    (tmp_path / "mine.csv").write_text(f'question,answer\n"a{mark}b",x\n', encoding="utf-8")
    assert read(tmp_path / "mine.csv")[0] == [{"instruction": f"a{mark}b", "input": "", "output": "x"}]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_says_the_encoding(tmp_path, encoding):
    file = written(tmp_path, [{"instruction": "Grüße?", "output": "日本"}], encoding=encoding, ensure_ascii=False)
    assert read(file)[0] == [{"instruction": "Grüße?", "input": "", "output": "日本"}]
    (tmp_path / "mine.csv").write_bytes("question;answer\nGrüße?;日本\n".encode(encoding))
    found, understood = read(tmp_path / "mine.csv")
    assert found[0] == {"instruction": "Grüße?", "input": "", "output": "日本"}
    assert "cells between ';'" in understood.format


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


def test_half_of_an_emoji_is_replaced_and_counted(tmp_path):
    (tmp_path / "mine.jsonl").write_text(
        '{"instruction":"hi \\ud83d","output":"x"}\n{"instruction":"a","output":"b"}\n'
    )
    loaded = load_rows(str(tmp_path / "mine.jsonl"))
    assert loaded.rows[0]["instruction"] == "hi \ufffd"
    assert "1 with half of a character (a lone surrogate), which becomes \ufffd (line 1)" in str(loaded)


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
    rows, _ = load_instructions(written(tmp_path, ROWS[:count]))
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


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_memory_does_not_grow_with_the_file(tmp_path, form):
    """Twenty thousand rows more, 44 MB, take less than 20 MB more: what allocators keep, and not the rows."""
    peaks = []
    for rows in (4_000, 24_000):
        file = tmp_path / f"{rows}.{form}"
        many = ({"question": f"{n} of {rows}?", "answer": f"{n} " * 400} for n in range(rows))
        if form == "jsonl":
            with open(file, "w") as out:
                out.writelines(json.dumps(row) + "\n" for row in many)
        elif form == "csv":
            with open(file, "w", newline="") as out:
                table = csv.DictWriter(out, ["question", "answer"])
                table.writeheader()
                table.writerows(many)
        else:
            import pyarrow
            from pyarrow import parquet

            with parquet.ParquetWriter(file, pyarrow.schema([("question", "string"), ("answer", "string")])) as out:
                for _ in range(rows // 1000):
                    out.write_table(pyarrow.Table.from_pylist([next(many) for _ in range(1000)]), row_group_size=1000)
        done = subprocess.run([sys.executable, "-c", PEAK, str(file)], capture_output=True, text=True, cwd=COURSE_ROOT)
        assert done.returncode == 0, done.stderr
        count, peak = map(int, done.stdout.split())
        assert count == rows
        peaks.append(peak)
    assert peaks[1] < peaks[0] + 20_000_000, peaks


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


def as_table(rows, delimiter):
    out = io.StringIO(newline="")
    csv.writer(out, delimiter=delimiter).writerows(rows)
    return out.getvalue()


def as_bytes(form: str, rows: list[tuple]) -> bytes:
    """The same pairs in a format."""
    if form == "parquet":
        import pyarrow
        from pyarrow import parquet

        out = io.BytesIO()
        parquet.write_table(
            pyarrow.Table.from_pylist([dict(zip(("question", "answer"), r, strict=True)) for r in rows]), out
        )
        return out.getvalue()
    if form in ("csv", "tsv"):
        return as_table([("question", "answer"), *rows], "\t" if form == "tsv" else ",").encode()
    objects = [{"question": q, "answer": a} for q, a in rows]
    return (
        json.dumps(objects) if form == "json" else "\n".join(json.dumps(o, ensure_ascii=False) for o in objects)
    ).encode()


FORMS = ("jsonl", "json", "csv", "tsv", "parquet")


@pytest.mark.parametrize("form", FORMS)
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


@pytest.mark.parametrize("form", [*FORMS, "jsonl.gz"])
def test_generated_damage_ends_well_or_in_one_line(tmp_path, form):
    @quietly
    @given(pairs, st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=4), st.integers(0, 10**6))
    def check(rows, changes, end):
        content = bytearray(as_bytes(form.removesuffix(".gz"), rows))
        content = bytearray(gzip.compress(content)) if form.endswith("gz") else content
        for place, byte in changes:
            content[place % len(content)] = byte
        ends_well(tmp_path / f"mine.{form}", bytes(content[: 1 + end % len(content)] if end % 2 else content))

    check()


@pytest.mark.parametrize("form", ["jsonl", "json", "csv", "tsv", "parquet"])
def test_generated_values_of_any_kind_end_well_or_in_one_line(tmp_path, form):
    @quietly
    @given(odd_rows)
    def check(rows):
        if form in ("csv", "tsv"):
            cells = [row if isinstance(row, list) else [row] for row in rows]
            content = as_table([("question", "answer"), *cells], "\t" if form == "tsv" else ",").encode(
                "utf-8", "replace"
            )
        elif form == "parquet":
            import pyarrow
            from pyarrow import parquet

            out = io.BytesIO()
            try:
                parquet.write_table(pyarrow.Table.from_pylist([row for row in rows if isinstance(row, dict)]), out)
            except (pyarrow.ArrowException, UnicodeEncodeError, OverflowError):
                return  # what no Parquet file can hold
            content = out.getvalue()
        else:
            content = (json.dumps(rows) if form == "json" else "\n".join(map(json.dumps, rows))).encode()
        ends_well(tmp_path / f"mine.{form}", content)

    check()


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
