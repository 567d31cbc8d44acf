"""A learner's own rows in a lesson: what the fourth cell shows of them, and what stops there in one line."""

import random

import pandas
import pytest

from helpers import CourseError, lesson
from helpers.data import DataError


def begin(tmp_path, **values):
    given = {
        "model_id": "bundled",
        "output_dir": str(tmp_path / "out"),
        "max_steps": 2,
        "columns": "auto",
        "encoding": "auto",
    }
    return lesson.begin("03_t4_training", large_model=True, with_data=True, **given | values)


@pytest.fixture
def table(tmp_path):
    """A table as a German spreadsheet writes it: semicolons, Windows' letters, a customer in each row, one answer left empty."""
    rows = [f"Frage {n} – für wen?;{'' if n == 4 else f'Antwort {n}'};K{n % 4};{n}" for n in range(24)]
    (tmp_path / "mein.csv").write_bytes("\r\n".join(["Frage;Antwort;Kunde;Nr", *rows]).encode("cp1252"))
    return str(tmp_path / "mein.csv")


def test_a_spreadsheet_of_ones_own_is_read_and_the_table_says_what_was_understood(tmp_path, table, capsys):
    columns = "prompt=Frage,completion=Antwort,group=Kunde"
    run = begin(tmp_path, dataset_id=table, columns=columns, encoding="cp1252")
    shown = " ".join(capsys.readouterr().out.split())
    for words in (
        "CSV, cp1252, cells between ';'",
        "columns not used Nr",
        "24 read, 23 to use, 1 left out",
        "1 with an empty answer (line 6)",
        "4 groups, each on one side",
    ):
        assert words in shown
    parts = run.rows
    assert parts["train"][0]["instruction"].endswith(" – für wen?")
    assert set(parts["train"]["group"]) & set(parts["heldout"]["group"]) == set()
    assert len(parts["train"]) + len(parts["heldout"]) == 23
    assert str(tmp_path) not in shown
    assert run.identity["columns"] == columns, "another choice of columns gets other checkpoints"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"encoding": "auto"}, "mein.csv, line 2: the byte 0x96 is no UTF-8"),
        ({"columns": "prompt=Fragen,completion=Antwort"}, "did you mean 'Frage'?"),
        ({"columns": "auto"}, "has the columns 'Frage', 'Antwort', 'Kunde', 'Nr'"),
        ({"split": "test"}, "split and revision are for data sets on the hub"),
        ({"revision": "main"}, "split and revision are for data sets on the hub"),
        ({"dataset_id": "bundled"}, "columns, encoding, split and revision are for rows of your own"),
    ],
)
def test_what_cannot_be_read_stops_there_in_one_line(tmp_path, table, values, words):
    given = {"dataset_id": table, "columns": "prompt=Frage,completion=Antwort", "encoding": "cp1252"}
    with pytest.raises(DataError) as error:
        begin(tmp_path, **given | values)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "values",
    [
        {"template": "chatml"},
        {"split": ""},
        {"columns": "Frage"},
        {"columns": "prompt=a"},
        {"columns": ""},
        {"encoding": "klingon"},
        {"encoding": "hex"},
    ],
)
def test_an_impossible_value_is_named(tmp_path, values):
    with pytest.raises(lesson.ParameterError, match=f'{next(iter(values))} = .* is not possible; allowed: "auto", '):
        begin(tmp_path, dataset_id="mein.csv", **values)


def test_answers_that_are_all_the_same_are_called_out_at_the_start(tmp_path, capsys):
    lines = [f"say {chance},yes" for chance in random.Random(0).sample(range(10_000), 12)]
    (tmp_path / "same.csv").write_text("\n".join(["question,answer", *lines]))
    begin(tmp_path, dataset_id=str(tmp_path / "same.csv"))
    assert "all are 'yes': a model can only learn to say that" in " ".join(capsys.readouterr().out.split())


def test_before_a_push_the_table_says_what_goes_along(tmp_path, table, capsys, monkeypatch):
    from helpers.lesson import session

    monkeypatch.setattr(session.saving, "require_hub_base", lambda *words: None)
    given = {"columns": "prompt=Frage,completion=Antwort", "encoding": "cp1252"}
    begin(tmp_path, dataset_id=table, hub_repo="me/mine", **given)
    shown = " ".join(capsys.readouterr().out.split())
    assert "goes to the hub me/mine, a private repository: adapter, tokenizer," in shown
    assert "none of your rows" in shown
    begin(tmp_path, dataset_id=table, **given)
    assert "goes to the hub" not in capsys.readouterr().out


def test_a_file_that_was_edited_is_another_run_and_takes_no_checkpoint_of_the_old_rows(tmp_path):
    file = tmp_path / "mine.csv"
    lines = ["question,answer", *(f"question {n},answer {n}" for n in range(12))]
    folders = []
    for last in ("answer 11", "answer 11", "other"):
        file.write_text("\n".join([*lines[:-1], f"question 11,{last}"]))
        folders.append(begin(tmp_path, dataset_id=str(file)).checkpoints)
    assert folders[0] == folders[1] != folders[2]


# --- lesson 07: one CSV file, which the lesson reads with pandas ----------------------------------------------------------


def begin_07(tmp_path, **values):
    given = {"model_id": "bundled", "output_dir": str(tmp_path / "out"), "data_file": "auto", "encoding": "auto"}
    return lesson.begin("07_your_own_data", chat_model=True, **given | values)


LETTERS = 'Frage;Antwort\r\n"für wen – und\r\nwann?";NA\r\n"a;b";\r\n'


@pytest.mark.parametrize(
    ("written", "asked", "understood"),
    [
        ("utf-8-sig", "auto", "CSV, UTF-8 with a byte order mark, cells between ';'; 2 rows"),
        ("utf-8", "auto", "CSV, UTF-8, cells between ';'; 2 rows"),
        ("cp1252", "cp1252", "CSV, cp1252, cells between ';'; 2 rows"),
        ("utf-16", "auto", "CSV, utf-16, cells between ';'; 2 rows"),
        ("utf-8-sig", "cp1252", "CSV, UTF-8 with a byte order mark, cells between ';'; 2 rows"),
    ],
)
def test_how_pandas_has_to_read_a_table_of_ones_own_is_found_at_the_start(tmp_path, capsys, written, asked, understood):
    file = tmp_path / "mein.csv"
    file.write_bytes(LETTERS.encode(written))
    run = begin_07(tmp_path, data_file=str(file), encoding=asked)
    shown = " ".join(capsys.readouterr().out.split())
    assert f"mein.csv: {understood}" in shown
    assert str(tmp_path) not in shown
    read = pandas.read_csv(file, dtype=str, keep_default_na=False, **run.csv_form)
    assert read.values.tolist() == [["für wen – und\r\nwann?", "NA"], ["a;b", ""]]
    assert list(read) == ["Frage", "Antwort"]


def test_tabs_between_cells_are_found_too(tmp_path):
    (tmp_path / "mine.tsv").write_text("a\tb\nx, y\tz\n")
    run = begin_07(tmp_path, data_file=str(tmp_path / "mine.tsv"))
    assert pandas.read_csv(tmp_path / "mine.tsv", **run.csv_form).values.tolist() == [["x, y", "z"]]


def test_without_a_file_of_ones_own_the_form_is_that_of_the_courses_messages(tmp_path):
    assert begin_07(tmp_path).csv_form == {"encoding": "utf-8-sig", "sep": ","}


LATE = "Frage;Antwort\n" + "".join(f"Frage {n};Antwort {n}\n" for n in range(20_000))  # beyond what is looked at first


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ((LATE + "für;x\n").encode("cp1252"), 'line 20002: the byte 0xFC is no UTF-8. If the file comes from Windows'),
        ((LATE + "a;b;c\n").encode(), "line 20002: 3 cells, and the heading has 2 columns"),
        ((LATE + '"a;b\n').encode(), "line 20002: unexpected end of data"),
        (b"Frage;Antwort\n", "holds no rows below its heading"),
        (b"", "is empty"),
        (b"PK\x03\x04", "is a zip or an Excel file: save it as CSV"),
    ],
)  # fmt: skip
def test_what_is_wrong_anywhere_in_the_table_stops_at_the_start_in_one_line(tmp_path, content, words):
    (tmp_path / "mine.csv").write_bytes(content)
    with pytest.raises(CourseError) as error:
        begin_07(tmp_path, data_file=str(tmp_path / "mine.csv"))
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"data_file": "mine.csv"}, "data_file = 'mine.csv' is no file, seen from "),
        ({"data_file": "owner/name"}, "data_file = 'owner/name' is no file, seen from "),
        ({"encoding": "cp1252"}, "encoding = 'cp1252' is for a file of your own: name it as data_file"),
        ({"data_file": "mine.csv", "encoding": "klingon"}, "encoding = 'klingon' is not possible"),
    ],
)
def test_a_table_that_is_not_there_is_told_in_one_line(tmp_path, values, words):
    with pytest.raises(lesson.ParameterError) as error:
        begin_07(tmp_path, **values)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_another_format_is_told_to_become_csv(tmp_path):
    (tmp_path / "mine.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(lesson.ParameterError, match="holds JSON lines, and this lesson reads CSV"):
        begin_07(tmp_path, data_file=str(tmp_path / "mine.jsonl"))
