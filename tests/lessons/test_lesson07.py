"""Lesson 07: it trains on what was measured, its traps are real, its scores say what it claims."""

import contextlib
import copy
import csv
import html
import json
import math
import random
import re
import sys
from types import SimpleNamespace

import nbformat
import pandas
import papermill
import pytest

from helpers import COURSE_ROOT
from helpers.course import disk as course
from helpers.evaluation import fields_right, score_fields
from helpers.lesson import checks
from helpers.models import BUNDLED_MODEL
from helpers.plots import histogram, tokens_in_colour
from helpers.records import read_rows
from tests.cells import tagged
from tests.scripts import measuring_script

NOTEBOOK = course.to_notebook(course.find_lesson("07"))
MESSAGES = COURSE_ROOT / "assets" / "messages"
CODE = [one.source for one in NOTEBOOK.cells if one.cell_type == "code"]


def names_of(*tags, changed=(), **given):
    """The names that cells of the lesson define; `changed` are pairs of a text in them and what stands in its place."""
    names = {"json": json, "pandas": pandas} | given
    for tag in tags:
        source = tagged(NOTEBOOK, tag).source
        for old, new in changed:
            source = source.replace(old, new)
        exec(source, names)
    return names


def read_table(file, **form):
    source = tagged(NOTEBOOK, "read-table").source.partition("\nours = ")[0]
    names: dict = {"pandas": pandas}
    exec(source, names)
    return names["read_table"](file, **form)


def frame(name):
    return read_table(MESSAGES / f"{name}.csv")


ROWS = ("to-row", "write-and-read", "rows")


def own_task(table, asked, fields, task="Reply with a word."):
    """The lesson's names for a table of one's own, its three lines changed as it says."""
    lines = tagged(NOTEBOOK, "to-row").source.splitlines()[:3]
    new = [f"ASKED = {asked!r}", f"FIELDS = {fields!r}", f"TASK = {task!r}"]
    assert [line.partition(" = ")[0] for line in lines] == ["ASKED", "FIELDS", "TASK"]
    return names_of(*ROWS, changed=list(zip(lines, new, strict=True)), frame=table, file="own.csv")


@pytest.fixture(scope="module")
def script():
    return measuring_script("measure_own_data")


@pytest.fixture(scope="module")
def names():
    return names_of(*ROWS, frame=frame("messages"))


# --- rows ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["messages", "heldout", "by_hand"])
def test_the_lesson_and_the_measuring_script_make_the_same_conversations(name, script, names):
    theirs = [script.to_row(row) for row in script.rows_of(name)]
    assert list(map(names["to_row"], names["examples"](frame(name)))) == theirs
    assert len(theirs) == {"messages": 3840, "heldout": 240, "by_hand": 60}[name]


def test_an_expected_answer_scores_as_right_and_has_null_for_an_empty_cell(names):
    rows = names["examples"](frame("heldout"))
    answers = [names["to_row"](row)["completion"][0]["content"] for row in rows]
    assert score_fields(answers, [row["note"] for row in rows]).whole == 1
    assert any('"time":null' in answer for answer in answers)
    assert "\\u" not in "".join(answers)


def test_a_task_of_one_field_is_asked_for_one_word_and_scored_like_the_others():
    own = pandas.DataFrame(
        {"Text": ["Oslo is in", "Nobody knows", "Not labelled", ""], "Answer": ["Norway", "none", "", "x"]}
    )
    names = own_task(own, "Text", {"answer": "Answer"})
    assert names["usable"]["Text"].tolist() == ["Oslo is in", "Nobody knows"], "an empty note or text teaches nothing"
    rows = names["examples"](names["usable"])
    said = [names["to_row"](row)["completion"][0]["content"] for row in rows]
    assert said == ["Norway", "none"]
    wanted = [row["note"] for row in rows]
    assert wanted == [{"answer": "Norway"}, {"answer": None}]
    assert score_fields(map(names["read"], said, wanted), wanted).whole == 1
    assert score_fields([names["read"]("Sweden", wanted[0])], wanted[:1]).whole == 0


def test_an_empty_cell_among_others_is_null_and_its_row_is_kept():
    own = pandas.DataFrame({"Text": ["a", "b"], "Topic": ["price", ""], "City": ["", ""]})
    names = own_task(own, "Text", {"topic": "Topic", "city": "City"})
    assert [row["note"] for row in names["examples"](names["usable"])] == [{"topic": "price", "city": None}]


def test_the_bundled_model_has_read_no_brace():
    """The lesson's reason for a smaller task."""
    sys.path.insert(0, str(COURSE_ROOT / "assets"))
    import make_corpus

    assert not any(set("{}[]") & set(text) for text in make_corpus.documents(5000))


def test_by_default_pandas_takes_words_for_empty_cells(tmp_path):
    """The lesson's trap: if this fails, the trap is gone."""
    (tmp_path / "a.csv").write_text("Name,Country\nHana,NA\nNone,\n")
    careless = pandas.read_csv(tmp_path / "a.csv")
    assert careless.isna().values.tolist() == [[False, True], [True, True]]
    careful = pandas.read_csv(tmp_path / "a.csv", dtype=str, keep_default_na=False)
    assert careful.values.tolist() == [["Hana", "NA"], ["None", ""]]
    with pytest.raises(ValueError, match="not JSON compliant"):
        json.dumps(careless.iloc[0].to_dict(), allow_nan=False)


# --- templates ---------------------------------------------------------------------------------------------------


def test_the_template_that_the_lesson_gives_has_what_exercise_5_asks_for(capsys):
    source = next(code for code in CODE if "OWN_TEMPLATE =" in code)
    names: dict = {}
    exec(source.partition("tokenizer =")[0].replace("from transformers import AutoTokenizer", ""), names)
    checks.check("07.5", names["OWN_TEMPLATE"].replace("{{ bos_token }}", ""))
    assert capsys.readouterr().out == "Exercise 07.5: right.\n"


def shown(html):
    return re.findall(r'<span style="(background|color)[^"]*">(.*?)</span>', html.data, re.DOTALL)


@pytest.mark.parametrize(
    "text", ["für wen – und wann? 5 €", "plain", "日本 🎉", "a\n\nb  c", "ends in half a letter ü"]
)
def test_letters_of_several_tokens_are_shown_whole_and_in_the_colour_of_their_last(text):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(BUNDLED_MODEL)
    ids = tokenizer(text)["input_ids"]
    pieces = shown(tokens_in_colour(ids, [i % 2 for i in range(len(ids))], tokenizer.decode))
    assert len(pieces) == len(ids)
    assert "".join(piece for _, piece in pieces) == html.escape(tokenizer.decode(ids)).replace("\n", "&#8629;<br>")
    assert [colour for colour, _ in pieces] == ["background" if i % 2 else "color" for i in range(len(ids))]
    if text == "plain":
        assert [html.unescape(piece) for _, piece in pieces] == [tokenizer.decode([i]) for i in ids]


def test_half_a_letter_at_the_end_is_shown_as_such():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(BUNDLED_MODEL)
    half = tokenizer("ü")["input_ids"][:-1]
    assert tokenizer.decode(half).endswith("\ufffd"), "this needs a letter of two tokens"
    assert shown(tokens_in_colour(half, [0] * len(half), tokenizer.decode))[-1][1] == "\ufffd"


# --- lengths -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [[1, 2, 2, 5], list(range(97, 228)), [7], [60, 61, 3800], [0, 39], [0, 40]])
def test_every_bar_of_whole_numbers_counts_equally_many_of_them(values):
    """Else a flat distribution looks like a comb."""
    bars = histogram(values, "t", "x", "y").axes[0].patches
    widths = {round(bar.get_width(), 6) for bar in bars}
    assert len(widths) == 1
    assert widths.pop().is_integer()
    assert len(bars) <= 41
    assert sum(bar.get_height() for bar in bars) == len(values)


@pytest.mark.parametrize(("limit", "lines"), [(256, 1), (300, 1), (301, 0), (4096, 0), (None, 0)])
def test_a_limit_far_beyond_the_bars_is_not_drawn(limit, lines):
    drawn = histogram(range(50, 101), "t", "x", "y", line=limit, line_label="limit").axes[0].lines
    assert len(drawn) == lines


# --- scores --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ('{"name":"Mei","request":"book","place":null,"day":"Friday","time":"09:00"}', 1.0),
        ('{"name":"Amy","request":"book","place":null,"day":"Friday","time":"09:00"}', 0.8),
        ('{"name":"Mei","request":"book","place":null,"day":"Friday","time":"21:00"}', 0.0),
        ('{"name":"Mei","request":"book","place":null,"day":"Friday"}', 0.0),
        ('{"name":"Mei","request":"book","day":"Friday","time":"09:00"}', 0.8),
        ("I cannot do that.", 0.0), ("null", 0.0), ("[]", 0.0), ("7", 0.0),
    ],
)  # fmt: skip
def test_the_lessons_own_score_forgives_a_name_and_no_wrong_time(answer, right):
    wanted = {"name": "Mei", "request": "book", "place": None, "day": "Friday", "time": "09:00"}
    given = {"fields_right": fields_right, "FORGIVING": ("name", "place")}
    assert names_of("write-and-read", "own-score", **given)["score"](answer, wanted) == pytest.approx(right)


def test_exercise_3_has_three_labels_that_break_the_rules(capsys):
    text = next(one.source for one in NOTEBOOK.cells if one.cell_type == "markdown" and "temporary help" in one.source)
    rows = re.findall(r'^\d\. "(.*?)" `(\{.*?\})`$', text, re.MULTILINE)
    labels = [json.loads(label) for _, label in rows]
    corrected = {2: {"time": "16:00"}, 3: {"place": "Milan"}, 5: {"request": "book"}}
    assert len(rows) == 6
    for number, changed in corrected.items():
        right = labels[number - 1] | changed
        (field,) = changed
        assert [f for f, ok in fields_right(json.dumps(labels[number - 1]), right).items() if not ok] == [field]
    checks.check("07.3", set(corrected))
    assert capsys.readouterr().out == "Exercise 07.3: right.\n"


def test_the_lengths_of_exercise_6_are_those_of_its_check():
    from helpers.lesson.exercises.l07 import LENGTHS

    source = next(code for code in CODE if code.startswith("theirs ="))
    names: dict = {}
    exec(source.splitlines()[0], names)
    assert names["theirs"] == LENGTHS


def test_the_tuned_model_is_loaded_once_and_asked_one_message_as_it_was_trained(capsys, tmp_path):
    loaded, prompts = [], []

    def with_adapter(base, folder):
        loaded.append((base, folder))
        return SimpleNamespace(eval=lambda: "the tuned model")

    def ask(model, asked):
        prompts.append((model, *asked))
        return ["an answer"]

    names = {
        "held_rows": [{"asked": "Which?", "task": "Answer in a word."}],
        "model": None,
        "PeftModel": SimpleNamespace(from_pretrained=with_adapter),
        "plan": SimpleNamespace(guarded=contextlib.nullcontext),
        "load": lambda: "the base",
        "ask": ask,
        "adapter": tmp_path / "adapter-of-quiz",
        "turns_of": lambda text, task: [task, text],
        "prompt_of": " | ".join,
    }
    source = tagged(NOTEBOOK, "ask-it").source
    for text in ('held_rows[-1]["asked"]', '"My own message"'):
        exec(source.replace('mine = held_rows[-1]["asked"]', f"mine = {text}"), names)
    assert loaded == [("the base", str(tmp_path / "adapter-of-quiz"))]
    asked = ["Answer in a word. | Which?", "Answer in a word. | My own message"]
    assert prompts == [("the tuned model", prompt) for prompt in asked]
    assert (
        "asked: My own message\nanswered: an answer\nby the adapter in the folder adapter-of-quiz"
        in capsys.readouterr().out
    )


def test_the_message_of_ones_own_is_the_first_line_of_its_cell_and_no_other_cell_asks_for_one():
    assert tagged(NOTEBOOK, "ask-it").source.startswith('mine = held_rows[-1]["asked"]  # or a text of your own')
    assert sum("a text of your own" in code for code in CODE) == 1


# --- the whole lesson, on a file of one's own ----------------------------------------------------------------------------


def run_lesson(folder, lines=(), changed=(), **parameters):
    """(what the lesson showed, as text; what it recorded): with other parameters, the lines that it says to change, and
    `changed`, which has for the tag of a cell a text in it and what stands in its place.
    """
    notebook = copy.deepcopy(NOTEBOOK)
    rows = tagged(notebook, "to-row")
    rows.source = "\n".join([*lines, *rows.source.splitlines()[len(lines) :]])
    for tag, (old, new) in dict(changed).items():
        cell = tagged(notebook, tag)
        assert cell.source.count(old) == 1
        cell.source = cell.source.replace(old, new)
    nbformat.write(notebook, folder / "lesson.ipynb")
    done = papermill.execute_notebook(
        str(folder / "lesson.ipynb"), str(folder / "done.ipynb"), parameters=parameters | {"output_dir": str(folder / "run")},
        kernel_name="python3", cwd=str(COURSE_ROOT), progress_bar=False,
    )  # fmt: skip
    outputs = [output for cell in done.cells if cell.cell_type == "code" for output in cell.outputs]
    texts = [str(o.get("text", "")) + str(o.get("data", {}).get("text/html", "")) for o in outputs]
    return html.unescape("\n".join(texts)), json.loads(
        (folder / "run" / "07_your_own_data.json").read_text(encoding="utf-8")
    )


def test_a_table_as_a_german_spreadsheet_writes_it_goes_through_the_whole_lesson(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_STRICT", "0")  # two steps teach nothing, and a learner's run goes on
    kinds = {
        "Versand": "Wo bleibt mein Paket {}? Ich wohne in Köln.",
        "Konto": "Bitte löschen Sie\nmein Konto {} – danke!",
    }
    with open(tmp_path / "Anfragen März.csv", "w", encoding="cp1252", newline="") as file:
        rows = csv.writer(file, delimiter=";")
        rows.writerow(["Nr", "Anliegen ", "Kunde", "Kategorie"])
        for n in range(40):
            kind = list(kinds)[n % 2]
            rows.writerow([n, kinds[kind].format(random.Random(n).random()), f"K{n % 8}", "" if n % 10 == 3 else kind])
    lines = ['ASKED = "Anliegen"', 'FIELDS = {"kategorie": "Kategorie"}', 'TASK = "Antworte mit der Kategorie."']
    by_customer = {"split": ("GROUP = None", 'GROUP = "Kunde"')}
    own = {"data_file": str(tmp_path / "Anfragen März.csv"), "encoding": "cp1252"}
    told, record = run_lesson(tmp_path, lines, by_customer, max_steps=2, eval_rows=3, max_new_tokens=4, **own)
    assert "Anfragen März.csv: CSV, cp1252, cells between ';'; 40 rows" in told
    assert "36 of 40 rows have a message and something to note" in told
    assert "8 groups, each on one side" in told
    assert "Ich wohne in Köln." in re.sub(r"</?span[^>]*>", "", told)
    assert "\ufffd" not in told
    assert record["rows_learned"] + 3 <= 36
    assert (record["rows_scored"], list(record["fields_after"])) == (3, ["kategorie"])
    assert (tmp_path / "run" / "adapter-of-Anfragen März" / "adapter_model.safetensors").is_file()


def test_a_real_chat_model_learns_the_form_in_the_lessons_own_minute_of_training(smollm2, tmp_path):
    told, record = run_lesson(tmp_path, model_id="smollm2-135m", eval_rows=20)
    assert "SmolLM2-135M-Instruct" in record["run"]["model"]
    assert (record["rows_learned"], record["rows_scored"], record["whole_before"]) == (3840, 20, 0)
    assert record["valid_after"] >= 0.9
    assert record["fields_after"]["name"] > 0.4, "nearly each name stands in its message"
    assert "20 of 4 rows" in told


def test_the_harness_counts_the_exact_answers_that_the_lesson_counts(tmp_path, monkeypatch):
    pytest.importorskip(
        "lm_eval", reason="lm-eval, a package that the lesson calls optional, is missing: pip install lm-eval"
    )
    monkeypatch.setenv("COURSE_STRICT", "0")  # eight steps are too few for some of the lesson's claims
    mislabelled = 'for line in lines[:5]:\n    line["wanted"] += "!"\npandas.DataFrame(lines)'
    told, _ = run_lesson(
        tmp_path, changed={"harness-task": ("pandas.DataFrame(lines)", mislabelled)}, max_steps=8, eval_rows=24
    )
    by_harness, by_lesson = re.search(r"exactly right: (\d+)% by the harness, (\d+)% by this lesson", told).groups()
    assert by_harness == by_lesson
    assert 0 < int(by_harness) < 70, "five of sixteen rows cannot be right"
    assert "OK: the harness and this lesson count the same exact answers" in told


# --- what was measured ---------------------------------------------------------------------------------------------


def measured(what, scored=""):
    rows = read_rows(COURSE_ROOT / "measurements" / "smollm2_own_data.jsonl")
    return [row for row in rows if row["what"] == what and scored in row["scored"]]


def test_the_scores_at_the_top_are_none_before_training_and_five_in_six_after():
    """That they are what the recorded answers score, tests/evaluation/test_own_data.py holds."""
    (before,), (after,) = measured("result", "before"), measured("result", "held out, after")
    assert before["right"] == 0
    assert after["right"] >= 0.85


def test_what_the_lesson_trains_by_itself_is_a_ninety_sixth_part():
    from helpers.models import RECIPES

    recipe, (row,) = RECIPES["smollm2-135m"], measured("result", "held out, after")
    assert recipe["max_steps"] * recipe["batch_size"] == 80
    assert row["steps"] * row["batch"] == 96 * recipe["max_steps"] * recipe["batch_size"]
    assert (row["steps"], row["batch"], row["rank"], row["learning_rate"]) == (480, 16, 32, 1e-3)
    assert row["learned"] == 3840
    assert 150 < row["train_clock_seconds"] < 210  # "three minutes"


def test_what_the_added_sentences_changed_and_what_the_added_names_did_not():
    """Two shares of 120 rows each: two standard errors of their difference stand for what chance explains."""
    (first,), (more,) = measured("the first 52 sentences"), measured("all sentences")

    def errors(of):
        one, two = of(first), of(more)
        return (two - one) / math.sqrt((one * (1 - one) + two * (1 - two)) / first["rows"])

    assert round(100 * (more["fields"]["request"] - first["fields"]["request"])) == 10
    assert errors(lambda row: row["fields"]["request"]) > 2
    assert abs(errors(lambda row: row["right"])) < 2
    assert -2 < errors(lambda row: row["fields"]["time"]) < 0
    (before,), (after,) = measured("first result", "by hand"), measured("result", "by hand")
    assert after["fields"]["place"] == before["fields"]["place"]
    changed = [name for name in ("rank", "learning_rate", "batch", "epochs") if before[name] != after[name]]
    assert changed == ["rank", "learning_rate", "batch", "epochs"]
    assert {after["steps"] / row["steps"] for row in measured("curve")} == {2}


def test_more_different_rows_were_better_at_every_point_of_the_curve():
    rows = sorted(measured("curve"), key=lambda row: row["learned"])
    assert [row["learned"] for row in rows] == [50, 100, 200, 400, 960, 3840]
    assert [row["right"] for row in rows] == sorted(row["right"] for row in rows)
    assert {(row["steps"], row["batch"], row["rows"]) for row in rows} == {(240, 16, 120)}


def test_equally_many_rows_of_more_sentences_had_more_requests_right():
    (few,), (many,) = measured("the first 52 sentences"), measured("all sentences")
    same = ("learned", "steps", "batch", "rank", "learning_rate", "seed", "rows")
    assert [few[name] for name in same] == [many[name] for name in same]
    assert many["fields"]["request"] > few["fields"]["request"]
    assert many["right"] > few["right"]


def test_a_file_without_a_column_that_is_asked_for_is_told_so_by_name():
    own = pandas.DataFrame({"Review text": ["Fine"], "Name": ["x"]})
    with pytest.raises(
        AssertionError, match="no column .*Message.* in own.csv: it has .*'Review text'.*the three lines"
    ):
        names_of("to-row", frame=own, file="own.csv")
